"""What a throw-away client answers to the questions of a run, held against their forms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedprune.client.adapted import trial_adapters
from fedprune.client.batched import misfit
from fedprune.client.teacher import distils
from fedprune.client.trial_client import TrialClient, answered_in_trial
from fedprune.learning.options import trains
from fedprune.options.refusal import refuse
from fedprune.protocol.choice import evidence_about
from fedprune.protocol.forms import form_of
from fedprune.protocol.parts_asked import asked_at_once
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS, before_of
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import ByBlock, Evidence, Score
from fedprune.structure.groups import stages_of
from fedprune.tasks.declared import Declared
from fedprune.tensors.lazy import as_doubles, shapes_of
from fedprune.tensors.models import load_into


def try_measuring(trial: TrialClient) -> None:
    """The sums of the held-out parts, and the metric that they give."""
    kinds = [trial.question("evaluate", part=part) for part in ("validation", "test")]
    totals = {
        k: v for question in kinds for k, v in answered_in_trial(trial, question).totals.items()
    }
    Declared(trial.client.task, trial.client.config).check_metric(totals)


def try_score(trial: TrialClient) -> None:
    """Put the asks of the score one after the other, and score by what came back."""
    c, client = trial.client.config, trial.client
    score = scores_of(c.plugin)[c.score]
    collected = c.score_during == "tune" or c.masks != "global"
    if c.sparsity == 0.0 or score.most or collected:  # with `most`: a pass for every unit
        return
    evidence = _evidence(trial)
    names = asked_at_once(score, client.model, c, client.layout)[0]
    for i, ask in enumerate(score.asks):
        given = {} if ask.given is None else ask.given(evidence)
        given = {n: t.float() for n, t in given.items()}
        own = i == len(score.asks) - 1 and not combines_of(c.plugin)[c.combine].pooled
        what: dict[str, Any] = {"score": c.score, "ask": i, "given": given, "names": names}
        question = trial.question("score", **what, sparsity=c.sparsity if own else None)
        values = answered_in_trial(trial, question).values
        if own:
            return
        sums = as_doubles(form_of(question, c, client.layout).named(values, shared=True))
        evidence = replace(evidence, sums=sums, given=given)
    if score.step is not None:
        return
    whole = names or client.layout.prunable
    for some in _tried_together(score, whole, trial):
        weights, masks = ({n: t[n] for n in some} for t in (evidence.weights, evidence.masks))
        part = replace(evidence, weights=weights, masks=masks)
        _check_scored(score.finalise(part), some, trial)


def _tried_together(score: Score, names: Sequence[str], trial: TrialClient) -> list[Sequence[str]]:
    """Which tensors are scored at once: all, or one of each shape where a score is of each alone.

    Of a large model all scores, float64, take twice the memory of its weights, and minutes.
    """
    if not score.apart:
        return [names]
    if isinstance(score.finalise, ByBlock):
        return [[n for n in stage if n in names] for stage in stages_of(trial.client.layout)[:1]]
    return [[name] for name in {trial.weights[n].shape: n for n in names}.values()]


def _evidence(trial: TrialClient) -> Evidence:
    c, client = trial.client.config, trial.client
    question = trial.question("score")
    load_into(client.model, question.weights)
    count = float(client.task.labels(client.shard.train))
    dummy = None if client.task.dummy is None else client.task.dummy(c)
    about = {"sums": {}, "count": count, "model": client.model, "dummy": dummy}
    held = (question.weights, question.masks, question.round)
    return evidence_about(held, client.layout.prunable, c, client.layout, **about)


def _check_scored(scores: Any, names: Sequence[str], trial: TrialClient) -> None:
    wanted = {n: trial.weights[n].shape for n in names}
    if not isinstance(scores, dict) or shapes_of(scores) != wanted:
        c = trial.client.config
        found = shapes_of(scores) if isinstance(scores, dict) else type(scores).__name__
        reason = f"its finalise gives {str(found)[:100]}"
        each = f"one tensor of the same name and shape for each of {len(wanted)} tensors"
        refuse("score", c.score, reason, each)


def try_tuning(trial: TrialClient) -> None:
    """One step of training, with what goes along: statistics, a mask of its own, a teacher."""
    c, client, what = trial.client.config, trial.client, dict[str, Any]()
    if not trains(c):
        return
    if c.sparsity != 0.0 and (c.score_during == "tune" or c.masks != "global"):
        what |= {"score": c.score, "sparsity": None if c.masks == "global" else c.sparsity}
    question = trial.question("tune", lr=c.lr, **what)
    beside, masks = trial_adapters(client, trial.weights, question.masks)
    if beside:
        question = replace(question, masks=masks, **beside)
    if distils(c):
        question = replace(question, teacher=b"its own", distil=1.0)
        own = copy.deepcopy(client.model).eval()
        load_into(own, trial.weights)
        trial = replace(trial, client=replace(client, teacher=own.requires_grad_(False)))
    answered_in_trial(trial, question)


def try_batched(trial: TrialClient) -> None:
    """One step of clients with unequal shards, together: what each of them does by itself."""
    c, client = trial.client.config, trial.client
    if c.batched > 1:
        question = trial.question("tune", lr=c.lr)
        why = misfit(question, client)
        if why:
            refuse("batched", c.batched, f"the model cannot train for several: {why}", "1")


def try_sums(trial: TrialClient) -> None:
    """The sums of inputs that least squares and redundancy are computed from."""
    c, client = trial.client.config, trial.client
    if c.reconstruct is not None and c.sparsity != 0.0:
        names, given = client.layout.prunable, dict[str, Tensor]()
        if RECONSTRUCTIONS[c.reconstruct].needs_before:
            given = {before_of(n): trial.weights[n] for n in names}
        answered_in_trial(trial, trial.question(c.reconstruct, names=names, given=given))

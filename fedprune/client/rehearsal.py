"""Before round one: a small batch goes through all that clients will be asked, and is checked.

Where model and data meet (`fedprune.client.host.build_host`) a copy of the model answers for a few
examples of one partition as a client would: loss, measuring, scoring, tuning. What a task says of
itself is held against what came out. Nothing is kept: weights, buffers and generators of the model
that a run uses are as they were. Nothing leaves the process but the one line of a refusal.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.client.answers import answer
from fedprune.client.batched import misfit
from fedprune.client.context import ClientContext
from fedprune.client.teacher import distils
from fedprune.client.tokens import special_tokens_of
from fedprune.config import RunConfig
from fedprune.learning.local_training import Train, tune
from fedprune.learning.options import trains
from fedprune.options.refusal import ConfigError, Refused, refuse
from fedprune.protocol.checks import check_summand
from fedprune.protocol.choice import evidence_about
from fedprune.protocol.forms import LARGEST_NUMBER, form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.randomness import seeded
from fedprune.redundancy.moments import measurable
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS, before_of
from fedprune.runtime.guarding import allowance, guarded
from fedprune.runtime.process import put_back
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.inputs import rows_of
from fedprune.scores.score import Evidence
from fedprune.structure.edits import Edit
from fedprune.structure.layout import Layout
from fedprune.structure.reach import unaccounted
from fedprune.structure.tables import embedding_path
from fedprune.structure.vocabulary import cut_vocabulary
from fedprune.tasks.causality import leak, logits_of, reads_padding
from fedprune.tasks.declared import Declared
from fedprune.tasks.task import Part, Shard, Task, examples
from fedprune.tensors import Tensors, copied, full_masks, load_into, shapes_of, state_of

EXAMPLES_TRIED = 4
"""How many of a partition's examples are tried."""

PARTITIONS_TRIED = 3
"""How many partitions are tried: one that fails by itself is no reason not to run."""

REHEARSAL_SECONDS = 60.0
"""Seconds that the rehearsal has at least: a short ``--timeout`` is about answers alone."""

PASSES = 64
"""How many examples may go through until every layer has been called."""


@dataclass(frozen=True)
class TrialClient:
    """A throw-away client.

    Attributes:
        client: a copy of the model and a few examples.
        weights: of the model as it is before round one.
        others: shards of other partitions, for layers that few examples reach.
    """

    client: ClientContext
    weights: Tensors
    others: Mapping[int, Shard]

    def question(self, kind: str, **what: Any) -> Question:
        """A question about the model as it is."""
        masks = full_masks(self.weights, self.client.layout.prunable)
        return Question(kind, 1, self.weights, masks, **what)


def try_out(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    layout: Layout,
    shards: Mapping[int, Shard],
    train: Train = tune,
) -> None:
    """Try everything that a run will ask on a few examples.

    Args:
        task: what is learned.
        config: complete configuration.
        model: before round one, where it will compute; left as it is.
        layout: its layout.
        shards: of the partitions that are served here.
        train: how clients tune.

    Raises:
        ConfigError: the task, the model and the data do not fit together, or a score's statistics
            are not to be had of this model.
    """
    with put_back(), seeded(config.seed, "rehearsal"):
        failed: list[Exception] = []
        partitions, share = _partitions(shards), allowance(max(config.timeout, REHEARSAL_SECONDS))
        for i, partition in enumerate(partitions):
            trial = _trial(task, config, model, layout, shards, partition, train)
            try:
                guarded(functools.partial(_tried, trial), share(len(partitions) - i))
                return
            except Exception as error:  # whatever code of a user's own raises
                failed.append(error)
        raise ConfigError(_line(failed[0], "the rehearsal", config, model)) from failed[0]


def _line(error: Exception, what: str, config: RunConfig, model: nn.Module) -> str:
    """One line about an error in a part of the rehearsal, in the form of all of them."""
    line = " ".join(str(error).split())[:400]
    if "; allowed: " in line:
        return line
    kind = error.field if isinstance(error, Refused) else type(error).__name__
    reason = f"{what} of {EXAMPLES_TRIED} examples fails{_within(error, model)}: {kind}: {line}"
    return f"task={config.task!r}: {reason}; allowed: a model, data and a score that fit together"


def _within(error: Exception, model: nn.Module) -> str:
    """Which layer of the model raised an error, the innermost: its path and kind; "" if none."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        if id(module) in paths:
            found = f" in {paths[id(module)] or 'its model'} ({type(module).__name__})"
        frame = frame.tb_next
    return found


def _partitions(shards: Mapping[int, Shard]) -> list[int]:
    """Partitions to try: those with more than one example first, as BatchNorm needs two."""
    by_size = sorted(shards, key=lambda p: (examples(shards[p].train) < 2, p))
    return by_size[:PARTITIONS_TRIED]


def _trial(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    layout: Layout,
    shards: Mapping[int, Shard],
    partition: int,
    train: Train,
) -> TrialClient:
    shard = shards[partition]
    few = Shard(*(_first(part) for part in (shard.train, shard.validation, shard.test)))
    own = copy.deepcopy(model)
    device = next(own.parameters()).device
    where = (partition, few, own, task, _brief(config), layout, device, own)
    client = ClientContext(*where, train=train)
    return TrialClient(client, copied(state_of(model)), shards)


def _first(part: Part) -> Part:
    return {name: t[:EXAMPLES_TRIED] for name, t in part.items()}


def _brief(config: RunConfig) -> RunConfig:
    """The configuration with one step of a few examples, and as few probes as there can be."""
    changes: dict[str, Any] = {"local_steps": 1, "local_epochs": 0, "accumulate": 1}
    changes |= {"batch_size": EXAMPLES_TRIED, "compile": False}
    changes |= {"probes": None if config.probes is None else 2}
    return config.model_copy(update=changes)


def _tried(trial: TrialClient) -> None:
    """Everything that a run will ask of a client, once."""
    for what, step in _STEPS.items():
        try:
            step(trial)
        except Exception as error:
            line = _line(error, what, trial.client.config, trial.client.model)
            raise ConfigError(line) from error


def _check_losses(trial: TrialClient) -> None:
    client, declared = trial.client, Declared(trial.client.task, trial.client.config)
    declared.check_names(client.shard.train)
    model, (batch,) = client.model.eval(), client.moved(iter([client.shard.train]))
    with seeded(0, "rehearsal"):
        loss = declared.check_loss(model, batch)
    parts = {
        f"shard {p}'s {name}": getattr(shard, name)
        for p, shard in trial.others.items()
        for name in ("train", "validation", "test")
    }
    declared.check_labels(parts, loss, batch)
    with torch.no_grad():
        declared.check_sum(model, batch, loss)
        found = leak(model, client.task.loss, batch)
        padded = reads_padding(model, client.task.loss, batch)
    c = client.config
    key, value = ("model", c.model) if c.model else ("task", c.task)
    if padded:
        what = "padding moves what it says of a text"
        refuse(key, value, what, "a classifier that leaves out what the attention mask hides")
    if found:
        refuse(
            key,
            value,
            f"{found} moves the logits before it: the model reads what it is to foretell",
            "a causal model (of an encoder's family: with is_decoder true in its config.json), "
            "or a task that hides symbols (masked-language-modelling)",
        )
    _check_dummy(trial, batch)


@torch.no_grad()
def _check_vocabulary(trial: TrialClient) -> None:
    """Refuse a model whose logits are not those of the same tokens once one that is unused is gone.

    Such as one that multiplies by its table by hand: its logits would be of other tokens.
    """
    client, task = trial.client, trial.client.task
    ids = [client.shard.train[name] for name in task.tokens if name in client.shard.train]
    if client.config.vocabulary != "used" or client.config.init or not ids:
        return
    (batch,), cut = client.moved(iter([client.shard.train])), copy.deepcopy(client.model).eval()
    path = embedding_path(cut)
    size = len(cut.get_submodule(path).weight)  # type: ignore[arg-type]
    marks, unknown = special_tokens_of(task, client.config, cut)
    there = {*marks, *torch.cat([t.flatten() for t in ids]).tolist()}
    gone = next((i for i in range(size) if i not in there), None)
    if gone is None:
        return
    kept = tuple(i for i in range(size) if i != gone)
    cut_vocabulary(cut, Edit("vocab", path, kept, str(unknown)))
    before, after = (logits_of(m, task.loss, batch)[0] for m in (client.model.eval(), cut))
    if before is None or after is None or before.shape[-1] < size:
        return
    same = before.shape == after.shape
    if not same or not torch.allclose(before[..., kept], after[..., kept], atol=1e-4, rtol=1e-4):
        what = f"without the rows of {path} that nobody uses its logits are of other tokens"
        allowed = "full, or a head of output that is an nn.Linear"
        refuse("vocabulary", "used", what, allowed)


@torch.no_grad()
def _check_dummy(trial: TrialClient, batch: Part) -> None:
    """The example without data goes through the loss, also as long a text as there can be."""
    client, c = trial.client, trial.client.config
    if client.task.dummy is None:
        return
    (dummy,) = client.moved(iter([client.task.dummy(c)]))
    client.task.loss(client.model, dummy)
    texts = [name for name in client.task.tokens[:1] if name in dummy and c.length is not None]
    for name in texts:
        marks = batch.get("attention", torch.zeros_like(batch[name]))[:1] == 1
        for token in batch[name].unique()[:2]:  # one of them is not the padding
            full = {**dummy, name: torch.where(marks, batch[name][:1], token)}
            try:
                client.task.loss(client.model, full)
            except (IndexError, RuntimeError) as error:
                refuse("length", c.length, f"a text as long fails: {error}", "a smaller one")


def _answered(trial: TrialClient, question: Question) -> Answer:
    """What the trial answers, if it is what a server would take."""
    c, client = trial.client.config, trial.client
    given = answer(question, client)
    form = replace(form_of(question, c, client.layout), weighed=True)
    if c.dp != "none":  # totals that stay with a client are taken out when its answer leaves it
        form = replace(form, totals=frozenset(given.totals), noisy=True)
    if c.dp != "none" or question.kind == "tune":  # a rate that is too high fails in its rounds
        form = replace(form, within=(-LARGEST_NUMBER, LARGEST_NUMBER), positive=False)
    check_summand(given.values, given.weight, given.totals, form, given.statistics)
    return given


def _check_measuring(trial: TrialClient) -> None:
    """The sums of the held-out parts, and the metric that they give."""
    kinds = [trial.question("evaluate", part=part) for part in ("validation", "test")]
    totals = {k: v for question in kinds for k, v in _answered(trial, question).totals.items()}
    Declared(trial.client.task, trial.client.config).check_metric(totals)


def _check_score(trial: TrialClient) -> None:
    """Put the asks of the score one after the other, and score by what came back."""
    c, client = trial.client.config, trial.client
    score, names = scores_of(c.plugin)[c.score], client.layout.prunable
    collected = c.score_during == "tune" or c.masks != "global"
    if c.sparsity == 0.0 or score.most or collected:  # with `most`: a pass for every unit
        return
    evidence = _evidence(trial)
    for i, ask in enumerate(score.asks):
        given = {} if ask.given is None else ask.given(evidence)
        given = {n: t.float() for n, t in given.items()}
        own = i == len(score.asks) - 1 and not combines_of(c.plugin)[c.combine].pooled
        what: dict[str, Any] = {"score": c.score, "ask": i, "given": given}
        question = trial.question("score", **what, sparsity=c.sparsity if own else None)
        values = _answered(trial, question).values
        if own:
            return
        sums = form_of(question, c, client.layout).named(values.double())
        evidence = replace(evidence, sums=sums, given=given)
    if score.step is None:
        _check_scored(score.finalise(evidence), names, trial)


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


def _check_tuning(trial: TrialClient) -> None:
    """One step of training, with what goes along: statistics, a mask of its own, a teacher."""
    c, client, what = trial.client.config, trial.client, dict[str, Any]()
    if not trains(c):
        return
    if c.sparsity != 0.0 and (c.score_during == "tune" or c.masks != "global"):
        what |= {"score": c.score, "sparsity": None if c.masks == "global" else c.sparsity}
    question = trial.question("tune", lr=c.lr, **what)
    if distils(c):
        question = replace(question, teacher=b"its own", distil=1.0)
        own = copy.deepcopy(client.model).eval()
        load_into(own, trial.weights)
        trial = replace(trial, client=replace(client, teacher=own.requires_grad_(False)))
    _answered(trial, question)


def _check_batched(trial: TrialClient) -> None:
    """One step of clients with unequal shards, together: what each of them does by itself."""
    c, client = trial.client.config, trial.client
    if c.batched > 1:
        question = trial.question("tune", lr=c.lr)
        why = misfit(question, client)
        if why:
            refuse("batched", c.batched, f"the model cannot train for several: {why}", "1")


def _check_sums(trial: TrialClient) -> None:
    """The sums of inputs that least squares and redundancy are computed from."""
    c, client = trial.client.config, trial.client
    if c.reconstruct is not None and c.sparsity != 0.0:
        names, given = client.layout.prunable, dict[str, Tensor]()
        if RECONSTRUCTIONS[c.reconstruct].needs_before:
            given = {before_of(n): trial.weights[n] for n in names}
        _answered(trial, trial.question(c.reconstruct, names=names, given=given))


def _check_inputs(trial: TrialClient) -> None:
    """Refuse weights whose inputs would be summed and cannot all be seen, by name."""
    client, model = trial.client, trial.client.model.eval()
    load_into(model, trial.weights)

    @torch.no_grad()
    def passed(batch: Part) -> None:
        client.task.loss(model, batch)

    for key, names in _summed(trial).items():
        passes = (functools.partial(passed, batch) for batch in client.moved(_some(trial)))
        lost = unaccounted(model, names, passes)
        if lost:
            name, why = next(iter(lost.items()))
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            value = vars(client.config)[key]
            allowed = f"--exclude {name}, or another {key}"
            refuse(key, value, f"the inputs of {name} cannot be summed: {why}{more}", allowed)


def _some(trial: TrialClient) -> Iterator[Part]:
    """The trial's batch, then single examples of one partition after the other."""
    yield trial.client.shard.train
    parts = [shard.train for shard in trial.others.values()]
    for i in range(PASSES):
        part, at = parts[i % len(parts)], i // len(parts)
        if at < examples(part):
            yield {name: t[at : at + 1] for name, t in part.items()}


def _summed(trial: TrialClient) -> dict[str, Sequence[str]]:
    """By option, the weights whose inputs it has summed."""
    c, layout = trial.client.config, trial.client.layout
    names, out = layout.prunable, dict[str, Sequence[str]]()
    shapes: set[str] = set()
    for ask in scores_of(c.plugin)[c.score].asks:
        shapes |= ask.shapes(layout, names, c.unit, c.probes or 0).keys()
    if c.sparsity != 0.0:
        out["score"] = [n for n in names if rows_of(n) in shapes]
    if c.sparsity != 0.0 and c.reconstruct is not None:
        out["reconstruct"] = names
    if {"dead", "merge"} & set(c.reduce) or c.rank_by == "activations":
        out["reduce"] = measurable(trial.client.model, layout)
    return {key: found for key, found in out.items() if found}


_STEPS: dict[str, Callable[[TrialClient], None]] = {
    "the loss": _check_losses,
    "a smaller vocabulary": _check_vocabulary,
    "measuring": _check_measuring,
    "watching layers": _check_inputs,
    "scoring": _check_score,
    "tuning": _check_tuning,
    "training together": _check_batched,
    "summing inputs": _check_sums,
}

"""The client's half of scoring: statistics on the shard, and what is released of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedprune.client.context import Batches, ClientContext
from fedprune.client.dp_sgd import noised_statistics
from fedprune.client.memory import keeps, memory_of
from fedprune.codec.wire import SCORE_TYPES, pack, values_of
from fedprune.options.refusal import Refused
from fedprune.privacy.randomised_response import flip_probability, responded
from fedprune.protocol.choice import Wanted, chosen, chosen_by, evidence_about
from fedprune.protocol.client_privacy import finite
from fedprune.protocol.forms import fitting
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.noise import source_for
from fedprune.protocol.votes import vote_units_of
from fedprune.randomness import derive, generator
from fedprune.redundancy.calibration import MAGNITUDES
from fedprune.redundancy.moments import MOMENTS
from fedprune.redundancy.reconstruction import OUTPUTS
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import NORMALISE, combines_of, l1_normalised
from fedprune.scores.inputs import unseen
from fedprune.scores.score import (
    Evidence,
    Probe,
    Statistic,
)
from fedprune.scores.together import collect_together
from fedprune.structure.groups import stages_of
from fedprune.tasks.task import Part, batches, examples
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Masks, Tensors, copied, gathered, masked, scattered


def client_probe(
    question: Question, client: ClientContext, names: tuple[str, ...], given: Tensors
) -> Probe:
    """What a client takes a statistic from, of the tensors named."""
    c, own = client.config, client.memory
    kept: dict[str, Any] = {}
    if question.kind == "score" and memory_of(question, c):
        before = own.recall(REMEMBERED)
        kept["remembered"] = {n: t.to(client.device, copy=True) for n, t in before.items()}
        kept |= {"remember": functools.partial(own.keep, REMEMBERED)} if keeps(question, c) else {}
    return Probe(
        client.model,
        client.layout,
        names,
        Batches(client, _examples(question, client)),
        client.task.loss,
        question.masks,
        {n: t.to(client.device) for n, t in given.items()},
        c.unit,
        c.probes or 0,
        derive(c.seed, "score", question.round),
        c.gradient_blocks,
        **kept,
    )


REMEMBERED = "score"
"""What a score remembers."""


def _examples(question: Question, client: ClientContext) -> Part:
    """The training examples that a client is scored on: all, or some drawn for the round."""
    c, part = client.config, client.shard.train
    if c.score_examples is None or c.score_examples >= examples(part) or question.kind in _FITS:
        return part
    gen = generator(c.seed, "calibration", question.round, client.partition)
    drawn = torch.randperm(examples(part), generator=gen)[: c.score_examples]
    return next(batches(part, c.score_examples, drawn.sort().values))


_FITS = ("inputs", "outputs", "magnitudes")
"""Questions about inputs, for redundancy, least squares and quantising: no scores."""


def _evidence(
    question: Question, client: ClientContext, names: tuple[str, ...], **more: Any
) -> Evidence:
    labels = client.task.labels(_examples(question, client))
    held = (question.weights, question.masks, question.round)
    return evidence_about(held, names, client.config, client.layout, count=labels, **more)


def answer_score(question: Question, client: ClientContext, sums: Tensors | None = None) -> Answer:
    """The client's summand for one ask of a score, from its sums where these are there already."""
    ask = scores_of(client.config.plugin)[question.score].asks[question.ask]
    names = question.names or client.layout.prunable
    client.model.eval()
    if client.config.calibration == "local" and not question.dense:
        labels = client.task.labels(_examples(question, client))
        votes = _told(_own_mask_in_stages(question, client), question, client, names)
        return Answer(torch.empty(0), 1.0, {"count": float(labels)}, votes)
    probe = client_probe(question, client, names, question.given)
    if client.config.dp == "example":
        return _statistic(question, client, names, noised_statistics(question, client, probe))
    dead = {} if question.dense else question.masks
    sums = cleared(copied(ask.collect(probe) if sums is None else sums), dead)
    return _statistic(question, client, names, sums)


def sums_together(question: Question, clients: Sequence[ClientContext]) -> list[Tensors] | None:
    """What the clients sum for an ask of a score, at once; None where each has to by itself."""
    first = clients[0]
    if first.config.calibration == "local" and not question.dense:
        return None
    ask = scores_of(first.config.plugin)[question.score].asks[question.ask]
    names = question.names or first.layout.prunable
    first.model.eval()
    probes = [client_probe(question, client, names, question.given) for client in clients]
    return collect_together(ask, probes)


def answer_inputs(question: Question, client: ClientContext) -> Answer:
    """The client's Σ x xᵀ of the layers asked about (`fedprune.redundancy.moments`)."""
    return _sums_of(MOMENTS, question, client)


def answer_outputs(question: Question, client: ClientContext) -> Answer:
    """The same and Σ y xᵀ, y of the model that goes along (`redundancy.reconstruction`)."""
    return _sums_of(OUTPUTS, question, client)


def answer_magnitudes(question: Question, client: ClientContext) -> Answer:
    """Sizes of what goes into the layers asked about (`fedprune.redundancy.calibration`)."""
    return _sums_of(MAGNITUDES, question, client)


def _sums_of(ask: Statistic, question: Question, client: ClientContext) -> Answer:
    names = question.names or client.layout.prunable
    client.model.eval()
    sums = copied(ask.collect(client_probe(question, client, names, question.given)))
    labels = client.task.labels(client.shard.train)
    return Answer(gathered(sums, {}).float(), 1.0, {"count": float(labels)})


def cleared(sums: Tensors, masks: Masks) -> Tensors:
    """The same with 0.0 where something was removed, whatever stands there."""
    return masked(sums, fitting(shapes_of(sums), masks))


def _statistic(
    question: Question, client: ClientContext, names: tuple[str, ...], sums: Tensors
) -> Answer:
    """What a client releases of its statistics: the sums, its own scores, or votes."""
    c, labels = client.config, client.task.labels(_examples(question, client))
    score = scores_of(c.plugin)[question.score]
    if c.dp == "client":
        sums = {n: finite(t) for n, t in sums.items()}
    fits = {} if question.dense else fitting(shapes_of(sums), question.masks)
    values, totals = gathered(sums, fits), {"count": float(labels)}
    if c.normalise == "l1" and combines_of(c.plugin)[c.combine].pooled:
        values = (l1_normalised(values) * labels).float()
    if question.dense or question.ask < len(score.asks) - 1:
        return Answer(values.float(), 1.0, totals)
    # A client without finite statistics has no vote; its answer is refused, with the tensor's name.
    if not torch.isfinite(values).all():
        return Answer(values.float(), 1.0, totals)
    combine = combines_of(c.plugin)[c.combine]
    if combine.pooled and question.sparsity is None:
        return Answer(values.float(), 1.0, totals)
    evidence = _own_evidence(question, client, names, sums)
    cast = question.sparsity is not None and c.score_wire != "fp32"
    # Of a large model all scores at once, float64, take twice the memory of its weights.
    own = score.finalise(evidence) if cast or (combine.valued and not combine.pooled) else {}
    votes = _told(_own_mask(question, client, evidence, own), question, client, names)
    totals |= _overlap(question, client, evidence, own, votes)
    if combine.pooled:
        return Answer(values.float(), 1.0, totals, votes)
    if not combine.valued:
        if votes is None:
            raise Refused("votes", "votes need a sparsity")
        return Answer(torch.empty(0), 1.0, totals, votes)
    alive = {n: question.masks[n] for n in names}
    flat = combine.transform(NORMALISE[c.normalise](gathered(own, alive)))
    return Answer(flat.float(), float(client.task.labels(client.shard.train)), totals, votes)


def _own_evidence(
    question: Question, client: ClientContext, names: tuple[str, ...], sums: Tensors
) -> Evidence:
    """What a client scores with by itself."""
    c, lost = client.config, unseen(sums)
    # Where sums are pooled and the mask is global, votes only measure how far clients agree.
    shared = combines_of(c.plugin)[c.combine].pooled and c.masks == "global"
    if lost and not shared and c.dp == "none":  # which failed would tell of its data
        raise Refused(lost[0], "no row went through its layer")
    doubles = {n: s.double() for n, s in sums.items()}
    return _evidence(question, client, names, sums=doubles, given=question.given)


def _own_mask(
    question: Question, client: ClientContext, evidence: Evidence, scores: Tensors
) -> Tensor | None:
    """This client's own mask at the sparsity asked, on the kept coordinates.

    By these scores; without any, by those that the evidence gives, tensor by tensor where it may.
    """
    if question.sparsity is None:
        return None
    c, layout = client.config, client.layout
    wanted = Wanted(question.sparsity, c.vote_scope or c.scope, question.progress)
    if scores:
        masks = chosen(scores, wanted, c, layout, evidence.masks, evidence.weights)
    else:
        score = scores_of(c.plugin)[question.score]
        masks = chosen_by(score, evidence, wanted, c, layout)
    return gathered(masks, evidence.masks)


def _own_mask_in_stages(question: Question, client: ClientContext) -> Tensor:
    """The client's own mask on the kept coordinates, every block scored behind its pruned ones.

    Leaves the model pruned by it.
    """
    wanted = question.names or client.layout.prunable
    alive = {n: question.masks[n] for n in wanted}
    score = scores_of(client.config.plugin)[question.score]
    for stage in stages_of(client.layout):
        names = tuple(n for n in stage if n in alive)
        if not names:
            continue
        sums = score.asks[0].collect(client_probe(question, client, names, {}))
        sums = cleared(copied(sums), question.masks)
        flags = _own_mask(question, client, _own_evidence(question, client, names, sums), {})
        assert flags is not None  # the question has a sparsity
        here = {n: question.masks[n] for n in names}
        masks = {**question.masks, **scattered(flags, shapes_of(here), here)}
        question = replace(question, masks=masks, weights=masked(question.weights, masks))
        load_into(client.model, question.weights)
    return gathered({n: question.masks[n] for n in alive}, alive)


def _told(
    votes: Tensor | None, question: Question, client: ClientContext, names: tuple[str, ...]
) -> Tensor | None:
    """A client's own mask as it is, or by randomised response."""
    c = client.config
    if votes is None or c.response is None:
        return votes
    units_voted = vote_units_of(c, client.layout, {n: question.masks[n] for n in names})
    source = source_for(question, c, client.partition, "response")
    return responded(votes, units_voted, flip_probability(c.response, units_voted.units), source)


def _overlap(
    question: Question,
    client: ClientContext,
    evidence: Evidence,
    scores: Tensors,
    votes: Tensor | None,
) -> dict[str, float]:
    """How many of the weights kept by the client's mask it would keep after the cast on the wire.

    Taken on its own scores: what the cast does to a sum of many clients can only be less.
    """
    c = client.config
    if votes is None or c.score_wire == "fp32":
        return {}
    shapes = shapes_of(scores)
    masks = fitting(shapes, evidence.masks)
    flat = gathered(scores, masks).float()
    cast = values_of(pack({}, {"values": (flat, SCORE_TYPES[c.score_wire])}))
    rounded = _own_mask(question, client, evidence, scattered(cast, shapes, masks))
    assert rounded is not None
    return {"overlap": float((votes & rounded).sum()), "own": float(votes.sum())}


def own_pruning(question: Question, client: ClientContext) -> tuple[Masks, Tensor]:
    """Prune the model in place by the client's own evidence; its mask, whole and as flags."""
    names = question.names or client.layout.prunable
    here = {n: question.masks[n] for n in names}
    score = scores_of(client.config.plugin)[question.score]
    client.model.eval()
    if client.config.calibration == "local":
        votes = _own_mask_in_stages(question, client)
        return {**question.masks, **scattered(votes, shapes_of(here), here)}, votes
    sums: Tensors = {}
    given: Tensors = {}
    for ask in score.asks:
        doubles = {n: s.double() for n, s in sums.items()}
        if ask.given is not None:
            given = ask.given(_evidence(question, client, names, sums=doubles, given=given))
        sums = cleared(
            copied(ask.collect(client_probe(question, client, names, given))), question.masks
        )
    own = _own_evidence(replace(question, given=given), client, names, sums)
    flags = _own_mask(question, client, own, {})
    assert flags is not None  # the question has a sparsity
    votes, masks = flags, {**question.masks, **scattered(flags, shapes_of(here), here)}
    load_into(client.model, masked(question.weights, masks))
    return masks, votes

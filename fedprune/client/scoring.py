"""The client's half of scoring: statistics on the shard, and what is released of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedprune.client.context import Batches, Seat
from fedprune.client.dp_sgd import noised_statistics
from fedprune.codec.wire import SCORE_TYPES, pack, values_of
from fedprune.options.refusal import Refused
from fedprune.privacy.randomised_response import flip_probability, responded
from fedprune.protocol.choice import Wanted, chosen, evidence_about
from fedprune.protocol.client_privacy import finite
from fedprune.protocol.kinds import fitting
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.noise import source_for
from fedprune.protocol.votes import ballot_of
from fedprune.randomness import derive, generator
from fedprune.redundancy.moments import MOMENTS
from fedprune.redundancy.reconstruction import OUTPUTS
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES, NORMALISE, l1_normalised
from fedprune.scores.inputs import unseen
from fedprune.scores.score import (
    Ask,
    Evidence,
    Probe,
    Score,
)
from fedprune.structure.groups import stages_of
from fedprune.tasks.task import Part, batches, examples
from fedprune.tensors import (
    Masks,
    Tensors,
    copied,
    kept,
    load_into,
    masked,
    shapes_of,
    spread,
)


def _probe(question: Question, seat: Seat, names: tuple[str, ...], given: Tensors) -> Probe:
    c = seat.config
    return Probe(
        seat.model,
        seat.layout,
        names,
        Batches(seat, _examples(question, seat)),
        seat.task.loss,
        question.masks,
        {n: t.to(seat.device) for n, t in given.items()},
        c.unit,
        c.probes or 0,
        derive(c.seed, "score", question.round),
    )


def _examples(question: Question, seat: Seat) -> Part:
    """The training examples that a client is scored on: all, or some drawn for the round."""
    c, part = seat.config, seat.shard.train
    if c.score_examples is None or c.score_examples >= examples(part) or question.kind in _FITS:
        return part
    gen = generator(c.seed, "calibration", question.round, seat.partition)
    drawn = torch.randperm(examples(part), generator=gen)[: c.score_examples]
    return next(batches(part, c.score_examples, drawn.sort().values))


_FITS = ("inputs", "outputs")
"""Questions about second moments, for redundancy and least squares: no scores."""


def _evidence(question: Question, seat: Seat, names: tuple[str, ...], **more: Any) -> Evidence:
    labels = seat.task.labels(_examples(question, seat))
    return evidence_about(question, names, seat.config, seat.layout, count=labels, **more)


def answer_score(question: Question, seat: Seat) -> Answer:
    """The client's summand for one ask of a score."""
    ask = scores_of(seat.config.plugin)[question.score].asks[question.ask]
    names = question.names or seat.layout.prunable
    seat.model.eval()
    if seat.config.calibration == "local" and not question.dense:
        labels = seat.task.labels(_examples(question, seat))
        votes = _told(_own_mask_in_stages(question, seat), question, seat, names)
        return Answer(torch.empty(0), 1.0, {"count": float(labels)}, votes)
    probe = _probe(question, seat, names, question.given)
    if seat.config.dp == "example":
        return _statistic(question, seat, names, noised_statistics(question, seat, probe))
    dead = {} if question.dense else question.masks
    sums = cleared(copied(ask.collect(probe)), dead)
    return _statistic(question, seat, names, sums)


def answer_inputs(question: Question, seat: Seat) -> Answer:
    """The client's Σ x xᵀ of the layers asked about (`fedprune.redundancy.moments`)."""
    return _sums_of(MOMENTS, question, seat)


def answer_outputs(question: Question, seat: Seat) -> Answer:
    """The same and Σ y xᵀ, y of the model that goes along (`redundancy.reconstruction`)."""
    return _sums_of(OUTPUTS, question, seat)


def _sums_of(ask: Ask, question: Question, seat: Seat) -> Answer:
    names = question.names or seat.layout.prunable
    seat.model.eval()
    sums = copied(ask.collect(_probe(question, seat, names, question.given)))
    labels = seat.task.labels(seat.shard.train)
    return Answer(kept(sums, {}).float(), 1.0, {"count": float(labels)})


def cleared(sums: Tensors, masks: Masks) -> Tensors:
    """The same with 0.0 where something was removed, whatever stands there."""
    return masked(sums, fitting(shapes_of(sums), masks))


def _statistic(question: Question, seat: Seat, names: tuple[str, ...], sums: Tensors) -> Answer:
    """What a client releases of its statistics: the sums, its own scores, or votes."""
    c, labels = seat.config, seat.task.labels(_examples(question, seat))
    score = scores_of(c.plugin)[question.score]
    if c.dp == "client":
        sums = {n: finite(t) for n, t in sums.items()}
    fits = {} if question.dense else fitting(shapes_of(sums), question.masks)
    values, totals = kept(sums, fits), {"count": float(labels)}
    if c.normalise == "l1" and COMBINES[c.combine].pooled:
        values = (l1_normalised(values) * labels).float()
    if question.dense or question.ask < len(score.asks) - 1:
        return Answer(values.float(), 1.0, totals)
    # A client without finite statistics has no vote; its answer is refused, with the tensor's name.
    if not torch.isfinite(values).all():
        return Answer(values.float(), 1.0, totals)
    combine = COMBINES[c.combine]
    if combine.pooled and question.sparsity is None:
        return Answer(values.float(), 1.0, totals)
    own = _own_scores(score, question, seat, names, sums)
    votes = _told(_own_mask(question, seat, names, own), question, seat, names)
    totals |= _overlap(question, seat, names, own, votes)
    if combine.pooled:
        return Answer(values.float(), 1.0, totals, votes)
    alive = {n: question.masks[n] for n in names}
    flat = combine.transform(NORMALISE[c.normalise](kept(own, alive)))
    if not combine.valued:
        if votes is None:
            raise Refused("votes", "votes need a sparsity")
        return Answer(torch.empty(0), 1.0, totals, votes)
    return Answer(flat.float(), float(seat.task.labels(seat.shard.train)), totals, votes)


def _own_scores(
    score: Score, question: Question, seat: Seat, names: tuple[str, ...], sums: Tensors
) -> Tensors:
    given = question.given
    c, lost = seat.config, unseen(sums)
    # Where sums are pooled and the mask is global, votes only measure how far clients agree.
    shared = COMBINES[c.combine].pooled and c.masks == "global"
    if lost and not shared and c.dp == "none":  # which failed would tell of its data
        raise Refused(lost[0], "no row went through its layer")
    evidence = _evidence(
        question, seat, names, sums={n: s.double() for n, s in sums.items()}, given=given
    )
    return score.finalise(evidence)


def _own_mask(
    question: Question, seat: Seat, names: tuple[str, ...], scores: Tensors
) -> Tensor | None:
    """This client's own mask at the sparsity asked, on the kept coordinates."""
    if question.sparsity is None:
        return None
    c = seat.config
    alive = {n: question.masks[n] for n in names}
    weights = {n: question.weights[n] for n in names}
    wanted = Wanted(question.sparsity, c.vote_scope or c.scope, question.progress)
    return kept(chosen(scores, wanted, c, seat.layout, alive, weights), alive)


def _own_mask_in_stages(question: Question, seat: Seat) -> Tensor:
    """The client's own mask on the kept coordinates, every block scored behind its pruned ones.

    Leaves the model pruned by it.
    """
    alive = question.masks
    score = scores_of(seat.config.plugin)[question.score]
    for names in stages_of(seat.layout):
        sums = score.asks[0].collect(_probe(question, seat, names, {}))
        sums = cleared(copied(sums), question.masks)
        own = _own_scores(score, question, seat, names, sums)
        flags = _own_mask(question, seat, names, own)
        assert flags is not None  # the question has a sparsity
        here = {n: question.masks[n] for n in names}
        masks = {**question.masks, **spread(flags, shapes_of(here), here)}
        question = replace(question, masks=masks, weights=masked(question.weights, masks))
        load_into(seat.model, question.weights)
    return kept({n: question.masks[n] for n in alive}, alive)


def _told(
    votes: Tensor | None, question: Question, seat: Seat, names: tuple[str, ...]
) -> Tensor | None:
    """A client's own mask as it is, or by randomised response."""
    c = seat.config
    if votes is None or c.response is None:
        return votes
    ballot = ballot_of(c, seat.layout, {n: question.masks[n] for n in names})
    source = source_for(question, c, seat.partition, "response")
    return responded(votes, ballot, flip_probability(c.response, ballot.units), source)


def _overlap(
    question: Question,
    seat: Seat,
    names: tuple[str, ...],
    scores: Tensors,
    votes: Tensor | None,
) -> dict[str, float]:
    """How many of the weights kept by the client's mask it would keep after the cast on the wire.

    Taken on its own scores: what the cast does to a sum of many clients can only be less.
    """
    c = seat.config
    if votes is None or c.score_wire == "fp32":
        return {}
    shapes = shapes_of(scores)
    masks = fitting(shapes, {n: question.masks[n] for n in names})
    cast = values_of(pack({}, kept(scores, masks).float(), SCORE_TYPES[c.score_wire]))
    rounded = _own_mask(question, seat, names, spread(cast, shapes, masks))
    assert rounded is not None
    return {"overlap": float((votes & rounded).sum()), "own": float(votes.sum())}


def own_pruning(question: Question, seat: Seat) -> tuple[Masks, Tensor]:
    """Prune the model in place by the client's own evidence; its mask, whole and as flags."""
    names = seat.layout.prunable
    score = scores_of(seat.config.plugin)[question.score]
    seat.model.eval()
    if seat.config.calibration == "local":
        votes = _own_mask_in_stages(question, seat)
        return spread(votes, shapes_of(question.masks), question.masks), votes
    sums: Tensors = {}
    given: Tensors = {}
    for ask in score.asks:
        doubles = {n: s.double() for n, s in sums.items()}
        if ask.given is not None:
            given = ask.given(_evidence(question, seat, names, sums=doubles, given=given))
        sums = cleared(copied(ask.collect(_probe(question, seat, names, given))), question.masks)
    own = _own_scores(score, replace(question, given=given), seat, names, sums)
    flags = _own_mask(question, seat, names, own)
    assert flags is not None  # the question has a sparsity
    votes, masks = flags, spread(flags, shapes_of(question.masks), question.masks)
    load_into(seat.model, masked(question.weights, masks))
    return masks, votes

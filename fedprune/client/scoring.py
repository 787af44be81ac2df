"""The client's half of scoring: statistics on the shard, and what is released of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedprune.client.context import ClientContext
from fedprune.client.dp_sgd import noised_statistics
from fedprune.client.own_masks import own_evidence, own_flags, own_flags_in_stages
from fedprune.client.probing import cleared, client_probe, scored_examples
from fedprune.codec.wire import SCORE_TYPES, pack, values_of
from fedprune.options.refusal import Refused
from fedprune.privacy.randomised_response import flip_probability, responded
from fedprune.protocol.checks import only_numbers
from fedprune.protocol.client_privacy import finite
from fedprune.protocol.form import fitting
from fedprune.protocol.limits import source_for
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.votes import vote_units_of
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import NORMALISE, combines_of, l1_normalised
from fedprune.scores.score import Evidence, Statistic
from fedprune.scores.together import collect_together
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors, copied, drained, gathered, scattered


def answer_score(question: Question, client: ClientContext, sums: Tensors | None = None) -> Answer:
    """The client's summand for one ask of a score, from its sums where these are there already."""
    ask = scores_of(client.config.plugin)[question.score].asks[question.ask]
    names = question.names or client.layout.prunable
    client.model.eval()
    if client.config.calibration == "local" and not question.dense:
        labels = client.task.labels(scored_examples(question, client))
        votes = _told(own_flags_in_stages(question, client), question, client, names)
        return Answer(torch.empty(0), 1.0, {"count": float(labels)}, votes)
    probe = client_probe(question, client, names, question.given)
    if client.config.dp == "example":
        return _statistic(question, client, names, noised_statistics(question, client, probe))
    dead = {} if question.dense else question.masks
    sums = cleared(ask.collect(probe) if sums is None else sums, dead)
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


def answer_sums(ask: Statistic, question: Question, client: ClientContext) -> Answer:
    """The client's sums of what goes into the layers asked about, as redundancy wants them."""
    names = question.names or client.layout.prunable
    client.model.eval()
    sums = copied(ask.collect(client_probe(question, client, names, question.given)))
    labels = client.task.labels(client.shard.train)
    return Answer(gathered(sums, {}).float(), 1.0, {"count": float(labels)})


def _statistic(
    question: Question, client: ClientContext, names: tuple[str, ...], sums: Tensors
) -> Answer:
    """What a client releases of its statistics: the sums, its own scores, or votes."""
    c, labels = client.config, client.task.labels(scored_examples(question, client))
    score = scores_of(c.plugin)[question.score]
    if c.dp == "client":
        sums = {n: finite(t) for n, t in sums.items()}
    shapes = shapes_of(sums)
    fits = {} if question.dense else fitting(shapes, question.masks)
    combine, unscored = combines_of(c.plugin)[c.combine], question.ask < len(score.asks) - 1
    unscored = unscored or question.dense
    plain = c.normalise != "l1" and (unscored or (combine.pooled and question.sparsity is None))
    kept = drained(sums, fits, torch.float32 if plain else None)
    values, totals = kept, {"count": float(labels)}
    if c.normalise == "l1" and combine.pooled:
        values = (l1_normalised(values) * labels).float()
    # A client without finite statistics has no vote; its answer is refused, with the tensor's name.
    if unscored or not only_numbers(values) or (combine.pooled and question.sparsity is None):
        return Answer(values.float(), 1.0, totals)
    sums = scattered(kept, shapes, fits, shared=True)
    evidence = own_evidence(question, client, names, sums)
    cast = question.sparsity is not None and c.score_wire != "fp32"
    # Of a large model all scores at once, float64, take twice the memory of its weights.
    scores = score.finalise(evidence) if cast or (combine.valued and not combine.pooled) else {}
    votes = _told(own_flags(question, client, evidence, scores), question, client, names)
    totals |= _overlap(question, client, evidence, scores, votes)
    if combine.pooled:
        return Answer(values.float(), 1.0, totals, votes)
    if not combine.valued:
        if votes is None:
            raise Refused("votes", "votes need a sparsity")
        return Answer(torch.empty(0), 1.0, totals, votes)
    alive = {n: question.masks[n] for n in names}
    flat = combine.transform(NORMALISE[c.normalise](gathered(scores, alive)))
    return Answer(flat.float(), float(client.task.labels(client.shard.train)), totals, votes)


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
    rounded = own_flags(question, client, evidence, scattered(cast, shapes, masks))
    assert rounded is not None
    return {"overlap": float((votes & rounded).sum()), "own": float(votes.sum())}

"""A client's own mask, chosen by its own evidence."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fedprune.client.context import ClientContext
from fedprune.client.probing import cleared, client_evidence, client_probe
from fedprune.options.refusal import Refused
from fedprune.protocol.choice import Wanted, chosen, chosen_by
from fedprune.protocol.messages import Question
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.input_sums import unseen
from fedprune.scores.score import Evidence
from fedprune.structure.groups import stages_of
from fedprune.tensors.lazy import as_doubles, shapes_of
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Masks, Tensors, gathered, masked, scattered


def own_evidence(
    question: Question, client: ClientContext, names: tuple[str, ...], sums: Tensors
) -> Evidence:
    """What a client scores with by itself."""
    c, lost = client.config, unseen(sums)
    # Where sums are pooled and the mask is global, votes only measure how far clients agree.
    shared = combines_of(c.plugin)[c.combine].pooled and c.masks == "global"
    if lost and not shared and c.dp == "none":  # which failed would tell of its data
        raise Refused(lost[0], "no row went through its layer")
    doubles = as_doubles(sums)
    return client_evidence(question, client, names, sums=doubles, given=question.given)


def own_flags(
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


def own_flags_in_stages(question: Question, client: ClientContext) -> Tensor:
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
        probe = client_probe(question, client, names, {})
        sums = cleared(score.asks[0].collect(probe), question.masks)
        flags = own_flags(question, client, own_evidence(question, client, names, sums), {})
        assert flags is not None  # the question has a sparsity
        here = {n: question.masks[n] for n in names}
        masks = {**question.masks, **scattered(flags, shapes_of(here), here)}
        question = replace(question, masks=masks, weights=masked(question.weights, masks))
        load_into(client.model, question.weights)
    return gathered({n: question.masks[n] for n in alive}, alive)


def own_pruning(question: Question, client: ClientContext) -> tuple[Masks, Tensor]:
    """Prune the model in place by the client's own evidence; its mask, whole and as flags."""
    names = question.names or client.layout.prunable
    here = {n: question.masks[n] for n in names}
    score = scores_of(client.config.plugin)[question.score]
    client.model.eval()
    if client.config.calibration == "local":
        votes = own_flags_in_stages(question, client)
        return {**question.masks, **scattered(votes, shapes_of(here), here)}, votes
    sums: Tensors = {}
    given: Tensors = {}
    for ask in score.asks:
        doubles = as_doubles(sums)
        if ask.given is not None:
            given = ask.given(client_evidence(question, client, names, sums=doubles, given=given))
        sums = cleared(ask.collect(client_probe(question, client, names, given)), question.masks)
    own = own_evidence(replace(question, given=given), client, names, sums)
    flags = own_flags(question, client, own, {})
    assert flags is not None  # the question has a sparsity
    votes, masks = flags, {**question.masks, **scattered(flags, shapes_of(here), here)}
    load_into(client.model, masked(question.weights, masks))
    return masks, votes

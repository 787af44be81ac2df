"""What a client releases, against its own scores computed by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune import SCORES, Loss, select
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.client.host import Host
from fedprune.client.partition_answers import released
from fedprune.codec.wire import SCORE_TYPES
from fedprune.engines.inline import inline_port
from fedprune.learning.mask_rules import MASKS
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.parts import decode_answer
from fedprune.scores.combine import COMBINES, NORMALISE
from fedprune.scores.score import Probe
from fedprune.tasks.task import Part, batches
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Tensors, count_kept, gathered, masked, scattered
from tests.runs import tiny
from tests.scores.test_combine import by_oracle

EVERYONE = [0, 1, 2, 3, 4]
OWNER = [name for name, rule in COMBINES.items() if rule.valued and not rule.pooled]


def with_keys(host: Host, **keys: Any) -> Host:
    return replace(host, config=tiny(**keys))


def asked(about: Question, **what: Any) -> Question:
    return replace(about, **{"kind": "score", "score": "taylor", **what})


def sums_of(host: Host, about: Question, partition: int, score: str = "taylor") -> Tensors:
    load_into(host.model, about.weights)
    host.model.eval()
    given = list(batches(host.shards[partition].train, 64))
    where = (host.model, host.layout, host.layout.prunable)
    probe = Probe(*where, given, host.task.loss, about.masks)
    return {n: t.clone() for n, t in SCORES[score].asks[0].collect(probe).items()}


def own_scores(host: Host, about: Question, partition: int) -> np.ndarray:
    """|Σ w·g| / labels on the kept coordinates, by the definition of the score."""
    sums = gathered(sums_of(host, about, partition), about.masks).double()
    return (sums.abs() / len(host.shards[partition].train["labels"])).numpy()


def labels_of(host: Host) -> list[int]:
    return [len(host.shards[p].train["labels"]) for p in EVERYONE]


def combined(aggregate: Aggregate, name: str) -> np.ndarray:
    """What the server makes of the sum, as `methods.global_mask` does."""
    merge = COMBINES[name].merge
    if merge is None:
        return (aggregate.total / aggregate.weight).numpy()
    return merge(aggregate.singles, 0.2).numpy()


@pytest.mark.parametrize("name", OWNER)
def test_clients_own_scores_become_one(name, cnn):
    host, about = cnn
    keys = {"combine": name} | ({"trim": 0.2} if name == "trimmed-mean" else {})
    aggregate = inline_port(with_keys(host, **keys)).ask(asked(about), EVERYONE)
    rows = np.stack([own_scores(host, about, p) for p in EVERYONE])
    expected = by_oracle(name, rows, labels_of(host))
    seen = combined(aggregate, name)
    assert aggregate.weight == sum(labels_of(host)) != 5
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())
    assert expected.std() > 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", COMBINES)
def test_orders_hosts_and_who_has_no_finite_statistics_do_not_matter(name, cnn):
    host, about = cnn
    bad = {**host.shards[1].train, "images": host.shards[1].train["images"] * torch.nan}
    ill = replace(host, shards={**host.shards, 1: replace(host.shards[1], train=bad)})
    question = asked(about, sparsity=0.7)
    port = inline_port(with_keys(ill, combine=name))
    there, back = port.ask(question, [0, 2, 3, 4]), port.ask(question, EVERYONE[::-1])
    assert there.answered == back.answered == (0, 2, 3, 4)
    assert [f.partition for f in back.failures] == [1]
    for key in ("total", "votes", "singles"):
        one, other = getattr(there, key), getattr(back, key)
        assert one is other is None or torch.equal(one, other), key
    apart = inline_port(with_keys(ill, combine=name, hosts=5)).ask(question, [0, 2, 3, 4])
    assert torch.equal(apart.votes, there.votes)
    if COMBINES[name].valued and not COMBINES[name].pooled:
        np.testing.assert_allclose(combined(apart, name), combined(there, name), rtol=1e-12)


MARK = 2.0**-20
LOUD = 1024.0


def loud(host: Host, partition: int) -> Host:
    """A host where one client's loss, and so its gradient, is 1024 times as large."""
    shard = host.shards[partition]
    images = shard.train["images"].clone()
    images[..., 0, 0] = MARK
    plain, task = replace(shard, train={**shard.train, "images": images}), host.task

    def loss(model: nn.Module, batch: Part) -> Loss:
        found = task.loss(model, batch)
        marked = bool((batch["images"][..., 0, 0] == MARK).all())
        return replace(found, total=found.total * LOUD) if marked else found

    return replace(host, shards={**host.shards, partition: plain}, task=replace(task, loss=loss))


SCALELESS = [
    {"normalise": "l1"},
    {"normalise": "l1", "combine": "mean"},
    {"normalise": "rank", "combine": "mean"},
    {"combine": "rank-mean"},
    {"combine": "votes"},
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", SCALELESS, ids=str)
def test_one_loud_client_owns_the_mask_unless_its_scale_is_taken_away(keys, cnn):
    host, about = cnn
    voices = loud(host, 2)
    quiet = replace(voices, task=host.task)
    question = asked(about, sparsity=0.7 if "votes" in keys.values() else None)

    def heard(where: Host, **what: Any) -> Tensor:
        aggregate = inline_port(with_keys(where, **what)).ask(question, EVERYONE)
        return aggregate.votes if aggregate.votes is not None else aggregate.total

    assert torch.equal(heard(voices, **keys), heard(quiet, **keys))
    if "votes" not in keys.values():
        ratio = heard(voices).abs().sum() / heard(quiet).abs().sum()
        assert ratio > 50, "without it the client is all that is heard"


@pytest.mark.parametrize("name", NORMALISE)
def test_what_is_normalised_is_the_clients_own_score(name, cnn):
    host, about = cnn
    port = inline_port(with_keys(host, combine="mean", normalise=name))
    aggregate = port.ask(asked(about), [3])
    own = torch.tensor(own_scores(host, about, 3))
    seen = aggregate.total / aggregate.weight
    assert torch.allclose(seen, NORMALISE[name](own).double(), rtol=1e-4, atol=1e-9)


def test_under_l1_every_label_has_the_same_say(cnn):
    host, about = cnn
    port = inline_port(with_keys(host, normalise="l1"))
    for p, labels in zip(EVERYONE, labels_of(host), strict=True):
        total = port.ask(asked(about), [p]).total
        assert float(total.abs().sum()) == pytest.approx(labels, rel=1e-5)


def own_mask(host: Host, about: Question, partition: int, scope: str) -> Tensor:
    scores = {n: s.abs() for n, s in sums_of(host, about, partition).items()}
    sizes = {n: about.weights[n].abs() for n in scores}
    how = {"scope": scope, "alive": about.masks, "magnitude": sizes, "layout": host.layout}
    return gathered(select(scores, 0.7, **how), about.masks)


VOTING = [
    ({"combine": "votes"}, "global"),
    ({"combine": "votes", "scope": "layer"}, "layer"),
    ({"combine": "votes", "scope": "layer", "vote_scope": "row"}, "row"),
    ({}, "global"),
]


@pytest.mark.parametrize(("keys", "scope"), VOTING, ids=str)
def test_votes_count_the_clients_own_masks(keys, scope, cnn):
    host, about = cnn
    about = replace(about, masks={n: torch.ones_like(m) for n, m in about.masks.items()})
    question = asked(about, sparsity=0.7)
    aggregate = inline_port(with_keys(host, **keys)).ask(question, EVERYONE)
    each = torch.stack([own_mask(host, about, p, scope) for p in EVERYONE])
    # The clients' scores are |Σ w·g| / labels in float64, which may turn ties of float32 around.
    assert int((aggregate.votes != each.sum(0)).sum()) <= 10
    assert int(aggregate.votes.sum()) == int(each.sum())


def test_a_client_whose_scores_are_all_equal_votes_by_magnitude_then_position(cnn):
    """All images black: most of the first layer's scores are 0."""
    host, about = cnn
    shard = host.shards[0]
    black = {**shard.train, "images": torch.zeros_like(shard.train["images"])}
    dark = replace(host, shards={0: replace(shard, train=black)})
    first = host.layout.prunable[0]
    question = asked(about, names=(first,), sparsity=0.7)
    aggregate = inline_port(with_keys(dark, combine="votes")).ask(question, [0])
    mask, size = about.masks[first], about.weights[first].abs()
    zeros = {first: torch.zeros_like(size)}
    assert not sums_of(dark, about, 0)[first].any()
    expected = select(zeros, 0.7, alive={first: mask}, magnitude={first: size})[first]
    assert torch.equal(aggregate.votes.bool(), expected[mask])
    gone = size[mask][aggregate.votes == 0]
    assert gone.max() <= size[mask][aggregate.votes == 1].min()


@pytest.mark.parametrize("wire", SCORE_TYPES)
def test_what_scores_cost_when_they_are_cast(wire, cnn):
    host, about = cnn
    cast = with_keys(host, score_wire=wire)
    aggregate = inline_port(cast).ask(asked(about, sparsity=0.7), EVERYONE)
    if wire == "fp32":
        assert "overlap" not in aggregate.totals
        return
    own = 5 * (12944 - int(0.7 * 12944 + 0.5))
    assert aggregate.totals["own"] == own
    assert 0.8 * own < aggregate.totals["overlap"] <= own
    exact = inline_port(host).ask(asked(about, sparsity=0.7), EVERYONE)
    assert torch.equal(aggregate.votes, exact.votes), "votes are of what was not cast"
    assert not torch.equal(aggregate.total, exact.total)


def seat_of(host: Host, partition: int = 2) -> ClientContext:
    own = (host.config, host.layout, host.device, host.tuned)
    return ClientContext(partition, host.shards[partition], host.model, host.task, *own)


@pytest.mark.parametrize("rule", [name for name in MASKS if name != "global"])
def test_a_client_prunes_by_itself_and_tunes_what_it_kept(rule, cnn):
    host, about = cnn
    own = with_keys(host, masks=rule)
    full = {n: torch.ones_like(m) for n, m in about.masks.items()}
    question = replace(about, kind="tune", masks=full, score="taylor", sparsity=0.7, lr=0.1)
    given = answer(question, seat_of(own))
    after = {n: t.clone() for n, t in state_of(host.model).items()}
    expected = own_mask(host, question, 2, "global")
    assert int((given.votes != expected).sum()) <= 4
    own_masks = scattered(given.votes, {n: m.shape for n, m in full.items()}, full)
    sent = masked(question.weights, own_masks)
    for name, mask in own_masks.items():
        assert not after[name][~mask].any(), "removed weights are 0 while tuning, too"
        assert (after[name] != sent[name])[mask].float().mean() > 0.5, "and the others move"
    seen = decode_answer(released(own, question, 2), question, count_kept(full), own=True)
    assert torch.equal(seen.votes, given.votes)
    change = scattered(seen.values, host.layout.shapes, full)
    for name, mask in own_masks.items():
        assert torch.equal(change[name], (after[name] - question.weights[name]) * mask)


WATCHED = [n for n, s in SCORES.items() if len(s.asks) == 1 and s.asks[0].watch and not s.at_start]


@pytest.mark.parametrize("score", WATCHED)
def test_statistics_collected_while_tuning_change_nothing_of_the_tuning(score, cnn):
    host, about = cnn
    question = replace(about, kind="tune", lr=0.1)
    plain = answer(question, seat_of(host))
    watching = with_keys(host, score=score, score_during="tune")
    both = answer(replace(question, score=score), seat_of(watching))
    expected = form_of(replace(question, score=score), watching.config, host.layout)
    assert torch.equal(plain.values, both.values)
    assert plain.statistics is None
    assert both.statistics.numel() == expected.statistics > 0
    assert torch.isfinite(both.statistics).all()
    assert both.statistics.abs().sum() > 0


def test_statistics_of_one_step_are_those_at_the_weights_that_were_sent(cnn):
    """Σ w·g of the one batch that was trained on, in training mode, by autograd."""
    host, about = cnn
    size = len(host.shards[2].train["labels"])
    keys = {"score_during": "tune", "local_steps": 1, "batch_size": size}
    watching = with_keys(host, **keys)
    given = answer(replace(about, kind="tune", score="taylor", lr=0.1), seat_of(watching))
    load_into(host.model, about.weights)
    host.model.train()
    host.model.zero_grad()
    host.task.loss(host.model, host.shards[2].train).total.backward()
    grads = {n: host.model.get_parameter(n) for n in about.masks}
    expected = gathered({n: (p * p.grad).detach() for n, p in grads.items()}, about.masks)
    host.model.zero_grad()
    scale = float(expected.abs().max())
    assert torch.allclose(given.statistics, expected, atol=1e-4 * scale)


def test_an_answer_to_describe_counts_labels(cnn):
    host, about = cnn
    given = answer(replace(about, kind="describe"), seat_of(host))
    shard = host.shards[2]
    counts = [np.bincount(part["labels"], minlength=10) for part in (shard.test, shard.train)]
    assert given.values.tolist() == np.concatenate(counts).tolist()
    assert given.totals == {}

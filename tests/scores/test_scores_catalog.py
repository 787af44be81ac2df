"""The laws of scores, for every line of the table; a new score is tested by adding its line."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from specimens import (
    BLOCKS,
    FAMILIES,
    PROBES,
    Specimen,
    built,
    evidence_of,
    furthest,
    probe_of,
    taken,
)
from torch import Tensor, nn
from torch.nn.utils import prune

from fedprune.config import with_values
from fedprune.engines.inline import inline_port
from fedprune.protocol.forms import form_of
from fedprune.randomness import derive, generator
from fedprune.scores.catalog import SCORES
from fedprune.scores.score import Evidence, Probe
from fedprune.selection.select import select
from fedprune.selection.units import UNITS
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.networks import ConvNet
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Tensors, digest, full_masks

ASKING = [name for name, score in SCORES.items() if score.asks]
ADDITIVE = [name for name in ASKING if SCORES[name].additive]
# Taken at the weights that were sent, what is collected while tuning is a sum over examples too.
UNEQUAL = [name for name in ASKING if not SCORES[name].additive and not SCORES[name].tuning]
WATCHED = [name for name in ASKING if SCORES[name].asks[0].watch]
LAWFUL = ["cnn", "llama"]
# What float32 leaves of differences of losses, and of the inverse of a sum.
WIRE = {"perturbation": 1e-3, "ablation": 1e-3, "sparsegpt": 1e-3}
# Of the activations only ReLU's are ever exactly 0.
RECTIFIED = ["cnn", "t5"]


def unit_of(name: str, family: str) -> str:
    """The kind of unit to test a score with; one by one over all weights takes long."""
    if SCORES[name].units and "weight" not in SCORES[name].units:
        return SCORES[name].units[0]
    return "head" if name == "ablation" and family in BLOCKS else "weight"


def on(name: str, family: str) -> tuple[Specimen, str]:
    if unit_of(name, family) in ("layer", "head", "head-neuron") and family not in BLOCKS:
        pytest.skip("it has no blocks")
    if name == "activity" and family not in RECTIFIED:
        pytest.skip("all of it is always active")
    return built(family), unit_of(name, family)


def scored(name: str, s: Specimen, parts: list[Part], unit: str, size: int = 10**6) -> Tensors:
    return SCORES[name].finalise(taken(SCORES[name], s, parts, size=size, unit=unit))


@pytest.mark.sampled(28)
@pytest.mark.parametrize("absent", [(), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", ADDITIVE)
def test_federated_equals_pooled(name, family, absent):
    s, unit = on(name, family)
    there = [i for i in range(3) if i not in absent]
    apart = scored(name, s, [s.shards[i] for i in there], unit)
    assert furthest(apart, scored(name, s, [s.pooled(there)], unit)) < 1e-9


@pytest.mark.sampled(19)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", ADDITIVE)
def test_an_additive_score_does_not_depend_on_the_cut_into_batches(name, family, size):
    s, unit = on(name, family)
    parts = list(s.shards[:2])
    assert furthest(scored(name, s, parts, unit, size), scored(name, s, parts, unit)) < 1e-9


@pytest.mark.parametrize("name", UNEQUAL)
def test_what_is_no_sum_over_examples_differs_from_pooled_and_says_so_in_its_name(name):
    s, unit = on(name, "llama")
    apart = scored(name, s, list(s.shards), unit)
    assert furthest(apart, scored(name, s, [s.pooled([0, 1, 2])], unit)) > 0.02
    assert name.endswith(("_per_batch", "_per_client"))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", ADDITIVE)
def test_over_the_wire_federated_equals_pooled(name, family, request):
    """In float32, on trained weights and texts: asked, encoded, decoded, folded by host, finalised.

    One client is away; where all are there, the gallery's digests tell a wrong sum.
    """
    on(name, family)  # skips what cannot be
    host, question = request.getfixturevalue(family)
    there = [p for p in host.shards if p != 1]
    there = there[:2] if name == "ablation" else there  # many passes
    unit = "row" if (name, family) == ("ablation", "cnn") else unit_of(name, family)
    host = replace(host, config=with_values(host.config, {"unit": unit, "probes": 4}))
    load_into(host.model, question.weights)
    parts = [host.shards[p].train for p in there]
    pooled = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    labels = host.task.labels(pooled) / len(pooled["labels"])
    where = (host.model.eval(), host.layout, host.task.loss, (pooled,), question.masks, labels)
    seed = derive(host.config.seed, "score", question.round)
    s, how = Specimen(*where), {"unit": unit, "probes": 4, "seed": seed}
    together, apart = taken(SCORES[name], s, [pooled], **how), evidence_of(s, {}, 1.0, **how)
    for i, ask in enumerate(SCORES[name].asks):
        given = {} if ask.given is None else ask.given(apart)
        asked = replace(question, score=name, ask=i, given={n: g.float() for n, g in given.items()})
        aggregate = inline_port(host).ask(asked, there)
        assert (aggregate.failures, aggregate.answered) == ((), tuple(there))
        sums, count = form_of(asked, host.config, host.layout), aggregate.totals["count"]
        named = sums.named(aggregate.total)
        apart = replace(apart, sums=named, count=count, given=asked.given)
    scores = [SCORES[name].finalise(evidence) for evidence in (apart, together)]
    assert apart.count == pytest.approx(together.count)
    assert furthest(*scores) < WIRE.get(name, 1e-5)


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    ]


@pytest.mark.parametrize("breaks", [False, True], ids=["finished", "broken off"])
@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", ASKING)
def test_a_score_leaves_the_model_bit_identical(name, family, breaks):
    s, unit = on(name, family)
    before, hooks = digest(s.model.state_dict()), hooks_of(s.model)
    calls: list[Part] = []

    def loss(model: nn.Module, batch: Part) -> Loss:
        calls.append(batch)
        result = s.loss(model, batch)
        if breaks and len(calls) == 2:
            raise ArithmeticError
        return result

    given = {n: torch.ones_like(w) for n, w in s.weights.items()}
    probe = probe_of(s, list(batches(s.shards[0], 2)), given=given, unit=unit, probes=4)
    for ask in SCORES[name].asks:
        calls.clear()
        with pytest.raises(ArithmeticError) if breaks else nullcontext():
            ask.collect(replace(probe, loss=loss))
    assert digest(s.model.state_dict()) == before, "parameters and buffers, integers too"
    assert all(p.grad is None and p.requires_grad for p in s.model.parameters())
    assert hooks_of(s.model) == hooks
    assert not any(m.training for m in s.model.modules())


@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", ASKING)
def test_what_is_collected_has_the_names_and_shapes_that_were_announced(name, family):
    s, unit = on(name, family)
    for ask in SCORES[name].asks:
        probe = probe_of(s, [s.shards[0]], given=s.weights, unit=unit)
        sums = ask.collect(probe)
        promised = ask.shapes(s.layout, s.layout.prunable, unit, PROBES)
        assert {n: t.shape for n, t in sums.items()} == promised
        assert {t.dtype for t in sums.values()} == {torch.float64}
        assert not any(t.requires_grad for t in sums.values())


@pytest.mark.sampled(37)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCORES)
def test_every_score_scores_every_weight_of_every_family(name, family):
    s, unit = on(name, family)
    if name == "synflow" and family in BLOCKS:
        with pytest.raises(ValueError, match=r"score='synflow': .* is a [A-Z].*; allowed: "):
            SCORES[name].finalise(replace(evidence_of(s, {}, 1.0), model=s.model))
        return
    scores = scored(name, s, [s.shards[1]], unit)
    assert {n: t.shape for n, t in scores.items()} == {n: w.shape for n, w in s.weights.items()}
    assert all(torch.isfinite(t).all() for t in scores.values())
    assert len(torch.cat([t.flatten() for t in scores.values()]).unique()) > 1


@pytest.mark.sampled(28)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ADDITIVE)
def test_a_score_of_some_tensors_is_that_of_all(name, family):
    """What a sequential calibration asks for: one block's tensors."""
    s, unit = on(name, family)
    some = s.layout.prunable[:2]
    probe = probe_of(s, [s.shards[0]], given=s.weights, unit=unit)
    fewer = replace(probe, prunable=some, given={n: s.weights[n] for n in some})
    ask = SCORES[name].asks[0]
    every, few = ask.collect(probe), ask.collect(fewer)
    assert few.keys() <= every.keys()
    assert {n: t.shape for n, t in few.items()} == ask.shapes(s.layout, some, unit, PROBES)
    for n in few:
        if few[n].shape == every[n].shape and name != "perturbation":
            assert torch.allclose(few[n], every[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", LAWFUL)
@pytest.mark.parametrize("name", WATCHED)
def test_watched_at_weights_that_stay_a_statistic_is_that_of_a_pass(name, family):
    s, unit = on(name, family)
    ask, cut = SCORES[name].asks[0], list(batches(s.shards[1], 3))
    hooks = hooks_of(s.model)
    try:
        with ask.watch(s.model, s.layout, s.layout.prunable) as watcher:
            for batch in cut:
                s.model.zero_grad()
                loss = s.loss(s.model, batch)
                (loss.total / loss.count).backward()
                if watcher.after_backward is not None:
                    watcher.after_backward(loss.count)
    finally:
        s.model.zero_grad()
    assert hooks_of(s.model) == hooks
    assert not any(t.requires_grad for t in watcher.sums.values())
    # LLaMA's norms compute in float32, so that scaling the loss shows in the seventh digit.
    assert furthest(watcher.sums, ask.collect(probe_of(s, cut, unit=unit))) < 1e-5


def test_every_score_is_told_of():
    for name, score in SCORES.items():
        assert len(score.summary) > 5, name
        assert score.source, name
        assert "\n" not in score.summary + score.source, name
        assert set(score.units) <= set(UNITS), name
        assert all(ask.passes for ask in score.asks), name
        assert not score.tuning or score.asks[0].watch, name


class Weight(nn.Module):
    """Three weights; the loss of an example x is Σ x·w, so that its gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, -3.0, 0.5]))


def dot(model: nn.Module, batch: Part) -> Loss:
    return Loss((batch["x"] @ model.w).sum(), len(batch["x"]), 0)


CLIENTS = [{"x": torch.tensor([[1.0, 4.0, 0.0]])}, {"x": torch.tensor([[-3.0, 2.0, 8.0]] * 3)}]
# g of the clients: (1, 4, 0) and (-9, 6, 24); four examples in all.
LITERAL = {
    "taylor": [4.0, 7.5, 3.0],
    "taylor_signed": [4.0, 7.5, -3.0],
    "movement": [4.0, 7.5, -3.0],
    "snip": [4.0, 7.5, 3.0],
    "gradient": [2.0, 2.5, 6.0],
    # Σ g² = (1 + 27, 16 + 12, 192)
    "second_moment_per_example": [7.0, 7.0, 48.0],
    "fisher": [14.0, 31.5, 6.0],
    # |Σ -w·g + ½w²g²| = |16 + 56|, |30 + 126|, |-12 + 24|
    "taylor_second": [18.0, 39.0, 3.0],
    # (Σ g)²/n of each: (1 + 27, 16 + 12, 192)
    "second_moment_per_client": [7.0, 7.0, 48.0],
    "second_moment_per_batch": [7.0, 7.0, 48.0],
    "magnitude": [2.0, 3.0, 0.5],
}


def by_hand(name: str, model: nn.Module, names: tuple[str, ...], clients: list[Part]) -> Tensors:
    """The score of a model that is no network, without a layout of its own."""
    shapes = {n: model.get_parameter(n).shape for n in names}
    layout = Layout(shapes, names, (), {}, dict.fromkeys(names, "other"))
    weights = {n: model.get_parameter(n).detach() for n in names}
    masks, sums = full_masks(weights, names), dict[str, Tensor]()
    for ask in SCORES[name].asks:
        each = [ask.collect(Probe(model, layout, names, [c], dot, masks)) for c in clients]
        sums = {n: sum(e[n].double() for e in each) for n in each[0]}
    gen = generator(0, "score", 1)
    return SCORES[name].finalise(Evidence(sums, 4.0, weights, masks, layout, gen))


@pytest.mark.parametrize(("name", "expected"), LITERAL.items())
def test_two_clients_and_three_weights(name, expected):
    assert by_hand(name, Weight(), ("w",), CLIENTS)["w"].tolist() == expected


@pytest.mark.parametrize("name", [n for n in LITERAL if SCORES[n].asks])
def test_a_layer_that_the_loss_does_not_reach_has_gradient_zero(name):
    model = Weight()
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    scores = by_hand(name, model, ("w", "idle"), CLIENTS[:1])
    assert scores["idle"].tolist() == [0.0, 0.0]
    assert scores["w"].any()


def drawn(seed: int, round_: int) -> Tensors:
    weights = {"a": torch.ones(50), "b": torch.zeros(3, 4)}
    layout = Layout({n: w.shape for n, w in weights.items()}, ("a", "b"), (), {})
    gen, masks = generator(seed, "score", round_), full_masks(weights, weights)
    return SCORES["random"].finalise(Evidence({}, 1.0, weights, masks, layout, gen))


def test_random_is_seeded_and_new_each_round():
    first = drawn(1, 1)
    assert digest(first) == digest(drawn(1, 1))
    assert len({digest(drawn(seed, round_)) for seed in (1, 2) for round_ in (1, 2)}) == 4
    assert {n: tuple(t.shape) for n, t in first.items()} == {"a": (50,), "b": (3, 4)}
    values = torch.cat([t.flatten() for t in first.values()])
    assert values.unique().numel() == 62
    assert bool(((values >= 0) & (values < 1)).all())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.98])
def test_magnitude_is_global_unstructured(sparsity):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = ConvNet(side=8, channels=(3, 4), hidden=6, classes=5).double()
    layout = layout_of(model, output=("head",))
    weights = {n: model.get_parameter(n).detach().clone() for n in layout.prunable}
    n = sum(w.numel() for w in weights.values())
    assert torch.cat([w.flatten().abs() for w in weights.values()]).unique().numel() == n, "no ties"
    masks, gen = full_masks(weights, weights), generator(0, "score", 1)
    evidence = Evidence({}, 1.0, weights, masks, layout, gen)
    kept = select(SCORES["magnitude"].finalise(evidence), sparsity, floor=0)
    owners = [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in weights]
    gone = math.floor(sparsity * n + 0.5)
    prune.global_unstructured(owners, prune.L1Unstructured, amount=gone)
    for name, (owner, _) in zip(weights, owners, strict=True):
        assert torch.equal(kept[name], owner.weight_mask.bool())

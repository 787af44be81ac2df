import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fedprune import SCORES, RunConfig, Score, select
from fedprune.hosts import House, inline_port
from fedprune.messages import Folded, Question
from fedprune.pruning.scores import Evidence, Probe
from fedprune.randomness import generator
from fedprune.rounds import run
from fedprune.state import Plan, first_state
from fedprune.tasks.models import ConvNet
from fedprune.tasks.task import Loss, Part, batches, classification_loss
from fedprune.tensors import Tensors, digest, load_into, masked, spread

Tiny = Callable[..., RunConfig]
Served = tuple[House, Question]

ASKING = [name for name, score in SCORES.items() if score.statistics]
ADDITIVE = [name for name in ASKING if SCORES[name].additive]
PER_CLIENT = [name for name in ASKING if not SCORES[name].additive]
SILENT = [name for name in SCORES if name not in ASKING]
MODELS = ["cnn", "llama"]
SEED = 11


@pytest.fixture(params=MODELS)
def served(request: pytest.FixtureRequest) -> Served:
    """A model with weights worth scoring, half of them removed, and unequal non-IID shards."""
    house, question = request.getfixturevalue(request.param)
    return house, question


def finalised(name: str, sums: Tensors, count: float, question: Question) -> Tensors:
    weights = {n: question.weights[n] for n in question.masks}
    return SCORES[name].finalise(Evidence(sums, count, weights, generator(SEED, "score", 1)))


def federated(name: str, served: Served, partitions: Sequence[int], **changes: int) -> Tensors:
    """The score as a run takes it: asked over the wire, folded by host, finalised."""
    house, question = served
    house = replace(house, config=house.config.model_copy(update=changes))
    folded = inline_port(house).ask(replace(question, score=name), partitions)
    assert (folded.failures, folded.answered) == ((), tuple(sorted(partitions)))
    assert folded.total is not None
    shapes = {n: house.layout.shapes[n] for n in question.masks}
    sums = spread(folded.total, shapes, question.masks)
    return finalised(name, sums, folded.totals["count"], question)


def together(house: House, partitions: Sequence[int]) -> Part:
    parts = [house.shards[p].train for p in partitions]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def statistics(score: Score, house: House, given: Iterator[Part]) -> Tensors:
    assert score.statistics is not None
    house.model.eval()
    return score.statistics(Probe(house.model, house.layout.prunable, given, house.task.loss))


def pooled(name: str, served: Served, partitions: Sequence[int]) -> Tensors:
    """The score of one big client that has everything in one batch."""
    house, question = served
    load_into(house.model, question.weights)
    everything = together(house, partitions)
    sums = statistics(SCORES[name], house, iter([everything]))
    sums = masked({n: s.double() for n, s in sums.items()}, question.masks)
    return finalised(name, sums, house.task.labels(everything), question)


def furthest(left: Tensors, right: Tensors) -> float:
    """The largest difference, as a part of the largest value on the right, over all tensors."""
    assert left.keys() == right.keys()
    assert all(torch.isfinite(t).all() and t.any() for t in right.values())
    return max(float((left[n] - right[n]).abs().max() / right[n].abs().max()) for n in right)


def sizes(house: House, partitions: Sequence[int]) -> list[int]:
    return [house.task.labels(house.shards[p].train) for p in partitions]


@pytest.mark.parametrize("absent", [(), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("name", ADDITIVE)
def test_federated_equals_pooled(name: str, absent: tuple[int, ...], served: Served):
    house, _ = served
    there = [p for p in house.shards if p not in absent]
    if len(there) > 1:
        assert max(sizes(house, there)) > 1.5 * min(sizes(house, there))
    assert furthest(federated(name, served, there), pooled(name, served, there)) < 1e-5


@pytest.mark.parametrize("name", ADDITIVE)
def test_who_is_absent_does_matter(name: str, served: Served):
    house, _ = served
    everyone = sorted(house.shards)
    few, all_ = pooled(name, served, everyone[1:]), pooled(name, served, everyone)
    assert furthest(few, all_) > 1e-2


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", ADDITIVE)
def test_an_additive_score_does_not_depend_on_the_cut_into_batches(
    name: str, size: int, served: Served
):
    house, _ = served
    there = sorted(house.shards)[:2]
    cut = federated(name, served, there, score_batch=size)
    assert furthest(cut, federated(name, served, there, score_batch=10_000)) < 1e-5


@pytest.mark.parametrize("name", ASKING)
def test_every_score_is_the_same_whoever_hosts_whom(name: str, served: Served):
    house, _ = served
    everyone = sorted(house.shards)
    hosted = [federated(name, served, everyone, hosts=hosts) for hosts in (1, len(everyone))]
    assert furthest(*hosted) < 1e-12


@pytest.mark.parametrize("name", ASKING)
def test_a_score_leaves_the_model_bit_identical(name: str, served: Served):
    house, question = served
    load_into(house.model, question.weights)
    before, kinds = digest(house.model.state_dict()), [type(m) for m in house.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in house.model.modules()]
    statistics(SCORES[name], house, batches(together(house, [0]), 16))
    assert digest(house.model.state_dict()) == before, "parameters and buffers, integers too"
    assert all(p.grad is None or not p.grad.any() for p in house.model.parameters())
    assert all(p.requires_grad for p in house.model.parameters())
    assert [type(m) for m in house.model.modules()] == kinds
    assert hooks == [len(m._forward_hooks) + len(m._backward_hooks) for m in house.model.modules()]


@pytest.mark.parametrize("name", ASKING)
def test_a_score_is_taken_in_eval_mode_whatever_came_before(name: str, cnn: Served):
    house, question = cnn
    port = inline_port(house)
    house.model.eval()
    expected = port.ask(replace(question, score=name), [0]).total
    house.model.train()
    house.model.get_parameter("head.weight").grad = torch.ones(10, 64)
    after = port.ask(replace(question, score=name), [0]).total
    house.model.zero_grad()
    assert expected is not None
    assert after is not None
    assert torch.equal(expected, after)


@pytest.fixture(scope="module")
def smooth() -> tuple[nn.Module, Part]:
    """A trained-like net in float64: BatchNorm with statistics, no two weights alike."""
    torch.manual_seed(4)
    model = ConvNet(side=8, channels=(3, 4), hidden=6, classes=5).double()
    part = {"images": torch.randn(30, 1, 8, 8).double(), "labels": torch.randint(0, 5, (30,))}
    model.train()
    for _ in range(5):
        model(part["images"])
    return model.eval(), part


def slope(model: nn.Module, part: Part, w: Tensor, step: float) -> float:
    """dL/dw of the loss summed over a part, by central differences on one scalar of a weight."""
    losses = []
    with torch.no_grad():
        held = w.item()
        for side in (step, -step):
            w.fill_(held + side)
            losses.append(classification_loss(model, part).total.item())
        w.fill_(held)
    return (losses[0] - losses[1]) / (2 * step)


ORACLES: dict[str, Callable[[float, float, int], float]] = {
    "taylor": lambda w, g, n: abs(w * g) / n,
    "taylor_signed": lambda w, g, n: -w * g / n,
    "taylor_abs_per_client": lambda w, g, n: abs(w * g) / n,
    "gradient": lambda _, g, n: abs(g) / n,
    "gradient_abs_per_client": lambda _, g, n: abs(g) / n,
}


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_and_taylor_against_finite_differences(name: str, smooth: tuple[nn.Module, Part]):
    """One client: w·g is the change of the loss as w is scaled, d/ds L(s·w_j) at s = 1."""
    model, part = smooth
    names = ["features.0.weight", "features.4.weight", "hidden.weight"]
    compute = SCORES[name].statistics
    assert compute is not None
    sums = compute(Probe(model, names, batches(part, 7), classification_loss))
    weights = {n: model.get_parameter(n).detach() for n in names}
    scores = SCORES[name].finalise(Evidence(sums, 30, weights, generator(0, "score", 1)))
    for n in names:
        flat, got = weights[n].view(-1), scores[n].reshape(-1)
        for place in torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0))[:20]:
            g = slope(model, part, flat[place], 1e-6)
            expected = ORACLES[name](flat[place].item(), g, 30)
            assert got[place].item() == pytest.approx(expected, abs=1e-5 * got.abs().max().item())


def test_scaling_a_weight_changes_the_loss_as_the_taylor_score_says(
    smooth: tuple[nn.Module, Part],
):
    model, part = smooth
    weights = {"hidden.weight": model.get_parameter("hidden.weight").detach()}
    compute = SCORES["taylor_signed"].statistics
    assert compute is not None
    sums = compute(Probe(model, list(weights), iter([part]), classification_loss))
    w = weights["hidden.weight"].view(-1)
    place = int(sums["hidden.weight"].abs().argmax())
    held, losses = w[place].item(), []
    for scale in (1 + 1e-6, 1 - 1e-6):
        w[place] = held * scale
        losses.append(classification_loss(model, part).total.item())
    w[place] = held
    expected = sums["hidden.weight"].view(-1)[place].item()
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(expected, rel=1e-5)


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
    "taylor_abs_per_client": [5.0, 7.5, 3.0],
    "gradient": [2.0, 2.5, 6.0],
    "gradient_abs_per_client": [2.5, 2.5, 6.0],
    "magnitude": [2.0, 3.0, 0.5],
}


@pytest.mark.parametrize(("name", "expected"), LITERAL.items())
def test_two_clients_and_three_weights(name: str, expected: list[float]):
    model, score = Weight(), SCORES[name]
    sums: Tensors = {}
    if score.statistics is not None:
        each = [score.statistics(Probe(model, ["w"], iter([part]), dot)) for part in CLIENTS]
        sums = {"w": each[0]["w"].double() + each[1]["w"].double()}
    evidence = Evidence(sums, 4.0, {"w": model.w.detach()}, generator(0, "score", 1))
    assert score.finalise(evidence)["w"].tolist() == expected


def test_a_layer_that_the_loss_does_not_reach_has_gradient_zero():
    model = Weight()
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))
    for name in ASKING:
        compute = SCORES[name].statistics
        assert compute is not None
        sums = compute(Probe(model, ["w", "idle"], iter(CLIENTS[:1]), dot))
        assert sums["idle"].tolist() == [0.0, 0.0]
        assert sums["w"].any()


@pytest.mark.parametrize("name", PER_CLIENT)
def test_per_client_scores_differ_from_pooled_under_skew(name: str, served: Served):
    everyone = sorted(served[0].shards)
    assert furthest(federated(name, served, everyone), pooled(name, served, everyone)) > 0.02
    assert furthest(federated(name, served, [0]), pooled(name, served, [0])) < 1e-5


def test_a_score_that_is_no_sum_over_examples_says_so_in_its_name():
    assert {n for n, s in SCORES.items() if not s.additive} == {
        n for n in SCORES if n.endswith("per_client")
    }


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_told_of(name: str):
    assert len(SCORES[name].summary) > 5
    assert "\n" not in SCORES[name].summary + SCORES[name].source
    assert SCORES[name].source


@pytest.mark.parametrize("name", SILENT)
def test_a_score_without_statistics_asks_nobody(name: str, tiny: Tiny, cnn: Served):
    house = replace(cnn[0], config=tiny(score=name))
    kinds: list[str] = []
    port = inline_port(house)

    def ask(question: Question, partitions: Sequence[int]) -> Folded:
        kinds.append(question.kind)
        return port.ask(question, partitions)

    plan = Plan(house.config, house.layout, (0, 0))
    rows = [
        row for _, row in run(first_state(house.model, house.layout), plan, replace(port, ask=ask))
    ]
    assert set(kinds) == {"tune", "evaluate"}
    assert rows[-1]["removed"] == math.floor(0.7 * 12944 + 0.5)
    assert all(row["agreement"] is None for row in rows)


def test_random_is_seeded_and_new_each_round():
    weights = {"a": torch.ones(50), "b": torch.zeros(3, 4)}

    def drawn(seed: int, round_: int) -> Tensors:
        evidence = Evidence({}, 1.0, weights, generator(seed, "score", round_))
        return SCORES["random"].finalise(evidence)

    first = drawn(1, 1)
    assert digest(first) == digest(drawn(1, 1))
    assert len({digest(drawn(seed, round_)) for seed in (1, 2) for round_ in (1, 2)}) == 4
    assert {n: t.shape for n, t in first.items()} == {n: w.shape for n, w in weights.items()}
    values = torch.cat([t.flatten() for t in first.values()])
    assert values.unique().numel() == 62
    assert bool(((values >= 0) & (values < 1)).all())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.98])
def test_magnitude_is_global_unstructured(sparsity: float, smooth: tuple[nn.Module, Part]):
    model = copy.deepcopy(smooth[0])
    names = ["features.0.weight", "features.4.weight", "hidden.weight"]
    weights = {n: model.get_parameter(n).detach().clone() for n in names}
    n = sum(w.numel() for w in weights.values())
    assert torch.cat([w.flatten().abs() for w in weights.values()]).unique().numel() == n, "no ties"
    evidence = Evidence({}, 1.0, weights, generator(0, "score", 1))
    masks = select(SCORES["magnitude"].finalise(evidence), sparsity, floor=0)
    owners = [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in names]
    gone = math.floor(sparsity * n + 0.5)
    prune.global_unstructured(owners, prune.L1Unstructured, amount=gone)
    for name, (owner, _) in zip(names, owners, strict=True):
        assert torch.equal(masks[name], owner.weight_mask.bool())


def test_tied_weights_are_scored_once_with_all_that_reaches_them():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(5, 3)

    def loss(model: nn.Module, batch: Part) -> Loss:
        return Loss(model(batch["x"]).square().sum(), 5, 0)

    compute = SCORES["gradient"].statistics
    assert compute is not None
    sums = compute(Probe(model, ["0.weight"], iter([{"x": x}]), loss))
    w = model[0].weight.detach().clone().requires_grad_()
    (x @ w.T @ w.T).square().sum().backward()
    assert w.grad is not None
    assert torch.allclose(sums["0.weight"], w.grad, rtol=1e-4)

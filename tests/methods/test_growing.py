"""Methods whose clients prune and grow as they train, against their rules in plain torch."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune import RunConfig
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.methods.dispfl import listened_to
from fedprune.selection.regrowth import redistributed
from fedprune.tensors.named import count_kept, scattered
from tests.perceptron import LAYERS, SMALL, data, gradients, mean_of_holders
from tests.runs import house_of, overheard, played, tiny

Named = dict[str, Tensor]
LR = 0.1


def step(weights: Named, masks: Named, config: RunConfig, client: int, lr: float) -> Named:
    slopes = gradients(weights, *data(config, client))
    return {n: (w - lr * slopes[n]) * masks.get(n, 1) for n, w in weights.items()}


def swapped(weights: Named, masks: Named, slopes: Named, fraction: float) -> Named:
    """Of every layer the smallest go, and the removed ones with the largest slopes come."""
    out = {}
    for n in LAYERS:
        kept = masks[n].flatten()
        many = math.floor(fraction * int(kept.sum()) + 0.5)
        size, slope = weights[n].abs().flatten(), slopes[n].abs().flatten()
        goes = torch.where(kept, size, math.inf).argsort()[:many]
        comes = torch.where(kept, -1.0, slope).argsort(descending=True)[:many]
        new = kept.clone()
        new[goes], new[comes] = False, True
        out[n] = new.reshape(masks[n].shape)
    return out


def near(left: Named, right: Named, few: int = 4) -> None:
    """The same but for some, of which rounding decides whether they are kept."""
    off = sum(int(((left[n].double() - w).abs() > 1e-5).sum()) for n, w in right.items())
    assert off <= few, off


@pytest.mark.slow
def test_feddst_is_its_algorithm():
    given = {**SMALL, "method": "feddst", "rounds": 4, "end": 4, "frequency": 1, "regrow": 0.4}
    config = configure({**given, "local_epochs": 2, "sparsity": 0.6, "lr_schedule": "constant"})
    _, _, states = overheard(config)
    shapes = {n: m.shape for n, m in states[0].masks.items()}
    for i in (1, 2):
        before, after, parts = states[i - 1], states[i], []
        fraction = 0.2 * (1 + math.cos(math.pi * i / 4))
        votes = {n: torch.zeros(s) for n, s in shapes.items()}
        for client in range(3):
            old = {n: w.double() for n, w in before.weights.items()}
            now = step(old, before.masks, config, client, LR)
            slopes = gradients(now, *data(config, client))
            masks = swapped(now, before.masks, slopes, fraction)
            now = step({n: w * masks.get(n, 1) for n, w in now.items()}, masks, config, client, LR)
            parts.append((len(data(config, client)[1]), now, masks))
            votes = {n: votes[n] + masks[n] for n in LAYERS}
        mean = mean_of_holders(parts, {n: torch.zeros_like(w) for n, w in before.weights.items()})
        for n in LAYERS:
            kept = int(before.masks[n].sum())  # ERK's, which every exchange keeps
            best = torch.where(votes[n] > 0, mean[n].abs(), -1).flatten().argsort(descending=True)
            mask = torch.zeros(shapes[n].numel(), dtype=torch.bool)
            mask[best[:kept]] = True
            assert int(after.masks[n].sum()) == kept
            mean[n] = mean[n] * mask.reshape(shapes[n])
        rest = mean.keys() - {*LAYERS}
        assert all(torch.allclose(after.weights[n].double(), mean[n], atol=1e-5) for n in rest)
        near(after.weights, {n: mean[n] for n in LAYERS})
        assert any((after.masks[n] & ~before.masks[n]).any() for n in LAYERS), "some grew"


@pytest.mark.slow
def test_candidates_of_fedtiny_are_compared_by_statistics_of_their_own_at_any_server_rate():
    keys = {"model": "cnn", "method": "fedtiny", "warmup": 0, "rounds": 2, "end": 2}
    found = [played(tiny(**keys, server_lr=lr)).rows[0]["method"] for lr in (1.0, 0.3)]
    assert found[0] == found[1]
    assert house_of(tiny(**keys)).layout.variances


def test_the_first_pruning_of_prunefl_is_of_another_client_where_the_first_one_fails():
    config = configure({**SMALL, "method": "prunefl", "rounds": 3, "end": 3, "sparsity": 0.6})
    result, asked, _ = overheard(config, lambda _, partition: partition == 0)
    first = [ps for q, ps, _ in asked if q.kind == "tune"][:2]
    assert first == [[0], [1]]
    assert result.state.prunings == 3


@pytest.mark.slow
def test_dispfl_is_its_algorithm():
    given = {**SMALL, "method": "dispfl", "rounds": 3, "sparsity": 0.6, "lr_schedule": "constant"}
    options = {"network": "full", "exchange": 0.5}
    config = configure({**given, "method_options": options})
    _, _, states = overheard(config)
    memories = [state.memories["dispfl"] for state in states]
    start = memories[0].starts[0]
    begin = {n: w.double() * start.get(n, 1) for n, w in memories[0].begin.items()}
    weights = dict.fromkeys(range(3), begin)
    masks = dict.fromkeys(range(3), start)
    for i in range(3):
        nothing = {n: torch.zeros_like(w) for n, w in begin.items()}
        mean = mean_of_holders([(1, weights[p], masks[p]) for p in range(3)], nothing)
        fraction = 0.25 * (1 + math.cos(math.pi * i / 3))
        for p in range(3):
            begun = {n: w * masks[p].get(n, 1) for n, w in mean.items()}
            now = step(begun, masks[p], config, p, LR)
            own = swapped(now, masks[p], gradients(now, *data(config, p)), fraction)
            near(memories[i].weights[p], {n: w * own.get(n, 1) for n, w in now.items()})
            kept = [sum(int(m.sum()) for m in those.values()) for those in (start, own)]
            assert kept[0] == kept[1] == sum(int(m.sum()) for m in memories[i].masks[p].values())
        weights = {p: {n: w.double() for n, w in memories[i].weights[p].items()} for p in range(3)}
        masks = memories[i].masks
    assert any((masks[0][n] != masks[1][n]).any() for n in LAYERS)


def test_neighbours_of_dispfl_are_those_of_its_network():
    def heard(partition: int, network: str, number: int = 1) -> list[int]:
        options = SimpleNamespace(network=network, neighbours=2)
        r: Any = SimpleNamespace(cohort=(2, 5, 7, 11, 13), options=options, number=number)
        r.config = SimpleNamespace(seed=0)
        return listened_to(partition, r)

    assert heard(2, "ring") == [2, 5, 13]
    assert heard(7, "ring") == [5, 7, 11]
    assert heard(7, "full") == [2, 5, 7, 11, 13]
    drawn = [heard(7, "random", number) for number in range(20)]
    assert all(len(those) == 3 and 7 in those for those in drawn)
    assert {p for those in drawn for p in those} == {2, 5, 7, 11, 13}


def test_densities_of_dispfl_are_by_partition():
    given = {**SMALL, "method": "dispfl", "rounds": 1, "method_options": {"tiers": (0.5, 0.2)}}
    *_, (state,) = overheard(configure(given))
    for p, masks in state.memories["dispfl"].masks.items():
        kept, whole = count_kept(masks), sum(m.numel() for m in masks.values())
        assert kept == whole - math.floor((0.8 if p % 2 else 0.5) * whole + 0.5)


def test_random_growth_moves_between_tensors_by_the_size_of_what_they_keep():
    gen = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(40, 50, generator=gen) < 0.3 for n in "abc"}
    sizes = {
        n: torch.rand(40, 50, generator=gen) * by for n, by in zip("abc", (1, 2, 5), strict=True)
    }
    after = redistributed(masks, sizes, 0.5, torch.Generator().manual_seed(1))
    means = {n: float(sizes[n][m].mean()) for n, m in masks.items()}
    left = {n: int(m.sum()) - math.floor(int(m.sum()) * 0.5 + 0.5) for n, m in masks.items()}
    whole = sum(int(m.sum()) for m in masks.values())
    assert sum(int(m.sum()) for m in after.values()) == whole
    for n, m in masks.items():
        wanted = left[n] + (whole - sum(left.values())) * means[n] / sum(means.values())
        assert abs(int(after[n].sum()) - wanted) <= 1
        stays = torch.where(m, sizes[n], 0).flatten().argsort(descending=True)[: left[n]]
        assert after[n].flatten()[stays].all()


def scaled(mean: dict[str, float], room: dict[str, int], total: int) -> dict[str, int]:
    """Numbers in proportion, to one."""
    by = total / sum(mean.values())
    return {n: min(room[n], round(by * m)) for n, m in mean.items()}


@pytest.mark.parametrize("stage", ["spdst", "jmwst"])
def test_flash_is_its_two_stages(stage):
    """The clients' own exchange by chance is held above; what the server makes of it is here."""
    given = {**SMALL, "method": "flash", "rounds": 3, "end": 3, "sparsity": 0.7, "local_epochs": 2}
    options = {"stage": stage, "tiers": (1.0, 0.5)}
    config = configure({**given, "lr_schedule": "constant", "method_options": options})
    _, asked, states = overheard(config)
    port = inline_port(house_of(config))
    tuned = [(q, who) for q, who, _ in asked if q.kind == "tune"]
    (first, everybody), *later = tuned
    whole = {n: m.numel() for n, m in states[0].masks.items()}
    keep = sum(whole.values()) - math.floor(0.7 * sum(whole.values()) + 0.5)

    def kept(question, who):
        votes = [port.ask(question, [p]).votes for p in who]
        parts = [v.split([whole[n] for n in sorted(whole)]) for v in votes]
        return {n: sum(float(p[i].sum()) for p in parts) for i, n in enumerate(sorted(whole))}

    assert (first.grow, everybody) == ("random", [0, 1, 2])
    assert (first.turn, first.exchange) == (0.5, config.regrow), "halfway, and once"
    assert all(abs(int(m.sum()) - 0.3 * whole[n]) <= 1 for n, m in first.masks.items())
    wanted = scaled(kept(first, everybody), whole, keep)
    mask = later[0][0].masks
    assert all(abs(int(mask[n].sum()) - k) <= 1 for n, k in wanted.items())
    assert sum(int(m.sum()) for m in mask.values()) == keep
    for n, w in later[0][0].weights.items():  # the first weights under the mask
        assert torch.equal(w, first.weights[n] * mask.get(n, 1)) or n in mask
    half = later[1][0]
    assert [who for _, who in later[:2]] == [[0, 2], [1]]
    for n, m in half.masks.items():
        assert not (m & ~mask[n]).any()
        size = later[0][0].weights[n].abs()
        assert int(m.sum()) == max(1, round(0.5 * int(mask[n].sum())))
        assert size[m].min() >= size[mask[n] & ~m].max()
    parts, held = [], {n: torch.zeros(m.shape) for n, m in mask.items()}
    for question, who in (x for x in later if x[0].round == 2):
        assert bool(question.grow) == (stage == "jmwst")
        shapes = {n: w.shape for n, w in question.weights.items()}
        for p in who:
            answer = port.ask(question, [p])
            assert answer.weight == 1.0, "clients count alike"
            own, on = question.masks, {} if question.grow else question.masks
            if question.grow:
                own = scattered(answer.votes, {n: m.shape for n, m in own.items()}, {})
            change = scattered(answer.total, shapes, on)
            parts.append((1.0, {n: w + change[n] for n, w in question.weights.items()}, own))
            held = {n: h + own[n] for n, h in held.items()}
    after = states[1]
    for n, mean in mean_of_holders(parts, after.weights).items():
        wanted = mean * after.masks.get(n, 1)
        assert torch.allclose(after.weights[n].double(), wanted, atol=1e-5)
        if n in whole and stage == "jmwst":
            left, size = after.masks[n], torch.where(held[n] > 0, mean.abs(), -1)
            assert size[left].min() >= size[~left].max() - 1e-6
            room = {n: int((h > 0).sum()) for n, h in held.items()}
            votes = {n: float(h.sum()) for n, h in held.items()}
            few = scaled(votes, room, min(keep, sum(room.values())))
            assert abs(int(left.sum()) - few[n]) <= 1, "as many as clients kept, scaled"
    same = all(torch.equal(states[1].masks[n], mask[n]) for n in mask)
    assert same == (stage == "spdst")

"""Every line of every table, and every option, in a small run: it ends as its name says.

A new line of a table is tested by being there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedprune.client.host import Host
from fedprune.codec.wire import SCORE_TYPES
from fedprune.config import to_toml
from fedprune.engines.inline import inline_port
from fedprune.learning.averaging import AVERAGES
from fedprune.learning.blending import BLENDS
from fedprune.learning.mask_rules import MASKS
from fedprune.learning.robust_rules import ROBUST
from fedprune.learning.server_steps import SERVER_OPTIMIZERS
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.origin import coded_size
from fedprune.scores.combine import COMBINES, NORMALISE
from fedprune.selection.pools import POOLS
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS, unit_labels
from fedprune.structure.layout import as_rows
from fedprune.tensors.named import Masks, count_kept
from tests.played import Played, check, watched
from tests.runs import Spy, house_of, tiny

Keys = dict[str, Any]
Case = tuple[Keys, Keys]

SMALL: Keys = {"clients": 3, "cohort": 3, "hosts": 2, "rounds": 3, "warmup": 1, "local_steps": 1}
PATTERNS = {"features.*": 0.6, "hidden*": 0.25}
SIMPLE = [name for name, unit in UNITS.items() if unit.tensors == "one" and name != "weight"]

# What a line of a table needs beside itself.
WITH: dict[tuple[str, str], Keys] = {
    ("combine", "trimmed-mean"): {"trim": 0.4},
    ("normalise", "rank"): {"combine": "mean"},
    ("scope", "patterns"): {"layers": PATTERNS},
    ("schedule", "one-shot"): {"end": 2},
    ("schedule", "adaptive"): {"tolerance": 10.0},
    ("blend", "global"): {"blend_grid": (1.0, 1.5)},
    ("blend", "layer"): {"blend_grid": (1.0, 1.5)},
    ("unit", "n:m"): {"sparsity": 0.5},
}


def of_table(key: str, names: Any, **base: Any) -> list[Case]:
    """Each line of a table, and the run that it must differ from."""
    first = next(iter(names))
    return [
        ({key: name, **base, **WITH.get((key, name), {})}, base) for name in names if name != first
    ]


CASES: list[Case] = [
    *of_table("combine", COMBINES),
    *of_table("normalise", NORMALISE, combine="mean"),
    *[({"normalise": "l1"}, {})],
    *of_table("masks", MASKS),
    *of_table("average", ["l0-mean", *AVERAGES], masks="union"),
    *of_table("score_wire", SCORE_TYPES),
    *of_table("scope", SCOPES),
    *of_table("unit", ["weight", *SIMPLE]),
    *of_table("pool", POOLS, unit="row"),
    *of_table("schedule", {"cubic": 0, **SCHEDULES}),
    *of_table("robust", ROBUST, clients=5, cohort=5),
    ({"score_steps": 2}, {}),
    ({"score_steps": 3, "score": "synflow"}, {"score": "synflow"}),
    ({"score_during": "tune"}, {}),
    ({"score": "movement"}, {}),
    ({"calibration": "sequential", "scope": "layer"}, {"scope": "layer"}),
    ({"calibration": "sequential", "scope": "layer", "score": "sparsegpt"}, {"scope": "layer"}),
    ({"calibration": "local", "scope": "layer", "combine": "votes"}, {"scope": "layer"}),
    ({"calibration": "local", "scope": "layer", "masks": "union"}, {"masks": "union"}),
    ({"score_cohort": "all", "cohort": 2}, {"cohort": 2}),
    ({"score_cohort": 2, "cohort": 1}, {"cohort": 1}),
    ({"score_examples": 5}, {}),
    ({"weighting": "equal", "combine": "mean"}, {"combine": "mean"}),
    ({"score_weighting": "equal", "combine": "mean"}, {"combine": "mean"}),
    (
        {"score": "perturbation", "probes": 16, "combine": "median"},
        {"score": "perturbation", "probes": 16},
    ),
    ({"max_density": 0.9, "target_flops": 0.3, "sparsity": None}, {}),
    ({"rewind": 0}, {}),
    ({"rewind": 1}, {}),
    ({"schedule": "regrow", "regrow": 0.6}, {"schedule": "regrow"}),
    ({"schedule": "regrow", "combine": "median"}, {"schedule": "regrow"}),
    ({"schedule": "regrow", "combine": "votes"}, {"schedule": "regrow"}),
    ({"target_bytes": 20_000, "sparsity": None}, {}),
    ({"target_flops": 0.3, "sparsity": None}, {}),
    ({"threshold": 0.001, "sparsity": None}, {}),
    ({"accumulate": 2}, {}),
    ({"precision": "bf16"}, {}),
    ({"min_density": 0.28}, {}),
    ({"max_density": 0.4}, {}),
    ({"unit": "n:m", "unit_shape": (1, 4), "sparsity": 0.75}, {}),
    ({"unit": "block", "unit_shape": (2, 3)}, {}),
    ({"schedule": "adaptive", "adaptive": "layer", "tolerance": 10.0, "candidates": 2}, {}),
    *of_table("blend", BLENDS),
    *of_table("server_optimizer", SERVER_OPTIMIZERS),
    ({"moving": "ema"}, {}),
    ({"moving": "swa", "end": 2}, {"end": 2}),
    ({"combine": "votes", "vote_scope": "row", "scope": "layer"}, {"scope": "layer"}),
    ({"combine": "votes", "score": "wanda"}, {"score": "wanda"}),
    ({"masks": "intersection", "average": "fedavg", "wire": "bf16"}, {"masks": "union"}),
]


@dataclass(frozen=True)
class Seen:
    """A run and what went on in it."""

    played: Played
    host: Host
    asked: list[tuple[Question, list[int], Aggregate]]

    @property
    def masks(self) -> Masks:
        return self.played.result.state.masks

    def scored(self) -> list[Question]:
        return [q for q, _, _ in self.asked if q.kind == "score"]


@pytest.fixture(scope="module")
def seen() -> Callable[[Keys], Seen]:
    """A small run with these keys; each is played once."""
    done: dict[str, Seen] = {}

    def run(keys: Keys) -> Seen:
        given = {**SMALL, "end": 3, **keys}
        if keys.get("sparsity", 0.0) is None and "threshold" in keys:
            given["end"] = 2
        config = tiny(**given)
        text = to_toml(config)
        if text not in done:
            host = house_of(config)
            eye = Spy(inline_port(host))
            done[text] = Seen(watched(config, eye.port), host, eye.asked)
        return done[text]

    return run


def sure(case: Case) -> str:
    return ",".join(f"{key}={value}" for key, value in case[0].items())


@pytest.mark.sampled(12)
@pytest.mark.parametrize("case", CASES, ids=sure)
def test_a_choice_runs_keeps_the_laws_and_changes_the_run(case, seen):
    keys, base = case
    found, other = seen(keys), seen(base)
    summary = found.played.result.summary
    assert (summary["failures"], summary["rounds_completed"]) == (0, 3)
    assert summary["reached"]
    assert summary["weights_digest"] != other.played.result.summary["weights_digest"]
    assert all(row["loss"] < 10 for row in found.played.result.rows), "no worse than at random"
    check(found.played)
    for question, _, _ in found.asked:
        assert not any(question.weights[n][~m].any() for n, m in question.masks.items())
    if found.played.config.threshold is not None:
        assert 0 < count_kept(found.masks) < sum(m.numel() for m in found.masks.values())
    if found.played.config.target_bytes or found.played.config.target_flops:
        assert_target(found)


def assert_target(seen: Seen) -> None:
    """The target is met, and with a hundred weights more it would not have been."""
    c, result = seen.played.config, seen.played.result
    summary = result.summary
    if c.target_flops is not None:
        share = summary["flops_kept"] / summary["flops_dense"]
        assert c.target_flops * 0.99 < share <= c.target_flops
        return
    size = coded_size(c, result.state.weights, seen.masks)
    assert c.target_bytes - 400 < size <= c.target_bytes


@pytest.mark.parametrize("keys", [{}, {"regrow": 0.6}], ids=str)
def test_as_many_weights_come_back_as_go(keys, seen):
    played = seen({"schedule": "regrow", **keys}).played
    kept = [count_kept(state.masks) for state in played.states]
    came = [
        sum(int((b.masks[n] & ~m).sum()) for n, m in a.masks.items())
        for a, b in pairwise(played.states)
    ]
    assert kept[1] == kept[2] < kept[0]
    assert came[0] == 0 < came[1] == played.result.rows[2]["exchanged"]
    assert came[1] < kept[1] * (played.config.regrow or 0.0)


@pytest.mark.parametrize("name", SIMPLE)
def test_a_unit_goes_as_a_whole(name, seen):
    """But for the n:m, of which exactly N of M inputs stay."""
    run = seen({"unit": name, **WITH.get(("unit", name), {})})
    layout, masks = run.host.layout, run.masks
    for tensor, mask in masks.items():
        rows = as_rows(layout, tensor, mask)
        if name == "n:m":
            inputs = mask.movedim(1, -1)
            whole = inputs.shape[-1] // 4 * 4
            groups = inputs[..., :whole].unflatten(-1, (-1, 4)).sum(-1)
            assert (groups == 2).all()
            continue
        labels = as_rows(
            layout, tensor, unit_labels(layout, name, run.played.config.unit_shape)[tensor]
        )
        for number in labels.unique().tolist():
            alive = rows[labels == number]
            assert alive.all() or not alive.any() or int(alive.sum()) <= run.played.config.floor


def test_densities_are_those_of_the_patterns(seen):
    masks = seen({"scope": "patterns", "layers": PATTERNS}).masks
    for name, mask in masks.items():
        density = 0.6 if name.startswith("features") else 0.25
        assert abs(int(mask.sum()) - density * mask.numel()) <= 1


@pytest.mark.parametrize(("keys", "sign"), [({"min_density": 0.28}, 1), ({"max_density": 0.4}, -1)])
def test_densities_have_limits(keys, sign, seen):
    free, bound = seen({}).masks, seen(keys).masks
    limit = next(iter(keys.values()))
    assert any(sign * (float(m.float().mean()) - limit) < 0 for m in free.values())
    assert all(sign * (int(m.sum()) - limit * m.numel()) > -1 for m in bound.values())


@pytest.mark.parametrize("steps", [2, 3])
def test_a_pruning_in_steps_asks_in_every_step(steps, seen):
    run = seen({"score_steps": steps})
    scored = run.scored()
    assert len(scored) == 2 * steps, "two rounds prune"
    kept = [count_kept(q.masks) for q in scored]
    assert all(a > b for a, b in pairwise(kept))
    ratios = [b / a for a, b in pairwise(kept[:steps])]
    assert all(r == pytest.approx(ratios[0], rel=1e-3) for r in ratios), "by the same factor"


def test_sequential_calibration_asks_for_one_tensor_after_the_other(seen):
    run = seen({"calibration": "sequential", "scope": "layer"})
    scored = run.scored()
    names = run.host.layout.prunable
    assert [q.names for q in scored] == [(name,) for name in names] * 2
    for question in scored[: len(names)]:
        before = names[: names.index(question.names[0])]
        for name, mask in question.masks.items():
            assert bool(mask.all()) == (name not in before), "behind pruned ones"


def test_what_is_collected_while_tuning_costs_no_question(seen):
    run, usual = seen({"score_during": "tune"}), seen({})
    assert "score" not in {q.kind for q, _, _ in run.asked}
    assert "score" in {q.kind for q, _, _ in usual.asked}
    tuned = [aggregate for q, _, aggregate in run.asked if q.kind == "tune"]
    assert [aggregate.statistics is not None for aggregate in tuned] == [False, True, True]


def test_survivors_go_back_to_where_they_were(seen):
    """Pruned in rounds 2 and 3: right after that they have the weights of before round 1."""
    for rewind in (0, 1):
        run = seen({"rewind": rewind})
        early = run.played.states[0].weights if rewind else run.asked[0][0].weights
        tuned = [q for q, _, _ in run.asked if q.kind == "tune"][1:]
        for question in tuned:
            for name, w in early.items():
                mask = question.masks.get(name, torch.ones_like(w, dtype=torch.bool))
                assert torch.equal(question.weights[name][mask], w[mask]), name


def test_a_bf16_run_computes_in_bf16_and_keeps_float32(seen):
    run = seen({"precision": "bf16"})
    types: set[torch.dtype] = set()
    layer = run.host.model.get_submodule("hidden")
    hook = layer.register_forward_hook(lambda _layer, _inputs, out: types.add(out.dtype))
    for question, _, _ in run.asked[1:4]:
        inline_port(run.host).ask(question, [0])
        assert types == {torch.bfloat16 if question.kind == "tune" else torch.float32}
        types.clear()
    hook.remove()
    assert {p.dtype for p in run.host.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("wire", [name for name in SCORE_TYPES if name != "fp32"])
def test_a_smaller_type_of_scores_tells_what_it_costs(wire, seen):
    run, whole = seen({"score_wire": wire}), seen({})
    overlaps = [row["overlap"] for row in run.played.result.rows]
    assert overlaps[0] is None
    assert all(0.7 < overlap <= 1 for overlap in overlaps[1:])
    assert [row["overlap"] for row in whole.played.result.rows] == [None] * 3
    scored = [f.bytes_up for q, _, f in run.asked if q.kind == "score"]
    usual = [f.bytes_up for q, _, f in whole.asked if q.kind == "score"]
    assert all(a < b * 0.6 for a, b in zip(scored, usual, strict=True))


def test_a_client_sends_what_its_own_mask_keeps(seen):
    """So in a round that prunes its change is about as small as the sparsity says."""
    run = seen({"masks": "union"})
    pruned = [(q, f) for q, _, f in run.asked if q.kind == "tune" and q.sparsity is not None]
    assert len(pruned) == 2
    for question, aggregate in pruned:
        kept = int(aggregate.votes.sum())
        free = sum(t.numel() for n, t in question.weights.items() if n not in question.masks)
        values = 4 * (kept + 3 * free)
        flags = 3 * count_kept(question.masks) / 8
        assert values < aggregate.bytes_up < values + flags + 3 * 200


def test_labels_are_counted_over_everybody(seen):
    run = seen({})
    question, cohort, aggregate = run.asked[0]
    assert (question.kind, cohort) == ("describe", [0, 1, 2])
    test, train = aggregate.total.split(10)
    for part, counts in [("test", test), ("train", train)]:
        labels = torch.cat([getattr(s, part)["labels"] for s in run.host.shards.values()])
        assert torch.equal(counts.long(), torch.bincount(labels, minlength=10))
    naive: Mapping[str, float] = run.played.result.summary["naive"]
    assert naive["accuracy"] == float(test[train.argmax()] / test.sum())

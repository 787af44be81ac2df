"""Every line of every table, and every option, in a small run: it ends as its name says.

A new line of a table is tested by being there.
"""

from collections.abc import Callable, Mapping
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
from fedprune.protocol.origin import coded_size
from fedprune.scores.combine import COMBINES, NORMALISE
from fedprune.selection.pools import POOLS
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS
from fedprune.tensors.named import count_kept
from tests.played import Played, check, watched
from tests.runs import Asked, Spy, house_of, tiny

Keys = dict[str, Any]
Case = tuple[Keys, Keys]

SMALL: Keys = {"clients": 3, "cohort": 3, "hosts": 2, "rounds": 3, "warmup": 1}
SMALL |= {"local_steps": 1, "score_examples": 60}
SIMPLE = [name for name, unit in UNITS.items() if unit.tensors == "one" and name != "weight"]

# What a line of a table needs beside itself.
WITH: dict[tuple[str, str], Keys] = {
    ("combine", "trimmed-mean"): {"trim": 0.4},
    ("normalise", "rank"): {"combine": "mean"},
    ("scope", "patterns"): {"layers": {"features.*": 0.6, "hidden*": 0.25}},
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


SYNFLOW: Keys = {"score": "synflow", "score_examples": None}
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
    ({"score_steps": 3, **SYNFLOW}, SYNFLOW),
    ({"score_during": "tune", "score_examples": None}, {}),
    ({"score": "movement", "score_examples": None}, {}),
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


Seen = tuple[Played, Host, Asked]
"""A run, who served it, and what was asked in it."""


@pytest.fixture(scope="module")
def seen() -> Callable[[Keys], Seen]:
    """A small run with these keys; each is played once."""
    done: dict[str, Seen] = {}

    def run(keys: Keys) -> Seen:
        config = tiny(**{**SMALL, "end": 2 if "threshold" in keys else 3, **keys})
        text = to_toml(config)
        if text not in done:
            host = house_of(config)
            eye = Spy(inline_port(host))
            done[text] = watched(config, eye.port), host, eye.asked
        return done[text]

    return run


def sure(case: Case) -> str:
    return ",".join(f"{key}={value}" for key, value in case[0].items())


@pytest.mark.sampled(12)
@pytest.mark.parametrize("case", CASES, ids=sure)
def test_a_choice_runs_keeps_the_laws_and_changes_the_run(case, seen):
    keys, base = case
    (found, _, asked), (other, _, _) = seen(keys), seen(base)
    config, masks, summary = found.config, found.result.state.masks, found.result.summary
    assert (summary["failures"], summary["rounds_completed"]) == (0, 3)
    assert summary["reached"]
    assert summary["weights_digest"] != other.result.summary["weights_digest"]
    assert all(row["loss"] < 10 for row in found.result.rows), "no worse than at random"
    check(found)
    for question, _, _ in asked:
        assert not any(question.weights[n][~m].any() for n, m in question.masks.items())
    if config.threshold is not None:
        assert 0 < count_kept(masks) < sum(m.numel() for m in masks.values())
    # A target is met, and with a hundred weights more it would not have been.
    if config.target_flops is not None:
        share = summary["flops_kept"] / summary["flops_dense"]
        assert config.target_flops * 0.99 < share <= config.target_flops
    if config.target_bytes is not None:
        size = coded_size(config, found.result.state.weights, masks)
        assert config.target_bytes - 400 < size <= config.target_bytes


def test_as_many_weights_come_back_as_go(seen):
    played, _, _ = seen({"schedule": "regrow", "regrow": 0.6})
    kept = [count_kept(state.masks) for state in played.states]
    came = [
        sum(int((b.masks[n] & ~m).sum()) for n, m in a.masks.items())
        for a, b in pairwise(played.states)
    ]
    assert kept[1] == kept[2] < kept[0]
    assert came[0] == 0 < came[1] == played.result.rows[2]["exchanged"]
    assert came[1] < kept[1] * 0.6


def test_a_pruning_in_steps_asks_in_every_step(seen):
    _, _, asked = seen({"score_steps": 3})
    kept = [count_kept(q.masks) for q, _, _ in asked if q.kind == "score"]
    assert len(kept) == 2 * 3, "two rounds prune"
    assert all(a > b for a, b in pairwise(kept))
    assert kept[2] / kept[1] == pytest.approx(kept[1] / kept[0], rel=1e-3), "by the same factor"


def test_what_is_collected_while_tuning_costs_no_question(seen):
    (_, _, usual), (_, _, asked) = seen({}), seen({"score_during": "tune", "score_examples": None})
    assert "score" not in {q.kind for q, _, _ in asked}
    assert "score" in {q.kind for q, _, _ in usual}
    tuned = [aggregate for q, _, aggregate in asked if q.kind == "tune"]
    assert [aggregate.statistics is not None for aggregate in tuned] == [False, True, True]


def test_labels_are_counted_over_everybody(seen):
    run, host, ((question, cohort, aggregate), *_) = seen({})
    assert (question.kind, cohort) == ("describe", [0, 1, 2])
    test, train = aggregate.total.split(10)
    for part, counts in [("test", test), ("train", train)]:
        labels = torch.cat([getattr(s, part)["labels"] for s in host.shards.values()])
        assert torch.equal(counts.long(), torch.bincount(labels, minlength=10))
    naive: Mapping[str, float] = run.result.summary["naive"]
    assert naive["accuracy"] == float(test[train.argmax()] / test.sum())

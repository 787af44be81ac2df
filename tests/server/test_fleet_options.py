"""Every field of a class of devices, and every option about them, changes what comes of a run."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from fedprune.config.kinds import KINDS
from fedprune.config.profiles import DeviceClass
from fedprune.opening import opening_of
from fedprune.server.work import bytes_needed
from tests.runs import overheard, tiny
from tests.server.test_simulated_fleet import CLASSES, file_of

KEYS = {"model": "mlp", "method": "heterofl", "method_options": {"tiers": (1.0, 0.5, 0.25)}}
KEYS |= {"unit": "row", "clients": 8, "cohort": 5, "warmup": 1, "rounds": 3, "end": 3}
OTHER: dict[str, Mapping[str, Any]] = {
    "share": {"share": 3},
    "flops": {"flops": 9e8},
    "up": {"up": 2e5},
    "down": {"down": 9e5},
    "memory": {"memory": 1e3},
    "availability": {"availability": 0.3},
    "dropout": {"dropout": 0.7},
    "watts": {"watts": 5},
}
"""Another value of each field of the slow class."""


def outcome(folder, keys: Mapping[str, Any] = {}, slow: Mapping[str, Any] = {}) -> str:
    """What there is to say of a run: its rows, and what each class of devices did."""
    config = tiny(**{**KEYS, "profiles": file_of(folder, **slow), **keys})
    result, asked, _ = overheard(config)
    told = [{k: v for k, v in row.items() if k != "seconds"} for row in result.rows]
    state, plan = opening_of(config, None, None)
    for question, whom, _ in asked:
        fits = [plan.fleet[p].memory >= bytes_needed(state.model, plan, p) for p in whom]
        assert all(fits) or KINDS[question.kind].asks != "cohort", "nobody gets what does not fit"
    return str((told, result.summary["devices"]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return outcome(tmp_path_factory.mktemp("plain"))


def test_every_field_is_here():
    assert OTHER.keys() | {"name"} == {f.name for f in fields(DeviceClass)}


@pytest.mark.slow
@pytest.mark.parametrize("field", OTHER)
def test_a_field_changes_what_comes_of_a_run(tmp_path, plain, field):
    assert field not in CLASSES["slow"] or CLASSES["slow"][field] != OTHER[field][field]
    assert outcome(tmp_path, slow=OTHER[field]) != plain


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"deadline": 0.5}, {"over_select": 1.6}], ids=str)
def test_an_option_changes_what_comes_of_a_run(tmp_path, plain, keys):
    assert outcome(tmp_path, keys) != plain


@pytest.mark.slow
def test_budgets_give_other_parts_and_never_what_does_not_fit(tmp_path, plain):
    state, plan = opening_of(tiny(model="mlp"), None, None)
    whole = bytes_needed(state.model, plan)
    slow = {"flops": 2e9, "up": 1.5e6, "memory": 0.55 * whole}
    found = [outcome(tmp_path, {"budget": b}, slow) for b in ("none", "memory", "flops", "bytes")]
    assert len({plain, *found}) == 5

"""Each fault of `tests.faults` is noticed: a run of the gallery breaks a law, or is another one."""

import functools
import json
from typing import Any

import pytest

from tests.digests import FILE, kept, machine, played
from tests.faults import FAULTS, put_in
from tests.played import check


@functools.cache
def sound(name: str) -> dict[str, Any]:
    """What there is without a fault: as recorded, or where that is another machine as played."""
    recorded: dict[str, Any] = json.loads(FILE.read_text())
    if recorded["machine"] == machine():
        return dict(recorded["runs"][name])
    return kept(played(name))


def noticed(name: str) -> str:
    """What shows a fault: an error, or names of digests."""
    before = sound(FAULTS[name].run)
    with put_in(FAULTS[name]):
        try:
            run = played(FAULTS[name].run)
            check(run)
        except (AssertionError, ValueError, RuntimeError) as broken:
            return f"{type(broken).__name__}: {broken}".splitlines()[0]
    after = kept(run)
    return ", ".join(what for what in before if before[what] != after[what])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(name):
    assert noticed(name)


@pytest.mark.slow
def test_a_fault_is_gone_afterwards():
    fault = FAULTS["sign of a score"]
    before = sound(fault.run)
    with put_in(fault):
        assert kept(played(fault.run)) != before
    assert kept(played(fault.run)) == before

"""Every run of the gallery keeps the laws, and is what it was when it was recorded."""

import json
import warnings
from typing import Any

import pytest
import torch

from tests.digests import FILE, PLACES, ROOT, apart, differing, kept, machine, played
from tests.gallery import GALLERY, METHODS, RECIPES
from tests.played import check

RECORDED: dict[str, Any] = json.loads(FILE.read_text())
RUNS = [pytest.param(n, marks=() if r.quick else pytest.mark.slow) for n, r in GALLERY.items()]


@pytest.fixture(scope="module")
def exact() -> bool:
    """Whether this is the machine on which digests were recorded, as far as bits go."""
    here, there = machine(), RECORDED["machine"]
    if here != there:
        other = {name: (there.get(name), here[name]) for name in here if here[name] != there[name]}
        warnings.warn(
            f"the gallery was recorded elsewhere (then, now: {other}): its runs are compared by "
            f"losses, sparsities, answers, ledger lines and {PLACES} places of each mask",
            stacklevel=1,
        )
    return here == there


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_the_laws_and_is_what_it_was(name, exact):
    run = played(name)
    check(run)
    assert run.result.summary["reached"] or name not in {f"recipe {recipe}" for recipe in RECIPES}
    wrong = differing(kept(run), RECORDED["runs"][name], exact=exact)
    assert not wrong, (
        f"{name}: {', '.join(wrong)} changed; if that is meant: "
        f"python -m tests.digests --record '{name}', and the commit says why"
    )


def test_there_is_a_record_of_every_run_and_a_run_of_every_recipe():
    assert set(RECORDED["runs"]) == set(GALLERY)
    files = {p.stem for p in (ROOT / "simulations" / "recipes").glob("*.toml")}
    assert files - METHODS.keys() == set(RECIPES) - METHODS.keys()


AGAIN = [*METHODS, "remembering", "adapters", "scaffold"]
ALIKE = {"killed": "int8", "int8 workers": "int8"} | {f"{name} killed": name for name in AGAIN}


def test_killed_runs_and_those_on_nodes_are_the_unbroken_ones():
    for other, name in ALIKE.items():
        assert RECORDED["runs"][other] == RECORDED["runs"][name], other


def test_another_processor_is_told_from_another_result():
    """What differs by rounding is near; other losses, amounts, answers, lines and masks are not."""
    then = RECORDED["runs"]["magnitude"]["about"]
    nudged = {**then, "loss": [x * (1 + 1e-3) for x in then["loss"]]}
    assert not apart(nudged, then)
    others: dict[str, Any] = {
        "loss": [x + 0.1 for x in then["loss"]],
        "sparsity": [0.0, *then["sparsity"][:-1]],
        "answered": [2, *then["answered"][1:]],
        "lines": then["lines"] - 1,
        "kept": f"{int(then['kept'], 16) ^ int('f' * 16, 16):064x}",
    }
    for name, value in others.items():
        assert apart({**then, name: value}, then) == [name]


def test_a_probe_computes_the_same_again():
    torch.manual_seed(5)
    assert machine() == machine()

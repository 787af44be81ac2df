import itertools

import pytest
import torch
from convnets import net_of
from families import family

from fedprune.selection.scopes import SCOPES, conflict, scope_fits, scopes_of
from fedprune.selection.select import select
from fedprune.selection.units import UNITS
from fedprune.structure.layout import layout_of


@pytest.mark.parametrize(("unit", "scope"), [*itertools.product(UNITS, SCOPES)])
def test_what_is_allowed_works_and_what_is_refused_says_what_is_allowed(unit, scope):
    told = conflict(unit, scope)
    assert (told == "") == (scope in scopes_of(unit))
    if told:
        assert told == f"unit {unit} cannot be ranked so"
        return
    net, _, head = net_of("residual")
    layout = family("mixtral" if unit == "expert" else "bert").layout
    layout = layout_of(net, output=[head]) if unit == "channel" else layout
    scores = {n: torch.rand(layout.shapes[n]) for n in layout.prunable}
    sparsity = {"sublayer": 0.5, "layer": 0.5, "neuron": 0.2}.get(unit, 0.3)
    shape = {"n:m": (2, 4), "block": (2, 2)}.get(unit)
    densities = {"*query*": 0.5} if scope == "patterns" else None
    how = {"scope": scope, "unit": unit, "unit_shape": shape, "densities": densities}
    masks = select(scores, sparsity, layout=layout, **how)
    assert any(not m.all() for m in masks.values())


@pytest.mark.parametrize(
    ("unit", "scope", "limits", "word"),
    [
        ("weight", "global", {"min_density": 0.1, "max_density": 0.5}, ""),
        ("row", "layer", {"min_density": 0.1}, ""),
        ("head", "layer", {"min_density": 0.1}, ""),
        ("n:m", "global", {"min_density": 0.1}, "n:m fixes the density"),
        ("weight", "patterns", {"max_density": 0.9}, "patterns fix the density"),
        ("layer", "global", {"min_density": 0.1}, "unit layer removes whole tensors"),
        ("row", "global", {"max_density": 0.9}, "unit row has sizes"),
    ],
)
def test_limits_of_density(unit, scope, limits, word):
    told = conflict(unit, scope, **limits)
    assert told.startswith(word)
    assert bool(told) == bool(word)


def test_votes_count_only_among_those_that_competed():
    for vote, server in itertools.product(SCOPES, SCOPES):
        told = scope_fits(vote, server)
        assert (told == "") == (vote == server or (vote, server) == ("row", "layer"))
        assert "\n" not in told

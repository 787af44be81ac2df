"""What does not go with ``--reduce``."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.options.conditions import only
from fedprune.options.refusal import Conflict

_CUT = ("head", "neuron", "channel", "expert", "sublayer", "layer")
_WHOLE = ("head", "neuron", "head-neuron", "sublayer", "layer")
_RANKS = ("rank_energy", "rank_budget", "rank_tolerance")


def reduction_conflicts(c: AllOptions) -> list[Conflict]:
    """Every possible conflict of a configuration's reductions, with whether it is one."""
    kept = "residuals of --error-feedback are of one shape"
    given = [key.replace("_", "-") for key in _RANKS if vars(c)[key] is not None]
    both = f"{' and '.join(given)} exclude each other"
    first = given[0] if len(given) > 1 else "rank-energy"
    return [
        *only(c, c.error_feedback, kept, reduce=()),
        *_slicing(c),
        *_rounds(c),
        (first, len(given) > 1, both, "one of them"),
    ]


def _slicing(c: AllOptions) -> list[Conflict]:
    slices, whole = "slice" in c.reduce, ", ".join(_WHOLE)
    masked = "zeros of single weights do not stay where channels are rotated"
    shared = "norms of several widths' weights go into what reads them, which is then not shared"
    states = "a teacher's hidden states are not rotated"
    return [
        ("unit", slices and c.sparsity != 0.0 and c.unit not in _WHOLE, masked, whole),
        ("reduce", slices and "share" in c.reduce, shared, "slice without share"),
        *only(c, slices, states, distil_hidden=0.0),
    ]


def _rounds(c: AllOptions) -> list[Conflict]:
    at = c.reduce_round or 0
    later = 0 < at <= c.end and c.sparsity != 0.0
    after = f"{c.end + 1} to {c.rounds}" if c.end < c.rounds else "a round after --end"
    cuts = later and "share" in c.reduce and c.unit in _CUT
    outside = bool(at) and not c.warmup < at <= c.rounds
    between = "not between warm-up and the last round"
    back, share = "survivors go back to weights of other shapes", c.scope != "global"
    regrows, key = c.schedule == "regrow", "reduce-round"
    less = "a layer may have lost more than its share"
    return [
        (key, outside, between, f"{c.warmup + 1} to {c.rounds}"),
        (key, cuts, "nothing is cut out of shared matrices", after),
        (key, later and c.rewind is not None, back, after),
        (key, later and regrows, "what is gone cannot grow back", after),
        (key, later and share, less, f"{after}, or --scope global"),
    ]

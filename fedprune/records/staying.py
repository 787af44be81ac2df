"""What pruning leaves alone, what it cannot take out, and tensors that keep almost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.options.refusal import counted
from fedprune.selection.options import Pruning
from fedprune.selection.units import UNITS
from fedprune.structure.layout import Layout

Kinds = dict[str, dict[str, Any]]
"""Of each kind of parameter that stays dense: its share of all parameters, how many, and names."""

_FEW, _LEAST = 8, 0.01  # Fewer weights than this, or a smaller part of a tensor, is almost nothing


def staying_kinds(layout: Layout) -> Kinds:
    """What no mask is for, by kind, the largest first."""
    shapes = {**layout.shapes, **layout.frozen}
    found: Kinds = {}
    for name, kind in layout.stays.items():
        entry = found.setdefault(kind, {"share": 0.0, "parameters": 0, "tensors": []})
        entry["parameters"] += shapes[name].numel()
        entry["tensors"].append(name)
    for entry in found.values():
        entry["share"] = entry["parameters"] / layout.parameters
    return dict(sorted(found.items(), key=lambda item: -item[1]["parameters"]))


def staying_summary(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """The same in one line, "" if nothing stays."""
    share = sum(entry["share"] for entry in kinds.values())
    each = [f"{kind} {entry['share']:.1%}" for kind, entry in kinds.items() if entry["parameters"]]
    return f"{share:.1%} of all parameters: {', '.join(each)}" if each else ""


def uncut(config: Pruning, layout: Layout) -> list[str]:
    """Paths of the blocks that unit ``layer`` can make zero, but not take out of the model."""
    if config.unit != "layer" or not config.sparsity:
        return []
    cuttable = {part.tensor for group in layout.structure.groups for part in group.parts}
    return [b.path for b in layout.structure.blocks if not set(b.tensors) <= cuttable]


def uncut_summary(paths: Sequence[str]) -> str:
    """The same in one line, "" if there is none."""
    if not paths:
        return ""
    return (
        f"unit layer: {counted(len(paths), 'block')} "
        f"({', '.join(paths[:3])}{', ...' * (len(paths) > 3)}) "
        "from no family whose parts can be cut: what goes becomes zeros and stays in the model"
    )


def nearly_empty(layers: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Names of the tensors that keep almost nothing: under 1 %, or under 8 weights and 10 %.

    Where units are whole tensors, those that are gone are none of these.
    """
    wholly = UNITS[unit].tensors == "all"
    return [
        layer["name"]
        for layer in layers
        if layer["kept"] < max(_LEAST * layer["total"], min(_FEW, 0.1 * layer["total"]))
        and not (wholly and not layer["kept"])
    ]


def empty_summary(summary: Mapping[str, Any]) -> str:
    """The same in one line, from a summary; "" if there is none."""
    names: Sequence[str] = summary.get("nearly_empty") or ()
    counts = {layer["name"]: layer for layer in summary.get("layers") or ()}
    each = [f"{n} {counts[n]['kept']:,} of {counts[n]['total']:,}" for n in names if n in counts]
    if not each:
        return ""
    more = f" and {len(each) - 5} more" if len(each) > 5 else ""
    return f"almost nothing is left of {counted(len(each), 'tensor')}: {', '.join(each[:5])}{more}"

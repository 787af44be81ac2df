"""What a cut model changes in the config of its family, where a config can say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fedprune.structure.edits import Edits
from fedprune.structure.families.family import Family
from fedprune.structure.groups import Group, Structure, structure_of


class Unplain(ValueError):
    """No plain config describes the model; the message says why."""


UNSAID = {
    "channel": "no config counts single channels of single layers",
    "vocab": "a config counts tokens, but its tokenizer gives the dense model's ids, which are not "
    "those of the rows that stay",
    "bias": "no config says that a layer has a bias which others of its kind lack",
    "rank": "no config says that two layers are in the place of one",
    "share": "no config says that two layers hold one matrix",
}
"""Why a plain config has no word for an edit, by its kind."""


def bias_keys(family: Family | None, edits: Edits) -> dict[str, bool]:
    """The keys of a config that give biases to all layers that got one; none, where there are not.

    They give them to others as well, whose biases are then 0.
    """
    layers = {edit.path.rpartition(".")[2] for edit in edits if edit.kind == "bias"}
    known = {} if family is None else family.config.biases
    return {known[layer]: True for layer in layers} if layers <= known.keys() else {}


def config_changes(
    dense: nn.Module, family: Family, edits: Edits
) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of the config that change, and each block's path in the new model to its old one."""
    structure = structure_of(dense, [n for n, p in dense.named_parameters() if p.dim() > 1])
    kept = _kept(structure, edits)
    gone = {
        block.path
        for block in structure.blocks
        if not any(units for path, (_, units) in kept.items() if _inside(path, block.path))
    }
    there = {p: v for p, v in kept.items() if not any(_inside(p, g) for g in gone)}
    changes: dict[str, Any] = _neuron_keys(family, there)
    if structure.mixtures:
        changes |= _expert_key(family, structure, there)
    groups = [g for g in structure.groups if g.kind == "head"]
    changes |= _head_keys(dense.config, family, there, groups)
    blocks, counts = _renumbered([b.path for b in structure.blocks], gone)
    blocks |= {f"gone.{path}": path for path in gone}
    if gone:
        ends = {f".{end}": key for end, key in family.config.layers.items()}
        for stack, count in counts.items():
            changes[next(key for end, key in ends.items() if f".{stack}".endswith(end))] = count
        stays = [b.path not in gone for b in structure.blocks]
        changes |= _left(dense.config, family, stays) | family.config.numbered(dense.config, stays)
    return changes, blocks


def _left(settings: Any, family: Family, stays: Sequence[bool]) -> dict[str, Any]:
    """What a config says block by block, of the blocks that stay."""
    said = {key: getattr(settings, key, None) for key in family.config.by_layer}
    return {
        key: [value for value, stay in zip(values, stays, strict=True) if stay]
        for key, values in said.items()
        if isinstance(values, list)
    }


def _inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _kept(structure: Structure, edits: Edits) -> dict[str, tuple[str, int]]:
    """Kind and number of units of each group after the edits, by path."""
    cut = {edit.path: len(edit.kept) for edit in edits}
    experts = {edit.path: edit.kept for edit in edits if edit.kind == "expert"}
    gone = {
        expert.path
        for m in structure.mixtures
        for number, expert in zip(m.numbers, m.experts, strict=True)
        if number not in experts.get(m.path, m.numbers)
    }
    return {
        g.path: (g.kind, 0 if g.path in gone else cut.get(g.path, len(g.parts[-1].index)))
        for g in structure.groups
    }


def _neuron_keys(family: Family, there: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """How many neurons feed-forward layers have, by the key that says so of them."""
    key = family.config.neurons
    by_key: dict[str, dict[str, tuple[str, int]]] = {}
    for path, (kind, units) in there.items():
        if kind == "neuron" and (units or ".experts." not in path):
            name = key if isinstance(key, str) else key(path)
            by_key.setdefault(name, {})[path] = kind, units
    found = {name: _same("neuron", those) for name, those in by_key.items()}
    return {name: count for name, count in found.items() if count is not None}


def _expert_key(
    family: Family, structure: Structure, there: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """How many experts are left in every mixture of the blocks that stay."""
    left = {
        m.path: ("expert", sum(there[e.path][1] > 0 for e in m.experts if e.path in there))
        for m in structure.mixtures
        if any(e.path in there for e in m.experts)
    }
    count = _same("expert", left)
    if count is not None and count < min(m.least for m in structure.mixtures):
        raise Unplain(f"{count} experts are left, and a config sends tokens to more of them")
    return {} if count is None else {family.config.experts: count}


def _same(kind: str, kept: Mapping[str, tuple[str, int]]) -> int | None:
    counts = sorted({units for k, units in kept.values() if k == kind})
    if len(counts) > 1:
        first = {units: path for path, (k, units) in reversed(list(kept.items())) if k == kind}
        where = ", ".join(f"{first[units]} {units}" for units in counts[:2])
        found = ", ".join(map(str, counts))
        raise Unplain(f"its blocks keep {found} {kind}s ({where}), a config has one number")
    if counts == [0]:
        raise Unplain(f"no {kind} is left in blocks that are not gone as a whole")
    return counts[0] if counts else None


def _head_keys(
    settings: Any, family: Family, there: Mapping[str, tuple[str, int]], groups: Sequence[Group]
) -> dict[str, int]:
    heads = _same("head", there)
    if heads is None or {len(g.parts[-1].index) for g in groups if g.path in there} == {heads}:
        return {}
    if family.config.heads is None:
        raise Unplain(f"a {settings.model_type} config has as many heads as fill its width")
    return family.config.heads(settings, heads)


def _renumbered(paths: Sequence[str], gone: set[str]) -> tuple[dict[str, str], dict[str, int]]:
    """New paths of the blocks that stay to their old ones, and how many each stack has."""
    counts: dict[str, int] = {}
    blocks: dict[str, str] = {}
    for path in paths:
        stack = path.rpartition(".")[0]
        counts.setdefault(stack, 0)
        if path not in gone:
            blocks[f"{stack}.{counts[stack]}"] = path
            counts[stack] += 1
    return blocks, counts

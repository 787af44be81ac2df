"""The transformers that are recognised: heads, feed-forward neurons, sub-layers and blocks.

Found by the kind of module, never by patterns over names; one line per sublayer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fedprune.structure.families.catalog import MIXTURES, SUBLAYERS
from fedprune.structure.families.family import SubLayer
from fedprune.structure.layer_kinds import family_name
from fedprune.structure.projections import projections

if TYPE_CHECKING:
    from fedprune.structure.layout import Layout


@dataclass(frozen=True)
class UnitSlice:
    """What of one tensor belongs to each unit of a group.

    Attributes:
        tensor: name of a prunable tensor.
        axis: "row" (the units' outputs) or "column" (what reads them), in the (out, in) view.
        index: (units, width) long: rows or columns of each unit, in that view.
        pieces: of a layer that makes several things how many of a unit's rows are of each, in
            their order; () = all of one.
        reader: of a layer that makes units of heads and neurons the prunable tensor that reads the
            module's input: another one where the layer is two factors; "" = none is prunable.
    """

    tensor: str
    axis: str
    index: Tensor
    pieces: tuple[int, ...] = ()
    reader: str = ""


@dataclass(frozen=True)
class Group:
    """Units of one kind in one module: the heads of an attention, the neurons of a feed-forward.

    Attributes:
        path: the module's path.
        kind: "head" or "neuron"; of plain networks "channel"
            (`fedprune.structure.channels.groups`).
        parts: the tensors they run through.
        alike: of heads, as `fedprune.structure.families.family.SubLayer.alike`.
    """

    path: str
    kind: str
    parts: tuple[UnitSlice, ...]
    alike: str = "products"


@dataclass(frozen=True)
class Block:
    """A block of a stack: path and the prunable tensors inside, in model order."""

    path: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Mixture:
    """The experts of a block, each with its prunable tensors.

    Attributes:
        path: of the module with experts and router.
        experts: path and prunable tensors of each, in model order.
        numbers: of each in the dense model.
        least: how many a token is sent to: so many stay.
    """

    path: str
    experts: tuple[Block, ...]
    numbers: tuple[int, ...]
    least: int


@dataclass(frozen=True)
class Structure:
    """What was recognised; empty for models of other kinds."""

    groups: tuple[Group, ...] = ()
    blocks: tuple[Block, ...] = ()
    mixtures: tuple[Mixture, ...] = ()

    @property
    def wholes(self) -> list[tuple[str, ...]]:
        """The tensors of every attention and feed-forward layer; a mixture's experts are one."""
        inside = {t: m for m in self.mixtures for e in m.experts for t in e.tensors}
        found: dict[object, tuple[str, ...]] = {}
        for group in (g for g in self.groups if g.kind != "channel"):
            tensors = tuple(part.tensor for part in group.parts)
            mixture = inside.get(tensors[0])
            key = group.path if mixture is None else (mixture.path,)
            experts = () if mixture is None else mixture.experts
            found[key] = tuple(t for e in experts for t in e.tensors) or tensors
        return list(found.values())


def structure_of(model: nn.Module, prunable: Sequence[str]) -> Structure:
    """The structure of a model, of its prunable tensors only, in model order.

    A group whose reading layer is not prunable is left out: its units could not be silenced. Of
    modules that share all their weights the first one counts; groups that share some of them are
    left out, for what is cut from one would be missing in the other.
    """
    named = {id(p): name for name, p in model.named_parameters()}
    names = {key: name for key, name in named.items() if name in set(prunable)}
    found: dict[frozenset[str], Group] = {}
    for path, module in model.named_modules():
        sublayer = SUBLAYERS.get(family_name(module))
        group = None if sublayer is None else _group(path, module, sublayer, names)
        if group is not None:
            found.setdefault(frozenset(part.tensor for part in group.parts), group)
    uses = Counter(tensor for tensors in found for tensor in tensors)
    alone = [g for tensors, g in found.items() if all(uses[t] == 1 for t in tensors)]
    return Structure(tuple(alone), _blocks(model, prunable), _mixtures(model, prunable))


def _group(path: str, module: nn.Module, sublayer: SubLayer, names: dict[int, str]) -> Group | None:
    found = projections(module, sublayer)
    if not found or names.get(id(found[-1].layer.weight)) is None:
        return None
    parts = (
        UnitSlice(
            names[id(p.layer.weight)],
            p.axis,
            p.index,
            p.pieces,
            "" if p.reader is None else names.get(id(p.reader.weight), ""),
        )
        for p in found
        if id(p.layer.weight) in names
    )
    return Group(path, sublayer.kind, tuple(parts), sublayer.alike(path))


def _blocks(model: nn.Module, prunable: Sequence[str]) -> tuple[Block, ...]:
    """The elements of the outermost module lists, as far as something in them is prunable."""
    stacks = stacks_in(model).items()
    paths = [f"{path}.{n}" if path else n for path, s in stacks for n, _ in s.named_children()]
    inside = {path: tuple(t for t in prunable if t.startswith(f"{path}.")) for path in paths}
    return tuple(Block(path, tensors) for path, tensors in inside.items() if tensors)


def stacks_in(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules, by path."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") or not outer for outer in found)
        if isinstance(module, nn.ModuleList) and not inside:
            found[path] = module
    return found


def _mixtures(model: nn.Module, prunable: Sequence[str]) -> tuple[Mixture, ...]:
    """Those of whose experts all weights are prunable: others could not be silenced."""
    known, found = set(prunable), []
    for path, module in model.named_modules():
        experts: Any = getattr(module, "experts", None)
        if family_name(module) not in MIXTURES or not isinstance(experts, nn.Module):
            continue
        parts = {
            f"{path}.experts.{number}": tuple(
                n for n, p in expert.named_parameters() if p.dim() > 1
            )
            for number, expert in experts.named_children()
        }
        units = [Block(p, tuple(f"{p}.{n}" for n in names)) for p, names in parts.items() if names]
        if units and all(set(unit.tensors) <= known for unit in units):
            numbers = tuple(int(unit.path.rpartition(".")[2]) for unit in units)
            router: Any = module.get_submodule("gate")
            found.append(Mixture(path, tuple(units), numbers, min(router.top_k, len(units))))
    return tuple(found)


def stages_of(layout: Layout) -> list[tuple[str, ...]]:
    """The prunable tensors in model order, cut up for a calibration one stage after the other.

    The tensors of a block are one stage, every tensor outside of blocks is one by itself.
    """
    block_of = {t: block.tensors for block in layout.structure.blocks for t in block.tensors}
    return list(dict.fromkeys(block_of.get(name, (name,)) for name in layout.prunable))


def stacks_of(layout: Layout) -> list[list[Block]]:
    """The blocks in model order, those of a stack (a decoder, an encoder) together."""
    found = groupby(layout.structure.blocks, lambda block: block.path.rpartition(".")[0])
    return [list(blocks) for _, blocks in found]


_CROSSING = ("cross", "encdec", "encoder_attn")
"""In the names of attentions whose queries and keys are of different things."""


def input_of(layout: Layout, names: Sequence[str]) -> dict[str, str]:
    """For each of the tensors the first one among them that reads the same input, or itself.

    Queries, keys and values of an attention over one sequence read one, and so do the two halves of
    a gated feed-forward layer.
    """
    shared: dict[str, str] = {}
    for group in layout.structure.groups:
        within = group.path.rpartition(".")[2].lower()
        if group.kind in ("head", "neuron") and not any(word in within for word in _CROSSING):
            readers = [p.reader for p in group.parts if p.reader]
            among = [name for name in names if name in readers]
            shared |= dict.fromkeys(among, among[0] if among else "")
    return {name: shared.get(name, name) for name in names}

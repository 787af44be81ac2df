"""From masks to edits, and where the numbers of a cut model sat in the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.structure.channels.groups import TRACED, roles_of
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.groups import Group
from fedprune.structure.layout import Layout, as_rows
from fedprune.structure.surgery import ordered, reshaped
from fedprune.tensors.lazy import LazyTensors, bare_of, in_memory
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors


def edits_of(masks: Masks, layout: Layout, before: Iterable[Edit] = ()) -> Edits:
    """The edits that take out every unit which is wholly masked: all its weights in all tensors.

    A sub-layer is removed if that is all of its units; of channels, which a network cannot do
    without, one stays. What was done to an expert that goes is left out. The layout is of the model
    that the edits `before` led to, the masks in its shapes. All edits come out, those made before
    included, in original indices and canonical order.
    """
    found = {(edit.kind, edit.path): edit for edit in before}
    for group in layout.structure.groups:
        alive = alive_units(group, masks, layout)
        key = group.kind, group.path
        original = found[key].kept if key in found else range(len(alive))
        kept = tuple(unit for unit, lives in zip(original, alive, strict=True) if lives)
        if not kept and group.kind == "channel":
            kept = (original[0],)
        if len(kept) < len(alive):
            found[key] = Edit(group.kind, group.path, kept)
    for mixture in layout.structure.mixtures:
        gone = [e.path for e in mixture.experts if not any(masks[t].any() for t in e.tensors)]
        left = [
            number
            for number, expert in zip(mixture.numbers, mixture.experts, strict=True)
            if expert.path not in gone
        ]
        inside = tuple(f"{path}." for path in gone)
        found = {k: e for k, e in found.items() if not f"{e.path}.".startswith(inside or ("!",))}
        if gone:
            found["expert", mixture.path] = Edit("expert", mixture.path, tuple(left))
    return ordered(found.values())


def alive_units(group: Group, masks: Masks, layout: Layout) -> Tensor:
    """Of every unit of the group, whether any of its weights is kept, (units,) bool."""
    alive = torch.zeros(len(group.parts[0].index), dtype=torch.bool)
    for part in group.parts:
        rows = as_rows(layout, part.tensor, masks[part.tensor].cpu())
        lines = rows.any(1 if part.axis == "row" else 0)
        alive |= lines[part.index].any(1)
    return alive


Axes = tuple[Tensor | None, ...]
"""Of every dimension of a tensor, which indices of the dense one are left; None = all."""


@dataclass(frozen=True)
class Places:
    """Where the numbers of a cut model's state sat in the dense one's.

    Attributes:
        shapes: the dense state's.
        axes: of the cut state's tensors that are smaller, by name.
        gone: names of the dense state's tensors that the cut one lacks.
    """

    shapes: Mapping[str, torch.Size]
    axes: Mapping[str, Axes]
    gone: frozenset[str]

    def restrict(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Tensors of dense shapes in cut shapes; what is gone is left out.

        Names may be any part of the dense state's. Tensors that are whole are not copied, and such
        as are made when they are asked for are so still.
        """
        names = [name for name in tensors if name not in self.gone]

        def taken(name: str) -> Tensor:
            return _taken(tensors[name], self.axes.get(name, ()))

        if in_memory(tensors):
            return {name: taken(name) for name in names}
        bare = bare_of(tensors)
        return LazyTensors({n: _taken(bare[n], self.axes.get(n, ())) for n in names}, taken)

    def expand(
        self,
        tensors: Mapping[str, Tensor],
        fill: float | bool = 0,
        gone: Iterable[str] | None = None,
    ) -> Tensors:
        """The inverse of `restrict`: `fill` wherever the cut tensors have no number.

        Args:
            tensors: of cut shapes, at least one; whole ones are not copied.
            fill: what stands in places that were cut.
            gone: which of the tensors that are gone come back, all unless given. They are of the
                dtype of the first one in `tensors`.
        """
        first = next(iter(tensors.values()))
        back = self.gone if gone is None else self.gone & set(gone)
        names = [n for n in self.shapes if n in tensors or n in back]
        return {
            n: _put(tensors[n], self.axes.get(n, ()), self.shapes[n], fill)
            if n in tensors
            else first.new_full(self.shapes[n], fill)
            for n in names
        }


def _taken(tensor: Tensor, axes: Axes) -> Tensor:
    for axis, index in enumerate(axes):
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _put(tensor: Tensor, axes: Axes, shape: torch.Size, fill: float | bool) -> Tensor:
    for axis, index in reversed(list(enumerate(axes))):
        if index is not None:
            wide = [*tensor.shape[:axis], shape[axis], *tensor.shape[axis + 1 :]]
            whole = tensor.new_full(wide, fill)
            tensor = whole.index_copy_(axis, index.to(tensor.device), tensor)
    return tensor


def places(base: nn.Module, edits: Iterable[Edit]) -> Places:
    """Where the numbers of `reshaped(base, edits)` sit in the state of `base`.

    Found by reshaping a model whose numbers are their own positions, one dimension after the
    other; so it holds for every kind of edit that selects. The base is left as it is. Edits that
    make new tensors (rank) have no places.

    Raises:
        ValueError: as `reshaped`, or an edit that does more than select.
    """
    edits = ordered(edits)
    shapes = {name: t.shape for name, t in state_of(base).items()}
    # Of channels alone, which nothing cuts before them, one look at the base tells all copies.
    channels = {edit.kind for edit in edits} == {"channel"}
    roles = roles_of(base) if channels else None

    def cut_as(stand_in: Callable[[Tensor], Tensor]) -> Tensors:
        copy = _copied(base, stand_in)
        if roles is not None:
            setattr(copy, TRACED, roles)
        return state_of(reshaped(copy, edits))

    small = cut_as(lambda t: torch.empty_like(t, device="meta"))
    strange = sorted(small.keys() - shapes.keys())
    if strange:
        raise ValueError(f"{strange[0]!r}: no such tensor in the dense model; allowed: cuts")
    cut = {name for name, t in small.items() if t.shape != shapes[name]}
    named = (*base.named_parameters(), *base.named_buffers())
    touched = {id(t): len(t.shape) for n, t in named if n in cut}
    axes: dict[str, list[Tensor | None]] = {name: [] for name in cut}
    for axis in range(max(touched.values(), default=0)):
        counted = cut_as(_counter(touched, axis))
        for name in cut & {n for n in cut if len(shapes[n]) > axis}:
            axes[name].append(_line(name, counted[name], axis, shapes[name][axis]))
    return Places(
        shapes, {n: tuple(a) for n, a in axes.items()}, frozenset(shapes.keys() - small.keys())
    )


def _copied(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model whose tensors are others, so that none of its numbers are copied."""
    known: dict[int, object] = {}
    for p in model.parameters():
        known[id(p)] = nn.Parameter(stand_in(p), requires_grad=p.requires_grad)
    for buffer in model.buffers():
        known[id(buffer)] = stand_in(buffer)
    return copy.deepcopy(model, known)


def _counter(touched: Mapping[int, int], axis: int) -> Callable[[Tensor], Tensor]:
    """Tensors whose numbers are positions along an axis; what is not touched has none."""

    def positions(tensor: Tensor) -> Tensor:
        if touched.get(id(tensor), 0) <= axis:
            return torch.empty_like(tensor, device="meta")
        line = torch.arange(tensor.shape[axis], dtype=torch.float32)
        return line.view(-1, *[1] * (tensor.dim() - axis - 1)).expand(tensor.shape)

    return positions


def _line(name: str, counted: Tensor, axis: int, size: int) -> Tensor | None:
    """The positions that are left along an axis, None if all."""
    lines = counted.movedim(axis, 0).reshape(counted.shape[axis], -1)
    if not bool((lines == lines[:, :1]).all()):
        raise ValueError(f"{name!r}: more than a selection; allowed: edits that cut")
    line = lines[:, 0].long()
    return None if torch.equal(line, torch.arange(size)) else line

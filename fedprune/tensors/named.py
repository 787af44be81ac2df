"""Named tensors and their algebra: the one data type that travels through a round.

A model's *state* here is what learning moves: every parameter that is not frozen, ties once, and
every floating-point buffer that is not marked as a constant. Other buffers (BatchNorm's batch
counter) are with every client, in every round, as the model was built.
"""

from __future__ import annotations

import hashlib
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Masks = dict[str, Tensor]

NOTES = "notes_of_loading"
"""Attribute of a model: lines that people should read before it runs."""

CONSTANTS = "constant_buffers"
"""Attribute of a model: the names of its float buffers that training does not move."""


STREAM = "stream_of_blocks"
"""Attribute of a model whose tensors are read when they are needed: what reads them, with
`tensors`, those that are read, and `read`, which takes others instead."""


class LazyTensors(dict[str, Tensor]):
    """Named tensors that are made whenever one is asked for, and kept by nobody.

    What the dictionary itself holds are tensors on PyTorch's meta device: shapes and types.

    Attributes:
        origin: what the values are of, but for those `changed` and those that masks removed.
        changed: names.
    """

    def __init__(
        self,
        like: Mapping[str, Tensor],
        make: Callable[[str], Tensor],
        origin: object = None,
        changed: frozenset[str] = frozenset(),
    ) -> None:
        metas = {n: torch.empty_like(t, device="meta") for n, t in bare_of(like).items()}
        super().__init__(metas)
        self._make, self.origin, self.changed = make, origin, changed

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, made."""
        super().__getitem__(name)  # KeyError, as of any dictionary
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        """The names; without a method of its own for this, a copy would be of what is held."""
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, made; or the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        """Pairs, one made after the other."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Tensors, one made after the other."""
        return (self[name] for name in self)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes, without making anything."""
        return {name: t.shape for name, t in super().items()}

    def some(self, names: Iterable[str]) -> LazyTensors:
        """Those of these names."""
        held = {name: super(LazyTensors, self).__getitem__(name) for name in names}
        return LazyTensors(held, self._make, self.origin, self.changed)

    def under(self, masks: Mapping[str, Tensor]) -> LazyTensors:
        """The same, exactly 0.0 where a mask is False."""

        def made(name: str) -> Tensor:
            t = self[name]
            mask = masks.get(name)
            return t if mask is None or all_true(mask) else t.masked_fill(~mask, 0.0)

        return LazyTensors(self, made, self.origin, self.changed)

    def joined(self, others: Mapping[str, Tensor]) -> LazyTensors:
        """The same with others in place of those of their names, or beside them."""

        def made(name: str) -> Tensor:
            return others[name] if name in others else self[name]

        changed = self.changed | frozenset(others)
        return LazyTensors({**bare_of(self), **bare_of(others)}, made, self.origin, changed)


def bare_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Named tensors that say shapes and types, without making any."""
    if not isinstance(tensors, LazyTensors):
        return tensors
    return dict(zip(tensors, dict.values(tensors), strict=True))


def some_of(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensors:
    """Those of these names."""
    if isinstance(tensors, LazyTensors):
        return tensors.some(names)
    return {name: tensors[name] for name in names}


def joined_to(tensors: Tensors, others: Mapping[str, Tensor]) -> Tensors:
    """The tensors with others in place of those of their names, or beside them."""
    return tensors.joined(others) if isinstance(tensors, LazyTensors) else {**tensors, **others}


@dataclass(frozen=True)
class Found:
    """What a model is made of, as it was found when it was last gone through.

    Attributes:
        modules: those within the model, without itself.
        parameters: every parameter once, by its first name.
        buffers: every buffer once, by its first name.
        saved: the names that the model itself saves.
        holders: the dictionaries in which modules hold all these.
        held: what they held, one after the other.
    """

    modules: tuple[nn.Module, ...]
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    saved: frozenset[str]
    holders: tuple[dict[str, object], ...]
    held: tuple[object, ...]

    def stands(self) -> bool:
        """Whether the model still holds the same objects."""
        now = chain.from_iterable(map(dict.values, self.holders))
        return sum(map(len, self.holders)) == len(self.held) and all(
            map(operator.is_, now, self.held)
        )


_FOUND: WeakKeyDictionary[nn.Module, Found] = WeakKeyDictionary()
_MODELS = 8
"""Models that are remembered: a process has few, and asks for what is in them all the time."""


def found_in(model: nn.Module) -> Found:
    """What a model is made of; it is gone through again where it holds other objects than before.

    To go through a small model by name takes longer than to train it on a batch.
    """
    found = _FOUND.get(model)
    if found is None or not found.stands():
        holders: list[Any] = [
            d for m in model.modules() for d in (m._modules, m._parameters, m._buffers)
        ]
        found = Found(
            tuple(m for m in model.modules() if m is not model),
            dict(model.named_parameters()),
            dict(model.named_buffers()),
            frozenset(model.state_dict().keys()),
            tuple(holders),
            tuple(value for d in holders for value in d.values()),
        )
        if len(_FOUND) >= _MODELS:
            _FOUND.clear()
        _FOUND[model] = found
    return found


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learning moves, by name; a tied one once."""
    return {n: p for n, p in found_in(model).parameters.items() if p.requires_grad}


def into_training(model: nn.Module) -> None:
    """As ``model.train()``, which is called only where something in the model is in eval mode."""
    if not (model.training and all(m.training for m in found_in(model).modules)):
        model.train()


def state_of(model: nn.Module) -> Tensors:
    """The model's own tensors by name (views, not copies): parameters, then float buffers.

    A tied parameter appears once, under the first name the model gives it. Frozen parameters are
    constants, the same on every side, and so are buffers that the model itself does not save
    (LLaMA's rotary frequencies) or that are marked as constants (masks, tables of positions).
    """
    still: frozenset[str] = getattr(model, CONSTANTS, frozenset())
    if hasattr(model, STREAM):
        lazy: Tensors = getattr(model, STREAM).tensors
        return lazy
    found = found_in(model)
    state: Tensors = {n: p.detach() for n, p in found.parameters.items() if p.requires_grad}
    buffers = ((n, b) for n, b in found.buffers.items() if n in found.saved and n not in still)
    return state | {n: b.detach() for n, b in buffers if b.is_floating_point()}


def counters_of(model: nn.Module) -> Tensors:
    """Copies of the buffers that are no state: integers, and what the model does not save."""
    state = state_of(model)
    return {n: b.detach().clone() for n, b in model.named_buffers() if n not in state}


@torch.no_grad()
def reset(model: nn.Module, counters: Mapping[str, Tensor]) -> None:
    """Put back what `counters_of` gave: what one client's batches counted is not the next one's."""
    buffers = found_in(model).buffers
    for name, value in counters.items():
        buffers[name].copy_(value)


def frozen_of(model: nn.Module) -> Tensors:
    """The parameters that learning does not move, and buffers marked as constants (views)."""
    still: frozenset[str] = getattr(model, CONSTANTS, frozenset())
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    return frozen | {n: b.detach() for n, b in model.named_buffers() if n in still}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Detached copies on the CPU."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def on_cpu(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors on the CPU; those that are there already are not copied."""
    if isinstance(tensors, LazyTensors):
        return tensors
    return {name: t.detach().to("cpu") for name, t in tensors.items()}


@torch.no_grad()
def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the model in place; ties and identity of its parameters stay.

    A model that reads its tensors when they are needed reads these from now on.
    """
    if hasattr(model, STREAM):
        getattr(model, STREAM).read(tensors)
        return
    state = state_of(model)
    if state.keys() != tensors.keys():
        odd = sorted(state.keys() ^ tensors.keys())
        raise ValueError(f"tensors do not fit the model: {odd[:3]} are on one side only")
    for name, value in tensors.items():
        state[name].copy_(value)


def wide(tensor: Tensor) -> Tensor:
    """The tensor as numbers that can be added up: float32 of those with fewer bits."""
    half = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if half else tensor


def wide_zeros(tensors: Mapping[str, Tensor]) -> Tensors:
    """Zeros of the same shapes and devices for sums of such tensors, float32 or wider."""
    types = {n: torch.promote_types(t.dtype, torch.float32) for n, t in tensors.items()}
    return {n: torch.zeros_like(t, dtype=types[n], requires_grad=False) for n, t in tensors.items()}


def retyped(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers of a model that is not trained the types of named tensors."""
    found = found_in(model)
    for name, t in {**found.parameters, **found.buffers}.items():
        if name in weights and weights[name].dtype != t.dtype:
            t.data = t.data.to(weights[name].dtype)


def masked(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensors:
    """Copies with exactly 0.0 where a mask is False, whatever stood there (NaN too)."""
    if isinstance(tensors, LazyTensors):
        return tensors.under(masks)
    return {
        name: t.masked_fill(~masks[name], 0.0) if name in masks else t.clone()
        for name, t in tensors.items()
    }


def gathered(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """All values that a mask keeps (all values where there is no mask) as one flat tensor.

    Order: names sorted, each tensor in C order. The tensors must share one dtype.
    """
    parts = [_kept(tensors[name], masks.get(name)) for name in sorted(tensors)]
    return torch.cat(parts) if parts else torch.empty(0)


def laid_out(shapes: Mapping[str, torch.Size], dtype: torch.dtype = torch.float32) -> Tensors:
    """Tensors of these shapes in one flat memory, as `whole_of` finds them; not filled."""
    names = sorted(shapes)
    flat = torch.empty(sum(shapes[n].numel() for n in names), dtype=dtype)
    parts = dict(zip(names, flat.split([shapes[n].numel() for n in names]), strict=True))
    return {name: parts[name].view(shape) for name, shape in shapes.items()}


def laid_out_copies(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU; where all are float32, in one flat memory."""
    if not all(t.dtype == torch.float32 for t in tensors.values()):
        return copied(tensors)
    out = laid_out(shapes_of(tensors))
    for name, t in tensors.items():
        out[name].copy_(t)
    return out


def whole_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """All values in the order of `gathered` without a copy, where they lie in that order.

    Not to be written to. None where they do not lie one behind the other in one memory.
    """
    parts = [tensors[name] for name in sorted(tensors)]
    if not parts:
        return None
    first, end = parts[0], parts[0].storage_offset()
    place = first.untyped_storage().data_ptr()
    for t in parts:
        same = t.dtype == first.dtype and t.untyped_storage().data_ptr() == place
        if not same or t.storage_offset() != end or not t.is_contiguous():
            return None
        end += t.numel()
    start = first.storage_offset()
    return first.detach().as_strided((end - start,), (1,), start)


def _kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    # Most phases of a run are dense, and indexing with a full mask takes twenty times a copy.
    if mask is None or all_true(mask):
        return tensor.reshape(-1)
    return tensor[mask]


def scattered(
    flat: Tensor,
    shapes: Mapping[str, torch.Size],
    masks: Mapping[str, Tensor],
    *,
    shared: bool = False,
) -> Tensors:
    """The inverse of `gathered`: tensors of the given shapes, 0.0 where a mask is False.

    Args:
        flat: the values.
        shapes: of the tensors.
        masks: by name.
        shared: tensors that are whole may be the flat one's memory, not to be written to.

    Raises:
        ValueError: `flat` holds more or fewer values than the masks keep.
    """
    sizes = {n: _size(n, shapes, masks) for n in sorted(shapes)}
    if flat.numel() != sum(sizes.values()):
        raise ValueError(f"expected {sum(sizes.values())} values, got {flat.numel()}")
    out: Tensors = {}
    for part, name in zip(flat.split(list(sizes.values())), sizes, strict=True):
        if len(part) == shapes[name].numel():
            whole = part.reshape(shapes[name])
            out[name] = whole if shared else whole.clone()
        else:
            out[name] = torch.zeros(shapes[name], dtype=flat.dtype)
            out[name][masks[name]] = part
    return {name: out[name] for name in shapes}


def _size(name: str, shapes: Mapping[str, torch.Size], masks: Mapping[str, Tensor]) -> int:
    return _true(masks[name]) if name in masks else shapes[name].numel()


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Name to shape, in the same order."""
    if isinstance(tensors, LazyTensors):
        return tensors.shapes
    return {name: t.shape for name, t in tensors.items()}


def full_masks(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Masks:
    """Masks that keep everything, for the tensors named."""
    return {name: torch.ones(tensors[name].shape, dtype=torch.bool) for name in names}


def count_kept(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks keep."""
    if hasattr(masks, "kept"):  # those that are kept packed know
        return int(masks.kept)
    return sum(map(_true, masks.values()))


def all_true(mask: Tensor) -> bool:
    """Whether a mask keeps everything."""
    return bool(mask.cpu().numpy().all())


def cuts(masks: Mapping[str, Tensor]) -> bool:
    """Whether any of the masks removes something."""
    if hasattr(masks, "kept"):
        return bool(masks.kept < sum(s.numel() for s in shapes_of(masks).values()))
    return not all(map(all_true, masks.values()))


def kept_in(tensor: Tensor, mask: Tensor | None) -> int:
    """How many of a tensor's values a mask keeps; all, without one."""
    return tensor.numel() if mask is None else _true(mask)


def _true(mask: Tensor) -> int:
    # NumPy counts bools many times faster than torch, whose sum makes an int64 of each first.
    return int(np.count_nonzero(mask.cpu().numpy()))


def count(tensors: Mapping[str, Tensor]) -> int:
    """How many values there are in all."""
    return sum(s.numel() for s in shapes_of(tensors).values())


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes, in sorted order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tuple(t.shape)}|{t.dtype}|".encode())
        sha.update(as_bytes(t))
    return sha.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a contiguous CPU tensor of any dtype (bfloat16 too), without a copy."""
    raw: npt.NDArray[np.uint8] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.data


def over_bytes(data: bytes | memoryview, dtype: torch.dtype) -> Tensor:
    """The inverse of `as_bytes`: a flat tensor over the same memory, to read and not to write."""
    if not data:
        return torch.empty(0, dtype=dtype)
    if not memoryview(data).readonly:
        return torch.frombuffer(data, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype)

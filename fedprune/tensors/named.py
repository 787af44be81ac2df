"""Named tensors and their algebra: gathered, scattered, masked, counted, digested."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedprune.tensors.holding import count_true, flags_in
from fedprune.tensors.lazy import bare_of, holding_of, shapes_of, some_of

Tensors = dict[str, Tensor]
Masks = dict[str, Tensor]


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Detached copies on the CPU."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def on_cpu(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors on the CPU; those that are there already are not copied."""
    return holding_of(tensors).on_cpu()


def wide(tensor: Tensor) -> Tensor:
    """The tensor as numbers that can be added up: float32 of those with fewer bits."""
    half = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if half else tensor


def wide_zeros(tensors: Mapping[str, Tensor]) -> Tensors:
    """Zeros of the same shapes and devices for sums of such tensors, float32 or wider."""
    types = {n: torch.promote_types(t.dtype, torch.float32) for n, t in tensors.items()}
    return {n: torch.zeros_like(t, dtype=types[n], requires_grad=False) for n, t in tensors.items()}


def masked(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensors:
    """Copies with exactly 0.0 where a mask is False, whatever stood there (NaN too)."""
    return holding_of(tensors).under(masks)


def gathered(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """All values that a mask keeps (all values where there is no mask) as one flat tensor.

    Order: names sorted, each tensor in C order. The tensors must share one dtype.
    """
    if tensors and not holding_of(tensors).in_memory:
        return _one_by_one(tensors, masks, tensors.__getitem__)
    parts = [kept_values(tensors[name], masks.get(name)) for name in sorted(tensors)]
    return torch.cat(parts) if parts else torch.empty(0)


def drained(
    tensors: Tensors, masks: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Tensor:
    """As `gathered`, without as much memory again: each tensor leaves the dictionary for it.

    The values become of the type, where one is given.
    """
    return _one_by_one(tensors, masks, tensors.pop, dtype) if tensors else torch.empty(0)


def _one_by_one(
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    take: Callable[[str], Tensor],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The same of tensors that are made, or let go of, when taken: one is there at a time."""
    over = some_of(masks, [n for n in tensors if n in masks])
    size = count(tensors) - count(over) + count_kept(over)
    types = {t.dtype for t in bare_of(tensors).values()}
    out = torch.empty(size, dtype=dtype or functools.reduce(torch.promote_types, types))
    start = 0
    for name in sorted(tensors):
        part = kept_values(take(name), masks.get(name))
        out[start : start + len(part)] = part
        start += len(part)
    return out


def laid_out(shapes: Mapping[str, torch.Size]) -> Tensors:
    """Float32 tensors of these shapes in one flat memory, as `whole_of` finds them; not filled."""
    names = sorted(shapes)
    flat = torch.empty(sum(shapes[n].numel() for n in names), dtype=torch.float32)
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


def kept_values(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The values that a mask keeps, flat in C order; without one all, in the tensor's memory."""
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

    With `shared`, tensors that are whole may be the flat one's memory, not to be written to.

    Raises:
        ValueError: `flat` holds more or fewer values than the masks keep.
    """
    places = flat_places(shapes, masks)
    expected = max((place.stop for place in places.values()), default=0)
    if flat.numel() != expected:
        raise ValueError(f"expected {expected} values, got {flat.numel()}")
    out: Tensors = {}
    for name, place in places.items():
        part = flat[place]
        if len(part) == shapes[name].numel():
            whole = part.reshape(shapes[name])
            out[name] = whole if shared else whole.clone()
        else:
            out[name] = torch.zeros(shapes[name], dtype=flat.dtype)
            out[name][masks[name]] = part
    return {name: out[name] for name in shapes}


def flat_places(shapes: Mapping[str, torch.Size], masks: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where the values of each tensor are among those of `gathered`, in their order."""
    out, start = dict[str, slice](), 0
    for name in sorted(shapes):
        size = _size(name, shapes, masks)
        out[name] = slice(start, start + size)
        start += size
    return out


def _size(name: str, shapes: Mapping[str, torch.Size], masks: Mapping[str, Tensor]) -> int:
    return count_true(masks[name]) if name in masks else shapes[name].numel()


def full_masks(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Masks:
    """Masks that keep everything, for the tensors named."""
    return {name: torch.ones(tensors[name].shape, dtype=torch.bool) for name in names}


def count_kept(masks: Mapping[str, Tensor]) -> int:
    """How many weights the masks keep."""
    return holding_of(masks).kept


def all_true(mask: Tensor) -> bool:
    """Whether a mask keeps everything."""
    return bool(flags_in(mask).all())


def cuts(masks: Mapping[str, Tensor]) -> bool:
    """Whether any of the masks removes something."""
    return count_kept(masks) < count(masks)


def kept_in(tensor: Tensor, mask: Tensor | None) -> int:
    """How many of a tensor's values a mask keeps; all, without one."""
    return tensor.numel() if mask is None else count_true(mask)


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

"""A state on disk: one safetensors file with its SHA-256 behind it, nothing pickled.

It also says how the files that grow beside it began, so that rows or releases that are gone are
missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from fedprune.codec.frozen import put_together, taken_apart
from fedprune.codec.tensor_file import tensor_file
from fedprune.runtime.files import Prefix, check_prefix, prefix_of, read_verified, write_verified
from fedprune.server.state import Model, State
from fedprune.streaming.packed import PackedMasks
from fedprune.tensors.lazy import holding_of, in_memory, joined_to, shapes_of, some_of
from fedprune.tensors.named import Tensors, over_bytes


def save_state(state: State, path: Path, beside: Iterable[Path] = ()) -> None:
    """Write the state so that `path` is at any moment the old file or the new one, whole.

    `beside`: files that only grow, whose content so far belongs to the state.
    """
    tensors: Tensors = {}
    rest: dict[str, Any] = {}
    memories, model = state.memories, state.model
    if not in_memory(model.weights):
        rest["held"] = _about_held(model, tensors)
        state = replace(state, model=Model({}, {}, model.edits))
    rest |= {
        "state": taken_apart(replace(state, memories={}), State, tensors),
        "memories": {
            name: taken_apart(memory, type(memory), tensors, f"/memory/{name}")
            for name, memory in memories.items()
        },
        "beside": {p.name: asdict(prefix_of(p)) for p in beside},
    }
    write_verified(path, tensor_file(tensors, {"fedprune": json.dumps(rest)}))


_MASK, _CHANGED = "/held/mask/", "/held/changed/"


def _about_held(model: Model, tensors: Tensors) -> dict[str, Any]:
    """What is said of weights that are read from files: their digest, and beside it what differs.

    Masks are eight flags a byte, and none where everything is kept.
    """
    held, masks = holding_of(model.weights), holding_of(model.masks)
    tensors |= {f"{_CHANGED}{n}": model.weights[n] for n in held.changed}
    for name in model.masks:
        bits = masks.bits(name)
        if bits is not None:
            tensors[f"{_MASK}{name}"] = over_bytes(bits.data, torch.uint8)
    return {"digest": getattr(held.origin, "digest", ""), "masks": list(model.masks)}


def _with_held(
    state: State, said: Mapping[str, Any], tensors: Tensors, held: Mapping[str, Tensor]
) -> State:
    """The state with its weights, of those held."""
    origin = holding_of(held).origin
    if in_memory(held) or getattr(origin, "digest", "") != said["digest"]:
        raise ValueError("it is about a model of other files, or one that was streamed")
    flags = {n: tensors.get(f"{_MASK}{n}") for n in said["masks"]}
    bits = {n: None if f is None else f.numpy() for n, f in flags.items()}
    masks = PackedMasks(shapes_of(some_of(held, bits)), bits)
    changed = {n.removeprefix(_CHANGED): t for n, t in tensors.items() if n.startswith(_CHANGED)}
    return replace(state, model=Model(joined_to(held, changed), masks, state.edits).under(masks))


def load_state(
    path: Path, kinds: Mapping[str, type], held: Mapping[str, Tensor] | None = None
) -> State:
    """The state that `save_state` wrote, bit for bit.

    `kinds`: the types of memories by name (`fedprune.methods.catalog.memories_of`). `held`: the
    weights that a state of a model which is not kept in memory is about.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a byte of it is not as it was written.
    """
    rest, tensors = _read(path)
    try:
        state: State = put_together(State, rest["state"], tensors)
        memories = {
            name: put_together(kinds[name], told, tensors, f"/memory/{name}")
            for name, told in rest["memories"].items()
        }
        if "held" in rest:
            state = _with_held(state, rest["held"], tensors, held or {})
        else:
            _check(state)
    except (AttributeError, KeyError, ValueError) as error:  # sound bytes of something else
        raise ValueError(f"{path.name}: of another version of fedprune: {error}"[:300]) from None
    return replace(state, memories=memories)


def _check(state: State) -> None:
    """Refuse masks that are none, or no weights' of the state."""
    for name, mask in state.masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask of {name} is of {mask.dtype}")
        if name not in state.weights or state.weights[name].shape != mask.shape:
            raise ValueError(f"the mask of {name} is not of its shape")


def check_beside(path: Path) -> dict[str, int]:
    """Refuse a checkpoint whose files beside it in the run's folder are not those that it knew.

    Returns:
        How many bytes of each it knew, by name.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or a file was cut, changed or taken away; it is named.
    """
    rest, _ = _read(path)
    pairs = [[name, prefix] for name, prefix in rest["beside"].items()]
    try:
        known: dict[str, Prefix] = put_together(dict[str, Prefix], pairs, {})
    except ValueError as error:
        raise ValueError(f"{path.name}: of another version of fedprune: {error}"[:300]) from None
    for name, prefix in known.items():
        if Path(name).name != name:
            raise ValueError(f"{path.name}: foreign, it names a file of another folder")
        check_prefix(path.parent.parent / name, prefix)
    return {name: prefix.size for name, prefix in known.items()}


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not path.is_file():
        raise FileNotFoundError(f"resume={path}: no checkpoint there; allowed: a run's folder")
    content = read_verified(path)
    try:
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        rest = json.loads(head["__metadata__"]["fedprune"])
        if not isinstance(rest["state"], dict) or not isinstance(rest["beside"], dict):
            raise ValueError("no state")
        return dict(rest), load(content)
    except Exception as error:  # sound bytes of something else: safetensors raises what it likes
        raise ValueError(f"{path.name}: no checkpoint of ours: {error!r}"[:300]) from None

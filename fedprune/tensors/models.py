"""What of a model learning moves, by name.

A model's *state* here is what learning moves: every parameter that is not frozen, ties once, and
every floating-point buffer that is not marked as a constant. Other buffers (BatchNorm's batch
counter) are with every client, in every round, as the model was built.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedprune.tensors.lazy import in_memory
from fedprune.tensors.named import Tensors

NOTES = "notes_of_loading"
"""Attribute of a model: lines that people should read before it runs."""
CONSTANTS = "constant_buffers"
"""Attribute of a model: the names of its float buffers that training does not move."""
SAVED_TYPE = "type_in_files"
"""Attribute of a model that is float32 here and in its files of fewer bits: the type there."""
LENT = "weights_lent"
"""Attribute of a model: it computes with tensors that are not its own."""
STREAM = "stream_of_blocks"
"""Attribute of a model whose tensors are read when they are needed: what reads them, with
`tensors`, those that are read, and `read`, which takes others instead."""


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

    @cached_property
    def kinds(self) -> frozenset[type[nn.Module]]:
        """The classes of the modules within the model."""
        return frozenset(map(type, self.modules))

    def has(self, kind: type[nn.Module]) -> bool:
        """Whether a module within the model is of this class, or one derived from it."""
        return any(issubclass(found, kind) for found in self.kinds)

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


_TRAINING = operator.attrgetter("training")


def into_training(model: nn.Module) -> None:
    """As ``model.train()``, which is called only where something in the model is in eval mode."""
    if not (model.training and all(map(_TRAINING, found_in(model).modules))):
        model.train()


def state_of(model: nn.Module) -> Tensors:
    """The model's own tensors by name (views, not copies): parameters, then float buffers.

    A tied parameter appears once, under the first name the model gives it. Frozen parameters are
    constants, the same on every side, and so are buffers that the model itself does not save
    (LLaMA's rotary frequencies) or that are marked as constants (masks, tables of positions).
    """
    stream = _noted(model, STREAM)
    if stream is not None:
        lazy: Tensors = stream.tensors
        return lazy
    return {n: t.detach() for n, t in _moving(model).items()}


def _noted(model: nn.Module, name: str) -> Any:
    """An attribute of a model, or None: a module takes long to say that it has none."""
    own = model.__dict__
    return own[name] if name in own else getattr(type(model), name, None)


def _moving(model: nn.Module) -> Tensors:
    """Parameters that are not frozen, and float buffers that are saved and no constants."""
    found, still = found_in(model), _noted(model, CONSTANTS) or ()
    state: Tensors = {n: p for n, p in found.parameters.items() if p.requires_grad}
    for n, b in found.buffers.items():
        if n in found.saved and n not in still and b.is_floating_point():
            state[n] = b
    return state


def counters_of(model: nn.Module) -> Tensors:
    """Copies of the buffers that are no state: integers, and what the model does not save."""
    state = state_of(model)
    return {n: b.detach().clone() for n, b in model.named_buffers() if n not in state}


def reset(model: nn.Module, counters: Mapping[str, Tensor]) -> None:
    """Put back what `counters_of` gave: what one client's batches counted is not the next one's."""
    if counters:
        buffers = found_in(model).buffers
        with torch.no_grad():
            torch._foreach_copy_([buffers[name] for name in counters], list(counters.values()))


def frozen_of(model: nn.Module) -> Tensors:
    """The parameters that learning does not move, and buffers marked as constants (views)."""
    still: frozenset[str] = getattr(model, CONSTANTS, frozenset())
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    return frozen | {n: b.detach() for n, b in model.named_buffers() if n in still}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the model in place; ties and identity of its parameters stay.

    A model that reads its tensors when they are needed reads these from now on.
    """
    stream = _noted(model, STREAM)
    if stream is not None:
        stream.read(tensors)
        return
    state = _moving(model)
    if state.keys() != tensors.keys():
        odd = sorted(state.keys() ^ tensors.keys())
        raise ValueError(f"tensors do not fit the model: {odd[:3]} are on one side only")
    lent = model.__dict__.pop(LENT, False)
    for t in state.values():
        if lent or _is_hollow(t):
            t.data = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    with torch.no_grad():
        if state and in_memory(tensors):
            # One call for all of them: of a small model the calls take longer than the copies.
            torch._foreach_copy_([state[name] for name in tensors], list(tensors.values()))
        else:
            for name, value in tensors.items():
                state[name].copy_(value)


def load_some(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values of some tensors into the model in place, as `load_into`; the others stay."""
    return_lent(model)
    state = _moving(model)
    with torch.no_grad():
        for name, value in tensors.items():
            t = state[name]
            if _is_hollow(t):
                t.data = torch.empty(t.shape, dtype=t.dtype, device=t.device)
            t.copy_(value)


def lend_to(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let a model compute with these very tensors: who writes to one writes to the other.

    Where they are not all there, or of another type or device, they are copied all the same. The
    next `load_into` gives the model memory of its own again.
    """
    state = {} if _noted(model, STREAM) is not None else _moving(model)
    like = in_memory(tensors) and state.keys() == tensors.keys()
    if not state or not like or not all(_alike(t, tensors[n]) for n, t in state.items()):
        load_into(model, tensors)
        return
    for name, t in state.items():
        t.data = tensors[name]
    setattr(model, LENT, True)


def return_lent(model: nn.Module) -> None:
    """Let go of tensors that were lent to a model, which has no values then."""
    if model.__dict__.pop(LENT, False):
        empty_out(model)


def _alike(one: Tensor, other: Tensor) -> bool:
    kinds = [(t.shape, t.dtype, t.device) for t in (one, other)]
    return kinds[0] == kinds[1]


def empty_out(model: nn.Module) -> None:
    """Let go of the values of a model of which only the structure is looked at.

    Its forward pass computes with zeros; `load_into` fills it again.
    """
    if _noted(model, STREAM) is None:
        for t in _moving(model).values():
            t.data = hollow(t)


def hollow(tensor: Tensor) -> Tensor:
    """What stands for a tensor that is not needed: zeros of its shape in the memory of one.

    Writing to it raises a RuntimeError; `load_into` gives it memory again.
    """
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _is_hollow(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride())


def retyped(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers of a model that is not trained the types of named tensors."""
    found = found_in(model)
    for name, t in {**found.parameters, **found.buffers}.items():
        if name in weights and weights[name].dtype != t.dtype:
            t.data = t.data.to(weights[name].dtype)

"""A model of which one block at a time is there: it is read before it is called.

What is in no block (embeddings, the last norm, the head of output) is over the pages of its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedprune.streaming.by_rows import read_by_rows
from fedprune.streaming.files import MappedFolder
from fedprune.streaming.lockstep import Lockstep
from fedprune.structure.groups import stacks_in
from fedprune.tensors.lazy import LazyTensors, joined_to, some_of
from fedprune.tensors.models import STREAM
from fedprune.tensors.named import Tensors

_T = TypeVar("_T")
_Batch = TypeVar("_Batch", bound=Mapping[str, Tensor])

TOKENS = 2**16
"""Numbers in batches whose hidden states are carried on at once; more go through after them."""


class _EmptyOnMeta(TorchFunctionMode):
    """Tensors that are made to be filled are made without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A model that is built without memory for its parameters; they hold nothing yet.

    Raises:
        ValueError: a buffer of it would hold nothing either.
    """
    with _EmptyOnMeta():
        model = build()
    lost = next((name for name, b in model.named_buffers() if b.is_meta), None)
    if lost is not None:
        raise ValueError(f"its buffer {lost} is in no file")
    fresh: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = fresh.setdefault(id(p), nn.Parameter(_nothing(p), p.requires_grad))
                module._parameters[name] = empty
    return model


def _nothing(like: Tensor) -> Tensor:
    """A tensor of this shape and type without memory of its own: its parameter keeps its place."""
    return torch.zeros(1, dtype=like.dtype).expand(like.shape)


def tensors_over(model: nn.Module, files: MappedFolder) -> LazyTensors:
    """The parameters of a model, made of its files whenever one is asked for, in the model's types.

    Raises:
        ValueError: the files lack one, or have it in another shape.
    """
    own = dict(model.named_parameters())
    # Where tensors are shared, files may have another name than the first one.
    others = {id(p): n for n, p in model.named_parameters(remove_duplicate=False)
              if n in files.places}  # fmt: skip
    names = {n: n if n in files.places else others.get(id(p), "") for n, p in own.items()}
    lost = next((n for n, there in names.items() if not there), None)
    lost = lost or next((n for n in own if files.places[names[n]].shape != own[n].shape), None)
    if lost is not None:
        raise ValueError(f"its files hold no {lost} as the model has it")
    types = {n: p.dtype for n, p in own.items()}  # and not the model, which may be let go of
    return LazyTensors(own, lambda name: files.tensor(names[name]).to(types[name]), files)


class _Beyond(BaseException):
    """A block begins that nobody looks at. No `Exception`, which a model might catch."""


class BlockStream:
    """Reads the tensors of a model when they are needed.

    Attributes:
        tensors: what is read, by name.
        present: the block that is there; "": none.
        beyond: blocks before which a batch may stop.
    """

    def __init__(self, model: nn.Module, files: MappedFolder) -> None:
        self.model, self.files = model, files
        self.tensors: Tensors = tensors_over(model, files)
        self.present = ""
        self.beyond: frozenset[str] = frozenset()
        self.steps = Lockstep(self.bring)
        self._sort()
        for path in self.parts:
            model.get_submodule(path).register_forward_pre_hook(self._hook(path))
        outside = set(map(id, self.rest.values()))
        for layer in (m for m in model.modules() if type(m) is nn.Linear):
            if id(layer.weight) in outside:
                read_by_rows(layer, files.forget)
        setattr(model, STREAM, self)
        self.read(self.tensors)

    def _sort(self) -> None:
        """Find the parameters of each block, and those that are in none."""
        own = dict(self.model.named_parameters())
        self.parts = {path: {n: own[n] for n in own if n.startswith(f"{path}.")}
                      for path in block_paths(self.model)}  # fmt: skip
        inside = {n for part in self.parts.values() for n in part}
        self.rest = {n: p for n, p in own.items() if n not in inside}

    def follow(self) -> None:
        """Know of the parameters that were put beside those in the files: biases."""
        own = dict(self.model.named_parameters())
        fresh = {n: p.detach() for n, p in own.items() if n not in self.tensors}
        tensors = joined_to(self.tensors, fresh)
        self._sort()
        self.tensors = some_of(tensors, own)
        self.read(self.tensors)

    def _hook(self, path: str) -> Callable[..., None]:
        def before(_module: nn.Module, _args: object) -> None:
            if path in self.beyond:
                raise _Beyond
            if not self.steps.arrive(path, self.present):
                self.bring(path)

        return before

    def behind(self, names: Iterable[str]) -> frozenset[str]:
        """The blocks behind the last one that holds any of these tensors; none, if one is in none.

        Blocks are called in the order in which the model has them.
        """
        those, paths = set(names), list(self.parts)
        held = [i for i, path in enumerate(paths) if those & self.parts[path].keys()]
        if not held or those & self.rest.keys():
            return frozenset()
        return frozenset(paths[held[-1] + 1 :])

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Read these from now on."""
        if tensors.keys() != self.tensors.keys():
            odd = sorted(tensors.keys() ^ self.tensors.keys())
            raise ValueError(f"tensors do not fit the model: {odd[:3]} are on one side only")
        self.leave()
        self.tensors = tensors if isinstance(tensors, dict) else dict(tensors)
        for name, p in self.rest.items():
            p.data = self.tensors[name].to(p.dtype)

    def bring(self, path: str) -> None:
        """Make a block be there instead of the one that is."""
        if path != self.present:
            self.leave()
            for name, p in self.parts[path].items():
                p.data = self.tensors[name].to(p.dtype)
            self.present = path

    def leave(self) -> None:
        """Let go of the block that is there, and of the pages that were read."""
        for p in self.parts.get(self.present, {}).values():
            p.data = _nothing(p)
        self.present = ""
        self.files.forget()


def send_through(
    model: nn.Module,
    batches: Iterable[_Batch],
    loss: Callable[[nn.Module, _Batch], object],
    names: Iterable[str] = (),
) -> None:
    """Let batches go through a model for those who watch; what it says is of no interest.

    With the names of the tensors whose layers are watched, of a model whose blocks are read those
    behind the last of them are spared, if all of them are in blocks.
    """
    stream: BlockStream | None = getattr(model, STREAM, None)

    def sent(batch: _Batch) -> None:
        with suppress(_Beyond):
            loss(model, batch)

    if stream is not None:
        stream.beyond = stream.behind(names)
    try:
        for _ in through(model, batches, sent):
            pass
    finally:
        if stream is not None:
            stream.beyond = frozenset()


def block_paths(model: nn.Module) -> list[str]:
    """The elements of the outermost lists of modules."""
    return [
        f"{path}.{name}" if path else name
        for path, stack in stacks_in(model).items()
        for name, _ in stack.named_children()
    ]


def follow_parameters(model: nn.Module) -> None:
    """Let what reads the blocks of a model, if something does, know of its new parameters.

    They are in memory, and none of those in the files may have changed its shape.
    """
    stream: BlockStream | None = getattr(model, STREAM, None)
    if stream is not None:
        stream.follow()


def is_streamed(model: nn.Module) -> bool:
    """Whether one block of a model at a time is there."""
    return hasattr(model, STREAM)


def through(
    model: nn.Module, batches: Iterable[_Batch], work: Callable[[_Batch], _T]
) -> Iterator[_T]:
    """What a work gives of each batch, which it sends through the model; in their order.

    Of a model whose blocks are read, many batches go through a block before the next one is read.
    """
    stream: BlockStream | None = getattr(model, STREAM, None)
    if stream is None:
        yield from map(work, batches)
        return
    some: list[_Batch] = []
    size = 0
    for batch in batches:
        own = max((t.numel() for t in batch.values()), default=0)
        if some and size + own > TOKENS:
            yield from stream.steps.run([partial(work, b) for b in some])
            some, size = [], 0
        some.append(batch)
        size += own
    yield from stream.steps.run([partial(work, b) for b in some])
    stream.leave()

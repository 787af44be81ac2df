"""Gradients of a frozen model a block at a time: what is kept of a block is what goes into it.

Chen et al. 2016, arXiv 1604.06174: on the way back each block is computed again from its input.
The gradient of a weight is handed on as soon as it is whole, and let go of, so that there are those
of a block at once. Of a model whose blocks are read when they are needed, each is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedprune.streaming.blocks import BlockStream, block_paths
from fedprune.tasks.task import Loss
from fedprune.tensors.models import STREAM

Took = Callable[[str, Tensor, int], None]
"""Told a weight's name, the gradient of the loss summed over labels, and their number."""


def hand_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], loss: Callable[[], Loss], took: Took
) -> int:
    """Hand on the gradients of a loss, each once, and give the labels that it is over.

    Of a tensor that the loss does not reach there is none. They have the bits that
    `torch.autograd.grad` gives them. Nothing is left in the parameters' `grad`.
    """
    with by_block(model), _alone(model, parameters) as hooks:
        found = loss()
        for name, p in parameters.items():
            hooks.callback(
                p.register_post_accumulate_grad_hook(_handing(name, found.count, took)).remove
            )
        if found.total.requires_grad:
            found.total.backward()
    return found.count


def _handing(name: str, count: int, took: Took) -> Callable[[Tensor], None]:
    def handed(p: Tensor) -> None:
        assert p.grad is not None  # it was just made
        took(name, p.grad, count)
        p.grad = None

    return handed


@contextmanager
def _alone(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[ExitStack]:
    """Within the block only these parameters have gradients; then all have those that they had."""
    wanted = {id(p) for p in parameters.values()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    kept = {n: p.grad for n, p in parameters.items()}
    with ExitStack() as hooks:
        try:
            for p in others:
                p.requires_grad_(False)
            for p in parameters.values():
                p.grad = None
            yield hooks
        finally:
            for p in others:
                p.requires_grad_(True)
            for n, p in parameters.items():
                p.grad = kept[n]


@contextmanager
def by_block(model: nn.Module) -> Iterator[None]:
    """Within the block a block keeps its input alone, and is computed again from it."""
    stream: BlockStream | None = getattr(model, STREAM, None)
    modules = {path: model.get_submodule(path) for path in block_paths(model)}
    own: dict[str, Any] = {path: module.__dict__.get("forward") for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.forward = _again(path, module.forward, stream)
        yield
    finally:
        for path, module in modules.items():
            module.forward = own[path]
            if own[path] is None:
                del module.forward  # which hid that of its class
        if stream is not None:
            stream.leave()


def _again(
    path: str, forward: Callable[..., Any], stream: BlockStream | None
) -> Callable[..., Any]:
    def computed(*args: Any, **kwargs: Any) -> Any:
        if stream is not None:
            stream.bring(path)
        return forward(*args, **kwargs)

    def kept(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(computed, *args, use_reentrant=False, **kwargs)

    return kept

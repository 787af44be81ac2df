"""What `torch.func.vmap` cannot follow efficiently, done for the tensors of all clients.

Linear layers are one product of stacks of matrices, attention has no weights and takes all clients
as one batch, and what draws random numbers (dropout) goes client by client, each by its own
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

RANDOM: dict[Any, tuple[str, int]] = {
    **dict.fromkeys(
        (
            functional.dropout,
            functional.dropout1d,
            functional.dropout2d,
            functional.dropout3d,
            functional.alpha_dropout,
            functional.feature_alpha_dropout,
        ),
        ("p", 1),
    ),
    functional.scaled_dot_product_attention: ("dropout_p", 4),
    functional.multi_head_attention_forward: ("dropout_p", 10),
}
"""Functions that draw random numbers: the name and the place of the probability."""


WHOLE = (torch.Tensor.all, torch.Tensor.any, torch.all, torch.any)
"""Questions about all of a batch, which models ask to save work: here about all clients' rows."""


class Ragged(RuntimeError):
    """Rows were added to fill a batch up, and what the model does with a row depends on others."""


@dataclass
class Draws:
    """Where the random numbers of several clients come from.

    Of a generator for each client the state, as far as it has got, in place of the device's own.
    """

    states: list[Tensor]
    device: torch.device

    @contextmanager
    def of(self, client: int) -> Iterator[None]:
        """Within the block torch's default generator goes on where this client's stopped."""
        default: torch.Generator = torch.default_generator
        if self.device.type == "cuda":
            default = torch.cuda.default_generators[self.device.index or 0]
        before = default.get_state()
        default.set_state(self.states[client])
        try:
            yield
        finally:
            self.states[client] = default.get_state()
            default.set_state(before)


def draws_from(seeds: Sequence[int], device: torch.device) -> Draws:
    """Generators that begin as torch's own does after `torch.manual_seed` with each seed."""
    return Draws([torch.Generator(device).manual_seed(s).get_state() for s in seeds], device)


class Folding(TorchFunctionMode):
    """Within the block some functions take all clients at once, or one after the other."""

    def __init__(self, draws: Draws | None, ragged: bool) -> None:
        super().__init__()
        self.draws, self.ragged = draws, ragged

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        random = func in RANDOM and _draws(func, args, kwargs)
        if self.ragged and (random or _of_the_batch(func, args, kwargs)):
            raise Ragged(func.__name__)
        if random:
            if self.draws is None:
                raise RuntimeError(f"{func.__name__} draws random numbers")
            return _outside(_one_by_one(func, self.draws), args, kwargs)
        if func in WHOLE and len(args) == 1 and not kwargs:
            return func(_of_all(args[0]))
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return _outside(_attention, args, kwargs)
        return func(*args, **kwargs)


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name, place = RANDOM[func]
    usual = 0.0 if name == "dropout_p" else 0.5
    p = args[place] if len(args) > place else kwargs.get(name, usual)
    training = kwargs.get("training", args[2] if name == "p" and len(args) > 2 else True)
    return bool(p) and bool(training)


def _of_the_batch(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it takes the statistics of a batch."""
    if func is not functional.batch_norm:
        return False
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


def _outside(work: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The outcome of `work`, which is given the tensors of all clients, (clients, ...)."""
    leaves, form = tree_flatten((args, dict(kwargs)))
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    shapes: list[Any] = []

    def whole(clients: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for i, dim, x in zip(places, dims, tensors, strict=True):
            filled[i] = x.expand(clients, *x.shape) if dim is None else x.movedim(dim, 0)
        args, kwargs = tree_unflatten(filled, form)
        found, shape = tree_flatten(work(*args, **kwargs))
        shapes.append((found, shape))
        return tuple(x for x in found if isinstance(x, Tensor))

    tensors = iter(_outside_vmap(whole, *(leaves[i] for i in places)))
    found, shape = shapes[-1]
    return tree_unflatten([next(tensors) if isinstance(x, Tensor) else x for x in found], shape)


def _of_all(tensor: Tensor) -> Tensor:
    """A tensor of the clients, (clients, ...), as one that is no client's."""
    found: list[Tensor] = []

    def whole(_clients: int, _dims: Sequence[int | None], tensors: Sequence[Tensor]) -> Any:
        found.extend(tensors)
        return tuple(tensors)

    _outside_vmap(whole, tensor.detach())
    return found[-1]


class _Outside(torch.autograd.Function):
    """Hands tensors under `vmap` over as they are for all clients; autograd follows as usual."""

    generate_vmap_rule = False

    @staticmethod
    def forward(whole: Any, *tensors: Tensor) -> Any:
        """Without `vmap` there is one client."""
        return tree_map(
            lambda x: x[0] if isinstance(x, Tensor) else x, whole(1, [None] * len(tensors), tensors)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: `vmap` goes another way."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, whole: Any, *tensors: Tensor) -> Any:
        """The outcome, with clients first."""
        found = whole(info.batch_size, in_dims[1:], tensors)
        return found, (0,) * len(found)


_outside_vmap: Any = _Outside.apply


def _one_by_one(func: Any, draws: Draws) -> Callable[..., Any]:
    def work(*args: Any, **kwargs: Any) -> Any:
        found = []
        for i in range(len(draws.states)):
            its = tree_map(lambda x, i=i: x[i] if isinstance(x, Tensor) else x, (args, kwargs))
            with draws.of(i):
                found.append(func(*its[0], **its[1]))
        first, *_ = found
        if isinstance(first, Tensor):
            return torch.stack(found)
        return tuple(
            torch.stack(list(each)) if isinstance(each[0], Tensor) else each[0]
            for each in zip(*found, strict=True)
        )

    return work


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, columns = x.reshape(-1, x.shape[-1]), weight.t()
    out = rows @ columns if bias is None else torch.addmm(bias, rows, columns)
    return out.view(*x.shape[:-1], len(weight))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *more: Any, **kwargs: Any
) -> Tensor:
    mask, lead = kwargs.pop("attn_mask", mask), query.shape[:2]
    whole = query.dim() > 4  # more than the kernels take
    if mask is not None:
        mask = mask.reshape(len(mask), *[1] * (query.dim() - mask.dim()), *mask.shape[1:])
        mask = mask.expand(*lead, *mask.shape[2:]).flatten(0, 1) if whole else mask
    q, k, v = (x.flatten(0, 1) if whole else x for x in (query, key, value))
    found = functional.scaled_dot_product_attention(q, k, v, mask, *more, **kwargs)
    return found.unflatten(0, lead) if whole else found

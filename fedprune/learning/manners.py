"""What a regime does around the gradients of a step and around the step itself.

Each manner is two contexts over parameters by name, entered in every step: `gradients` around the
forward and backward passes, `step` around the optimizer's step. What they change they put back, so
that several can be nested, whatever the optimizer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.learning.regime import AS_WEIGHTS, Regime
from fedprune.tensors.hooks import removed_after
from fedprune.tensors.named import Masks

Around = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Manner:
    """What is done around a step's gradients, and around the optimizer's step."""

    gradients: Around = nullcontext
    step: Around = nullcontext


def manner_of(
    regime: Regime, model: nn.Module, names: Sequence[str], parts: Sequence[Masks], gen: Any
) -> Manner:
    """All that a regime does, as one.

    `parts` are the masks of its widths, on the model's device.
    """
    named = {n: p for n, p in model.named_parameters() if n in names}
    found = [part_of_step(named, parts, gen)] if parts else []
    found += [sparse_forward(named, regime.forward)] if regime.forward else []
    found += [sparse_inputs(model, named, regime.inputs)] if regime.inputs else []
    found += [powered(named, regime.power)] if regime.power != 1.0 else []
    return one_manner(found)


def one_manner(manners: Sequence[Manner]) -> Manner:
    """Several manners, each within those before it."""

    @contextmanager
    def entered(which: str) -> Iterator[None]:
        with ExitStack() as stack:
            for manner in manners:
                stack.enter_context(getattr(manner, which)())
            yield

    return Manner(lambda: entered("gradients"), lambda: entered("step"))


def powered(named: Mapping[str, nn.Parameter], power: float) -> Manner:
    """Powerpropagation, Schwarz et al. 2021, arXiv 2110.00296: w = sign(θ)|θ|^a.

    The optimizer moves θ, whose gradient is that of w times a|θ|^(a-1): what is large moves more,
    and what is 0 stays 0.
    """

    @contextmanager
    def step() -> Iterator[None]:
        for p in named.values():
            size = p.data.abs().pow(1.0 / power)
            if p.grad is not None:
                p.grad.mul_(power * size.pow(power - 1.0))
            p.data.copy_(p.data.sign() * size)
        yield
        for p in named.values():
            p.data.copy_(p.data.sign() * p.data.abs().pow(power))

    return Manner(step=step)


def sparse_forward(named: Mapping[str, nn.Parameter], share: float) -> Manner:
    """SWAT, Raihan and Aamodt 2020, arXiv 2007.14062: gradients at the largest weights alone.

    The smallest part of every tensor counts as 0 in the forward pass and in the gradient of its
    inputs; every weight gets the gradient of its place.
    """

    @contextmanager
    def gradients() -> Iterator[None]:
        whole = {n: p.data.clone() for n, p in named.items()}
        for p in named.values():
            p.data.mul_(largest_part(p.data, 1.0 - share))
        yield
        for n, p in named.items():
            p.data.copy_(whole[n])

    return Manner(gradients=gradients)


def largest_part(values: Tensor, share: float) -> Tensor:
    """Flags of the largest |values|, so large a part of them, of which at least one."""
    count = max(1, round(share * values.numel()))
    flags = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    flags[values.detach().abs().flatten().topk(count).indices] = True
    return flags.reshape(values.shape)


def sparse_inputs(model: nn.Module, named: Mapping[str, nn.Parameter], share: float) -> Manner:
    """The gradient of a layer's weights is taken of the largest of its inputs alone.

    The output and the gradient of the inputs stay exact. Of a batch of inputs the largest numbers
    count, whosever they are. Layers whose weights are used without calling them are not reached.
    """
    layers = {n.rpartition(".")[0]: p for n, p in named.items()}

    @contextmanager
    def gradients() -> Iterator[None]:
        hooks = [
            model.get_submodule(path).register_forward_hook(_by_largest_inputs(p, share))
            for path, p in layers.items()
        ]
        with removed_after(hooks):
            yield

    return Manner(gradients=gradients)


def _by_largest_inputs(weight: nn.Parameter, share: float) -> Callable[..., Any]:
    """A forward hook: the output by all inputs, its gradient at the weights by fewer of them."""
    busy = False

    def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        nonlocal busy
        if busy or not torch.is_grad_enabled() or not isinstance(given[0], Tensor):
            return output
        gone = float((weight == 0).float().mean()) if share == AS_WEIGHTS else share
        if gone <= 0.0:
            return output
        busy = True
        fewer = given[0].detach() * largest_part(given[0], 1.0 - gone)
        still = {n: p.detach() for n, p in module.named_parameters()}
        exact = torch.func.functional_call(module, still, given)
        by_weights = module(fewer, *given[1:])
        busy = False
        return exact + (by_weights - by_weights.detach())

    return hook


def in_turns(named: Mapping[str, nn.Parameter], own: Masks) -> Manner:
    """Steps by turns, the first of the weights under a mask alone, the next of all others.

    Those whose turn it is not have no gradient, and are put back after the optimizer's step. Of
    what has no flags all is of the others.
    """
    turn = 0

    @contextmanager
    def step() -> Iterator[None]:
        nonlocal turn
        before = {n: p.data.clone() for n, p in named.items()}
        still = {
            n: ~own[n] if n in own else torch.ones_like(p, dtype=torch.bool)
            for n, p in named.items()
        }
        if turn % 2:
            still = {n: ~flags for n, flags in still.items()}
        turn += 1
        for n, p in named.items():
            if p.grad is not None:
                p.grad.masked_fill_(still[n], 0.0)
        yield
        for n, p in named.items():
            p.data.copy_(torch.where(still[n], before[n], p.data))

    return Manner(step=step)


def part_of_step(named: Mapping[str, nn.Parameter], parts: Sequence[Masks], gen: Any) -> Manner:
    """Ordered dropout, Horvath et al. 2021, arXiv 2102.13451: a part drawn for every step.

    The rest counts as 0, has no gradient, and is put back before the step.
    """

    @contextmanager
    def gradients() -> Iterator[None]:
        part = parts[int(torch.randint(len(parts), (1,), generator=gen))]
        whole = {n: p.data.clone() for n, p in named.items()}
        for n, p in named.items():
            p.data.mul_(part[n])
        yield
        for n, p in named.items():
            p.data.copy_(whole[n])
            if p.grad is not None:
                p.grad.mul_(part[n])

    return Manner(gradients=gradients)

"""SynFlow: what flows through a weight when all weights are positive, without data.

Tanaka et al. 2020, arXiv 2006.05467, sect. 6: R is the sum of the outputs for an input of ones with
every weight replaced by its absolute value, and a weight scores |w|·dR/d|w|. Within a layer that
everything flows through the scores add up to R (sect. 4), which only holds if the network is
homogeneous: it consists of kinds of module that are, and doubling an input doubles the output.
Taken in float64, since products over many layers leave the range of float32.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn

from fedprune.scores.score import Evidence
from fedprune.tasks.task import Part
from fedprune.tensors.named import Tensors

HOMOGENEOUS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
    nn.Dropout,
    nn.Flatten,
    nn.Unflatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
"""Kinds of module with f(ax) = a f(x) for a > 0, once biases and running means are 0."""

SCALES = (2.0, 2.0**-24)
"""Powers of two, so that a homogeneous network scales bit for bit, and far apart: a GELU is linear
for large inputs and a constant is nothing beside them."""


def synflow(evidence: Evidence) -> Tensors:
    """|w|·dR/d|w| of every weight, float64, >= 0.

    Raises:
        ValueError: the network is not homogeneous, or there is no example to take the shape from.
    """
    model, arguments = _prepared(evidence.model, evidence.dummy)
    parameters = dict(model.named_parameters())
    weights = [parameters[name].requires_grad_() for name in evidence.weights]
    slopes = torch.autograd.grad(_flow(model, arguments).sum(), weights, allow_unused=True)
    return {
        name: torch.zeros_like(w) if slope is None else (w * slope).detach()
        for name, w, slope in zip(evidence.weights, weights, slopes, strict=True)
    }


def refuse_inhomogeneous(model: nn.Module, dummy: Part | None) -> None:
    """Refuse a network that is not homogeneous before a run starts."""
    _prepared(model, dummy)


def _prepared(model: nn.Module | None, dummy: Part | None) -> tuple[nn.Module, dict[str, Tensor]]:
    """A positive copy in float64 that was found to be homogeneous, and its inputs of ones."""
    if model is not None:
        _check_kinds(model)
    if model is None or dummy is None:
        raise _refused("the task has no example without data in it")
    model = copy.deepcopy(model).cpu().double().eval()
    _make_positive(model)
    arguments = _ones(model, dummy)
    _check_scaling(model, arguments)
    return model, arguments


def _refused(why: str) -> ValueError:
    return ValueError(
        f"score='synflow': {why}; allowed: networks of linear, convolution, BatchNorm, ReLU and "
        "pooling layers, or another score"
    )


def _check_kinds(model: nn.Module) -> None:
    for name, module in model.named_modules():
        leaf = next(module.children(), None) is None
        # A module with weights of its own beside its children could do anything with them.
        if (leaf or next(module.parameters(recurse=False), None) is not None) and not isinstance(
            module, HOMOGENEOUS
        ):
            raise _refused(f"{name or 'the model'} is a {type(module).__name__}, not homogeneous")


@torch.no_grad()
def _make_positive(model: nn.Module) -> None:
    for module in model.modules():
        for kind, p in module.named_parameters(recurse=False):
            p.zero_() if kind == "bias" else p.abs_()
        mean = getattr(module, "running_mean", None)
        if isinstance(mean, Tensor):
            mean.zero_()


def _ones(model: nn.Module, dummy: Part) -> dict[str, Tensor]:
    """Inputs of ones, by the names of the model's arguments.

    They are those numbers of the example that the model has an argument for; where names do not
    tell, the only numbers there are.
    """
    numbers = {n: torch.ones_like(t).double() for n, t in dummy.items() if t.is_floating_point()}
    arguments = list(inspect.signature(model.forward).parameters)
    named = {n: t for n, t in numbers.items() if n in arguments}
    if named or len(numbers) != 1:
        if not named:
            raise _refused(f"none of {', '.join(dummy)} is an input of numbers")
        return named
    return dict(zip(arguments[:1], numbers.values(), strict=True))


def _flow(model: nn.Module, arguments: dict[str, Tensor]) -> Tensor:
    flow = model(**arguments)
    if not isinstance(flow, Tensor):
        raise _refused(f"the model returns {type(flow).__name__}, not a tensor")
    return flow


@torch.no_grad()
def _check_scaling(model: nn.Module, arguments: dict[str, Tensor]) -> None:
    flow = _flow(model, arguments)
    for scale in SCALES:
        scaled = _flow(model, {name: x * scale for name, x in arguments.items()})
        if not torch.equal(scaled, flow * scale):
            raise _refused(f"{type(model).__name__} does not scale with its input")

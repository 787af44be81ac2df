"""Layers whose weight is no parameter but computed from others: no mask of these is one of it.

Under weight_norm what stays grows when something goes, under orthogonal nothing stays 0, and
`torch.nn.utils.prune` holds a mask of its own: so they are refused, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from fedprune.structure.layer_kinds import is_layer


def refuse_computed(model: nn.Module, output: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse layers that would be prunable if their weight were a parameter.

    Heads of output, and what is excluded, are not prunable and stay dense.

    Raises:
        ValueError: one line that names the layer, what its weight comes from, and the ways out. A
            weight that a hook sets is refused wherever it is.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    modules = dict(model.named_modules(remove_duplicate=False))
    heads = {id(m) for name in output for m in modules[name].modules()}
    for path, layer in model.named_modules():
        sources = _sources(layer) if is_layer(layer) else []
        if not sources:
            continue
        made_of = [names[id(p)] for p in sources]
        trained = [names[id(p)] for p in sources if p.requires_grad]
        dense = id(layer) in heads or all(is_any(name, exclude) for name in trained)
        # What a hook computes is no leaf of autograd: such a model cannot be copied.
        hooked = not is_parametrized(layer, "weight")
        if hooked or not dense:
            whole = f"--exclude {f'{path}.*' if path else '*'!r}, which leaves the layer dense"
            other = "torch.nn.utils.parametrizations with --exclude" if hooked else whole
            raise ValueError(
                f"model: the weight of {path or 'the model'} is computed ({_by(layer)}) from "
                f"{', '.join(made_of)}, and no mask of these is one of it; allowed: a plain weight "
                f"({_way_out(layer)}), or {other}"
            )


def is_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of some shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _sources(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that a layer's weight is computed from; none of a weight that is one."""
    if layer._parameters.get("weight") is not None or "weight" in layer._buffers:
        return []
    if is_parametrized(layer, "weight"):
        return list(_parametrisation(layer).parameters())
    return [p for name, p in layer.named_parameters() if name.startswith("weight")]


def _parametrisation(layer: nn.Module) -> ParametrizationList:
    found = layer.parametrizations["weight"]  # type: ignore[index]
    assert isinstance(found, ParametrizationList)
    return found


def _by(layer: nn.Module) -> str:
    """What computes the weight, in words."""
    if is_parametrized(layer, "weight"):
        kinds = [type(m).__name__.lstrip("_") for m in _parametrisation(layer)]
        return f"parametrised by {', '.join(kinds)}"
    if isinstance(getattr(layer, "weight_mask", None), Tensor):
        return "torch.nn.utils.prune"
    if "weight_g" in layer._parameters:
        return "weight_norm"
    return "spectral_norm" if "weight_u" in layer._buffers else "when it is called"


def _way_out(layer: nn.Module) -> str:
    if is_parametrized(layer, "weight"):
        return "torch.nn.utils.parametrize.remove_parametrizations"
    if isinstance(getattr(layer, "weight_mask", None), Tensor):
        return "torch.nn.utils.prune.remove"
    known = {"weight_norm": "remove_weight_norm", "spectral_norm": "remove_spectral_norm"}
    way = known.get(_by(layer))
    return f"torch.nn.utils.{way}" if way else "one that is registered as a parameter"

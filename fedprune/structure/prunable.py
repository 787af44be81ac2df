"""Which parameters masks are for, and what the others are that stay dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from fedprune.structure.layer_kinds import TABLES, family_name, is_layer
from fedprune.structure.parametrised import is_any, refuse_computed

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def prunable_of(
    model: nn.Module, output: Sequence[str], exclude: Sequence[str], include: Sequence[str]
) -> tuple[str, ...]:
    """The names of the parameters that masks are for, in model order, ties once.

    Raises:
        ValueError: as `fedprune.structure.layout.layout_of`.
    """
    parameters = dict(model.named_parameters())
    for key, patterns in (("exclude", exclude), ("include", include)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise ValueError(
                    f"{key}={pattern!r}: matches no parameter; allowed: a shell pattern over names "
                    f"such as {near(pattern, parameters)}"
                )
    by_kind = _weights_of_layers(model, output)
    refuse_computed(model, output, exclude)
    found = tuple(
        name
        for name, p in parameters.items()
        if p.numel() and (name in by_kind or is_any(name, include)) and not is_any(name, exclude)
    )
    still = [name for name in found if not parameters[name].requires_grad]
    if still:
        raise ValueError(
            f"include={list(include)}: {still[0]} is frozen (requires_grad is False), and what "
            f"does not train is not pruned; allowed: other patterns, or --exclude {still[0]!r}"
        )
    if not found:
        raise ValueError(_nothing(model, output, exclude, by_kind))
    return found


def near(name: str, names: Iterable[str]) -> str:
    """Up to three names like this one, the likest first; the first few where none is like it."""
    known = list(names)
    plain = name.replace("*", "").replace("?", "").lower()
    spelled = {known_name.lower(): known_name for known_name in reversed(known)}
    like = [spelled[s] for s in get_close_matches(plain, spelled, 3, 0.5)]
    like += [n for n in known if plain and plain in n.lower() and n not in like]
    return ", ".join((like or known)[:3])


def heads_in(model: nn.Module, output: Sequence[str]) -> list[nn.Module]:
    """The modules that `output` names, under whatever name the model has them.

    Raises:
        ValueError: there is no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in output:
        if name not in modules:
            allowed = near(name, [path for path in modules if path])
            raise ValueError(
                f"task: its output names {name!r}, no module of the model; allowed: "
                f"{allowed or 'none, the model is one module'}"
            )
    return [modules[name] for name in output]


def _weights_of_layers(model: nn.Module, output: Sequence[str]) -> set[str]:
    """First names (ties once) of the weights of layers, less those a head of output shares."""
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {id(p) for head in heads_in(model, output) for p in head.parameters()}
    spared |= {id(m.weight) for m in model.modules() if isinstance(m, TABLES)}
    weights = [m._parameters.get("weight") for m in model.modules() if is_layer(m)]
    found = [w for w in weights if w is not None and w.numel() and w.requires_grad]
    return {names[id(w)] for w in found if id(w) not in spared}


def _nothing(
    model: nn.Module, output: Sequence[str], exclude: Sequence[str], by_kind: set[str]
) -> str:
    """Why nothing is left to prune, and what there is."""
    if by_kind:
        return (
            f"exclude={list(exclude)}: nothing is left to prune of {len(by_kind)} weights of "
            "linear layers and convolutions; allowed: fewer patterns"
        )
    numbers = Counter(staying(model, (), output, exclude).values())
    told = ", ".join(f"{kind} ({count})" for kind, count in numbers.items()) or "no parameters"
    trained = [n for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
    free = [n for n in trained if not is_any(n, exclude)]
    pattern = f", such as --include {free[0]!r}" if free else ""
    return (
        f"include=[]: nothing is left to prune: the model has no weight of a linear layer or a "
        f"convolution beside its head of output, but {told}; allowed: a model with such layers, "
        f"or patterns over its parameters{pattern}"
    )


def staying(
    model: nn.Module, prunable: Sequence[str], output: Sequence[str], exclude: Sequence[str]
) -> dict[str, str]:
    """What each parameter is that masks are not for, by name, in words."""
    heads = {id(p) for head in heads_in(model, output) for p in head.parameters()}
    owners = owners_of(model)
    out: dict[str, str] = {}
    for name, p in model.named_parameters():
        if name in prunable:
            continue
        excluded = is_any(name, exclude) and p.dim() > 1
        kind = "excluded" if excluded else _kind(owners[name], name, p)
        out[name] = "head of output" if id(p) in heads and p.dim() > 1 else kind
    return out


def owners_of(model: nn.Module) -> Mapping[str, nn.Module]:
    """The module that each parameter is in, the first of several that share it."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None:
                found.setdefault(names[id(p)], module)
    return found


def _kind(owner: nn.Module, name: str, p: Tensor) -> str:
    """What a parameter is, by its owner's type and its own shape."""
    if not p.numel():
        return "empty"
    if isinstance(owner, TABLES):
        return "embeddings"
    if isinstance(owner, RECURRENT):
        return "recurrent weights"
    if p.dim() < 2:
        return "biases, norms and other vectors"
    if isinstance(owner, _ConvTransposeNd):
        return "transposed convolutions"
    if isinstance(owner, nn.MultiheadAttention):
        return "fused attention inputs"
    if is_layer(owner) and not p.requires_grad:
        return "frozen layers"
    if is_layer(owner) or is_parametrized(owner) or ".parametrizations." in name:
        return "parametrised layers"
    return _kind_by_shape(owner, p)


def _kind_by_shape(owner: nn.Module, p: Tensor) -> str:
    if family_name(owner).endswith("TopKRouter"):
        return "routers of experts"
    # A class token or a table of positions of ViT has a dimension for the batch.
    sizes = [size for size in p.shape if size > 1]
    if len(sizes) < 2:
        return "biases, norms and other vectors"
    return "stacks of matrices (experts and the like)" if len(sizes) > 2 else "other matrices"

"""Generation with a cache after whole attentions are gone.

transformers asks the cache of layer 0 how many tokens were seen. So the attentions of a stack
that are left are numbered from 0 again, and where none is left there is nothing to cache. A cache
is made by the types of layers that the configuration tells, in its order (windows and whole
attention by turns): there an attention takes the first number of its type that is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedprune.structure.groups import stacks_in

Numbered = dict[str, dict[str, list[Any]]]
"""By path of a stack and by path within its blocks: the attentions that have a cache, in order."""


def attentions_of(model: nn.Module) -> Numbered:
    """The modules that have a number in a cache (`layer_idx`), by stack and by role."""
    found: Numbered = {}
    for stack, layers in stacks_in(model).items():
        roles: dict[str, list[Any]] = {}
        for block in layers:
            for path, module in block.named_modules():
                # Some blocks have a number too, which is theirs.
                if path and isinstance(getattr(module, "layer_idx", None), int):
                    roles.setdefault(path, []).append(module)
        if roles:
            found[stack] = roles
    return found


def renumber(model: nn.Module, before: Numbered) -> None:
    """Number what is left from 0, for every stack and role; no cache where nothing is number 0.

    Of a model that is changed in place, its configurations too; `before` its attentions were
    others.
    """
    after = attentions_of(model)
    for stack, roles in before.items():
        left = after.get(stack, {})
        types = getattr(_config_of(model, stack), "layer_types", None)
        for modules in left.values():
            numbers = _numbers([m.layer_idx for m in modules], types)
            for number, module in zip(numbers, modules, strict=True):
                module.layer_idx = number
        # The first role is the attention of the stack to itself.
        first = left.get(next(iter(roles)), [])
        if not any(module.layer_idx == 0 for module in first):
            _without_cache(model, stack)


def _numbers(old: Sequence[int], types: Sequence[str] | None) -> list[int]:
    """New numbers of the layers that are left, from 0; of each type those that it had."""
    if types is None:
        return list(range(len(old)))
    free = {kind: iter([i for i, t in enumerate(types) if t == kind]) for kind in types}
    return [next(free[types[number]]) for number in old]


def _above(model: nn.Module, stack: str) -> list[Any]:
    """The modules that a stack is in, the outermost first."""
    parts = stack.split(".")
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]


def _config_of(model: nn.Module, stack: str) -> Any:
    configs = [m.config for m in _above(model, stack) if hasattr(m, "config")]
    return configs[-1] if configs else None


def _without_cache(model: nn.Module, stack: str) -> None:
    above = _above(model, stack)
    configs = [m.config for m in above if hasattr(m, "config")]
    nearest = _config_of(model, stack)
    if getattr(nearest, "is_encoder_decoder", False) and not getattr(nearest, "is_decoder", False):
        return  # an encoder has no cache, and what is above it is the decoder's
    written = [m.generation_config for m in above if getattr(m, "generation_config", None)]
    for config in (*configs, *written):
        if hasattr(config, "use_cache"):  # an encoder of today has no word for it
            config.use_cache = False

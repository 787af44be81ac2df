"""Which layers of a model get factors, and what is trained whole beside them."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedprune.adapters.factors import DOWN, UP
from fedprune.options.refusal import refuse
from fedprune.structure.groups import structure_of
from fedprune.structure.layer_kinds import is_plain_layer
from fedprune.structure.layout import Layout
from fedprune.structure.matrices import kind_of


def adaptable(model: nn.Module, layout: Layout) -> tuple[str, ...]:
    """Paths of the linear layers that can have factors, in model order.

    Layers whose weight nothing else computes with, and which learning moves.
    """
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    return tuple(
        path
        for path, module in model.named_modules()
        if path
        and is_plain_layer(module, convolutions=False)
        and f"{path}.weight" in layout.shapes
        and holders[id(module.weight)] == 1
        and kind_of(module) == layout.kinds.get(f"{path}.weight", "linear")
    )


def targets_of(model: nn.Module, layout: Layout, wanted: Sequence[str]) -> tuple[str, ...]:
    """Paths of the layers that get factors, in model order.

    Args:
        model: the dense model.
        layout: its layout.
        wanted: last parts of paths, or regular expressions of whole ones; none: the projections of
            attention and feed-forward layers, or, where there are none, of all that are prunable.

    Raises:
        ValueError: one matches no layer, or is no regular expression; no layer can have factors.
    """
    able = adaptable(model, layout)
    if not able:
        refuse("adapters", "lora", "the model has no linear layer", "none")
    if not wanted:
        # Weights of recognised attention and feed-forward layers, pruned or not.
        groups = structure_of(model, [name for name, _ in model.named_parameters()]).groups
        usual = {part.tensor for group in groups for part in group.parts} or set(layout.prunable)
        found = tuple(path for path in able if f"{path}.weight" in usual)
        return found or able
    chosen = {path for each in wanted for path in _matching(each, able)}
    return tuple(path for path in able if path in chosen)


def _matching(wanted: str, able: Sequence[str]) -> list[str]:
    found = [path for path in able if f".{path}".endswith(f".{wanted}")]
    last = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in able))
    allowed = f"{last}, or a regular expression of paths such as {able[0]}"
    try:
        found = found or [path for path in able if re.fullmatch(wanted, path)]
    except (re.error, RecursionError, OverflowError) as error:
        refuse("targets", wanted, f"neither a layer nor a regular expression: {error}", allowed)
    if not found:
        refuse("targets", wanted, "no linear layer is called so", allowed)
    return found


def heads_trained(model: nn.Module, output: Sequence[str], layout: Layout) -> tuple[str, ...]:
    """Parameters of the heads of output that are trained whole: those of classes and numbers.

    A language model's head is as it was pretrained, and stays.
    """
    modules = dict(model.named_modules())
    words = _vocabulary(model)
    fresh = [
        path
        for path in output
        if not any(p.dim() == 2 and p.shape[0] in words for p in modules[path].parameters())
    ]
    inside = tuple(f"{path}." for path in fresh)
    return tuple(n for n in (*layout.prunable, *layout.spared) if inside and n.startswith(inside))


def _vocabulary(model: nn.Module) -> set[int]:
    """How many tokens the model reads; of a model that does not say, the rows of its tables."""
    reads: Any = getattr(model, "get_input_embeddings", None)
    if reads is not None:
        table = reads()  # of an image model it is what makes patches
        return {len(table.weight)} if isinstance(table, nn.Embedding) else set()
    return {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}


def require_peft() -> None:
    """Refuse adapters where there is no `peft`.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        refuse("adapters", "lora", "peft is not installed", "none, or pip install fedprune[llm]")


def check_adaptable(model: nn.Module, layout: Layout, wanted: Sequence[str], rank: int = 1) -> None:
    """Refuse what adapters are not for, before anything starts.

    Raises:
        ValueError: `peft` is not installed, the model has BatchNorm, no layer with factors has so
            high a rank, or as for `targets_of`.
    """
    require_peft()
    mixing = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    if mixing:
        why = f"BatchNorm ({mixing[0]}) moves its statistics while all else is frozen"
        refuse("adapters", "lora", why, "none, or a model without it")
    odd = [n for n in layout.shapes if n.endswith((DOWN, UP))]
    if odd:
        refuse("adapters", "lora", f"the model has some already ({odd[0]})", "a merged model")
    most = max(min(layout.shapes[f"{path}.weight"]) for path in targets_of(model, layout, wanted))
    if rank > most:
        refuse("rank", rank, f"no layer with factors has a rank above {most}", f"1 to {most}")

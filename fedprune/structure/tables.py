"""Tables of a model: which modules look rows up by id, and which of them is of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def embedding_path(model: nn.Module) -> str:
    """The path of a model's table of tokens.

    It is what ``get_input_embeddings`` of the model or of a part of it gives back; in a model
    without one, the only table there is.

    Raises:
        ValueError: there is none that can be cut, or several and nothing that says which.
    """
    paths = reversed(list(model.named_modules()))
    names: dict[nn.Module, str] = {module: path for path, module in paths}
    for module in model.modules():
        asked: Any = getattr(module, "get_input_embeddings", None)
        try:
            table: nn.Module | None = None if asked is None else asked()
        except NotImplementedError:
            continue
        if table is not None and table in names and is_table(table):
            return names[table]
    tables = {id(m.weight): names[m] for m in reversed(list(model.modules())) if is_table(m)}
    if len(tables) == 1:
        return next(iter(tables.values()))
    found = ", ".join(sorted(tables.values())[:4])
    has = f"has {len(tables)} tables ({found})" if tables else "has no table of tokens to cut"
    way = ", or a model whose get_input_embeddings() says which" if tables else ""
    raise ValueError(f"vocabulary='used': the model {has}; allowed: full{way}")


def is_table(module: nn.Module) -> bool:
    """Whether it looks rows of its `weight` up by id, whatever it does with them afterwards.

    An `nn.Embedding`, a subclass, or any module of the kind: with two rows changed places, what it
    says of their ids has changed places, and nothing else of it.
    """
    weight = module._parameters.get("weight")
    if type(module) is nn.Embedding:
        return weight is not None
    if weight is None or weight.dim() != 2 or weight.shape[0] < 2 or weight.is_meta:
        return False
    ids = torch.tensor([0, weight.shape[0] - 1], device=weight.device)
    turned = weight.detach().clone()
    turned[ids] = turned[ids.flip(0)]
    mode = module.training
    try:
        with torch.no_grad():
            module.eval()
            said: Any = module(ids)
            again: Any = functional_call(module, {"weight": turned}, (ids,))
            same = torch.equal(said.flip(0), again)
            return same and said.shape[0] == 2 and bool(said.any())
    except Exception:  # a layer that reads numbers, or anything else of the user's own
        return False
    finally:
        module.train(mode)

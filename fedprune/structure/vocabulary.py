"""Tokens that nobody uses leave the vocabulary: rows of the embeddings and of the head of output.

Ids stay those of the tokenizer. A table maps them to the rows that are left, and logits come in
the size of the whole vocabulary, at the least value of their type where a token is gone (of a model
that caps its logits, as Gemma 2 does, at the least that the cap lets through): losses, labels and
generation need not know (vocabulary pruning as in TextPruner, Yang et al. 2022, arXiv
2203.15996, section 3.2, which makes new ids instead).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedprune.structure.edits import Edit
from fedprune.structure.layer_kinds import is_layer, plain_kind

Fresh = dict[Tensor, nn.Parameter]
"""The new parameters by the old ones."""


class KeptEmbedding(nn.Embedding):
    """Embeddings of some ids; `num_embeddings` says how many are left."""

    rows: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings (..., dim) of original ids (...)."""
        return super().forward(self.rows[input])


class KeptLinear(nn.Linear):
    """A head of output for some ids; `out_features` says how many are left."""

    ids: Tensor
    vocabulary: int

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., vocabulary), at their type's least value where a token is gone."""
        return _widened(self, (), super().forward(input))


def used(counts: Tensor, spared: Iterable[int]) -> tuple[int, ...]:
    """The ids that occur, and those that stay in any case, ascending.

    Args:
        counts: how often each id occurs, summed over everyone, (vocabulary,).
        spared: marks of the tokenizer, such as padding and the unknown.
    """
    kept = counts > 0
    kept[torch.tensor(sorted(spared), dtype=torch.long)] = True
    return tuple(kept.nonzero()[:, 0].tolist())


def cut_vocabulary(model: nn.Module, edit: Edit) -> None:
    """Keep only some tokens, in place: in the table, in all that is tied to it, and in the head.

    Every tensor keeps its name, its ties, and whether it is frozen. On texts of kept tokens the
    logits of kept tokens are the same. The loss of a label that is gone is as good as infinite:
    texts are to be `translated` first.

    Args:
        model: with the table as its task builds it.
        edit: of kind "vocab"; `path` of the table, `kept` original ids, `like` the id as which
            those are read that are gone ("" makes reading them an IndexError).

    Raises:
        ValueError: no such table, ids that are not ascending ids of it, or a `like` that is gone.
    """
    table: Any = dict(model.named_modules()).get(edit.path)
    weight = None if table is None else table._parameters.get("weight")
    if weight is None or weight.dim() != 2 or is_layer(table):
        has = "nothing" if table is None else type(table).__name__
        raise ValueError(f"edit 'vocab' of {edit.path!r}: there is {has}; allowed: Embedding")
    _check(edit, table.weight.shape[0])
    heads = _heads(model, table.weight)
    fresh = _fresh(model, table, heads, torch.tensor(edit.kept))
    new = _replaced(model, table, heads, fresh, edit)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child in new:
                setattr(module, name, new[child])
        for name, old in list(module._parameters.items()):
            if old is not None and old in fresh:
                setattr(module, name, fresh[old])


def _replaced(
    model: nn.Module, table: Any, heads: list[nn.Linear], fresh: Fresh, edit: Edit
) -> dict[nn.Module, nn.Module]:
    """What comes in the place of tables and heads; those of another class stay and get hooks."""
    size = table.weight.shape[0]
    rows, new = _rows(edit, size), dict[nn.Module, nn.Module]()
    for head in heads:
        if plain_kind(head, (nn.Linear,)):
            new[head] = _kept_linear(head, fresh, edit)
        else:
            # A head of another class, whose weight is to be cut, goes on giving all logits.
            ids, other = torch.tensor(edit.kept).to(head.weight.device), cast(Any, head)
            head.register_buffer("ids", ids, persistent=False)
            other.vocabulary, other.out_features = size, len(edit.kept)
            head.register_forward_hook(_widened)
    for twin in [m for m in model.modules() if _is_twin(m, table)]:
        if plain_kind(twin, (nn.Embedding,)):
            new[twin] = _kept_embedding(twin, fresh, rows)
        else:
            _read_kept(twin, fresh, rows)
    return new


def _check(edit: Edit, size: int) -> None:
    if not edit.kept or list(edit.kept) != sorted(set(edit.kept) & set(range(size))):
        raise ValueError(
            f"edit 'vocab' of {edit.path!r}: keeps {list(edit.kept)[:8]}; "
            f"allowed: ascending ids below {size}"
        )
    if edit.like and int(edit.like) not in edit.kept:
        raise ValueError(
            f"edit 'vocab' of {edit.path!r}: like={edit.like!r} is gone; allowed: an id that stays"
        )


def _heads(model: nn.Module, table: Tensor) -> list[nn.Linear]:
    """The heads of output that have a row for every token, and linear layers tied to the table."""
    found: dict[int, nn.Linear] = {}
    for module in model.modules():
        asked: Any = getattr(module, "get_output_embeddings", None)
        head = None if asked is None else asked()
        if isinstance(head, nn.Linear) and head.out_features == table.shape[0]:
            found[id(head)] = head
        if isinstance(module, nn.Linear) and module._parameters.get("weight") is table:
            found[id(module)] = module
    return list(found.values())


def _is_twin(module: nn.Module, table: nn.Module) -> bool:
    """Whether it looks up in the same table."""
    same = module._parameters.get("weight") is table.weight
    return module is table or (same and isinstance(module, nn.Embedding))


def _read_kept(table: Any, fresh: Fresh, rows: Tensor) -> None:
    """Let a table of another class, whose weight is to be cut, go on being asked for old ids."""
    count = len(fresh[table.weight])
    table.register_buffer("rows", rows.to(table.weight.device), persistent=False)
    table.register_forward_pre_hook(_to_rows, with_kwargs=True)
    if isinstance(table, nn.Embedding):
        pad = None if table.padding_idx is None else int(rows[table.padding_idx])
        table.num_embeddings, table.padding_idx = count, None if pad == count else pad


def _to_rows(table: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    if args:
        return (table.rows[args[0]], *args[1:]), given
    first = next(iter(given))
    return args, {**given, first: table.rows[given[first]]}


def _widened(head: Any, _args: object, logits: Tensor) -> Tensor:
    least = torch.finfo(logits.dtype).min
    whole = logits.new_full((*logits.shape[:-1], head.vocabulary), least)
    return whole.index_copy(-1, head.ids, logits)


def _fresh(model: nn.Module, table: Any, heads: list[nn.Linear], kept: Tensor) -> Fresh:
    """The parameters that stay after the cut."""
    for module in model.modules():
        shares = any(p is table.weight for p in module._parameters.values())
        if shares and not _is_twin(module, table) and not any(module is h for h in heads):
            raise ValueError(f"edit 'vocab': {type(module).__name__} shares the embeddings")
    old = [table.weight, *(h.weight for h in heads), *(h.bias for h in heads if h.bias is not None)]
    return {
        p: nn.Parameter(
            p.detach().index_select(0, kept.to(p.device)), requires_grad=p.requires_grad
        )
        for p in old
    }


def _rows(edit: Edit, size: int) -> Tensor:
    """The row of every original id, (size,)."""
    gone = edit.kept.index(int(edit.like)) if edit.like else len(edit.kept)
    rows = torch.full((size,), gone)
    rows[list(edit.kept)] = torch.arange(len(edit.kept))
    return rows


def _kept_embedding(old: Any, fresh: Fresh, rows: Tensor) -> KeptEmbedding:
    weight = fresh[old.weight]
    count, width = weight.shape
    pad = None if old.padding_idx is None else int(rows[old.padding_idx])
    new = KeptEmbedding(count, width, None if pad == count else pad, device="meta")
    new.max_norm, new.norm_type = old.max_norm, old.norm_type
    new.scale_grad_by_freq, new.sparse = old.scale_grad_by_freq, old.sparse
    new.weight = weight
    new.register_buffer("rows", rows.to(weight.device), persistent=False)
    return new.train(old.training)


def _kept_linear(old: nn.Linear, fresh: Fresh, edit: Edit) -> KeptLinear:
    weight = fresh[old.weight]
    new = KeptLinear(weight.shape[1], weight.shape[0], old.bias is not None, device="meta")
    new.weight = weight
    if old.bias is not None:
        new.bias = fresh[old.bias]
    new.register_buffer("ids", torch.tensor(edit.kept).to(weight.device), persistent=False)
    new.vocabulary = old.out_features
    return new.train(old.training)


def translated(ids: Tensor, edit: Edit) -> Tensor:
    """The ids with those that are gone as the one that stands for them; negative ones stay.

    What a tokenizer with the smaller vocabulary would have written, labels (-100 is none) too.
    """
    largest = max(edit.kept[-1], int(ids.max())) if ids.numel() else edit.kept[-1]
    known = torch.full((largest + 1,), int(edit.like))
    known[list(edit.kept)] = torch.tensor(edit.kept)
    return torch.where(ids >= 0, known[ids.clamp(min=0)], ids)

"""Tokens in a client's texts: how often each occurs, and texts read with a smaller vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.structure.edits import Edits
from fedprune.structure.vocabulary import translated
from fedprune.tasks.later import LazyShards, rows_counted, shard_once
from fedprune.tasks.task import Part, Shard, Task


def special_tokens_of(
    task: Task, config: RunConfig, model: nn.Module
) -> tuple[frozenset[int], int]:
    """The ids that always stay, and the one that stands for those that are gone.

    The tokenizer's special tokens, and those that the model's configuration names: padding, begin
    and end. The unknown token stands for what is gone; where there is none, the end of a text, or
    the padding.
    """
    assert task.tokenizer is not None  # the configuration refuses a task without one
    tokenizer = task.tokenizer(config)
    asked = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    unknown = next(i for i in asked if i is not None)
    found = {unknown, *tokenizer.all_special_ids}
    for module in model.modules():
        found |= _named_in(getattr(module, "config", None))
    return frozenset(found), unknown


_NAMED = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _named_in(config: Any) -> set[int]:
    given = [getattr(config, name, None) for name in _NAMED]
    flat = [i for ids in given for i in (ids if isinstance(ids, list) else [ids])]
    return {i for i in flat if isinstance(i, int) and i >= 0}


def token_counts(shard: Shard, task: Task, size: int) -> Tensor:
    """How often each id occurs in training and validation, (size,) float32; below 0 is no id."""
    total = torch.zeros(size, dtype=torch.long)
    for part in (shard.train, shard.validation):
        for name in task.tokens:
            ids = part[name]
            total += torch.bincount(ids[ids >= 0], minlength=size)
    return total.float()


def read_with(edits: Edits, task: Task, shards: Mapping[int, Shard]) -> Mapping[int, Shard]:
    """The shards in the vocabulary that the edits leave, by partition, each read when needed."""
    cut = [edit for edit in edits if edit.kind == "vocab"]
    if not cut:
        return shards

    def read(part: Part) -> Part:
        found = {n: translated(t, cut[0]) if n in task.tokens else t for n, t in part.items()}
        if "unknown" in part:  # what is gone is read as it, and is no right answer
            found["unknown"] = torch.full_like(part["unknown"], int(cut[0].like))
        return found

    def one(partition: int) -> Shard:
        shard = shard_once(shards, partition)
        return Shard(read(shard.train), read(shard.validation), read(shard.test))

    return LazyShards(dict.fromkeys(shards), one, rows_counted(shards))

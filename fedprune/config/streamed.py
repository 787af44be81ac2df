"""Whether one block of a model at a time is in memory: ``--stream``."""

from __future__ import annotations

import os
from typing import Any

from fedprune.learning.options import trains
from fedprune.options.conditions import only
from fedprune.options.refusal import OUT
from fedprune.runtime.process import free_memory
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Score
from fedprune.selection.apart import apart
from fedprune.selection.options import followed_method
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.pretrained import from_files, weights_of

STREAMED_FROM = 2**26
"""Weights of a model that is streamed without being asked for, whatever memory there is."""

BYTES_A_WEIGHT = 9
"""Bytes for each weight that a process takes where the whole model is in memory, scoring included.

What `benchmarks/stream.py` measures of Wanda on bf16 weights, 4.4, and 4 for wider weights.
"""

MORE_BYTES = {"votes": 1, "weights": 2, "gradients": 3}
"""The same beyond that, where clients vote (5.6 measured), where the score sets weights (SparseGPT,
5.6), and of gradients a block at a time (8 wanted, docs/llm.md)."""

_WANTED: dict[str, Any] = {
    "scope": ("row", "column", "layer", "er", "erk", "patterns"),
    "unit": ("weight", "n:m"),
    "schedule": ("one-shot", "cubic", "linear", "exponential"),
    "masks": "global",
    "combine": ("sum", "votes"),
    "vote_scope": (None, "row", "column", "layer", "er", "erk", "patterns"),
    "response": None,
    "calibration": ("dense", "sequential"),
    "normalise": "none",
    "score_steps": 1,
    "score_during": "pass",
    "threshold": None,
    "target_bytes": None,
    "target_flops": None,
    "dp": "none",
    "secure": "none",
    "base": ("auto", "held"),
    "reconstruct": None,
    "quantise_by": None,
    "save": "last",
    "reduce": (),
    "shrink": "never",
    "vocabulary": "full",
    "structure": "auto",
    "init": "",
    "teacher": "",
    "batched": 1,
    "baselines": (),
}
"""What a streamed run does without: the rest of it takes a tensor at a time."""


def is_forward_only(score: Score) -> bool:
    """Whether a score is had tensor by tensor, from forward passes."""
    parts = score.apart or score.step is not None
    return parts and all(ask.passes == "1 forward" for ask in score.asks)


def is_by_block(score: Score) -> bool:
    """Whether a score is had tensor by tensor, from gradients of a block at a time."""
    return score.apart and bool(score.asks) and all(ask.by_block for ask in score.asks)


def why_unstreamed(c: Any) -> str:
    """Why the model of a configuration cannot be streamed; "" where it can."""
    if not _is_from_files(c):
        return "its weights come from no file"
    if trains(c):
        return "clients train (--local-steps 0 is without)"
    score = scores_of(c.plugin)[c.score]
    if is_by_block(score) and not c.gradient_blocks:
        return f"--score {c.score} has gradients of the whole model without --gradient-blocks"
    if not is_by_block(score) and not is_forward_only(score):
        return f"--score {c.score} is not had tensor by tensor from forward passes"
    if c.agreement and "agreement" in c.model_fields_set:
        return "votes of whole models are what --agreement is measured by"
    wanted = {**_WANTED, "method": followed_method(c)}
    if c.unit not in ("weight", "n:m") and apart(c.unit, c.scope):
        del wanted["unit"], wanted["vote_scope"]  # of units one number each is ranked
    if c.unit != "weight" and apart(c.unit, c.scope):
        del wanted["scope"]  # the groups of n:m are within a tensor
    for key, wrong, _, allowed in only(c, True, "", **wanted):
        if wrong:
            instead = "without it" if allowed == OUT else f"with --{key} {allowed}"
            return f"not with --{key} {getattr(c, key.replace('-', '_'))}, only {instead}"
    return ""


def _is_from_files(c: Any) -> bool:
    task = tasks_of(c.plugin)[c.task]
    return bool(task.paths and from_files(c.model, task.models))


def is_to_stream(c: Any) -> bool:
    """Whether the model of a configuration is to be streamed, if its files can be."""
    if c.stream != "auto" or why_unstreamed(c):
        return bool(c.stream == "on")
    weights = weights_of(c.model)
    # How many hold the model at once on this machine, at most.
    processes = 1 if c.engine == "inline" else 1 + min(c.hosts, os.cpu_count() or 1)
    takes = weights * _bytes_a_weight(c) * processes
    return weights >= STREAMED_FROM or takes > free_memory() // 2


def _bytes_a_weight(c: Any) -> int:
    """What a process takes for each weight of a model whose weights stay as the files have them."""
    score = scores_of(c.plugin)[c.score]
    found = {"votes": c.combine == "votes", "weights": score.step is not None}
    found |= {"gradients": is_by_block(score)}
    return BYTES_A_WEIGHT + max((MORE_BYTES[kind] for kind in found if found[kind]), default=0)


def only_reads(c: Any) -> bool:
    """Whether nobody writes to the weights of a model from files, which may be read where they lie.

    So of a streamed model, and of one whose gradients are had a block at a time or whose score is
    had from forward passes, whatever competes.
    """
    if not why_unstreamed(c):
        return True
    wanted = {key: _WANTED[key] for key in _WANTED if key not in _CHOOSING}
    wanted |= {"method": followed_method(c), "shrink": ("never", "end")}
    score = scores_of(c.plugin)[c.score]
    return (
        _is_from_files(c)
        and not trains(c)
        and (scores_in_parts(c) or is_forward_only(score))
        and not any(wrong for _, wrong, *_ in only(c, True, "", **wanted))
    )


_CHOOSING = ("scope", "unit", "score_steps", "threshold", "target_bytes", "target_flops", "secure")
"""What says which weights go, or how sums are made."""


def prunes_in_parts(c: Any) -> bool:
    """Whether what clients vote of some tensors prunes these: none depends on another's mask."""
    alone = c.unit == "n:m" or {c.scope, c.vote_scope or c.scope} <= {"row", "layer"}
    return bool(c.gradient_blocks and alone and c.combine == "votes" and not why_unstreamed(c))


def scores_in_parts(c: Any) -> bool:
    """Whether gradients of some blocks are asked for in a question: all take more than the model.

    What `--gradient-blocks` does where what clients send of a tensor depends on no other one.
    """
    return bool(c.gradient_blocks and not why_at_once(c))


def why_at_once(c: Any) -> str:
    """Why gradients of all blocks are asked for in one question all the same; "" where not."""
    if prunes_in_parts(c):
        return ""
    score, combine = scores_of(c.plugin)[c.score], combines_of(c.plugin)[c.combine]
    summed = is_by_block(score) and not score.remembers and score.makes_up is None
    plain = {**_PLAIN, "method": followed_method(c)}
    reasons = {
        "clients train all weights": trains(c) and c.adapters == "none",
        f"--score {c.score}": not summed,
        f"--combine {c.combine}": not combine.pooled,
        **{
            f"--{key.replace('_', '-')} {getattr(c, key)}": getattr(c, key) != plain[key]
            for key in plain
        },
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def waits(c: Any) -> bool:
    """Whether clients are asked about tensors in parts that are pruned together."""
    return scores_in_parts(c) and not prunes_in_parts(c)


_PLAIN = {
    "normalise": "none",
    "score_wire": "fp32",
    "agreement": False,
    "dp": "none",
    "calibration": "dense",
    "masks": "global",
}
"""With what clients tell of some tensors what they would tell of them in a question about all."""

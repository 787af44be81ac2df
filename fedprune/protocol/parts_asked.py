"""Which tensors a question about a score is about: all, or some blocks where all take too much."""

from __future__ import annotations

from torch import nn

from fedprune.config import RunConfig
from fedprune.config.streamed import scores_in_parts, why_at_once
from fedprune.learning.options import trains
from fedprune.protocol.held_weights import has_base
from fedprune.scores.score import Score
from fedprune.streaming.blocks import is_streamed
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout

QUESTIONS = 8
"""Blocks asked about together hold one part in so many of the weights at most, or are one block."""


def asked_at_once(
    score: Score, model: nn.Module | None, config: RunConfig, layout: Layout
) -> list[tuple[str, ...]]:
    """The tensors that clients are asked about in one question; (): all of them.

    Of a model that is read in parts no more of Σ x xᵀ than that of a block; of gradients a block at
    a time, and of Σ x xᵀ of a large model that clients have, blocks with an eighth of the weights
    or one block.
    """
    if score.step is not None and model is not None and is_streamed(model):
        return stages_of(layout)
    # No question carries the weights: each part would carry them again.
    few = scores_in_parts(config) and has_base(config)
    few = few or (score.step is not None and _sums_in_parts(config, layout))
    return _few(layout) if few else [()]


def at_once_words(config: RunConfig, layout: Layout) -> str:
    """What it takes where gradients a block at a time are asked for all at once; "" where not."""
    why = why_at_once(config) or ("" if has_base(config) else "its weights are sent")
    if not (config.gradient_blocks and why):
        return ""
    more = BYTES_AT_ONCE * sum(layout.shapes[n].numel() for n in layout.prunable) / 1e9
    return (
        f"--gradient-blocks asks for all gradients at once ({why}): up to {more:.2g} GB more "
        "memory than in parts"
    )


BYTES_AT_ONCE = 16
"""Bytes for each prunable weight, in one process: a client's sums in float32, as they are sent, and
the server's in float64."""

IN_PARTS_FROM = 2**20
"""Parameters of a model whose Σ x xᵀ, 25 to 40 bytes for each where all are asked for at once, are
asked for in parts."""


def _sums_in_parts(config: RunConfig, layout: Layout) -> bool:
    """Whether Σ x xᵀ of a large model is asked for in parts.

    Only where no question carries the weights, as each part would carry them again; and not under
    noise, which is drawn for a question, so that several would not give what one gives.
    """
    held = has_base(config) and not trains(config)
    return held and config.dp == "none" and layout.parameters >= IN_PARTS_FROM


def _few(layout: Layout) -> list[tuple[str, ...]]:
    """Stages in model order, joined up to the share of the weights that is asked about at once."""
    prunable = set(layout.prunable)
    most = sum(layout.shapes[n].numel() for n in prunable) / QUESTIONS
    parts: list[tuple[str, ...]] = []
    size = 0
    for stage in stages_of(layout):
        own = tuple(n for n in stage if n in prunable)
        more = sum(layout.shapes[n].numel() for n in own)
        if parts and size + more <= most:
            parts[-1] += own
            size += more
        else:
            parts.append(own)
            size = more
    return parts

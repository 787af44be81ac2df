"""Choices that the clients' validation parts decide: many models near one, measured in a question.

A question names the model as it is and some candidates near it; every client measures all of them,
and what comes back are sums, so a candidate's loss is the pooled one of those who answered. All
candidates of a question are measured by the same clients. The test parts choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedprune.learning.blending import (
    block_by_block,
    blocks_of,
    lowest,
    on_grid,
    shares_of,
    together,
)
from fedprune.learning.candidates import (
    HERE,
    Candidate,
    blended,
    way_back,
)
from fedprune.server.ask import Bench
from fedprune.server.state import State
from fedprune.tensors import Tensors


def compared(
    state: State, bench: Bench, candidates: Sequence[Candidate], **way: Tensors
) -> tuple[State, list[float] | None]:
    """The mean validation loss of every candidate over everyone who answers.

    Args:
        state: the model as it is.
        bench: whom to ask.
        candidates: the model as it is first.
        way: `rungs` or, to blend, `given`.

    Returns:
        None instead of losses, if too few answered or they have no labels.
    """
    what: dict[str, Any] = {"part": "validation", "candidates": tuple(candidates), **way}
    question = bench.question(state, "compare", **what)
    state, aggregate = bench.put(state, question, bench.everyone())
    labels = aggregate.totals.get("count", 0.0)
    if len(aggregate.answered) < bench.plan.config.min_clients or not labels:
        return state, None
    return state, [aggregate.totals[f"loss_{i}"] / labels for i in range(len(candidates))]


def blend(before: State, after: State, bench: Bench) -> tuple[State, dict[str, Any] | None]:
    """The state with so much of the round's change as does best on validation.

    With too few answers the change is kept whole. Under equal masks before and after.

    Returns:
        The state, and for the round's row the shares kept, the losses with them and with the
        whole change, and what was tried of one share for all; None where it is all kept.
    """
    c = bench.plan.config
    if c.blend == "none":
        return after, None
    layout, grid = bench.plan.layout, c.blend_grid or (1.0,)
    back = way_back(before.weights, after.weights, layout)
    blocks = blocks_of(after.weights)
    whole = on_grid(grid)
    singles = block_by_block(grid, blocks) if c.blend == "layer" else ()
    state, losses = compared(after, bench, [*whole, *singles], given=back)
    if losses is None:
        return state, {"action": "too few answered"}
    best = lowest(losses[: len(whole)])
    found, loss, plain = whole[best], losses[best], losses[0]
    both = together(singles, losses[len(whole) :], plain)
    if both not in (HERE, found):
        rivals = [HERE, found, both] if best else [HERE, both]
        state, again = compared(state, bench, rivals, given=back)
        if again is not None:
            best = lowest(again)
            found, loss, plain = rivals[best], again[best], again[0]
    told = {
        "shares": shares_of(found, blocks) if found.apart else {"": 1.0 - found.far},
        "loss": loss,
        "plain": plain,
        "tried": [[1.0 - w.far, x] for w, x in zip(whole, losses, strict=False)],
    }
    return replace(state, weights=blended(state.weights, back, found, layout)), told

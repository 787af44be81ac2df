"""Blending: so much of a round's change is kept as does best on validation.

A question names the model as it is and some candidates near it; every client measures all of them,
and what comes back are sums, so a candidate's loss is the pooled one of those who answered. All
candidates of a question are measured by the same clients. The test parts choose nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.learning.blending import (
    best_of_blocks,
    block_by_block,
    blocks_of,
    kept_shares,
    lowest,
    on_grid,
)
from fedprune.learning.candidates import HERE, blended, way_back
from fedprune.methods.method import Rider
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk, compared
from fedprune.server.state import Model


def blend(before: Model, after: Model, memory: Any, r: Round) -> Talk[Step]:
    """The model with so much of the round's change as does best on validation.

    With too few answers the change is kept whole. Under equal masks before and after.
    The notes have the shares kept, the losses with them and with the whole change, and what was
    tried of one share for all.
    """
    c = r.config
    layout, grid = r.layout, c.blend_grid or (1.0,)
    back = way_back(before.weights, after.weights, layout)
    blocks = blocks_of(after.weights)
    whole = on_grid(grid)
    singles = block_by_block(grid, blocks) if c.blend == "layer" else ()
    losses = yield from compared(after, r, [*whole, *singles], given=back)
    if losses is None:
        return Step(after, memory, Notes(blend={"action": "too few answered"}))
    best = lowest(losses[: len(whole)])
    found, loss, plain = whole[best], losses[best], losses[0]
    both = best_of_blocks(singles, losses[len(whole) :], plain)
    if both not in (HERE, found):
        rivals = [HERE, found, both] if best else [HERE, both]
        again = yield from compared(after, r, rivals, given=back)
        if again is not None:
            best = lowest(again)
            found, loss, plain = rivals[best], again[best], again[0]
    told = {
        "shares": kept_shares(found, blocks) if found.apart else {"": 1.0 - found.far},
        "loss": loss,
        "plain": plain,
        "tried": [[1.0 - w.far, x] for w, x in zip(whole, losses, strict=False)],
    }
    weights = blended(after.weights, back, found, layout)
    return Step(replace(after, weights=weights), memory, Notes(blend=told))


RIDER = Rider(
    "the share of a round's change that does best on validation is kept (--blend)",
    wanted=lambda c: c.blend != "none",
    averaged=blend,
)

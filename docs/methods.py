"""Writes docs/methods.md from the tables of the code: ``python docs/methods.py``.

A test holds the file to what this writes, so a new line in a table needs this run once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedprune.codec.wire import SCORE_TYPES, UPLINK_TYPES
from fedprune.config import configure
from fedprune.learning.averaging import AVERAGES
from fedprune.learning.blending import BLENDS
from fedprune.learning.mask_rules import MASKS
from fedprune.learning.moving_average import MOVING
from fedprune.learning.robust_rules import ROBUST
from fedprune.learning.server_steps import SERVER_OPTIMIZERS
from fedprune.methods.catalog import METHODS
from fedprune.protocol.models import dense_model, layout_for
from fedprune.scores.catalog import SCORES
from fedprune.scores.combine import COMBINES, NORMALISE_SUMMARIES
from fedprune.scores.score import ByTensor, Score
from fedprune.selection.ladder import ADAPTIVE
from fedprune.selection.pools import POOLS
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS
from fedprune.structure.layout import Layout

ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
# Methods

Made from the tables of the code by `python docs/methods.py`; do not edit. \
`python simulations/run.py --list` prints the same names.

A score is what the server makes of sums that clients send. *Additive*: the statistic is a sum \
over examples, so the federated score equals the pooled one, for any split. *Sent* is what one \
client sends to score the default model (two LLaMA layers, {weights:,} prunable weights), as fp32 \
and before anything is removed; only weights that are still alive are sent. *While tuning*: \
`--score-during tune` can collect it without a pass of its own.

The round's cohort is asked, on all its training examples; `--score-cohort all` asks everyone who \
trains, `--score-cohort N` so many of them, drawn anew in every round, `--score-examples N` has \
each client draw N examples in a round. `--calibration dense` scores all layers of the model as it \
is; `sequential` asks block by block, each behind the pruned ones, so that the federated method \
equals the centralised one; `local` has each client go through the blocks by itself, behind what \
it prunes, in one question (`--combine votes`, or `--masks` of the clients' own). Means of \
clients' own scores are weighted by labels, with `--score-weighting equal` every client counts \
alike; where it is not given, it is as `--weighting`, which is for the mean of changes.
"""


def document() -> str:
    """The whole page."""
    config = configure({"task": "shakespeare"})
    layout = layout_for(config, dense_model(config))
    weights = sum(layout.shapes[name].numel() for name in layout.prunable)
    parts = [
        HEAD.format(weights=weights),
        "## Scores (`--score`)\n",
        _table(
            ["score", "formula", "units", "additive", "a client's cost", "sent", "while tuning"],
            [_score(name, score, layout) for name, score in SCORES.items()],
        ),
        "What several tensors read alike (queries, keys, values; gate and up) is summed and sent "
        "once. Of a model in LLaMA-7B's shape a client sends 2,982,451 bytes for `wanda` or "
        "`ria`, votes are 809,501,504, and `sparsegpt`'s H weighs 21.95 GB "
        "(`python benchmarks/llm_bytes.py`: from the codec, H from its shapes).\n",
        "### Where they are from, and where they are\n",
        _table(
            ["score", "source", "code"],
            [[f"`{n}`", s.source, _where(s)] for n, s in SCORES.items()],
        ),
    ]
    for title, table in _others().items():
        parts += [
            f"## {title}\n",
            table,
            *([PATTERNS.replace("\n", " ").strip() + "\n"] if "--unit" in title else []),
        ]
    return "\n".join(parts)


PATTERNS = """\
The groups of `n:m` are those of the hardware: M neighbours along the inputs of a linear layer,
and of a convolution (1d, 2d, 3d) M neighbouring input channels, for each output channel and place
of the kernel. Where the inputs are no multiple of M, the last group keeps its share of N, rounded
up: of 3 channels 2:4 removes one. Of a grouped convolution the channels are those within a group,
so a depthwise one, like one with a single input channel, has nothing to remove and stays dense:
the run then ends short of the sparsity asked for, and says so. Transposed convolutions are not
prunable unless included; then, as other tensors that are no layer's, they are taken as (first
dimension, rest).
"""


def _score(name: str, score: Score, layout: Layout) -> list[str]:
    sizes = [
        sum(s.numel() for s in ask.shapes(layout, layout.prunable, _unit(score), 64).values())
        for ask in score.asks
    ]
    watched = len(score.asks) == 1 and score.asks[0].watch is not None
    return [
        f"`{name}`",
        score.summary,
        ", ".join(score.units) or "all",
        "yes" if score.additive else "no",
        "; ".join(ask.passes for ask in score.asks) or "nothing",
        " + ".join(f"{4 * size:,} B" for size in sizes) or "nothing",
        "only" if score.tuning else "yes" if watched else "no",
    ]


def _unit(score: Score) -> str:
    return "weight" if not score.units or "weight" in score.units else score.units[0]


def _where(score: Score) -> str:
    formula = score.finalise
    return _link(formula.formula if isinstance(formula, ByTensor) else formula)


def _link(function: Callable[..., Any]) -> str:
    path = Path(inspect.getsourcefile(function) or "").resolve().relative_to(ROOT)
    line = inspect.getsourcelines(function)[1]
    return f"[`{path}:{line}`](../{path}#L{line})"


def _others() -> dict[str, str]:
    sourced: dict[str, Mapping[str, Any]] = {
        "Combining clients (`--combine`)": COMBINES,
        "How masks are decided and changes averaged (`--method`)": METHODS,
        "Whose masks (`--masks`)": MASKS,
        "Averaging weights (`--average`)": AVERAGES,
        "Rules that some clients cannot bend (`--robust`)": ROBUST,
        "The server's step (`--server-optimizer`)": SERVER_OPTIMIZERS,
    }
    plain: dict[str, Mapping[str, Any]] = {
        "Who competes with whom (`--scope`)": SCOPES,
        "What is removed together (`--unit`)": UNITS,
        "A unit's score (`--pool`)": POOLS,
        "When (`--schedule`)": SCHEDULES,
    }
    tables = {
        title: _table(
            ["name", "what", "source"], [[f"`{n}`", x.summary, x.source] for n, x in table.items()]
        )
        for title, table in sourced.items()
    }
    said: dict[str, Mapping[str, str]] = {
        "What clients do to their scores first (`--normalise`)": NORMALISE_SUMMARIES,
        "What an adaptive schedule chooses (`--adaptive`)": ADAPTIVE,
        "The share of a round's change that is kept (`--blend`)": BLENDS,
        "The running average that is the result (`--moving`)": MOVING,
    }
    for title, lines in said.items():
        tables[title] = _table(["name", "what"], [[f"`{n}`", x] for n, x in lines.items()])
    for title, table in plain.items():
        tables[title] = _table(["name", "what"], [[f"`{n}`", x.summary] for n, x in table.items()])
    wires = [[f"`{name}`", kind] for name, kind in SCORE_TYPES.items()]
    changes = [[f"`{name}`", text] for name, text in UPLINK_TYPES.items()]
    tables["What clients send when they tuned (`--uplink`)"] = _table(["name", "type"], changes)
    return tables | {"Statistics on the wire (`--score-wire`)": _table(["name", "type"], wires)}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "methods.md").write_text(document(), encoding="utf-8")

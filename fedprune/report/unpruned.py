"""What the model of a run is called in which the server pruned nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedprune.records.arms import PRUNED
from fedprune.report.reading import Run, number

UNPRUNED = "trained"  # What the main arm of a run is called in which nothing was pruned

AVERAGED = "averaged"
"""What it is called where clients' own models are pruned, and the server's, their mean, is not."""


def model_word(summary: Mapping[str, Any]) -> str:
    """What a run's model is: pruned, averaged or trained; without a summary, pruned."""
    if summary.get("sparsity") != 0:
        return PRUNED
    return AVERAGED if number(summary.get("own_sparsity")) > 0 else UNPRUNED


def nothing_pruned(run: Run) -> bool:
    """Whether a run has ended with neither its model nor those of its clients pruned."""
    return model_word(run.summary) == UNPRUNED


def shown_names(run: Run) -> Run:
    """The run with its arms named as a page names them: nothing is "pruned" that was not."""
    word = model_word(run.summary)
    if word == PRUNED:
        return run
    names = {run.main: word}
    return replace(
        run,
        rows=[{**row, "arm": names.get(row["arm"], row["arm"])} for row in run.rows],
        seconds={(names.get(arm, arm), r): told for (arm, r), told in run.seconds.items()},
        figures={names.get(arm, arm): told for arm, told in run.figures.items()},
    )

"""What a page calls the model of a run in which nothing was pruned."""

from dataclasses import replace

from fedprune.report.reading import Run, number


def nothing_pruned(run: Run) -> bool:
    """Whether a run has ended with neither its model nor those of its clients pruned."""
    sparsities = (number(run.summary.get(key)) for key in ("sparsity", "own_sparsity"))
    return run.summary.get("sparsity") == 0 and not any(s > 0 for s in sparsities)


UNPRUNED = "trained"
"""What a page calls the main arm of a run in which nothing was pruned."""


def shown_names(run: Run) -> Run:
    """The run with its arms named as a page names them: nothing is "pruned" that was not."""
    if not nothing_pruned(run):
        return run
    names = {run.main: UNPRUNED}
    return replace(
        run,
        rows=[{**row, "arm": names.get(row["arm"], row["arm"])} for row in run.rows],
        seconds={(names.get(arm, arm), r): told for (arm, r), told in run.seconds.items()},
        figures={names.get(arm, arm): told for arm, told in run.figures.items()},
    )

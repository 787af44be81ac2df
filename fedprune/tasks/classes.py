"""What may be a column of classes, and what is one of numbers or of names."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.options.refusal import counted
from fedprune.tasks.cells import as_number

_FEW = 20
"""So many distinct labels are classes, whatever they look like."""

OFTEN = 10
"""With more, a whole number that is a class occurs in so many rows on average."""


def distinct(labels: Sequence[str], option: str) -> list[str]:
    """The distinct labels, sorted as texts.

    Up to `_FEW` distinct labels are classes. Of more, numbers of which one is not whole are no
    classes; whole numbers are, if there are `OFTEN` rows for each on average; other texts are, if
    there are two.

    Args:
        labels: of every row.
        option: what named the column, with the column: label-column='stars'.

    Raises:
        ValueError: there is only one, or they are no classes.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"{option}: every row has the same label; allowed: at least two")
    said = (
        f"{option}: {len(names)} distinct {{}} in {counted(len(labels), 'row')} are no "
        f"classes; allowed: "
    )
    numbers = _numbers(names)
    rare = len(labels) < OFTEN * len(names)
    if len(names) > _FEW and numbers and (rare or any(n != int(n) for n in numbers)):
        raise ValueError(
            said.format("numbers") + f"--task text-regression, up to {_FEW} numbers, or whole ones "
            f"with {OFTEN} rows each on average"
        )
    if len(names) > _FEW and len(labels) < 2 * len(names):
        raise ValueError(said.format("labels") + f"up to {_FEW}, or two rows for each on average")
    return names


def _numbers(names: Sequence[str]) -> list[float]:
    """The names as numbers; none, where one of them is not a number."""
    try:
        return [as_number(name) for name in names]
    except ValueError:
        return []

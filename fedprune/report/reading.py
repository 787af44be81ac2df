"""A run's folder as values, columns of its rows, and numbers in words.

Everything that shows a run reads it through here and tolerates what is absent: a run that ended
early, without baselines, or with a number that is null or not finite.
"""

import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger
from fedprune.privacy.statement import Line
from fedprune.runtime.sums import check_sums
from fedprune.server.rows import Row
from fedprune.tasks.measures import METRICS, metric_of

NO_VALUE = "\u2013"
SPACE = "\u00a0"  # between a number and its unit: they stay on one line
MOST_KINDS = 40  # of tensors, for a table of kinds and blocks


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Configuration, rows, seconds by (arm, round), summary, figures, and the lines of its ledger.
    """

    config: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: dict[tuple[str, int], float]
    summary: dict[str, Any]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    ledger: list[Line] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The column that quality is read from: the task's metric, or the loss.

        Of a run that has not ended, the first measure of its rows.
        """
        told = (name for row in self.rows[-1:] for name in row if name in METRICS)
        first = next((name for name in told if name != "loss"), "loss")
        return str(self.summary.get("metric") or first)

    @property
    def over(self) -> bool:
        """Whether it has ended, so that it has a summary."""
        return bool(self.summary)

    @property
    def main(self) -> str:
        """The name of the arm that the run is about."""
        return next(iter(arms(self.rows)), "pruned")


def read_run(folder: Path) -> Run:
    """Read a run's folder; a file that is not there counts as empty.

    Raises:
        ValueError: the run has ended, and a file is not as it was written; it is named.
    """
    check_sums(folder)
    config, summary = folder / "config.toml", folder / "summary.json"
    figures = folder / "figures.json"
    return Run(
        config=_every_key(config.read_text("utf-8")) if config.exists() else {},
        rows=read_lines(folder / "rounds.jsonl"),
        seconds={
            (row["arm"], row["round"]): row["seconds"]
            for row in read_lines(folder / "timings.jsonl")
        },
        summary=json.loads(summary.read_text("utf-8")) if summary.exists() else {},
        figures=json.loads(figures.read_text("utf-8")) if figures.exists() else {},
        ledger=read_ledger(folder / LEDGER_NAME),
    )


def clients_train(run: Run) -> bool:
    """Whether clients were to train; where the configuration is not known, too."""
    told = [run.config.get(key) for key in ("local-steps", "local-epochs")]
    return told[0] is None or any(told)


def _every_key(text: str) -> dict[str, Any]:
    """What was given, then what followed from it."""
    given = tomllib.loads(text)
    followed = given.pop("followed", {})
    return {**given, **followed}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, in order."""
    if not path.exists():
        return []
    # Not splitlines(): a client's words may hold other line separators, which JSON leaves as is.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def arms(rows: Sequence[Row]) -> list[str]:
    """Names of the arms in the order of their first rows: the main arm, then the baselines."""
    return list(dict.fromkeys(row["arm"] for row in rows))


def baselines_in(run: Run) -> list[str]:
    """Names of the baselines, those without rows of their own among them."""
    own = ("dense_at_pruning", "final", "own", "newcomers")
    measured = [name for name in run.summary.get("quality") or {} if name not in own]
    return list(dict.fromkeys([*arms(run.rows)[1:], *measured]))


def series(rows: Sequence[Row], arm: str, key: str) -> tuple[list[int], list[float]]:
    """Rounds and values of one column of one arm; what is missing or not finite becomes NaN."""
    chosen = [row for row in rows if row["arm"] == arm]
    return [row["round"] for row in chosen], [number(row.get(key)) for row in chosen]


def number(value: Any) -> float:
    """The value as a float; NaN where there is no finite number."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if finite else math.nan


def chance_levels(rows: Sequence[Row], arm: str) -> list[float]:
    """Agreement of masks drawn at random, by round: kept weights over weights alive before."""
    levels, before = [], 0.0
    for sparsity in series(rows, arm, "sparsity")[1]:
        levels.append((1 - sparsity) / (1 - before) if before < 1 else math.nan)
        before = before if math.isnan(sparsity) else sparsity
    return levels


def pruning_rounds(rows: Sequence[Row], arm: str) -> list[int]:
    """The rounds of one arm that changed its sparsity."""
    found, before = [], 0.0
    for at, sparsity in zip(*series(rows, arm, "sparsity"), strict=True):
        if sparsity == sparsity and sparsity != before:
            found.append(at)
            before = sparsity
    return found


def distinct_arms(rows: Sequence[Row], key: str) -> list[str]:
    """The arms whose column differs from that of every arm before them."""
    seen: dict[str, list[str]] = {}
    for arm in arms(rows):
        values = [f"{value:.6f}" for value in series(rows, arm, key)[1]]
        if values not in seen.values():
            seen[arm] = values
    return list(seen)


def density(layer: Row) -> float:
    """Kept share of one tensor; an empty tensor counts as whole."""
    return layer["kept"] / layer["total"] if layer["total"] else 1.0


def grid(names: Sequence[str]) -> list[tuple[str, int]]:
    """Row and column of each tensor: its kind and its block, or twenty a row without a pattern."""
    places = [block_of(name) for name in names]
    if len({kind for kind, _ in places}) <= MOST_KINDS:
        return places
    return [(f"tensors {i - i % 20} to {i - i % 20 + 19}", i % 20) for i in range(len(names))]


def block_of(name: str) -> tuple[str, int]:
    """The kind of a tensor and the first number in its name, -1 where there is none."""
    found = re.search(r"(?<=\.)\d+(?=\.)", name)
    if found is None:
        return name, -1
    return f"{name[: found.start()]}*{name[found.end() :]}", int(found.group())


def short_name(name: str, longest: int = 30) -> str:
    """A tensor's name that fits: from the left, parts become their first letters, numbers stay."""
    parts = name.removesuffix(".weight").removeprefix("model.").split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > longest and not part.isdigit():
            parts[i] = part[:1]
    return without_middle(".".join(parts), longest)


def without_middle(text: str, longest: int = 30) -> str:
    """The text, cut in the middle where it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 3]}\u2026{text[-(longest - longest // 3 - 1) :]}"


def significant(value: Any) -> str:
    """A number in three significant digits."""
    value = number(value)
    if math.isnan(value):
        return NO_VALUE
    if value == 0:
        return "0"
    text = f"{value:#.3g}"
    if "e" not in text:
        return text.rstrip(".")
    return f"{float(text):,.0f}" if 1 <= abs(value) < 1e9 else text


def whole(value: Any) -> str:
    """A count with separated thousands."""
    value = number(value)
    return NO_VALUE if math.isnan(value) else f"{value:,.0f}"


def percent(share: Any) -> str:
    """A share as a percentage; 100 % is the whole, and nothing short of it."""
    share = number(share)
    if math.isnan(share):
        return NO_VALUE
    text = significant(100 * share)
    nearly = text == significant(100.0) and share < 1
    return f"{f'{100 * share:.8g}' if nearly else text}{SPACE}%"


def size(count: Any) -> str:
    """Bytes in decimal units."""
    count = number(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if not count >= 999.5 or unit == "TB":
            break
        count /= 1000
    return NO_VALUE if math.isnan(count) else f"{significant(count)}{SPACE}{unit}"


def duration(seconds: Any) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    seconds = number(seconds)
    if math.isnan(seconds):
        return NO_VALUE
    if seconds < 99.5:
        return f"{significant(seconds)}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def metric_text(metric: str, value: Any) -> str:
    """A metric's value as people read it."""
    return percent(value) if metric_of(metric).form == "share" else significant(value)


def worded(measure: str) -> str:
    """The name of a measure as people read it."""
    return measure.replace("_", " ")


def left_out_text(partitions: Sequence[int] | None, most: int = 10) -> str:
    """Clients that were not asked, the first ones by their numbers; "" for none."""
    some = list(partitions or ())
    more = f" and {len(some) - most} more" if len(some) > most else ""
    return f"client {', '.join(map(str, some[:most]))}{more}" if some else ""


def ratio(part: Any, total: Any) -> float:
    """Part over total; NaN where either is missing or the total is nothing."""
    part, total = number(part), number(total)
    return part / total if total else math.nan

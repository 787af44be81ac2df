"""What is measured, by name: which is better, how it is read, and what it is made from.

Each measure is a quotient of sums, so that of the pooled data is had from added-up parts. A task
names one of `METRICS` as its metric; the others that its sums allow are shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What a task's metric means.

    Attributes:
        higher: higher is better; else lower.
        form: "share" (0..1, read as a percentage), "level" (above 0, changes are shares of it) or
            "coefficient" (at most 1, changes are differences).
        likelihood: the loss is the negative logarithm of a likelihood of symbols, so that its
            exponential is a perplexity.
        correct: what the share of `Loss.correct` among the labels is called; "": there is none.
        sums: sums of `Loss.extra` without which there is no such figure.
        without: what a baseline without a model knows.
    """

    higher: bool = False
    form: Literal["share", "level", "coefficient"] = "level"
    likelihood: bool = False
    correct: str = "accuracy"
    sums: tuple[str, ...] = ()
    without: str = "label frequencies"


def _value(
    form: Literal["level", "coefficient"], sums: tuple[str, ...] = (), *, higher: bool = False
) -> Metric:
    """A metric of values that are to be predicted."""
    return Metric(higher, form, correct="", sums=sums, without="the training labels' mean")


_MOMENTS = ("squared", "y_squares", "y_shifted_squares")
_ALL_MOMENTS = (*_MOMENTS, "guess_squares", "guess_shifted_squares")
_HITS = ("hits", "wrong", "missed")

METRICS: dict[str, Metric] = {
    "perplexity": Metric(likelihood=True),
    "bits_per_byte": Metric(likelihood=True, sums=("bytes",)),
    "accuracy": Metric(higher=True, form="share"),
    "macro_f1": Metric(higher=True, form="share", sums=("tp_0", "fp_0", "fn_0")),
    "entity_f1": Metric(
        higher=True, form="share", sums=("entities_right", "entities_found", "entities")
    ),
    "micro_f1": Metric(higher=True, form="share", correct="exact_match", sums=_HITS),
    "exact_match": Metric(higher=True, form="share", correct="exact_match"),
    "loss": Metric(correct=""),
    "mse": _value("level"),
    "rmse": _value("level"),
    "mae": _value("level"),
    "r2": _value("coefficient", _MOMENTS, higher=True),
    "pearson": _value("coefficient", _ALL_MOMENTS, higher=True),
}
"""What `Task.metric` may be. Where a task's `extra` names no sum "squared" (for "mse", "rmse") or
"absolute" ("mae"), the loss itself is taken for it."""

_OTHERS = {"rouge_l": Metric(higher=True, form="share")}


COUNTS_BY_LABEL = ("correct", "tp_", "fp_", "fn_", "entities")
"""How the names of sums begin that are at most the number of labels."""


def metric_of(name: str) -> Metric:
    """What a measure means; of one that is not known, that lower is better."""
    return METRICS.get(name) or _OTHERS.get(name.removesuffix("_of_copying")) or Metric(correct="")


def shown_columns(metric: str) -> tuple[str, ...]:
    """The columns of a round's row: the loss, the metric, and what goes with it."""
    about = metric_of(metric)
    named = ["loss", *(["perplexity"] if about.likelihood else []), about.correct, metric]
    return tuple(dict.fromkeys(filter(None, named)))


def beside(found: Mapping[str, float], metric: str) -> list[str]:
    """The names of what was measured beside the loss, the metric and, of texts, the accuracy."""
    usual = {
        "loss",
        "count",
        metric,
        *(shown_columns(metric) if metric_of(metric).likelihood else ()),
    }
    return [name for name in found if name not in usual]


def measures(totals: Mapping[str, float], metric: str, scale: float = 1.0) -> dict[str, float]:
    """The measures that summed totals allow.

    Args:
        totals: "loss", "correct" and "count"; and where they were summed "bytes", and the sums of
            `fedprune.tasks.losses.f1_names`, `fedprune.tasks.restore.GENERATION_SUMS`,
            `fedprune.tasks.regression._SUMS`, `fedprune.tasks.multilabel._SUMS` and
            `fedprune.tasks.tagging._SUMS`.
        metric: of the task, a name in `METRICS`.
        scale: what one unit of the values in the sums is in units of the labels.

    Returns:
        loss (a label); perplexity where the metric is one of likelihoods; the share of correct
        labels under the name that goes with the metric; and as far as there are sums for them the
        others (shares and F1 0..1; mse in squared units of the labels, rmse and mae in units). NaN
        where nothing counted.
    """
    about = metric_of(metric)
    loss = _ratio(totals["loss"], totals["count"])
    found = {"loss": loss}
    if about.likelihood:
        found["perplexity"] = math.exp(loss) if loss < 700 else math.inf if loss == loss else loss
    if about.correct:
        found[about.correct] = _ratio(totals["correct"], totals["count"])
    if "hits" in totals:
        found["micro_f1"] = f1(*(totals[name] for name in _HITS))
    if "tp_0" in totals:
        classes = sum(name.startswith("tp_") for name in totals)
        each = [[totals[f"{kind}_{c}"] for c in range(classes)] for kind in ("tp", "fp", "fn")]
        found["macro_f1"] = macro_f1(*each)
    if "entities" in totals:
        right, guessed, there = (totals[n] for n in METRICS["entity_f1"].sums)
        found["entity_f1"] = f1(right, guessed - right, there - right)
    if "bytes" in totals:
        found["bits_per_byte"] = _ratio(totals["loss"] / math.log(2), totals["bytes"])
    return found | _of_values(totals, metric, scale) | _of_written(totals)


def _of_written(totals: Mapping[str, float]) -> dict[str, float]:
    if "examined" not in totals:
        return {}
    names = {"exact_match": "exact", "rouge_l": "rouge_l"}
    # What the input itself, unchanged, would have reached.
    copied = {f"{name}_of_copying": f"copied_{part}" for name, part in names.items()}
    return {n: _ratio(totals[part], totals["examined"]) for n, part in (names | copied).items()}


def _of_values(totals: Mapping[str, float], metric: str, scale: float) -> dict[str, float]:
    """Of a regression: errors in units of the labels, and what they are against their spread."""
    count, found = totals["count"], dict[str, float]()
    if "squared" in totals or metric in ("mse", "rmse"):
        mse = scale**2 * _ratio(totals.get("squared", totals["loss"]), count)
        found |= {"mse": mse, "rmse": math.sqrt(max(0.0, mse)) if mse == mse else mse}
    if "absolute" in totals or metric == "mae":
        found["mae"] = scale * _ratio(totals.get("absolute", totals["loss"]), count)
    if all(name in totals for name in _MOMENTS):
        spread = _spread(totals, "y")
        found["r2"] = 1 - _ratio(totals["squared"], spread) if spread > 0 else math.nan
    if all(name in totals for name in _ALL_MOMENTS):
        found["pearson"] = _correlation(totals)
    return found


def _sum(totals: Mapping[str, float], of: str) -> float:
    """Σ v from Σ v² and Σ (v + 1)²: no sum that is sent may be negative."""
    shifted, squares = totals[f"{of}_shifted_squares"], totals[f"{of}_squares"]
    return (shifted - squares - totals["count"]) / 2


def _spread(totals: Mapping[str, float], of: str) -> float:
    """Σ (v - mean)²; 0.0 where it is rounding alone."""
    squares, mean = totals[f"{of}_squares"], _ratio(_sum(totals, of), totals["count"])
    spread = squares - totals["count"] * mean**2
    return spread if spread > 1e-12 * squares else 0.0


def _correlation(totals: Mapping[str, float]) -> float:
    """Pearson's, of guesses and labels; NaN where one of them does not vary."""
    product = (totals["y_squares"] + totals["guess_squares"] - totals["squared"]) / 2
    together = product - _ratio(_sum(totals, "y") * _sum(totals, "guess"), totals["count"])
    spread = _spread(totals, "y") * _spread(totals, "guess")
    return max(-1.0, min(1.0, together / math.sqrt(spread))) if spread > 0 else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def f1(hits: float, wrong: float, missed: float) -> float:
    """2 h / (2 h + wrong + missed); NaN where nothing is there and nothing was guessed."""
    return _ratio(2 * hits, 2 * hits + wrong + missed)


def macro_f1(hits: Sequence[float], wrong: Sequence[float], missed: Sequence[float]) -> float:
    """The mean of the classes' F1, over those that occur among labels or guesses.

    Of true positives, false positives and false negatives of each class. As scikit-learn's
    ``f1_score(average="macro")``; NaN where no class occurs.
    """
    each = [f1(*row) for row in zip(hits, wrong, missed, strict=True) if sum(row) > 0]
    return _ratio(sum(each), len(each))


SPREAD = ("clients", "loss_squares", "loss_by_count", "count_squares")
"""Sums over clients from which it is told how far a mean over some of them is off."""


def spread_sums(loss: float, count: float) -> dict[str, float]:
    """One client's part of the sums of `SPREAD`."""
    return dict(zip(SPREAD, (1.0, loss * loss, loss * count, count * count), strict=True))


def error_of_mean(totals: Mapping[str, float], population: int) -> float | None:
    """The standard error of the mean loss a label, over clients drawn without replacement.

    That of a ratio of two means (Cochran 1977, Sampling Techniques, eq. 6.9), with the correction
    for a population that is not much larger than the sample. None of fewer than two clients.

    Args:
        totals: "loss", "count" and `SPREAD`, summed over the clients that answered.
        population: how many they were drawn from.
    """
    n, count = totals.get("clients", 0.0), totals.get("count", 0.0)
    if n < 2 or not count:
        return None
    squares, products, counts = (totals[name] for name in SPREAD[1:])
    ratio = totals["loss"] / count
    off = max(0.0, squares - 2 * ratio * products + ratio**2 * counts) / (n - 1)
    return math.sqrt(max(0.0, 1 - n / population) * off / n) * n / count

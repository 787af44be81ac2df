"""What membership inference finds, dense against pruned: a section of the page, and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedprune.attacks.membership import each_in_turn
from fedprune.attacks.page import Passage, Picture, Table
from fedprune.attacks.roc import Sides, auc, found_at, roc
from fedprune.attacks.shadows import Attacked, dense_and_pruned
from fedprune.config import configure
from fedprune.report.drawing import INK, SERIES, canvas, legend, percentages, styled

RATES = (0.01, 0.001)  # False positive rates at which true positives are told

HOW = (
    "An attack accuses the examples whose statistic is above a threshold. AUC is how often a "
    "member's statistic is above a non-member's: chance is 0.5. TPR at 1 % is the share of members "
    "that are accused at the threshold which accuses at most 1 % of the others: chance is 1 %. In "
    "brackets are exact 95 % intervals (Clopper and Pearson), as of independent examples."
)
LIMITS = (
    "An attack that finds little shows that this attack finds little. Whether pruning lowers or "
    "raises what is remembered differs between studies (Wang et al., arXiv 2008.13578: less; Yuan "
    "and Zhang, USENIX Security 2022, and WeMem, NDSS 2025: more), and neither is claimed here."
)


_MODELS, SPARSITIES = 32, (0.0, 0.5, 0.8, 0.95)
STUDIED = {
    "task": "digits",
    "model": "mlp",
    "clients": 10,
    "batch_size": 64,
    "local_steps": 420,
    "lr": 0.1,
}
"""What is trained: 30 passes over half of the digits, twice (dense, and then pruned)."""


def membership_study(
    seed: int, models: int = _MODELS, tick: Callable[[], None] = lambda: None
) -> tuple[Passage, dict[str, Any]]:
    """The section about small models of the digits, dense and pruned, and its figures.

    `models`: how many of each sparsity; even, from 6.
    """
    config = configure({**STUDIED, "seed": seed})
    what = (
        "Two linear layers on 1,797 digits of 8 x 8, of all clients together. Every model is "
        "trained for 30 passes; then its smallest weights go and it is trained under the mask for "
        "30 more. The dense one is trained for as long."
    )
    return membership_findings(dense_and_pruned(config, SPARSITIES, models, tick), what)


def rates_of(sides: Sides) -> dict[str, Any]:
    """The figures of one attack, for a file."""
    at = {rate: found_at(*sides, rate) for rate in RATES}
    found = {f"tpr_at_{rate:g}": {"share": f.share, **vars(f)} for rate, f in at.items()}
    return {"auc": auc(*sides), **found, "members": len(sides[0]), "others": len(sides[1])}


def cells(figures: Mapping[str, Any]) -> list[str]:
    """AUC, TPR at both rates with their intervals, as words of a table."""
    rates = [figures[f"tpr_at_{rate:g}"] for rate in RATES]
    return [f"{figures['auc']:.3f}", *map(_share, rates)]


RATE_COLUMNS = ["AUC", "TPR at 1 %", "TPR at 0.1 %"]  # Of `cells`


def _share(found: Mapping[str, Any]) -> str:
    share, low, high = (100 * found[key] for key in ("share", "low", "high"))
    return f"{share:.2f} % [{low:.2f}, {high:.2f}]"


def membership_findings(found: Sequence[Attacked], what: str) -> tuple[Passage, dict[str, Any]]:
    """The section about models of several sparsities, the first of them dense, and its figures.

    `found`: as `fedprune.attacks.shadows.dense_and_pruned` gives it.
    """
    lira = {a.sparsity: each_in_turn(a.confidence, a.inside) for a in found}
    plain = {a.sparsity: (a.confidence[a.inside], a.confidence[~a.inside]) for a in found}
    figures: dict[str, dict[str, Any]] = {
        f"{a.sparsity:g}": {
            "accuracy": None if a.accuracy is None else list(a.accuracy),
            "lira": rates_of(lira[a.sparsity]),
            "threshold": rates_of(plain[a.sparsity]),
        }
        for a in found
    }
    rows = [
        [_name(a.sparsity), *_accuracy(a), attack, *cells(figures[f"{a.sparsity:g}"][key])]
        for a in found
        for attack, key in (("LiRA", "lira"), ("threshold", "threshold"))
    ]
    columns = ["model", "accuracy, members", "accuracy, others", "attack", *RATE_COLUMNS]
    models = len(found[0].inside)
    sentences = [_compared(found[0].sparsity, a.sparsity, figures) for a in found[1:]]
    text = (
        what,
        f"{models} models, each trained on a random half of the examples: the half is its members. "
        "Each of them in turn is attacked by LiRA (Carlini et al. 2022, offline: how sure is the "
        "model of an example, compared with the other models that did not see it?) and by one "
        "threshold on how sure it is, for all examples (Yeom et al. 2018).",
        HOW,
        " ".join(sentences),
        LIMITS,
    )
    caption = (
        "True against false positives of LiRA, both logarithmic: what counts is the left. The "
        "dotted line is chance."
    )
    figure = curves({_name(s): sides for s, sides in lira.items()})
    picture = Picture("membership", "LiRA on models of each sparsity", caption, figure)
    table = Table(columns, rows, ("model", "attack"))
    return Passage("Membership inference", text, table, (picture,)), figures


def _name(sparsity: float) -> str:
    return f"{100 * sparsity:g} % sparse" if sparsity else "dense"


def _accuracy(attacked: Attacked) -> list[str]:
    if attacked.accuracy is None:
        return ["", ""]
    return [f"{100 * share:.1f} %" for share in attacked.accuracy]


def _compared(dense: float, sparse: float, figures: Mapping[str, Any]) -> str:
    """One pair of models in a sentence: which side the intervals are on, if on any."""
    whole, thin = (figures[f"{s:g}"]["lira"]["tpr_at_0.01"] for s in (dense, sparse))
    shares = f"{100 * thin['share']:.2f} % against {100 * whole['share']:.2f} %"
    if thin["low"] > whole["high"]:
        verdict = "more members than of the dense model"
    elif thin["high"] < whole["low"]:
        verdict = "fewer members than of the dense model"
    else:
        verdict = "as many members, as far as these intervals tell"
    return f"{_name(sparse)}: LiRA finds {verdict} ({shares} at 1 %)."


@styled
def curves(named: Mapping[str, Sides]) -> Figure:
    """Curves of attacks on logarithmic axes, the diagonal beside them."""
    figure, axes = canvas("true positive rate", 3.4)
    for i, (name, sides) in enumerate(named.items()):
        axes.plot(*roc(*sides), color=SERIES[i % len(SERIES)], label=name)
    _scaled(axes, min(1 / len(sides[1]) for sides in named.values()))
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def _scaled(axes: Axes, least: float) -> None:
    axes.plot([least, 1.0], [least, 1.0], ":", color=INK, label="chance")
    axes.set(xscale="log", yscale="log", xlim=(least, 1.0), ylim=(least, 1.0))
    axes.set_xlabel("false positive rate")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=20))
        axis.set_major_formatter(percentages())
        axis.set_minor_formatter(NullFormatter())

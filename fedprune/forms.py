"""What an answer to a question consists of: both sides know it before anything is sent.

A client fills the form in, a server checks what came against it, and either side can turn a flat
buffer into named tensors with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.learning.reconstruction import OUTPUTS
from fedprune.messages import Folded, Question, Refused
from fedprune.plugins import scores_of, tasks_of
from fedprune.privacy.leaving import noised_metrics, noises_itself, spared_totals
from fedprune.pruning.combining import COMBINES
from fedprune.pruning.layout import Layout
from fedprune.redundancy.moments import MOMENTS
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import extra_names
from fedprune.tensors import Masks, Tensors, count_kept, spread

Shapes = Mapping[str, torch.Size]

LARGEST = 1e30
"""Size beyond which no number counts: what is added up becomes float32, which ends at 3.4e38."""

_CAST = 1.001
"""What rounding on the wire may add to a value."""

MANY = 2**53
"""More labels than this nobody has; up to here every count is a float64 of its own."""


@dataclass(frozen=True)
class Form:
    """What an answer consists of.

    Attributes:
        shapes: of the values, by name.
        masks: where they are kept; names without a mask come whole.
        totals: the named sums that come along.
        sums: shapes of the statistics that come beside the values.
        voters: how many flags the votes hold; 0: no votes are expected.
        own: the values come on the client's own mask, which its votes are.
        singly: the server needs the values of each client, not only their sum.
        noisy: the totals come with noise, and any of them may be negative.
        normed: the server needs the norm of each client's values.
        within: between which numbers every value lies.
    """

    shapes: Shapes
    masks: Masks = field(default_factory=dict)
    totals: frozenset[str] = frozenset()
    sums: Shapes = field(default_factory=dict)
    voters: int = 0
    own: bool = False
    singly: bool = False
    noisy: bool = False
    normed: bool = False
    within: tuple[float, float] = (-LARGEST, LARGEST)

    @property
    def values(self) -> int:
        """How many values an answer carries."""
        return _numbers(self.shapes, self.masks)

    @property
    def statistics(self) -> int:
        """How many statistics come beside them."""
        return _numbers(self.sums, self.masks)

    def named(self, flat: Tensor) -> Tensors:
        """Values by name, 0.0 where a mask is False."""
        return spread(flat, self.shapes, fitting(self.shapes, self.masks))

    def named_sums(self, flat: Tensor) -> Tensors:
        """Statistics by name."""
        return spread(flat, self.sums, fitting(self.sums, self.masks))


def fitting(shapes: Shapes, masks: Masks) -> Masks:
    """The masks that apply: those of the same name and shape."""
    return {n: masks[n] for n, s in shapes.items() if n in masks and masks[n].shape == s}


def _numbers(shapes: Shapes, masks: Masks) -> int:
    given = fitting(shapes, masks)
    return count_kept(given) + sum(s.numel() for n, s in shapes.items() if n not in given)


def form_of(question: Question, config: RunConfig, layout: Layout) -> Form:
    """The form of an answer to this question, without the totals that stay with the client."""
    form = _FORMS[question.kind](question, config, layout)
    if spared_totals(question.kind, config):
        return replace(form, totals=frozenset())
    if noised_metrics(question.kind, config):
        own = noises_itself(question.kind, config)
        return replace(form, totals=form.totals - {"count"}, noisy=own)
    return form


def _score(question: Question, config: RunConfig, layout: Layout) -> Form:
    names = question.names or layout.prunable
    totals = frozenset({"count"})
    if question.dense:
        return Form({n: layout.shapes[n] for n in names}, {}, totals)
    asks = scores_of(config.plugin)[question.score].asks
    last = question.ask == len(asks) - 1
    masks = {n: question.masks[n] for n in names}
    combine = COMBINES[config.combine] if last else COMBINES["sum"]
    shapes: Shapes = asks[question.ask].shapes(layout, names, config.unit, config.probes or 0)
    if not combine.pooled:
        shapes = {n: layout.shapes[n] for n in names} if combine.valued else {}
    votes = last and question.sparsity is not None
    if votes and config.score_wire != "fp32":
        totals |= {"overlap", "own"}
    voters = count_kept(masks) if votes else 0
    form = Form(shapes, masks, totals, voters=voters, singly=combine.merge is not None)
    if combine.pooled or config.dp != "none" or config.secure != "none":
        return form
    return replace(form, within=(0.0, 1.0) if config.normalise == "rank" else combine.within)


def _tune(question: Question, config: RunConfig, layout: Layout) -> Form:
    sums: Shapes = {}
    if question.score and config.score_during == "tune":
        ask = scores_of(config.plugin)[question.score].asks[0]
        sums = ask.shapes(layout, layout.prunable, config.unit, config.probes or 0)
    own = bool(question.score) and config.masks != "global"
    beside = {"divergence"} if question.teacher else set()
    return Form(
        layout.shapes,
        question.masks,
        frozenset({"loss", "count", *beside}),
        sums,
        count_kept(question.masks) if own else 0,
        own,
        config.robust != "none",
        normed=config.max_norm is not None,
    )


def _own(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config, layout
    return Form({}, question.masks, voters=count_kept(question.masks))


def _evaluate(question: Question, config: RunConfig, layout: Layout) -> Form:
    del layout
    task = tasks_of(config.plugin)[config.task]
    exam = task.exam_names if question.part == "test" else ()
    return Form({}, {}, frozenset({"loss", "correct", "count", *extra_names(task, config), *exam}))


def _describe(question: Question, config: RunConfig, layout: Layout) -> Form:
    del question, layout
    naive = naive_of(tasks_of(config.plugin)[config.task])
    each = torch.Size([naive.size(config) if naive else 0])
    return Form({"test": each, "train": each})


def _inputs(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config
    ask = {"inputs": MOMENTS, "outputs": OUTPUTS}[question.kind]
    shapes = ask.shapes(layout, question.names or layout.prunable, "weight", 0)
    return Form(shapes, {}, frozenset({"count"}))


def _compare(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config, layout
    each = range(len(question.candidates))
    return Form(
        {}, {}, frozenset({"count", *(f"{n}_{i}" for n in ("loss", "correct") for i in each)})
    )


def _tokens(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config
    (table,) = question.names
    shape = {**layout.frozen, **layout.shapes}[table]
    return Form({table: shape[:1]})


_FORMS: dict[str, Callable[[Question, RunConfig, Layout], Form]] = {
    "score": _score,
    "tune": _tune,
    "own": _own,
    "evaluate": _evaluate,
    "compare": _compare,
    "describe": _describe,
    "inputs": _inputs,
    "outputs": _inputs,
    "tokens": _tokens,
}


def check(
    values: Tensor,
    weight: float,
    totals: Mapping[str, float],
    form: Form,
    statistics: Tensor | None = None,
    *,
    of: int = 0,
) -> None:
    """Refuse a summand that would spoil the sum, or what is made of it in float32.

    Args:
        values: flat, as the form says.
        weight: their factor in the sum.
        totals: the named sums beside them.
        form: what is expected.
        statistics: flat, those beside the values.
        of: how many clients' sum this is, their values times their weights; 0: one client's own.

    Raises:
        Refused: the field (a tensor's name, "weight", "totals") and the reason.
    """
    if values.numel() != form.values:
        raise Refused("values", f"wrong shape: {values.numel()} values, expected {form.values}")
    beside = 0 if statistics is None else statistics.numel()
    if beside != form.statistics:
        raise Refused("statistics", f"wrong shape: {beside} values, expected {form.statistics}")
    clients = max(1, of)
    if not 0 < weight <= MANY * clients:
        raise Refused("weight", f"{weight} is not a positive number of labels")
    _check_totals(totals, form, clients)
    _check_values(values, weight if of else 1.0, form.within, form.named)
    if statistics is not None:
        _check_values(statistics, float(clients), (-LARGEST, LARGEST), form.named_sums)


def _check_values(
    values: Tensor, weight: float, within: tuple[float, float], named: Callable[[Tensor], Tensors]
) -> None:
    if not values.numel():
        return
    # The extremes are NaN if any value is; unlike torch.isfinite this reads the values once.
    low, high = map(float, torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused(_not_finite(named(values)), "NaN or infinite")
    least, most = max(within[0], -LARGEST), min(within[1], LARGEST)
    if least <= low / weight and high / weight <= most * _CAST:
        return
    odd = low if low / weight < least else high
    extremes = {n: torch.aminmax(t) for n, t in named(values).items() if t.numel()}
    where = next(n for n, both in extremes.items() if odd in map(float, both))
    raise Refused(where, f"{odd / weight:.4g} is not within {least:g} to {most:g}")


def _finite(values: Tensor) -> bool:
    # The extremes are NaN if any value is; unlike torch.isfinite this reads the values once.
    return not values.numel() or all(math.isfinite(v) for v in torch.aminmax(values))


def _check_totals(totals: Mapping[str, float], form: Form, clients: int) -> None:
    if totals.keys() != form.totals:
        named = f"{sorted(totals)[:9]}, expected {sorted(form.totals)}"
        raise Refused("totals", named[:300])
    for name, value in totals.items():
        if not math.isfinite(value):
            raise Refused(name, f"{value} is not finite")
        if not form.noisy and not name.startswith("loss") and value < 0:
            raise Refused(name, f"{value} is negative")
        counted = name == "count" and not form.noisy
        if abs(value) > clients * (MANY if counted else LARGEST):
            raise Refused(name, f"{value:.4g} is larger than it can be")
    if form.noisy:
        return
    for part, whole in [(n, _WHOLE[n.partition("_")[0]]) for n in totals if _part(n)]:
        if whole in totals and totals[part] > totals[whole]:
            raise Refused(part, f"{totals[part]:g} of {totals[whole]:g}")


_WHOLE = {"correct": "count", "overlap": "own"}
"""Totals that are a part of others."""


def _part(name: str) -> bool:
    """Whether a total, perhaps of a candidate, is a part of another one."""
    head, _, number = name.partition("_")
    return head in _WHOLE and (not number or number.isdigit())


def _not_finite(tensors: Tensors) -> str:
    return next(n for n, t in tensors.items() if not torch.isfinite(t).all())


def check_sum(folded: Folded, form: Form) -> None:
    """Refuse a host's sum that would spoil the server's: a server cannot trust a device.

    Raises:
        Refused: with the field and the reason.
    """
    if folded.bytes_up < 0:
        raise Refused("bytes_up", f"{folded.bytes_up} is below 0")
    if not folded.answered:
        if folded != Folded(failures=folded.failures, bytes_up=folded.bytes_up):
            raise Refused("answered", "a sum that nobody answered for")
        return
    total = torch.empty(0) if folded.total is None else folded.total
    of = len(folded.answered)
    check(total, folded.weight, folded.totals, form, folded.statistics, of=of)
    _check_norms(folded, form)
    _check_votes(folded, form)
    _check_singles(folded, form)


def _check_votes(folded: Folded, form: Form) -> None:
    votes, held, most = folded.votes, folded.held, len(folded.answered)
    if held is not None and not form.own:
        raise Refused("held", f"{held.numel()} values that nobody asked for")
    if votes is None:
        if form.own:
            raise Refused("votes", f"none, expected {form.voters}")
        return
    if votes.numel() != form.voters:
        raise Refused("votes", f"{votes.numel()} votes, expected {form.voters}")
    if votes.numel() and not 0 <= int(votes.min()) <= int(votes.max()) <= most:
        raise Refused("votes", "counts outside 0 to the number of clients")
    if form.own and (held is None or held.numel() != form.voters):
        raise Refused("held", f"wrong shape, expected {form.voters}")
    if held is not None and not (_finite(held) and bool((held >= 0).all())):
        raise Refused("held", "negative, NaN or infinite")


def _check_singles(folded: Folded, form: Form) -> None:
    singles = folded.singles
    shape = (len(folded.answered), form.values) if form.singly else None
    found = None if singles is None else tuple(singles.shape)
    if found != shape:
        raise Refused("singles", f"wrong shape: {found}, expected {shape}")
    if singles is not None and not _finite(singles):
        raise Refused("singles", "NaN or infinite")


def _check_norms(folded: Folded, form: Form) -> None:
    wanted = len(folded.answered) if form.normed else 0
    if len(folded.norms) != wanted:
        raise Refused("norms", f"{len(folded.norms)}, expected {wanted}")
    if not all(0 <= norm < math.inf for norm in folded.norms):
        raise Refused("norms", "negative, NaN or infinite")

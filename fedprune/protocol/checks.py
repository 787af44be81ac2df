"""What an answer or a sum must be to count: numbers are checked as what they will become.

A server cannot trust a device: whatever does not pass is refused by name, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.form import LARGEST_NUMBER, MANY, Form
from fedprune.scores.input_sums import improper
from fedprune.tasks.measures import COUNTS_BY_LABEL
from fedprune.tasks.resampling import RESAMPLES
from fedprune.tensors.named import Tensors

SQUARES = 1e90
"""Size beyond which no total counts: totals stay float64, and hold squares of float32."""

_CAST = 1.001
"""What rounding on the wire may add to a value."""


def check_summand(
    values: Tensor,
    weight: float,
    totals: Mapping[str, float],
    form: Form,
    statistics: Tensor | None = None,
    *,
    of: int = 0,
) -> None:
    """Refuse a summand that would spoil the sum, or what is made of it in float32.

    Of a sum, `of` is how many clients' it is, and the values come times their weights; 0: one
    client's own.

    Raises:
        Refused: the field (a tensor's name, "weight", "totals") and the reason.
    """
    if values.numel() != form.values:
        raise Refused("values", f"wrong shape: {values.numel()} values, expected {form.values}")
    beside = 0 if statistics is None else statistics.numel()
    if beside != form.statistics:
        raise Refused("statistics", f"wrong shape: {beside} values, expected {form.statistics}")
    clients = max(1, of)
    if not clients <= weight <= MANY * clients:
        raise Refused("weight", f"{weight} is not a positive number of labels")
    if not form.weighed and weight != clients:
        raise Refused("weight", f"{weight}, expected {clients}: every client counts alike")
    _check_totals(totals, form, clients)
    # They are only read: of a wide layer's Σ x xᵀ a copy is as large as the layer.
    named, sums = partial(form.named, shared=True), partial(form.named_sums, shared=True)
    _check_values(values, weight if of else 1.0, form.within, named)
    if form.exact and form.of_inputs:
        _check_inputs(values, named)
    if statistics is not None:
        within = (0.0 if form.positive else -LARGEST_NUMBER, LARGEST_NUMBER)
        _check_values(statistics, float(clients), within, sums)
        if form.sums_of_inputs:
            _check_inputs(statistics, sums)


def _check_values(
    values: Tensor, weight: float, within: tuple[float, float], named: Callable[[Tensor], Tensors]
) -> None:
    if not values.numel():
        return
    # The extremes are NaN if any value is; unlike torch.isfinite this reads the values once.
    low, high = map(float, torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = next(n for n, t in named(values).items() if not torch.isfinite(t).all())
        raise Refused(bad, NOT_NUMBERS)
    least, most = max(within[0], -LARGEST_NUMBER), min(within[1], LARGEST_NUMBER)
    if least <= low / weight and high / weight <= most * _CAST:
        return
    odd = low if low / weight < least else high
    extremes = {n: torch.aminmax(t) for n, t in named(values).items() if t.numel()}
    where = next(n for n, both in extremes.items() if odd in map(float, both))
    raise Refused(where, f"{odd / weight:.4g} is not within {least:g} to {most:g}")


def _check_inputs(values: Tensor, named: Callable[[Tensor], Tensors]) -> None:
    if where := improper(named(values)):
        raise Refused(where, "no inputs add up to this")


def only_numbers(values: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    # The extremes are NaN if any value is; unlike torch.isfinite this reads the values once.
    return not values.numel() or all(math.isfinite(v) for v in torch.aminmax(values))


def _check_totals(totals: Mapping[str, float], form: Form, clients: int) -> None:
    if totals.keys() != form.totals:
        named = f"{sorted(totals)[:9]}, expected {sorted(form.totals)}"
        raise Refused("totals", named[:300])
    for name, value in totals.items():
        if not math.isfinite(value):
            raise Refused(name, f"{value} {NOT_FINITE}")
        if not form.noisy and not name.startswith("loss") and value < 0:
            raise Refused(name, f"{value} is negative")
        counted = name == "count" and not form.noisy
        if abs(value) > clients * (MANY if counted else SQUARES):
            raise Refused(name, f"{value:.4g} is larger than it can be")
        if counted and value != round(value):
            raise Refused(name, f"{value:.4g} is no whole number")
    if form.noisy:
        return
    for part in totals:
        # A total, perhaps of a candidate, is at most as large as those that it is a part of.
        wholes = _WHOLES.get(part, ("count",) if part.startswith(COUNTS_BY_LABEL) else ())
        whole = next((w for w in wholes if w in totals and totals[part] > totals[w]), None)
        if whole is not None:
            raise Refused(part, f"{totals[part]:g} of {totals[whole]:g}")


NOT_FINITE, NOT_NUMBERS = "is not finite", "NaN or infinite"
"""What is said of a total, and of values, that are NaN or infinite."""

_WHOLES = {
    "overlap": ("own",),
    "entities_right": ("entities_found", "entities"),
    **dict.fromkeys(("exact", "rouge_l", "copied_exact", "copied_rouge_l"), ("examined",)),
}
"""Totals that are a part of others, beside those that are one of the labels."""


def check_sum(aggregate: Aggregate, form: Form) -> None:
    """Refuse a host's sum that would spoil the server's: a server cannot trust a device."""
    if aggregate.bytes_up < 0:
        raise Refused("bytes_up", f"{aggregate.bytes_up} is below 0")
    if not aggregate.answered:
        if aggregate != Aggregate(failures=aggregate.failures, bytes_up=aggregate.bytes_up):
            raise Refused("answered", "a sum that nobody answered for")
        return
    total = torch.empty(0) if aggregate.total is None else aggregate.total
    of = len(aggregate.answered)
    check_summand(total, aggregate.weight, aggregate.totals, form, aggregate.statistics, of=of)
    _check_norms(aggregate, form)
    _check_votes(aggregate, form)
    _check_singles(aggregate, form)
    _check_resampled(aggregate, form)


def _check_votes(aggregate: Aggregate, form: Form) -> None:
    votes, held, most = aggregate.votes, aggregate.held, len(aggregate.answered)
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
    if held is not None:
        _check_held(held, votes, aggregate.weight)


def _check_held(held: Tensor, votes: Tensor, weight: float) -> None:
    """Refuse weights of those who hold each coordinate that are not those of so many clients."""
    if not (only_numbers(held) and bool((held >= 0).all())):
        raise Refused("held", "negative, NaN or infinite")
    # Of coordinates that a secure sum did not open nothing is held, whoever voted.
    fewer = (held > 0) & ((held * _CAST < votes) | (votes == 0))
    if bool((held > weight * _CAST).any()) or bool(fewer.any()):
        raise Refused("held", "more than all clients weigh, or less than those who voted")


def _check_singles(aggregate: Aggregate, form: Form) -> None:
    singles = aggregate.singles
    shape = (len(aggregate.answered), form.values) if form.singly else None
    found = None if singles is None else tuple(singles.shape)
    if found != shape:
        raise Refused("singles", f"wrong shape: {found}, expected {shape}")
    if singles is not None and not only_numbers(singles):
        raise Refused("singles", NOT_NUMBERS)


def _check_resampled(aggregate: Aggregate, form: Form) -> None:
    found = 0 if aggregate.resampled is None else aggregate.resampled.numel()
    wanted = RESAMPLES * len(form.totals) if form.resampled else 0
    if found != wanted:
        raise Refused("resampled", f"wrong shape: {found} values, expected {wanted}")
    if aggregate.resampled is not None and not only_numbers(aggregate.resampled):
        raise Refused("resampled", NOT_NUMBERS)


def _check_norms(aggregate: Aggregate, form: Form) -> None:
    wanted = len(aggregate.answered) if form.normed else 0
    if len(aggregate.norms) != wanted:
        raise Refused("norms", f"{len(aggregate.norms)}, expected {wanted}")
    if not all(0 <= norm < math.inf for norm in aggregate.norms):
        raise Refused("norms", "negative, NaN or infinite")

"""What clients minimise beside the task's loss: terms as closures, and proximal steps.

A term is a function from a model's parameters to a scalar; a shrinkage is what is done to them
after a step. Both are closures over what they need, so that several are a tuple of them. Terms
that draw weights towards zero are of prunable tensors only; the others are few and not at issue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedprune.learning.options import Tuning
from fedprune.selection.units import unit_count

Named = Mapping[str, Tensor]

Term = Callable[[Named], Tensor]
"""From parameters by name to a scalar that is added to a step's mean loss."""

Shrinkage = Callable[[Named, float], None]
"""Moves parameters in place after a step that was taken with this learning rate."""


def proximity(sent: Named, weight: float) -> Term:
    """(weight / 2) |w - sent|²: FedProx, Li et al. 2020, arXiv 1812.06127, eq. 2."""

    def term(now: Named) -> Tensor:
        apart = ((now[n] - start).square().sum() for n, start in sent.items())
        return weight / 2 * sum(apart, torch.zeros(()))

    return term


def l2(names: Sequence[str], weight: float) -> Term:
    """(weight / 2) Σ w²: L2 towards zero, in the gradient whatever the optimizer."""
    return lambda now: weight / 2 * sum((now[n].square().sum() for n in names), torch.zeros(()))


def l1(names: Sequence[str], weight: float) -> Term:
    """Weight · Σ |w|: L1 (Tibshirani 1996); its gradient at zero is taken as 0."""
    return lambda now: weight * sum((now[n].abs().sum() for n in names), torch.zeros(()))


def unit_norms(units: Named, weight: float) -> Term:
    """Weight · Σ over units of sqrt(size)·|w_unit|: group lasso, Yuan and Lin 2006, eq. 2.1.

    Args:
        units: number of the unit that every weight is in, by tensor; unique over the model, -1
            where a weight is in none (as `fedprune.selection.units.unit_labels`).
        weight: factor of the sum.

    Returns:
        The term; its gradient of a unit that is zero is taken as 0.
    """
    sizes = unit_sizes(units)

    def term(now: Named) -> Tensor:
        total = sum_by_unit({n: now[n].square() for n in units}, units, len(sizes))
        # The root has no slope at zero: there the unit is left out.
        norms = torch.where(total > 0, total, 1.0).sqrt()
        return weight * (sizes.to(norms).sqrt() * norms * (total > 0)).sum()

    return term


def softened(names: Sequence[str], weight: float) -> Shrinkage:
    """The proximal step of L1: every weight `lr · weight` closer to zero, and exactly 0.0 there.

    ISTA (Daubechies et al. 2004; Beck and Teboulle 2009, eq. 1.4) for plain gradient descent. Under
    Adam and AdamW the step is the learning rate too, not the adapted one of each weight: decoupled
    as AdamW's weight decay is (arXiv 1711.05101), so what it settles at is not L1's optimum.
    """

    @torch.no_grad()
    def shrink(now: Named, lr: float) -> None:
        for n in names:
            # Adding 0.0 makes -0.0 of small negative weights 0.0: the same bits for the same value.
            now[n].copy_(nn.functional.softshrink(now[n], lr * weight) + 0.0)

    return shrink


def shrunk_units(units: Named, weight: float) -> Shrinkage:
    """The proximal step of group lasso: a unit's norm is lr·weight·sqrt(size) less, down to 0.0.

    After `softened` the two are the proximal step of their sum (sparse group lasso, Simon et al.
    2013, sect. 3.1). Units do not overlap. For Adam as in `softened`.
    """
    sizes = unit_sizes(units)

    @torch.no_grad()
    def shrink(now: Named, lr: float) -> None:
        if not len(sizes):
            return  # the last of its kind is cut out
        total = sum_by_unit({n: now[n].square() for n in units}, units, len(sizes))
        norms = total.sqrt()
        less = lr * weight * sizes.to(norms).sqrt()
        factor = torch.where(norms > less, 1.0 - less / norms.clamp_min(1e-30), 0.0)
        for n, label in units.items():
            where = label.to(now[n].device, torch.long)
            by = factor[where.clamp(min=0)]
            fresh = torch.where(by > 0, now[n] * by, 0.0)
            now[n].copy_(torch.where(where >= 0, fresh, now[n]))

    return shrink


def unit_sizes(units: Named) -> Tensor:
    """How many weights each unit has, removed ones too; (units,) float64."""
    count = unit_count(units)
    return sum_by_unit(
        {n: torch.ones(u.shape, dtype=torch.float64) for n, u in units.items()}, units, count
    )


def sum_by_unit(values: Named, units: Named, count: int) -> Tensor:
    """Values added up over the weights of each unit, over all tensors; (count,)."""
    first = next(iter(values.values()))
    total = first.new_zeros(count)
    for n, label in units.items():
        where = label.to(first.device, torch.long).flatten()
        inside = where >= 0
        total = total.index_add(0, where[inside], values[n].flatten()[inside])
    return total


def objective_terms(
    config: Tuning, now: Named, names: Sequence[str], units: Named
) -> tuple[Term, ...]:
    """The terms that a configuration asks for, of a client that is about to train.

    `now` are the parameters as they were sent, `units` those of `unit_norms`.
    """
    c, terms = config, list[Term]()
    if c.proximal:
        terms.append(proximity({n: p.detach().clone() for n, p in now.items()}, c.proximal))
    if c.l2:
        terms.append(l2(names, c.l2))
    if c.l1 and c.shrinkage == "gradient":
        terms.append(l1(names, c.l1))
    if c.group_lasso and c.shrinkage == "gradient":
        terms.append(unit_norms(units, c.group_lasso))
    return tuple(terms)


def shrinkages_of(config: Tuning, names: Sequence[str], units: Named) -> tuple[Shrinkage, ...]:
    """The proximal steps that a configuration asks for; arguments as in `objective_terms`."""
    c, steps = config, list[Shrinkage]()
    if c.l1 and c.shrinkage == "proximal":
        steps.append(softened(names, c.l1))
    if c.group_lasso and c.shrinkage == "proximal":
        steps.append(shrunk_units(units, c.group_lasso))
    return tuple(steps)


def add_gradients(terms: Sequence[Term], now: Mapping[str, nn.Parameter]) -> None:
    """Add the terms' gradients to those of the loss, where it has some."""
    reached = {n: p for n, p in now.items() if p.grad is not None}
    total = sum((term(now) for term in terms), torch.zeros(()))
    found = torch.autograd.grad(total, list(reached.values()), allow_unused=True)
    for p, gradient in zip(reached.values(), found, strict=True):
        if gradient is not None and p.grad is not None:
            p.grad.add_(gradient)

"""How much one client or one example can change a sum: its vector is held to a norm.

Both functions take whatever a model gives (any type, any scale, nothing at all) and give back a
float32 vector that fits, or refuse it with a reason; they never fail in another way. What Flower's
own clipping does with a zero, a NaN, an integer or an infinity is in the tests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedprune.options.refusal import Refused

SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30
"""Norms within which float32 keeps its relative precision, however many values share them."""


def clipped(values: Tensor, norm: float) -> Tensor:
    """The values, scaled down so that their L2 norm is at most `norm`, if it is larger.

    Args:
        values: of any real type and shape, all of them finite.
        norm: the largest norm, `SMALLEST_NORM` to `LARGEST_NORM`.

    Returns:
        float32, of the same shape; its norm, taken in float64, is at most norm·(1 + 1e-6).

    Raises:
        Refused: a value is NaN or infinite, or not a real number.
        ValueError: `norm` is out of range.
    """
    direction, size = _split(values, norm)
    if size <= norm:
        return values.detach().to(torch.float32, copy=True)
    return (direction * norm).float()


def scaled(values: Tensor, norm: float) -> Tensor:
    """The values, scaled up or down so that their L2 norm is `norm`; zero stays zero.

    Arguments, type and errors are those of `clipped`; the norm is met to 1e-6 of it.
    """
    direction, _ = _split(values, norm)
    return (direction * norm).float()


def _split(values: Tensor, norm: float) -> tuple[Tensor, float]:
    """A vector of norm 1 (0 for zeros) in float64, and the norm, which may be infinite."""
    if not SMALLEST_NORM <= norm <= LARGEST_NORM:
        raise ValueError(
            f"norm={norm}: out of range; allowed: {SMALLEST_NORM:g} to {LARGEST_NORM:g}"
        )
    if values.is_complex():
        raise Refused("values", f"{values.dtype} is not a type of real numbers")
    double = values.detach().double()
    if not double.numel():
        return double, 0.0
    # The largest magnitude is taken out first: its square may be more than a double holds.
    largest = float(double.abs().max())
    if not math.isfinite(largest):
        raise Refused("values", "NaN or infinite")
    if largest == 0.0:
        return double, 0.0
    direction = double / largest
    rest = float(torch.linalg.vector_norm(direction))
    return direction / rest, largest * rest


def sensitivity(norm: float, *, signed: bool, sampling: str) -> float:
    """How far, in L2, one member can move a sum of vectors whose norms are at most `norm`.

    Args:
        norm: the largest norm of one member's vector.
        signed: whether values may be negative. Of two vectors without negative values the inner
            product is not negative either, so that they are at most sqrt(2)·norm apart.
        sampling: "poisson": a member is added or removed; others: one is replaced by another.
    """
    if sampling == "poisson":
        return norm
    return norm * (2.0 if signed else math.sqrt(2.0))


def bounded_sum(rows: Tensor, norm: float, *, exactly: bool = False) -> Tensor:
    """The sum of rows (examples, values), each held to an L2 norm; (values,) float64.

    Adding or removing a row moves it by `norm` at most. A row that is not finite counts as 0.0: to
    refuse it would tell that it is there. With `exactly` rows are also scaled up to the norm; zeros
    stay zeros.
    """
    if not rows.numel():
        return rows.double().sum(0)
    if rows.dtype == torch.float64:
        return _careful(rows, norm, exactly=exactly)
    # Squares of narrower types neither overflow nor vanish in float64.
    sizes = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    fine = torch.isfinite(sizes)
    if not fine.all():
        rows = torch.where(fine[:, None], rows, 0.0)
    full = torch.where(fine & (sizes > 0), norm / sizes, 0.0)
    return (full if exactly else torch.where(sizes > norm, full, 1.0)) @ rows.double()


def _careful(rows: Tensor, norm: float, *, exactly: bool) -> Tensor:
    """The same where a double may not hold the squares: the largest is taken out first."""
    largest = rows.abs().amax(1)
    fine = torch.isfinite(largest) & (largest > 0)
    directions = torch.where(fine[:, None], rows / largest[:, None], 0.0)
    sizes = torch.linalg.vector_norm(directions, dim=1).clamp_min(1.0)
    full = norm / sizes
    factors = full if exactly else torch.minimum(full, torch.where(fine, largest, 0.0))
    return factors @ directions

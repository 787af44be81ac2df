"""How much goes, said as a cost instead of a fraction: bytes on disk, FLOPs."""

from __future__ import annotations

from collections.abc import Callable

from fedprune.tensors.named import Masks


class OutOfReach(ValueError):
    """No sparsity costs so little."""


def sparsity_for(
    cost: Callable[[Masks], float],
    choose: Callable[[float], Masks],
    target: float,
    lowest: float,
    n: int,
    *,
    key: str = "target",
) -> float:
    """The smallest sparsity, in whole weights, whose masks cost at most `target`.

    By bisection, so about log2(n) selections. Where the cost wiggles on its way down, a smaller
    sparsity may fit as well; that the answer fits is certain, since its masks were weighed.

    `cost`: of masks; it falls with the sparsity, but for wiggles. `choose`: the masks of a
    sparsity. A ValueError means that it is too sparse to be chosen, but for the lowest.

    Raises:
        OutOfReach: no sparsity fits.
        ValueError: what `choose` raises for the lowest.
    """
    best = cost(choose(lowest))
    if best <= target:
        return lowest
    found: int | None = None
    low, high = int(lowest * n + 0.5), n + 1
    while high - low > 1:
        middle = (low + high) // 2
        spent = _tried(cost, choose, middle / n)
        if spent is None:  # sparser than floors allow
            high = middle
        elif spent <= target:
            found = high = middle
        else:
            low, best = middle, min(best, spent)
    if found is None:
        raise OutOfReach(
            f"{key}={target:g}: not even the sparsest masks allowed cost that little; "
            f"allowed: {best:g} or more"
        )
    return found / n


def sparsest(choose: Callable[[float], Masks], lowest: float, n: int) -> Masks:
    """The masks of the largest sparsity, in whole weights, that can be chosen; by bisection."""
    low, high, found = int(lowest * n + 0.5), n + 1, choose(lowest)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            low, found = middle, choose(middle / n)
        except ValueError:
            high = middle
    return found


def _tried(
    cost: Callable[[Masks], float], choose: Callable[[float], Masks], sparsity: float
) -> float | None:
    """The cost at a sparsity, None if there are no such masks."""
    try:
        masks = choose(sparsity)
    except ValueError:
        return None
    return cost(masks)

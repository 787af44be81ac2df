"""What a whole run amounts to: by both accountants, for every delta, and as Gaussian DP."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from fedprune.privacy.accounting import engine, native, rdp_epsilon
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.mechanisms import Event, Profile
from fedprune.privacy.tally import PARTICIPATION, Accounts

INFINITY = "infinity"
"""JSON has no word for it."""

DELTAS = tuple(10 ** (-n / 2) for n in range(16, 3, -1))
"""Of the curve: 1e-8 to 1e-2, two in a decade."""

_LARGEST = 1000.0
"""Of an epsilon beyond this nothing better is asked: its distribution would fill the memory."""


def total_privacy(accounts: Accounts, terms: AccountingTerms, rdp: float) -> dict[str, Any]:
    """Epsilon by both accountants, the curve and mu, in the words of `Ledger.closing`.

    All by one bound, that which gives the smallest epsilon: what is said is then one claim. `rdp`
    is epsilon by Rényi divergences, as it was told while the run went on.
    """
    told = [_closed(name, profiles, terms) for name, profiles in accounts.items()]
    best = min(told, key=lambda one: math.inf if one["epsilon"] == INFINITY else one["epsilon"])
    epsilon = told_number(rdp) if best["pld"] is None else best["epsilon"]
    return best | {"rdp": told_number(rdp), "epsilon": epsilon}


def _closed(name: str, profiles: Sequence[Profile], terms: AccountingTerms) -> dict[str, Any]:
    """The same by one bound."""
    rdp = rdp_epsilon(profiles, terms.relation, terms.delta)
    why_not = _why_not(profiles, rdp)
    pld, *curve = [None] * (1 + len(DELTAS)) if why_not else _plds(profiles, rdp, terms.delta)
    epsilon = rdp if pld is None else min(rdp, pld)

    def at(delta: float, by_pld: float | None) -> float:
        by_rdp = rdp_epsilon(profiles, terms.relation, delta)
        return by_rdp if by_pld is None else min(by_rdp, by_pld)

    mu, mu_by = gaussian_mu(profiles, epsilon, terms.delta)
    return {
        "rdp": told_number(rdp),
        "pld": None if pld is None else told_number(pld),
        "pld_why_not": why_not,
        "epsilon": told_number(epsilon),
        "curve": [[d, told_number(at(d, e))] for d, e in zip(DELTAS, curve, strict=True)],
        "curve_by": "rdp" if pld is None else "pld",
        "mu": told_number(mu),
        "mu_by": mu_by,
        "account": name,
    }


def unprotected() -> dict[str, Any]:
    """The same of a run in which nothing was noised."""
    return {
        "rdp": INFINITY,
        "pld": None,
        "pld_why_not": "nothing was noised",
        "epsilon": INFINITY,
        "curve": [],
        "curve_by": "rdp",
        "mu": INFINITY,
        "mu_by": "exact",
        "account": PARTICIPATION,
    }


def told_number(value: float) -> float | str:
    """The number, or the word for infinity."""
    return value if math.isfinite(value) else INFINITY


def _why_not(profiles: Sequence[Profile], rdp: float) -> str:
    """Why privacy loss distributions do not apply; empty where they do."""
    events = [event for profile in profiles for event in profile]
    if any(event.sample for event in events):
        return "cohorts of a fixed size are drawn without replacement, which they do not cover"
    if any(event.spread for event in events):
        return "Skellam noise is known by a bound on its concentration, not by its distribution"
    if not rdp <= _LARGEST:
        return f"epsilon is above {_LARGEST:g}: no better number would mean anything"
    return ""


def _plds(profiles: Sequence[Profile], rdp: float, delta: float) -> list[float]:
    """Epsilon at delta, and at each of `DELTAS`: the largest over the profiles."""
    deltas = (delta, *DELTAS)
    each = [_epsilons(tuple(p.items()), rdp, deltas) for p in filter(None, profiles)]
    return [max(at, default=0.0) for at in zip(*each, strict=True)] or [0.0] * len(deltas)


@lru_cache(maxsize=256)
def _epsilons(
    events: tuple[tuple[Event, int], ...], rdp: float, deltas: tuple[float, ...]
) -> tuple[float, ...]:
    """Epsilon at each delta by the privacy loss distribution of one unit's events.

    The arms of a study, the accounts of a run and its resumption want it again. Composed event by
    event: dp-accounting 0.6.0 ignores the count of randomised responses.
    """
    pld = engine().pld
    # 10,000 points up to what Rényi divergences say round epsilon up by a millionth of itself, and
    # twenty times as many take a second. Of randomised response each answer is rounded by a step.
    linear = any(event.pure is not None for event, _ in events)
    step = max(1e-4, rdp / (2e5 if linear else 1e4))
    out: Any = None
    for event, count in events:
        if event.pure is not None:
            one = pld.privacy_loss_distribution.from_randomized_response(
                native(event).noise_parameter, 2, value_discretization_interval=step
            )
        else:
            one = pld.privacy_loss_distribution.from_gaussian_mechanism(
                event.z, value_discretization_interval=step, sampling_prob=event.rate
            )
        one = one.self_compose(count) if count > 1 else one
        out = one if out is None else out.compose(one)
    return tuple(float(out.get_epsilon_for_delta(delta)) for delta in deltas)


def gaussian_mu(profiles: Sequence[Profile], epsilon: float, delta: float) -> tuple[float, str]:
    """Mu of Gaussian DP (Dong, Roth, Su 2019, arXiv 1905.02383), and how it was had.

    Exact where all noise is Gaussian and nobody is drawn by chance: sqrt(Σ z⁻²). Otherwise the mu
    of the Gaussian mechanism with this epsilon at this delta, which says nothing of other deltas.
    """
    events = [event for profile in profiles for event in profile]
    if all(event.unsampled for event in events):
        # A profile has at most one such event.
        return max((1 / e.z if e.z else math.inf for e in events), default=0.0), "exact"
    if not math.isfinite(epsilon):
        return math.inf, "at this delta"
    high = 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    return bisected(lambda mu: gaussian_delta(mu, epsilon) <= delta, 0.0, high), "at this delta"


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism of this mu at epsilon (arXiv 1805.06530, theorem 8)."""
    from scipy.special import log_ndtr

    if mu <= 0:
        return 0.0
    left, right = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    first, second = float(log_ndtr(left)), epsilon + float(log_ndtr(right))
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def bisected(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The end of where something holds, from `low`, where it does, towards `high`: 50 halvings."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low

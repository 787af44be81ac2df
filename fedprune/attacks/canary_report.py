"""What canaries catch, of a right mechanism and of broken ones: a section of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedprune.attacks.canary import Audit, Audited, Draw, Noised, audit
from fedprune.attacks.page import Passage, Table
from fedprune.privacy.accounting import rdp_epsilon
from fedprune.privacy.accounting_terms import ADD_OR_REMOVE
from fedprune.privacy.mechanisms import Event
from fedprune.privacy.noise import seeded_source

CANARIES = 1000
NOISES = (0.3, 1.0, 2.2, 4.0)  # Noise multipliers that are audited

BROKEN: dict[str, dict[str, Any]] = {
    "intact": {},
    "without noise": {"noise": 0.0},
    "without clipping": {"clipping": False},
}

READING = (
    "The bound is what the guesses prove, with 95 % confidence; the cap is what they would prove "
    "if all were right, and no audit of this size can say more. A bound above the claim is a proof "
    "that the mechanism does not keep its promise. A bound below it proves nothing: the audit "
    "finds mistakes, and cannot confirm."
)


def canary_findings(
    seeds: Sequence[int], delta: float, tick: Callable[[], None] = lambda: None
) -> tuple[Passage, dict[str, Any]]:
    """The section about one noised sum at several noise multipliers, and its figures."""
    rows, figures = list[list[str]](), list[dict[str, Any]]()
    for z in NOISES:
        claim = rdp_epsilon([Counter({Event(z=z): 1})], ADD_OR_REMOVE, delta)
        for name, change in BROKEN.items():
            mechanism = replace(Audited((Draw((Noised(1.0, z),)),)), **change)
            found = [_audited(mechanism, delta, seed) for seed in seeds]
            figures.append({"z": z, "claim": claim, "mechanism": name, **_summed(found, claim)})
            rows.append(_row(figures[-1]))
            tick()
    columns = ["noise z", "mechanism", "claimed epsilon", "bound, mean", "bound, largest", "cap"]
    table = Table([*columns, "caught"], rows, ("mechanism",))
    text = (
        f"{CANARIES} canary clients toss a coin each and send a vector of their own or its "
        "opposite, ten times as long as the clip norm allows. Clipped and noised by the functions "
        "that runs use, their sum is all an observer sees, who guesses half of the coins, the "
        "surest ones.",
        READING,
        f"Every row is {len(seeds)} audits with seeds of their own, delta {delta:g}. The bound is "
        "by Steinke et al. 2023 (arXiv 2305.08846, theorem 5.2), canary clients are from Andrew et "
        "al. 2023 (arXiv 2302.03098).",
    )
    return Passage("Canary clients", text, table), {"rows": figures}


def _audited(mechanism: Audited, delta: float, seed: int) -> Audit:
    source = seeded_source(seed, "canary noise")
    return audit(mechanism, delta, source, canaries=CANARIES, size=4 * CANARIES, seed=seed)


def _summed(found: Sequence[Audit], claim: float) -> dict[str, Any]:
    bounds = [one.bound for one in found]
    return {
        "bounds": bounds,
        "mean": sum(bounds) / len(bounds),
        "largest": max(bounds),
        "cap": found[0].cap,
        "caught": sum(bound > claim for bound in bounds),
        "audits": len(bounds),
    }


def _row(told: dict[str, Any]) -> list[str]:
    numbers = [f"{told[key]:.2f}" for key in ("claim", "mean", "largest", "cap")]
    caught = f"{told['caught']} of {told['audits']}"
    return [f"{told['z']:g}", told["mechanism"], *numbers, caught]

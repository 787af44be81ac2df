"""What the screen says of privacy: what will be hidden and how, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.measured_noise import metric_spread
from fedprune.config.terms import colluders_of, keys_follow, others_of, simulated
from fedprune.options.refusal import counted
from fedprune.privacy.accounting_terms import SIMULATED

_MUCH = 0.05  # Noise on an accuracy beyond which it says nothing worth reading

_OF = {"client": "of a client", "example": "of an example"}


def before(c: RunConfig) -> list[str]:
    """What a configuration is going to hide; nothing where it hides nothing."""
    out = []
    if c.dp != "none":
        z = {"changes": c.dp_noise, "scores": c.dp_score_noise, "metrics": c.dp_metric_noise}
        noise = ", ".join(f"{v:g} on {k}" for k, v in z.items() if v is not None)
        budget = "no budget" if c.epsilon is None else f"budget epsilon {c.epsilon:g}"
        out.append(
            f"  noise       hides the part {_OF[c.dp]}: {noise}; {budget}, delta {c.delta:g}"
        )
    if c.dp == "example":
        out.append("  example     a row of a client's data; of running text a window of --length")
    if simulated(c):
        out.append(f"  seeded      {SIMULATED}")
    if spread := metric_spread(c):
        much = ": little but noise; --panel N measures without" if spread > _MUCH else ""
        out.append(f"  measured    every mean with noise of standard deviation {spread:.3g}{much}")
    if c.panel:
        who = counted(c.panel, "client measures, and is", "clients measure, and are")
        out.append(f"  panel       the last {who} not protected")
    if c.secure != "none":
        lying, k, t = colluders_of(c, c.cohort)
        out.append(
            "  sums        secure: the server sees no client's own answer, unless it lies and"
        )
        out.append(
            f"              at least {lying} of a client's {k} neighbours help it (of a cohort of "
            f"{c.cohort}, {t} shares open one)"
        )
        out += [
            "              in a sum of {}, {} clients, at least {} of {} (of {} shares)".format(
                who, n, *colluders_of(c, n)
            )
            for who, n in others_of(c).items()
        ]
        out += ["  keys        simulated: they follow from the seed"] * keys_follow(c)
        if c.engine == "flower":
            out += [
                "  keys        genuine to devices with signing-key and signers; to others as the",
                "              server says",
            ]
    return out


def after(summary: Mapping[str, Any]) -> list[str]:
    """What a run's privacy came to, in a line or two."""
    privacy = summary.get("privacy")
    if not privacy:
        return []
    out = [f"STOPPED   {stopped}"] if (stopped := privacy.get("stopped")) else []
    if spread := privacy.get("metrics_sd"):
        out.append(f"NOISED    every figure measured has noise of standard deviation {spread:.3g}")
    said = f"; {SIMULATED}" if privacy.get("noise") == SIMULATED else ""
    at = f"at delta {privacy['delta']:g}{said}"
    if privacy["total"] == "infinity":
        covered = privacy["epsilon"]
        noised = covered not in (0, "infinity")
        share = f" (of what is covered: {covered:.4g} {at})" if noised else ""
        why, *more = privacy["reasons"]
        others = f" (and {counted(len(more), 'reason')} more, in the report)" if more else ""
        return [*out, f"privacy   epsilon infinite{share}: {why}{others}"]
    unit = f"one {privacy['unit']}, {privacy['relation']}"
    return [*out, f"privacy   epsilon {privacy['total']:.4g} {at}: {unit}"]

"""What was chosen on validation: what an adaptive schedule tried, and how layers bear pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.options.refusal import counted
from fedprune.report.reading import Row, percent, significant


def tried_in(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For every round that tried something: what, and what came of it."""
    return [{"round": row["round"], **row["adaptive"]} for row in rows if row.get("adaptive")]


def tried_finding(history: Sequence[Mapping[str, Any]]) -> str:
    """The history in words."""
    cuts = [h for h in history if h["took"]]
    last = history[-1]
    reached = percent(last["tried"][last["took"]][0])
    back = sum(h["action"] == "step back" for h in history)
    measured = sum(len(h["tried"]) - 1 for h in history)
    said = (
        f"In {counted(len(history), 'round')} the clients measured {counted(measured, 'mask')}"
        f" on their validation parts; {counted(len(cuts), 'was', 'were')} taken, up to a "
        f"sparsity of {reached}, "
        f"and {counted(back, 'time')} none was within the limit and the step was halved. The "
        f"limit was "
        f"{significant(history[0]['limit'])} at first and {significant(last['limit'])} at last"
    )
    return f"{said}. Each line is a round; what it took is ringed."


def sensitivity_in(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The loss curves of the first round that took them layer by layer, while all was dense."""
    for told in tried_in(rows):
        if told["layers"]:
            loss = told["tried"][0][1]
            return {"round": told["round"], "loss": loss, "layers": told["layers"]}
    return None


def sensitivity_finding(found: Mapping[str, Any]) -> str:
    """Which layers bear least and most."""
    ranked = by_rise(found)
    least, most = ranked[0], ranked[-1]
    return (
        f"Each line is one of {counted(len(ranked), 'layer')}, pruned alone in round "
        f"{found['round']} and "
        f"measured on validation without tuning, where the whole model has a loss of "
        f"{significant(found['loss'])}. Pruning hurts most in {least['name']} (loss "
        f"{significant(least['tried'][-1][1])} at {percent(least['tried'][-1][0])}) and least in "
        f"{most['name']} ({significant(most['tried'][-1][1])} at "
        f"{percent(most['tried'][-1][0])})."
    )


def by_rise(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers, those first that the same part costs most."""
    return sorted(found["layers"], key=lambda layer: -layer["tried"][-1][1])


def told_adaptive(told: Mapping[str, Any]) -> str:
    """What a round's tries came to, in a cell."""
    losses = [loss for _, loss in told["tried"]]
    if not told["took"]:
        return str(told["action"])
    return f"{told['action']}: loss {significant(losses[0])} to {significant(losses[told['took']])}"


def told_blend(told: Mapping[str, Any]) -> str:
    """Which share of the change was kept, in a cell."""
    shares = sorted(set(told.get("shares", {}).values()))
    if not shares:
        return str(told["action"])
    return f"{shares[0]:g}" if len(shares) == 1 else f"{shares[0]:g} to {shares[-1]:g}"


def told_reduced(told: Mapping[str, Any]) -> str:
    """What ``--reduce`` took out in a round, and the largest error that it made, in a cell."""
    ranks, errors = told.get("ranks", {}), [*told.get("rank_errors", {}).values()]
    errors += [error for error in told.get("merge_errors", {}).values() if error is not None]
    parts = [
        f"{sum(told.get('dead', {}).values())} dead units" if told.get("dead") else "",
        f"{sum(told.get('merged', {}).values())} merged" if told.get("merged") else "",
        f"{len(told.get('shared', []))} matrices shared" if told.get("shared") else "",
        f"{len(ranks)} factored, rank {min(ranks.values())} to {max(ranks.values())}"
        if ranks
        else "",
        f"error up to {max(errors):.2g}" if errors else "",
        f"{told['parameters']:,} to {told['parameters_after']:,} parameters",
    ]
    return "; ".join(part for part in parts if part)


def choices_in(rows: Sequence[Row]) -> dict[str, Any]:
    """What ``summary.json`` says of them: an adaptive schedule's history, sensitivity, reductions.

    Empty where nothing was chosen or reduced.
    """
    history = [
        {key: value for key, value in told.items() if key != "layers"} for told in tried_in(rows)
    ]
    reduced = next((row["reduced"] for row in rows if row.get("reduced")), None)
    found = {"adaptive": history, "sensitivity": sensitivity_in(rows), "reduced": reduced}
    return {key: value for key, value in found.items() if value}

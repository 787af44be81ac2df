"""More rounds than a run was planned with: to the bits of a run that was planned so long."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fedprune.client.teacher import distils
from fedprune.config import RunConfig, configure, to_toml, with_values
from fedprune.config.cohort import measures_in
from fedprune.config.options import CENTRAL, LOCAL
from fedprune.config.rates import learning_rate, prunes_in
from fedprune.config.schema import flat
from fedprune.config.toml_text import all_keys
from fedprune.methods.catalog import method_of
from fedprune.methods.distil import factor
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import began_in, rounds_added


def longer(before: RunConfig, rounds: Any, *, anyway: bool = False) -> RunConfig:
    """The configuration of a run with more rounds.

    `anyway`: although what was played would have been played otherwise: all but the rounds, and
    what falls with them, stays as it was.

    Raises:
        ConfigError: they are fewer, or what was played would have been played otherwise.
    """
    asked = configure({"task": before.task, "plugin": before.plugin, "rounds": rounds}).rounds
    if asked < before.rounds:
        raise ConfigError(f"rounds={asked}: the run has {before.rounds}; allowed: as many, or more")
    if asked == before.rounds:
        return before
    if before.engine == "flower":
        raise ConfigError(f"rounds={asked}: devices took part in {before.rounds}; allowed: these")
    alone = [arm for arm in before.baselines if arm in (LOCAL, CENTRAL)]
    if alone:
        raise ConfigError(f"rounds={asked}: the arm {alone[0]} has ended; allowed: {before.rounds}")
    if anyway:
        return configure({**flat(all_keys(to_toml(before))), "rounds": asked})
    after = configure({**before.given, "rounds": asked})
    if why := _otherwise(before, after):
        raise ConfigError(
            f"rounds={asked}: {why}; allowed: {before.rounds}, a new run, or --resume-anyway, with "
            "which the schedule stays and the report says so"
        )
    return after


def _otherwise(before: RunConfig, after: RunConfig) -> str:
    """What of the rounds that were planned would be otherwise in the longer run; "": nothing."""
    old, new = vars(before), vars(after)
    changed = [k for k in old if old[k] != new[k] and k not in ("rounds", "out")]
    if changed:
        key = changed[0]
        return f"{key.replace('_', '-')} would be {new[key]}, and was {old[key]}"
    planned = range(1, before.rounds + 1)
    if [learning_rate(before, r) for r in planned] != [learning_rate(after, r) for r in planned]:
        return f"lr-schedule {before.lr_schedule} would fall more slowly (constant does not)"
    if [prunes_in(before, r) for r in planned] != [prunes_in(after, r) for r in planned]:
        return f"schedule {before.schedule} would prune in other rounds"
    taught = range(before.warmup + 1, before.rounds + 1)
    if distils(before) and any(factor(before, r) != factor(after, r) for r in taught):
        return "distil-schedule linear would fall more slowly (constant does not)"
    if not measures_in(after, before.rounds):
        return f"round {before.rounds} was measured as the last one, and would not be"
    if method_of(after).planned:
        return f"method {after.method} looks at how many rounds there are"
    return ""


def lengthened(folder: Path, text: str, before: RunConfig, after: RunConfig) -> None:
    """Write down that the run in a folder has more rounds from now on.

    `text`: what its configuration's file holds.
    """
    new = to_toml(with_values(after, {"out": ""}))
    began = began_in(folder)
    digest = hashlib.sha256(new.encode()).hexdigest()
    if began.get("config.toml") in (hashlib.sha256(text.encode()).hexdigest(), digest):
        same = after.given.keys() == {*before.given, "rounds"}
        line = f"rounds is {after.rounds}, was {before.rounds} when the run began"
        rounds_added(folder, digest, "" if same else line)

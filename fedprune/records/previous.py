"""Update and maintain: a run that begins where another one ended, on new data or a new task.

One that was interrupted is as good as its last checkpoint.

Structure and masks are kept; density never rises, unless ``--schedule regrow`` exchanges weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.client.host import build_host, with_edits
from fedprune.codec.coded_file import CODED_NAME, from_coded
from fedprune.config import RunConfig, all_keys, recorded
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import memories_of
from fedprune.options.refusal import ConfigError
from fedprune.privacy.release import Occasion, Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import shaped
from fedprune.protocol.releases import OPEN
from fedprune.records.arms import PRUNED
from fedprune.records.bound import began_in
from fedprune.records.checkpoint import load_state
from fedprune.records.folder import CONFIG_NAME, checkpoint_path
from fedprune.runtime.sums import SUMMARY_NAME, SUMS_NAME, check_sums, summary_in
from fedprune.server.rows import quality
from fedprune.server.state import Model, State
from fedprune.structure.edits import Edits, from_json
from fedprune.structure.layout import Layout
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors, copied, full_masks, masked


@dataclass(frozen=True)
class PreviousRun:
    """A run that another one continues."""

    folder: Path  # where it is
    config: RunConfig  # what ran
    weights: Tensors  # its last state, and its frozen parameters
    masks: Masks
    edits: Edits  # what was edited in its model
    # what it measured on its own test split; empty where it kept no summary
    quality: Mapping[str, Any]


def previous_run(folder: str, plugin: str = "") -> PreviousRun:
    """The run in a folder; of a plug-in's task, with the caller's own `plugin`.

    Raises:
        ConfigError: there is none, it is damaged, or it names a plug-in that was not given.
    """
    path = Path(folder)
    try:
        if _interrupted(path):
            return _at_its_checkpoint(path, plugin)
        check_sums(path, ended=True)
        head, weights, masks = from_coded((path / CODED_NAME).read_bytes(), str(path / CODED_NAME))
        text = (path / CONFIG_NAME).read_text()
        config = recorded(text, plugin, path / CONFIG_NAME)
        measured = summary_in(path).get("quality", {})
    except (OSError, ValueError) as error:
        why = str(error).partition("; allowed: ")[0]
        raise ConfigError(f"init={folder!r}: {why}; allowed: the folder of a whole run") from None
    edits = from_json(json.dumps(head.get("edits", [])))
    return PreviousRun(path, config, weights, masks, edits, measured)


def _interrupted(path: Path) -> bool:
    """Whether a run has begun in a folder, and nothing was written there of its end."""
    of_the_end = (SUMS_NAME, SUMMARY_NAME, CODED_NAME)
    begun = checkpoint_path(path, PRUNED).is_file()
    return begun and not any((path / name).exists() for name in of_the_end)


def _at_its_checkpoint(path: Path, plugin: str) -> PreviousRun:
    """An interrupted run.

    Raises:
        ValueError: a file is not as it was written, or it was training adapters.
    """
    text = (path / CONFIG_NAME).read_bytes()
    if began_in(path).get(CONFIG_NAME) != hashlib.sha256(text).hexdigest():
        raise ValueError(f"{CONFIG_NAME} is not as it was when the run began")
    config = recorded(text.decode(), plugin, path / CONFIG_NAME)
    state = load_state(checkpoint_path(path, PRUNED), memories_of(config.plugin))
    if state.model.adapters:
        raise ValueError("interrupted while it was training adapters")
    return PreviousRun(path, config, state.weights, state.masks, state.edits, {})


def data_gone(folder: str) -> str:
    """Where the data of the run in a folder was and is no more; "" where that is not known.

    Cheap: nothing is opened.
    """
    path = Path(folder) / CONFIG_NAME
    data = str(all_keys(path.read_text()).get("data") or "") if path.is_file() else ""
    return data if data and not Path(data).exists() else ""


def continued(config: RunConfig, before: PreviousRun) -> State:
    """The state to go on from; tensors that the earlier ones do not fit are as the task makes them.

    Raises:
        ConfigError: nothing of the earlier model fits, or what was cut out of it is not there.
    """
    try:
        model, layout = shaped(config, before.edits)
    except ValueError as error:
        why, _, _ = str(error).partition("; allowed: ")
        raise ConfigError(
            f"init={str(before.folder)!r}: its model was cut where model={config.model!r} of task "
            f"{config.task} cannot be ({why}); allowed: a run of the same model"
        ) from None
    fresh = copied(state_of(model))
    found = before.weights
    fits = {n for n, w in fresh.items() if n in found and found[n].shape == w.shape}
    if not fits & set(layout.prunable):
        raise ConfigError(
            f"init={str(before.folder)!r}: its model has no prunable tensor in common with "
            f"model={config.model!r}; allowed: a run of the same model"
        )
    weights = {n: found[n] if n in fits else w for n, w in fresh.items()}
    masks = full_masks(weights, layout.prunable)
    masks |= {n: m for n, m in before.masks.items() if n in masks and n in fits}
    return State(0, Model(masked(weights, masks), masks, before.edits))


def on_the_earlier_task(before: PreviousRun, end: State) -> dict[str, Any]:
    """Quality on the earlier run's own test split: of its model, and of the one that it became.

    Its partitions are served in this process. Where they cannot be, as when its data is gone,
    "now" is None and "why" says so: the new run's results do not depend on it.
    """
    told = {
        "run": str(before.folder),
        "task": before.config.task,
        "then": before.quality.get("final"),
    }
    try:
        measured = _measured_again(before, end)
    except Exception as error:  # a plugin's code may raise anything, and the new run is over
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {**told, "now": None, "why": why}
    now = quality(measured.totals, before.config)
    if now is not None:
        return {**told, "now": now}
    reasons = [failure.reason for failure in measured.failures]
    return {**told, "now": None, "why": reasons[0] if reasons else "no example to measure on"}


def _measured_again(before: PreviousRun, end: State) -> Aggregate:
    """Sums over the earlier run's test split, of the state in that run's model.

    What the new model does not share with the earlier one (a head for other classes) is the
    earlier one's.
    """
    host = with_edits(build_host(before.config), end.edits)
    shapes = host.layout.shapes
    weights = {
        n: end.weights[n] if n in end.weights and end.weights[n].shape == s else before.weights[n]
        for n, s in shapes.items()
    }
    masks = {n: end.masks.get(n, before.masks.get(n)) for n in host.layout.prunable}
    kept = {n: m for n, m in masks.items() if m is not None}
    masks_now = full_masks(weights, host.layout.prunable) | kept
    question = Question("evaluate", end.round, weights, masks_now, part="test", edits=end.edits)
    port = inline_port(host)
    return port.ask(question, port.measuring())


def release_of_before(
    before: PreviousRun, round_: int, layout: Layout
) -> tuple[Occasion, tuple[Release, ...]]:
    """What leaves the earlier run's clients when the new model is measured on their data."""
    everyone = tuple(range(before.config.clients))
    occasion = Occasion("before", round_, "evaluate", 0, "everyone", everyone, len(everyone))
    form = form_of(Question("evaluate", round_, {}, {}, part="test"), before.config, layout)
    fields = tuple(f"totals.{name}" for name in sorted(form.totals))
    return occasion, (Release("metrics", fields, reason=OPEN),)

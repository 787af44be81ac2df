"""Update and maintain: a run that begins where another one ended, on new data or a new task.

Structure and masks are kept; density never rises, unless ``--schedule regrow`` exchanges weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedprune.compression.coded import CODED_NAME, from_coded
from fedprune.config import ConfigError, RunConfig, configure, from_toml
from fedprune.hosts import House, furnished, inline_port, open_house
from fedprune.pruning.edits import Edits, from_json
from fedprune.report.folder import CONFIG_NAME, SUMMARY_NAME
from fedprune.report.rows import quality
from fedprune.rounds import measure
from fedprune.shapes import shaped
from fedprune.state import State
from fedprune.tensors import Masks, Tensors, copied, full_masks, masked, state_of


@dataclass(frozen=True)
class Earlier:
    """A run that another one continues.

    Attributes:
        folder: where it is.
        config: what ran.
        weights: its last state, and its frozen parameters.
        masks: its masks.
        edits: what was edited in its model.
        quality: what it measured on its own test split; empty where it kept no summary.
    """

    folder: Path
    config: RunConfig
    weights: Tensors
    masks: Masks
    edits: Edits
    quality: Mapping[str, Any]


def earlier(folder: str) -> Earlier:
    """The run in a folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = Path(folder)
    try:
        head, weights, masks = from_coded((path / CODED_NAME).read_bytes(), str(path / CODED_NAME))
        config = configure(from_toml((path / CONFIG_NAME).read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"init={folder!r}: {error}; allowed: the folder of a whole run") from None
    summary = path / SUMMARY_NAME
    measured = json.loads(summary.read_text())["quality"] if summary.is_file() else {}
    edits = from_json(json.dumps(head.get("edits", [])))
    return Earlier(path, config, weights, masks, edits, measured)


def continued(config: RunConfig, before: Earlier) -> State:
    """The state to go on from; tensors that the earlier ones do not fit are as the task makes them.

    Raises:
        ConfigError: nothing of the earlier model fits.
    """
    model, layout = shaped(config, before.edits)
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
    return State(0, masked(weights, masks), masks, {}, edits=before.edits)


def on_the_earlier_task(before: Earlier, end: State) -> dict[str, Any]:
    """Quality on the earlier run's own test split: of its model, and of the one that it became.

    What the new model does not share with the earlier one (a head for other classes) is the
    earlier one's. Its partitions are served in this process.
    """
    house: House = open_house(before.config)
    house = furnished(house, end.edits)
    shapes = house.layout.shapes
    weights = {
        n: end.weights[n] if n in end.weights and end.weights[n].shape == s else before.weights[n]
        for n, s in shapes.items()
    }
    masks = {n: end.masks.get(n, before.masks.get(n)) for n in house.layout.prunable}
    kept = {n: m for n, m in masks.items() if m is not None}
    state = replace(end, weights=weights, masks=full_masks(weights, house.layout.prunable) | kept)
    _, totals = measure(replace(state, known={}), inline_port(house), "test")
    return {
        "run": str(before.folder),
        "task": before.config.task,
        "then": before.quality.get("final"),
        "now": quality(totals),
    }

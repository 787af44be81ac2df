"""A state on disk: one safetensors file, replaced atomically, nothing pickled."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from fedprune.learning.moving import Moving
from fedprune.messages import Failure
from fedprune.pruning.adaptive import Pace
from fedprune.pruning.edits import from_json, to_json
from fedprune.state import State, Traffic
from fedprune.tensors import as_bytes, over_bytes

_SCALARS = ("round", "completed", "failed", "dense_at_pruning", "owed", "prunings", "reduced")


def save_state(state: State, path: Path) -> None:
    """Write the state so that `path` is at any moment the old file or the new one, whole."""
    tensors = {f"weights/{n}": t.contiguous() for n, t in state.weights.items()}
    tensors |= {f"masks/{n}": m.contiguous() for n, m in state.masks.items()}
    # Copies: in the round that is kept they are the weights themselves, which safetensors refuses.
    tensors |= {f"early/{n}": t.contiguous().clone() for n, t in (state.early or {}).items()}
    tensors["teacher"] = over_bytes(state.teacher, torch.uint8)
    moving = {} if state.moving is None else state.moving.weights
    tensors |= {f"moving/{n}": t.contiguous().clone() for n, t in moving.items()}
    rest = {key: vars(state)[key] for key in _SCALARS} | {
        "known": state.known,
        "taught": state.taught,
        "counted": state.counted,
        "traffic": asdict(state.traffic),
        "edits": to_json(state.edits),
        "failures": [asdict(f) for f in state.failures],
        "pace": None if state.pace is None else asdict(state.pace),
        "moving": None if state.moving is None else state.moving.rounds,
        "sums": [sorted(members) for members in state.sums],
        "notices": state.notices,
        "order": {
            "weights": list(state.weights),
            "masks": list(state.masks),
            "early": None if state.early is None else list(state.early),
            "moving": list(moving),
        },
    }
    write_atomically(path, save(tensors, {"fedprune": json.dumps(rest)}))


def load_state(path: Path) -> State:
    """The state that `save_state` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume={path}: no checkpoint there; allowed: a run's folder")
    with safe_open(path, "pt") as file:
        rest = json.loads(file.metadata()["fedprune"])
        weights = {n: file.get_tensor(f"weights/{n}") for n in rest["order"]["weights"]}
        order = rest["order"]["early"]
        early = None if order is None else {n: file.get_tensor(f"early/{n}") for n in order}
        teacher = bytes(as_bytes(file.get_tensor("teacher")))
        masks = {n: file.get_tensor(f"masks/{n}") for n in rest["order"]["masks"]}
        moving = {n: file.get_tensor(f"moving/{n}") for n in rest["order"]["moving"]}
    return State(
        weights=weights,
        masks=masks,
        known={int(p): d for p, d in rest["known"].items()},
        traffic=Traffic(**rest["traffic"]),
        early=early,
        edits=from_json(rest["edits"]),
        teacher=teacher,
        taught={int(p): d for p, d in rest["taught"].items()},
        counted={int(p): r for p, r in rest["counted"].items()},
        pace=None if rest["pace"] is None else Pace(**rest["pace"]),
        moving=None if rest["moving"] is None else Moving(moving, rest["moving"]),
        sums=tuple(frozenset(members) for members in rest["sums"]),
        notices=tuple(rest["notices"]),
        failures=tuple(Failure(**f) for f in rest["failures"]),
        **{key: rest[key] for key in _SCALARS},
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content in one step, and see it on the disk before that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(path.suffix + ".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

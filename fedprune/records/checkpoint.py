"""A state on disk: one safetensors file with its SHA-256 behind it, nothing pickled.

It also says how the files that grow beside it began, so that rows or releases that are gone are
missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from fedprune.learning.moving_average import Moving
from fedprune.protocol.messages import Failure
from fedprune.runtime.files import (
    Prefix,
    check_prefix,
    prefix_of,
    read_verified,
    write_verified,
)
from fedprune.selection.ladder import Pace
from fedprune.server.state import State, Traffic
from fedprune.structure.edits import from_json, to_json
from fedprune.tensors import Tensors, as_bytes, over_bytes

_SCALARS = (
    "round",
    "completed",
    "failed",
    "dense_at_pruning",
    "owed",
    "prunings",
    "reduced",
    "tested",
)


def save_state(state: State, path: Path, beside: Iterable[Path] = ()) -> None:
    """Write the state so that `path` is at any moment the old file or the new one, whole.

    Args:
        state: what to write.
        path: where.
        beside: files that only grow, whose content so far belongs to the state.
    """
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
        "norms": state.norms,
        "strikes": state.strikes,
        "resting": state.resting,
        "traffic": asdict(state.traffic),
        "edits": to_json(state.edits),
        "failures": [asdict(f) for f in state.failures],
        "pace": None if state.pace is None else asdict(state.pace),
        "moving": None if state.moving is None else state.moving.rounds,
        "sums": [sorted(members) for members in state.sums],
        "notices": state.notices,
        "beside": {p.name: asdict(prefix_of(p)) for p in beside},
        "order": {
            "weights": list(state.weights),
            "masks": list(state.masks),
            "early": None if state.early is None else list(state.early),
            "moving": list(moving),
        },
    }
    write_verified(path, save(tensors, {"fedprune": json.dumps(rest)}))


def load_state(path: Path) -> State:
    """The state that `save_state` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a byte of it is not as it was written.
    """
    rest, tensors = _read(path)
    weights = {n: tensors[f"weights/{n}"] for n in rest["order"]["weights"]}
    order = rest["order"]["early"]
    early = None if order is None else {n: tensors[f"early/{n}"] for n in order}
    teacher = bytes(as_bytes(tensors["teacher"]))
    masks = {n: tensors[f"masks/{n}"] for n in rest["order"]["masks"]}
    moving = {n: tensors[f"moving/{n}"] for n in rest["order"]["moving"]}
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
        norms=tuple(rest["norms"]),
        strikes={int(p): n for p, n in rest["strikes"].items()},
        resting={int(p): r for p, r in rest["resting"].items()},
        pace=None if rest["pace"] is None else Pace(**rest["pace"]),
        moving=None if rest["moving"] is None else Moving(moving, rest["moving"]),
        sums=tuple(frozenset(members) for members in rest["sums"]),
        notices=tuple(rest["notices"]),
        failures=tuple(Failure(**f) for f in rest["failures"]),
        **{key: rest[key] for key in _SCALARS},
    )


def check_beside(path: Path) -> None:
    """Refuse a checkpoint whose files beside it in the run's folder are not those that it knew.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or a file was cut, changed or taken away; it is named.
    """
    rest, _ = _read(path)
    for name, prefix in rest["beside"].items():
        check_prefix(path.parent.parent / name, Prefix(**prefix))


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """What a checkpoint says beside its tensors, and these."""
    if not path.is_file():
        raise FileNotFoundError(f"resume={path}: no checkpoint there; allowed: a run's folder")
    content = read_verified(path)
    try:
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        rest: dict[str, Any] = json.loads(head["__metadata__"]["fedprune"])
        return rest, load(content)
    except Exception as error:  # sound bytes of something else: safetensors raises what it likes
        raise ValueError(f"{path.name}: no checkpoint of ours: {error!r}"[:300]) from None

"""What was released in the rounds that no checkpoint has yet, so that a resumed run sends it again.

The identical value tells no more the second time. Asked again, a question has other answers, other
drop-outs or fresh noise: that is another release, and is booked as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load

from fedprune.codec.frozen import put_together, taken_apart
from fedprune.codec.tensor_file import tensor_file
from fedprune.privacy.release import Occasion
from fedprune.protocol.aggregate import Aggregate
from fedprune.runtime.files import read_verified, write_verified
from fedprune.tensors.named import Tensors

RELEASED_FOLDER = "released"


@dataclass
class Stored:
    """Sums with their noise, a file each in a folder; None keeps nothing."""

    folder: Path | None
    _seen: Counter[tuple[str, int, str]] = field(default_factory=Counter)

    def place(self, occasion: Occasion) -> Path | None:
        """Where the answer to a question is, which this process puts for the n-th time."""
        key = (occasion.arm, occasion.round, occasion.digest)
        n, self._seen[key] = self._seen[key], self._seen[key] + 1
        if self.folder is None or not occasion.digest:
            return None
        arm = hashlib.sha256(occasion.arm.encode()).hexdigest()[:8]
        return self.folder / f"{arm}-{occasion.round}-{occasion.digest}-{n}"


def stored_in(path: Path | None) -> Aggregate | None:
    """What was put at a place, bit for bit; None: nothing, or it is damaged, and so never used."""
    if path is None or not path.is_file():
        return None
    try:
        content = read_verified(path)
        length = int.from_bytes(content[:8], "little")
        rest = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fedprune"])
        found: Aggregate = put_together(Aggregate, rest, load(content))
    except Exception:  # what is sound and foreign raises what it likes
        return None
    return found


def store(path: Path | None, aggregate: Aggregate) -> None:
    """Put a sum at a place, and take away those of the rounds before, which checkpoints have.

    What was told before round one stays: no checkpoint has it, and every resumption asks for it.
    """
    if path is None:
        return
    arm, round_, *_ = path.name.split("-")
    for older in path.parent.glob(f"{arm}-*"):
        if 0 < int(older.name.split("-")[1]) < int(round_):
            older.unlink()
    tensors: Tensors = {}
    rest = taken_apart(aggregate, Aggregate, tensors)
    write_verified(path, tensor_file(tensors, {"fedprune": json.dumps(rest)}))


def forget(folder: Path) -> None:
    """Take away what a finished run has stored in its folder, but of before round one."""
    for path in (folder / RELEASED_FOLDER).glob("*-*"):
        if int(path.name.split("-")[1]) > 0:
            path.unlink()
    with contextlib.suppress(OSError):  # some are left, or it never was
        (folder / RELEASED_FOLDER).rmdir()

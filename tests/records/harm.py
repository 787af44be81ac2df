"""Files that are no longer as they were written."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def harmed(data: bytes, chance: random.Random) -> bytes:
    """One bit, some bytes less or more, the end cut off, a line twice, or nothing left."""
    hurt, at = bytearray(data), chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            hurt[at] ^= 1 << chance.randrange(8)
        case 1:
            del hurt[at : at + chance.randint(1, 8)]
        case 2:
            hurt[at:at] = chance.randbytes(chance.randint(1, 8))
        case 3:
            del hurt[at:]
        case 4:
            line = data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at) + 1 or None]
            hurt[at:at] = line or b"\n"
        case _:
            hurt.clear()
    return bytes(hurt)


def all_refused(path: Path, check: Callable[[], Any], times: int = 300) -> None:
    """Every one of so many harms to a file is refused by its name; as it was, it is not."""
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(times):
        hurt = harmed(whole, chance)
        if hurt != whole:
            path.write_bytes(hurt)
            with pytest.raises(ValueError, match=path.name):
                check()
    path.write_bytes(whole)
    check()

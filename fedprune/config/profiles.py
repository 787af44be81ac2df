"""Classes of devices: what they can do, how often they are there, and which client is of which.

The fields are those of FedScale's traces (Lai et al. 2022, arXiv 2105.11367, section 3: speed of
computing, of the network, availability), as rates and chances instead of traces.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fedprune.options.refusal import ConfigError
from fedprune.randomness import generator


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices.

    Attributes:
        name: what it is called.
        share: its part of the clients, in relation to the others' shares.
        flops: floating-point operations a second.
        up: bytes a second to the server.
        down: bytes a second from it.
        memory: bytes for training; infinite where the file says none.
        availability: chance to be there in a round.
        dropout: chance not to answer a question that it was asked.
        watts: while it computes, sends and receives.
    """

    name: str
    share: float
    flops: float
    up: float
    down: float
    memory: float = math.inf
    availability: float = 1.0
    dropout: float = 0.0
    watts: float = 0.0


_ALLOWED: Mapping[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("share", "flops", "up", "down"), (lambda x: 0 < x < math.inf, "above 0")),
    "memory": (lambda x: x > 0, "above 0"),
    "availability": (lambda x: 0 < x <= 1, "above 0, up to 1"),
    "dropout": (lambda x: 0 <= x < 1, "from 0 and below 1"),
    "watts": (lambda x: 0 <= x < math.inf, "from 0"),
}
"""What a field may be, and that in words."""


@functools.lru_cache(maxsize=4)
def _read(path: str, _changed: float) -> tuple[DeviceClass, ...]:
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _refused(path, f"cannot be read ({error})", "a TOML file of classes") from None
    if not tables or not all(isinstance(t, dict) for t in tables.values()):
        raise _refused(path, "no classes of devices", "a table for each, such as [phone]")
    return tuple(_profile(path, name, table) for name, table in tables.items())


def profiles_in(path: str) -> tuple[DeviceClass, ...]:
    """The classes of a file: a table for each, with the fields of `DeviceClass`.

    Raises:
        ConfigError: one line that names the class, the key and what is allowed.
    """
    try:
        changed = Path(path).stat().st_mtime
    except OSError as error:
        raise _refused(path, f"cannot be read ({error})", "a TOML file of classes") from None
    return _read(path, changed)


def _refused(path: str, why: str, allowed: str) -> ConfigError:
    return ConfigError(f"profiles={path!r}: {why}; allowed: {allowed}")


def _profile(path: str, name: str, table: Mapping[str, Any]) -> DeviceClass:
    known = [f.name for f in fields(DeviceClass)][1:]
    for key, value in table.items():
        if key not in known:
            raise _refused(path, f"[{name}] {key}: no such field", ", ".join(known))
        fits, words = _ALLOWED[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        huge = isinstance(value, int) and abs(value) > 10**300  # more than a float holds
        if not number or huge or not fits(value):
            raise _refused(path, f"[{name}] {key} = {str(value)[:40]}", f"a number {words}")
    if missing := [key for key in known[:4] if key not in table]:
        raise _refused(path, f"[{name}] has no {missing[0]}", f"{missing[0]} = a number above 0")
    return DeviceClass(name, **{key: float(value) for key, value in table.items()})


def dealt_profiles(
    profiles: Sequence[DeviceClass], clients: int, seed: int
) -> tuple[DeviceClass, ...]:
    """Which client is of which class: shares by largest remainder, places by the seed."""
    whole = sum(p.share for p in profiles)
    wanted = [clients * p.share / whole for p in profiles]
    counts = [math.floor(n) for n in wanted]
    by_rest = sorted(range(len(wanted)), key=lambda i: (counts[i] - wanted[i], i))
    for i in by_rest[: clients - sum(counts)]:
        counts[i] += 1
    in_order = [p for p, n in zip(profiles, counts, strict=True) for _ in range(n)]
    order = torch.randperm(clients, generator=generator(seed, "profiles")).tolist()
    return tuple(in_order[i] for i in order)

"""What a SuperNode's ``--node-config`` says of the device that it is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedprune.config import RunConfig
from fedprune.engines.flower.floors import FLOORS, Floors, check_floors, floors_of
from fedprune.options.refusal import Refused
from fedprune.secagg.register import Register, register_of

KEYS = ("partition-id", "data", "signing-key", "signers", "num-partitions", *FLOORS)
"""What is read, and what Flower's own examples give beside it."""


@dataclass(frozen=True)
class Device:
    """A device: the partitions that it holds, its folder, who is who, if known, and its floors."""

    partitions: tuple[int, ...]
    data: str
    register: Register | None
    floors: Floors = field(default_factory=Floors)


def is_device(given: Mapping[str, Any]) -> bool:
    """Whether a node has data of its own."""
    return "data" in given


def device_of(given: Mapping[str, Any]) -> Device:
    """The device that a node config describes.

    Raises:
        ValueError: a key is unknown, or does not say what it should.
    """
    unknown = next((key for key in given if key not in KEYS), None)
    if unknown is not None:
        what = f"{unknown[:50]}: no such key of --node-config; allowed: {', '.join(KEYS)}"
        raise Refused("node-config", what, told=what)
    partitions, register = partitions_of(given), None
    if not str(given["data"]):
        what = "data='': nothing; allowed: a file or folder"
        raise Refused("data", what, told=what)
    if "signing-key" in given or "signers" in given:
        register = _register(given.get("signing-key"), given.get("signers"), partitions)
    return Device(partitions, str(given["data"]), register, floors_of(given))


@functools.lru_cache(maxsize=8)
def _register(signing_key: Any, signers: Any, partitions: tuple[int, ...]) -> Register:
    return register_of(signing_key, signers, partitions)


def partitions_of(given: Mapping[str, Any]) -> tuple[int, ...]:
    """The partitions that a device holds: its ``partition-id``, a number or several as "3,4,7".

    Raises:
        ValueError: it names none.
    """
    named = given.get("partition-id")
    allowed = 'a number, or several as "3,4", in --node-config'
    words = str(named).split(",")
    if not all(re.fullmatch(" *[0-9]{1,9} *", word) for word in words):
        raise ValueError(f"partition-id={named!r}: no partition; allowed: {allowed}")
    numbers = tuple(map(int, words))
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"partition-id={named!r}: one of them twice; allowed: {allowed}")
    return numbers


def first_partition(given: Mapping[str, Any]) -> int:
    """The partition that a device without data is named by; -1 where it does not say."""
    try:
        return partitions_of(given)[0]
    except ValueError:
        return -1


def check_allowed(config: RunConfig, device: Device) -> None:
    """Refuse a configuration under which a device would answer in the open that must not.

    Raises:
        Refused: it has a register, and sums are not secure; or it does not meet one of its floors.
    """
    check_floors(config, device.floors)
    if device.register is not None and config.secure == "none":
        what = (
            "secure='none': this device has signers, and answers nothing in the "
            "open; allowed: secagg, or no signing-key and signers in --node-config"
        )
        raise Refused("secure", what, told=what)

"""What a SuperNode's ``--node-config`` says of the device that it is, and its floors.

These are what a run must promise before the device answers. Each is a key of its own, and so is the
code under which a run is refused: the owner of the device decides, whatever the server asks. What
the configuration promises is checked here; what was given is counted by
`fedprune.engines.flower.given`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.terms import noised
from fedprune.options.refusal import Refused, refuse, shown
from fedprune.secagg.register import Register, register_of

MOST_DELTA = 1e-5
"""Under ``max-epsilon`` the largest delta: an epsilon of a larger one says less."""


@dataclass(frozen=True)
class Floors:
    """What a device asks of a run.

    Attributes:
        require_secure: sums are secure (``--secure secagg``).
        max_epsilon: the largest budget of a run, and of all that was asked of this data so far.
        min_cohort: the fewest clients in a cohort, in a round that counts and in a secure sum.
        noise: "secret": there is noise, from the operating system.
        max_rounds: the most rounds of a run, and those in which this device ever answers.
        max_bytes: the most bytes that this device ever answers with.
    """

    require_secure: bool = False
    max_epsilon: float | None = None
    min_cohort: int | None = None
    noise: str | None = None
    max_rounds: int | None = None
    max_bytes: int | None = None

    @property
    def counting(self) -> bool:
        """Whether what this device gives has to be written down."""
        return any(x is not None for x in (self.max_epsilon, self.max_rounds, self.max_bytes))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "require-secure": (lambda value: isinstance(value, bool), "true, false"),
    "max-epsilon": (_positive, "a number above 0"),
    "min-cohort": (_whole, "a whole number from 1"),
    "noise": (lambda value: value == "secret", '"secret"'),
    "max-rounds": (_whole, "a whole number from 1"),
    "max-bytes": (_whole, "a whole number from 1"),
}

FLOORS = tuple(_ALLOWED)
"""Their keys in ``--node-config``."""


def floors_of(given: Mapping[str, Any]) -> Floors:
    """The floors in a node config; ConfigError: a value that none can have."""
    for key, (good, allowed) in _ALLOWED.items():
        if key in given and not good(given[key]):
            refuse(key, given[key], "no floor of a device", allowed)
    names = {field.name: field.name.replace("_", "-") for field in fields(Floors)}
    return Floors(**{name: given[key] for name, key in names.items() if key in given})


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
    """What a device holds, its ``partition-id``: a number or several, "3,4,7"; else ValueError."""
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


def below(floor: str, value: Any, why: str, allowed: str) -> Refused:
    """The refusal of a run that does not meet a floor: its code, in words that anyone may read."""
    text = f"{floor}={shown(value)}: {why}; allowed: {allowed}"
    return Refused(floor, text, told=text)


def check_floors(config: RunConfig, floors: Floors) -> None:
    """Refuse, by the first floor, a configuration that does not promise what a device asks for."""
    c = config
    if floors.require_secure and c.secure == "none":
        raise below("require-secure", True, "secure='none'", "--secure secagg")
    if floors.noise == "secret" and not (noised(c) and c.noise_source == "secret"):
        raise below("noise", "secret", "nothing gets secret noise", "--dp or --response")
    if floors.min_cohort is not None:
        _check_cohort(c, floors.min_cohort)
    if floors.max_epsilon is not None:
        _check_epsilon(c, floors.max_epsilon)
    if floors.max_rounds is not None and c.rounds > floors.max_rounds:
        most = floors.max_rounds
        raise below("max-rounds", most, f"rounds={c.rounds}", f"--rounds of at most {most}")


def _check_cohort(c: RunConfig, least: int) -> None:
    sizes = {"cohort": c.cohort, "min-clients": c.min_clients}
    if c.secure != "none":
        sizes["secure-minimum"] = c.secure_minimum or 0
    for key, size in sizes.items():
        if size < least:
            raise below("min-cohort", least, f"{key}={size}", f"--{key} from {least}")


def _check_epsilon(c: RunConfig, most: float) -> None:
    allowed = f"--dp with --epsilon of at most {most:g} and --delta of at most {MOST_DELTA:g}"
    delta = MOST_DELTA if c.delta is None else c.delta
    wrong = {
        "dp='none'": c.dp == "none",
        "no epsilon is given": c.epsilon is None,
        f"epsilon={c.epsilon}": (c.epsilon or 0.0) > most,
        f"delta={delta:g}": delta > MOST_DELTA,
        "allow-uncovered=true": c.allow_uncovered,
    }
    if why := next((text for text, is_so in wrong.items() if is_so), None):
        raise below("max-epsilon", most, why, allowed)

"""Digits that clients hold, and what an observer has of them."""

from functools import cache
from typing import Any

from fedprune.attacks.digits import all_digits, one_each
from fedprune.attacks.exposed import Exposed, MessageProtection, exposed
from fedprune.attacks.scene import Scene, message
from fedprune.tasks.task import Part

FIRST = "features.1.weight"
"""The first layer of the perceptron."""

digits = cache(all_digits)


def images(count: int) -> list[Part]:
    """One digit for each of so many clients."""
    return one_each(digits(), count, 0)


def seen_of(made: Scene, *partitions: int, **protection: Any) -> Exposed:
    """The sum of what these partitions send, or what the first one does."""
    messages = [message(made, p) for p in partitions or (0,)]
    return exposed(made, messages, MessageProtection("", clients=len(messages), **protection))

"""What every host is asked, and how its reply is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedprune.codec.wire import Packet

Said = TypeVar("Said")
"""What a reply says."""


@dataclass(frozen=True)
class Request(Generic[Said]):
    """What every host is asked, and how its reply is read.

    Attributes:
        message_type: Flower's, which names the client's function.
        phase: what a host that fails has failed at.
        packet: what the host of some partitions is sent, with or without what a device has already.
        read: what a reply of the host of some partitions says; raises Refused.
        weight: bytes of a packet that was sent to the host of some partitions, maybe once more.
        alone: bytes of a packet that no other holds.
        most: bytes that the reply of the host of some partitions may have; 0: few.
    """

    message_type: str
    phase: str
    packet: Callable[[list[int], bool], Packet]
    read: Callable[[Packet, list[int]], Said]
    weight: Callable[[Packet, list[int], bool], int]
    alone: Callable[[Packet], int] = lambda _: 0
    most: Callable[[list[int]], int] = lambda _: 0

"""What clients remember, on its way to whoever serves them and back: buffers of a packet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from fedprune.client.memory import ClientMemory, Key, keep_content, kept_content
from fedprune.codec.wire import Packet

log = logging.getLogger("fedprune")

_BUFFER = "remembered "


def enclosed(memory: ClientMemory, of: str, counted: Mapping[int, int]) -> dict[str, bytes]:
    """The buffers that carry what clients remember to whoever serves them.

    `of`: with which question it was kept. `counted`: client to the round of what counts; 0: nothing
    yet.

    What is not there, or damaged, is left out: its client then fails, and is named.
    """
    out = {}
    for partition, at in counted.items():
        try:
            content = kept_content(memory, (of, partition, at))
        except ValueError as error:
            log.error("what client %d remembers: %s", partition, error)
            continue
        if content is not None:
            out[f"{_BUFFER}{partition} {at} {of}"] = content
    return out


def disclosed(packet: Packet) -> ClientMemory:
    """The memory that a packet carries."""
    memory = ClientMemory()
    for key, content in _carried(packet):
        keep_content(memory, key, key[2], content)
    return memory


def returned(memory: ClientMemory, round_: int) -> dict[str, bytes]:
    """The buffers that carry back what was kept in a round."""
    kept = ((k, by_round[round_]) for k, by_round in memory.held.items() if round_ in by_round)
    return {f"{_BUFFER}{p} {round_} {of}": content for (of, p), content in kept}


def take_back(memory: ClientMemory, packet: Packet, counted: Mapping[int, int]) -> None:
    """Keep what a reply carries of those who were asked, by what counted when they were."""
    for key, content in _carried(packet):
        if key[1] in counted:
            keep_content(memory, key, counted[key[1]], content)


def _carried(packet: Packet) -> Iterator[tuple[Key, bytes]]:
    for name, content in packet.buffers.items():
        if name.startswith(_BUFFER):
            partition, at, of = name.removeprefix(_BUFFER).split(" ", 2)
            yield (of, int(partition), int(at)), bytes(content)

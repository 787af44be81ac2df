"""What a device remembers of a secure sum: its seed, until the sum is opened, and what it said.

A worker of a simulation remembers nothing, see `fedprune.secagg.client_stages`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.question_fields import HELD
from fedprune.secagg.messages import Call, StageReply
from fedprune.secagg.packets import call_packet, reply_packet


@dataclass(frozen=True)
class DeviceMemory:
    """Of the newest sum alone.

    Attributes:
        session: its name.
        seed: 32 secret bytes; b"" once the sum was opened.
        asked: a digest of what was answered with a masked vector; b"" before.
        confirmed: a digest of the request to confirm who is in the sum; b"" before.
        opened: a digest of the request to unmask; b"" before.
        about: the reply to it, to be repeated.
        shares: what went along with it.
    """

    session: bytes
    seed: bytes
    asked: bytes = b""
    confirmed: bytes = b""
    opened: bytes = b""
    about: str = ""
    shares: bytes = b""


Serve = Callable[[bytes], StageReply]
"""Serves a stage with a seed."""


def served_once(
    memory: DeviceMemory | None, call: Call, packet: Packet | None, serve: Serve, under: str = ""
) -> tuple[DeviceMemory, Packet]:
    """A stage served by a device, and what it remembers after it.

    What is asked a second time is answered as the first time: the reply was lost. In a session a
    device masks one vector, confirms one set of clients, and opens one sum; the seed is gone after
    that. Flower answers two messages at once in two processes that both see the memory as it was
    before: which of them was first is written down on disk (`_settle`) before anything is sent.
    `under` is a digest of all else that the vector depends on: configuration and data.

    Raises:
        Refused: another session than that of the keys, or a second, different request in it.
    """
    if call.stage == "keys":
        _forget_old()
        known = memory is not None and memory.session == call.session and memory.seed
        memory = memory if known else DeviceMemory(call.session, os.urandom(32))
        assert memory is not None
        return memory, reply_packet(serve(memory.seed))
    if memory is None or memory.session != call.session:
        raise Refused("secure", "a sum that this device showed no keys for, or an earlier one")
    digest = _digest(call, packet, under)
    if call.stage == "unmask":
        return _opened(memory, digest, serve)
    if not memory.seed:
        raise Refused("secure", "the sum is open already")
    if call.stage == "masked":
        _same(memory.asked, digest)
        memory = replace(memory, asked=digest)
    if call.stage == "confirm":
        if not memory.asked:
            raise Refused("secure", "a sum that this device gave nothing to")
        _same(memory.confirmed, digest)
        memory = replace(memory, confirmed=digest)
    reply = reply_packet(serve(memory.seed))
    if call.stage != "shares":
        _settle(memory.seed, call.stage, digest)
    return memory, reply


def _opened(memory: DeviceMemory, digest: bytes, serve: Serve) -> tuple[DeviceMemory, Packet]:
    _same(memory.opened, digest)
    if memory.opened:
        return memory, Packet({"about": memory.about}, {"shares": memory.shares})
    if not memory.confirmed:
        raise Refused("secure", "a sum that this device gave nothing to, or did not confirm")
    reply = reply_packet(serve(memory.seed))
    if "shares" not in reply.buffers:  # it refused, and has said nothing
        return memory, reply
    _settle(memory.seed, "unmask", digest)
    about, shares = str(reply.fields["about"]), bytes(reply["shares"])
    return replace(memory, seed=b"", opened=digest, about=about, shares=shares), reply


def _same(earlier: bytes, digest: bytes) -> None:
    if earlier not in (b"", digest):
        raise Refused("secure", "a second, different request in one session")


def _settle(seed: bytes, stage: str, digest: bytes) -> None:
    """Hold a seed to the first request of a stage, whichever process answers it."""
    name = hashlib.sha256(b"settled|" + stage.encode() + b"|" + seed).hexdigest()
    try:
        link = _folder() / name
        with suppress(FileExistsError):
            link.symlink_to(digest.hex())  # made with what it says, at once, or not at all
        first = os.readlink(link)
    except OSError as error:
        raise Refused("secure", f"what was asked cannot be written down: {error}") from None
    _same(bytes.fromhex(first), digest)


def _folder() -> Path:
    """Where this user's processes write down what was asked first; it holds digests alone."""
    folder = Path(tempfile.gettempdir()) / f"fedprune-settled-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} is somebody else's")
    return folder


def _forget_old() -> None:
    """Take away what is a day older than the newest: no process has its seed any longer."""
    with suppress(OSError):
        folder = _folder()
        newest, looked = folder.stat().st_mtime, folder / "looked"
        # A busy device writes some thousands a day: they are not looked through at every sum.
        if looked.exists() and newest - looked.stat().st_mtime < 3600:
            return
        looked.touch()
        with os.scandir(folder) as links:
            old = [e for e in links if e.stat(follow_symlinks=False).st_mtime < newest - 24 * 3600]
        for link in old:
            Path(link).unlink(missing_ok=True)


def _digest(call: Call, packet: Packet | None, under: str) -> bytes:
    sha = hashlib.sha256()
    said = call_packet(call)
    parts = [under, *map(str, said.fields.values()), *said.buffers]
    data: list[Buffer] = [*said.buffers.values()]
    if packet is not None:
        data += [packet.head, *(packet[n] for n in sorted(packet.buffers) if n not in HELD)]
    for part in [*(text.encode() for text in parts), *data]:
        sha.update(f"{len(part)}|".encode())
        sha.update(part)
    return sha.digest()

"""Which versions of fedprune understand each other: what server and devices say of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.options.refusal import Refused
from fedprune.protocol.failures import plain
from fedprune.runtime.version import RELEASE

PROTOCOL = 1
"""Raised with every change after which messages mean something else, so that versions on both sides
of it refuse each other. Versions of one number go on together; their results may differ."""

OWN_VERSION = {"version": RELEASE, "protocol": PROTOCOL}
"""What each side tells the other when a run begins; in a greeting and the reply to it, whose other
fields are to stay what they are whatever becomes of the protocol."""


def check_same_protocol(said: Mapping[str, Any], who: str, own: str) -> str:
    """The version that another side says it is of.

    Raises:
        Refused: it speaks another protocol, or says nothing of one.
    """
    version, protocol = (plain(str(said.get(key, "unknown")))[:40] for key in OWN_VERSION)
    if protocol != str(PROTOCOL):
        theirs = f"the {who} has fedprune {version} (protocol {protocol})"
        reason = f"{theirs}, this {own} {RELEASE} ({PROTOCOL}); allowed: the same protocol"
        raise Refused("version", reason, told=reason)
    return version

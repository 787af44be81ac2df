"""The neighbours of a client that are still there in a secure sum, and its secrets with each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedprune.options.refusal import Refused
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.keys import Keys, Secrets, keys_of
from fedprune.secagg.primitives import agreed
from fedprune.secagg.terms import Terms

FIELD = "secure"


WORTHLESS = "a neighbour's public key is worthless: every secret with it would be the same"


def present_neighbours(
    seed: bytes, me: int, roster: Mapping[int, Keys], present: Collection[int], terms: Terms
) -> list[int]:
    """The neighbours who are still there, ascending, once roster and number are as they must be."""
    here = frozenset(present)
    if not here <= roster.keys() or not roster.keys() <= terms.points.keys():
        raise Refused(FIELD, "clients without keys, or not among the members")
    if me not in here or roster[me] != keys_of(seed, terms):
        raise Refused(FIELD, "this client's own keys are missing or replaced")
    public = [key for keys in roster.values() for key in vars(keys).values()]
    if len(set(public)) < len(public):
        raise Refused(FIELD, "a key is used twice")
    near = [member for member in neighbours_of(me, terms) if member in here]
    if len(near) < terms.threshold:
        raise Refused(
            FIELD, f"{len(near)} neighbours are left, fewer than the threshold {terms.threshold}"
        )
    return near


def channel_key(secrets: Secrets, keys: Keys, sender: int, receiver: int, bound: bytes) -> bytes:
    """The key of the one message from `sender` to `receiver`; one of them is the caller."""
    try:
        return agreed(secrets.channel, keys.channel, f"shares {sender} to {receiver}", bound)
    except ValueError:
        raise Refused(FIELD, WORTHLESS) from None

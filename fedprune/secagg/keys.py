"""What clients and server both derive: keys, what they are bound to, and the masks.

A client's messages depend on its seed and on what it was told, and on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fedprune.secagg.primitives import agreed, derived, public_of, verifier_of
from fedprune.secagg.terms import Terms
from fedprune.tasks.options import Data

KEY = 32

_SIGNATURES = (0, 64, 96, 132)
"""Bytes of a signature beside keys: none, or by the kind of key (`fedprune.secagg.register`)."""


@dataclass(frozen=True)
class Keys:
    """What a client shows to everyone.

    Attributes:
        channel: X25519 public key under which shares reach it.
        masking: X25519 public key from which its masks with neighbours come.
        own: commitment to the seed of its own mask, so that a wrong one is noticed.
        signing: Ed25519 public key of what it confirms.
    """

    channel: bytes
    masking: bytes
    own: bytes
    signing: bytes

    @property
    def as_bytes(self) -> bytes:
        """128 bytes."""
        return self.channel + self.masking + self.own + self.signing

    @classmethod
    def from_bytes(cls, data: bytes) -> Keys:
        """The reverse; ValueError if they are not 128 bytes."""
        if len(data) != 4 * KEY:
            raise ValueError(f"keys of a secure sum have {4 * KEY} bytes, not {len(data)}")
        return cls(*(data[at : at + KEY] for at in range(0, 4 * KEY, KEY)))


def keys_and_signature(shown: bytes) -> tuple[Keys, bytes]:
    """The keys that a client shows, and the signature that follows them; b"" where there is none.

    Raises:
        ValueError: they have another size.
    """
    keys, signature = shown[: 4 * KEY], shown[4 * KEY :]
    if len(signature) not in _SIGNATURES:
        raise ValueError(f"a signature beside keys has no {len(signature)} bytes")
    return Keys.from_bytes(keys), signature


@dataclass(frozen=True)
class Secrets:
    """What a client derives from its seed for one sum and shows to nobody.

    Attributes:
        channel: X25519 private key.
        masking: X25519 private key; shared among the neighbours in case the client drops out.
        own: seed of its own mask; shared among them in case it does not.
        signing: Ed25519 private key.
    """

    channel: bytes
    masking: bytes
    own: bytes
    signing: bytes


def secrets_of(seed: bytes, terms: Terms) -> Secrets:
    """The secrets of a client with this seed of 32 bytes; other terms give unrelated ones."""
    if len(seed) != KEY:
        raise ValueError(f"a client's seed has {KEY} bytes, not {len(seed)}")
    names = ("channel", "masking", "own", "signing")
    return Secrets(*(derived(seed, f"secret {name}", terms.binding) for name in names))


def keys_of(seed: bytes, terms: Terms) -> Keys:
    """What a client with this seed shows to everyone: the stage "keys"."""
    secrets = secrets_of(seed, terms)
    return Keys(
        public_of(secrets.channel),
        public_of(secrets.masking),
        commitment(secrets.own, terms),
        verifier_of(secrets.signing),
    )


def commitment(own: bytes, terms: Terms) -> bytes:
    """What tells that this is the seed of a client's own mask, and does not tell the seed."""
    return derived(own, "commitment", terms.binding)


def roster_binding(roster: Mapping[int, Keys], terms: Terms) -> bytes:
    """A digest of terms and everyone's keys: who was shown other keys can decrypt nothing."""
    digest = hashlib.sha256(terms.binding)
    for member in sorted(roster):
        digest.update(f"|{member}|".encode() + roster[member].as_bytes)
    return digest.digest()


def mask_context(roster: Mapping[int, Keys], shared: Collection[int], terms: Terms) -> bytes:
    """What masks are bound to: with other keys or others who share, they are unrelated."""
    text = "|".join(map(str, sorted(shared)))
    return hashlib.sha256(roster_binding(roster, terms) + text.encode()).digest()


def included(
    roster: Mapping[int, Keys], shared: Collection[int], summed: Collection[int], terms: Terms
) -> bytes:
    """A digest of who is in the sum, and of all that was said before: what clients confirm."""
    text = "in the sum|" + "|".join(map(str, sorted(summed)))
    return hashlib.sha256(mask_context(roster, shared, terms) + text.encode()).digest()


def own_mask(own: bytes, context: bytes) -> bytes:
    """The key of a client's own mask: PRG(b) of Bonawitz et al., figure 4, round 2."""
    return derived(own, "own mask", context)


def pair_mask(private: bytes, public: bytes, one: int, other: int, context: bytes) -> bytes:
    """The key of the mask that two neighbours have in common; the lower member adds it."""
    return agreed(private, public, f"pair mask {min(one, other)} {max(one, other)}", context)


def tag(member: int, terms: Terms) -> int:
    """What a member adds in the last coordinate: who is in a sum shows in the sum of tags.

    It protects from mistakes (a vector twice, one missing, masks that do not cancel), as everyone
    can compute it; not from who wants to cheat.
    """
    text = terms.binding + b"tag" + str(member).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[: terms.bits // 8], "little")


Seeds = Callable[[int], bytes]
"""A partition's 32 secret bytes for one sum: the same in all of its stages."""


def seeds_of(config: Data, session: bytes) -> Seeds:
    """Seeds that follow from the configuration's: to study, not to hide."""

    def seed(partition: int) -> bytes:
        text = f"{config.seed}|secure|{session.hex()}|{partition}"
        return hashlib.sha256(text.encode()).digest()

    return seed


def seeds_from(secret: bytes, session: bytes) -> Seeds:
    """Seeds that follow from a device's secret for one sum: one for each of its partitions."""
    return lambda partition: derived(secret, f"partition {partition}", session)

"""Who a client is: keys of SuperNodes that a device knows from elsewhere than its server.

A device signs what it shows for a sum with the key of its SuperNode, and computes with nobody whose
keys are not signed so (Bonawitz et al., eprint 2017/281, figure 4, rounds 0 and 1: the public-key
infrastructure of its active adversary). The key with which a client confirms who is in the sum is
among what is signed, so that this is its SuperNode's word too. Whoever stands between cannot make
up a client, put one in another's place, or show keys of another sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fedprune.options.refusal import Refused
from fedprune.secagg.key_files import (
    hash_of_curve,
    key_file,
    private_key,
    raw_key,
    refuse_key,
    signers_in,
)
from fedprune.secagg.keys import Keys, keys_and_signature
from fedprune.secagg.terms import Terms

if TYPE_CHECKING:
    from fedprune.secagg.key_files import Private, Public

UNSIGNED = "keys that are not signed by who is in this device's signers: "
"""How a device begins to say whose keys it does not compute with."""

_MOST_NAMED = 8
"""Clients that one refusal names."""


@dataclass(frozen=True)
class Register:
    """What a device signs with, its SuperNode's private key, and what it knows of everyone.

    That is, by partition, the public key of the SuperNode that holds it.
    """

    own: Private
    signers: Mapping[int, Public]


def register_of(signing_key: Any, signers: Any, partitions: Sequence[int]) -> Register:
    """The register of a device, from two files that its node config names.

    Args:
        signing_key: path of a private key without a passphrase, OpenSSH or PEM.
        signers: path of OpenSSH public keys, one a line, each with the partitions of its SuperNode
            as comment: ``ecdsa-sha2-nistp384 AAAA... 3`` or ``... 3,4``. Empty lines and those that
            begin with # are left out.
        partitions: the device's own.

    Raises:
        Refused: one of the files is not given, cannot be read, or holds something else; a partition
            is there twice; or one of the device's own is lacking or of another key. One line that
            may be told: it holds nothing of the files.
    """
    if find_spec("cryptography") is None:
        refuse_key(
            "signing-key", "cryptography is not installed", "pip install 'fedprune[privacy]'"
        )
    own = private_key(key_file("signing-key", signing_key, "signers"))
    known = signers_in(key_file("signers", signers, "signing-key"))
    for partition in partitions:
        if partition not in known:
            refuse_key("signers", f"no line for partition {partition}", "a line for each client")
        if raw_key(known[partition]) != raw_key(own.public_key()):
            refuse_key(
                "signers",
                f"the line of partition {partition} is of another key than signing-key",
                "the public key of signing-key, as ssh-keygen -y prints it",
            )
    return Register(own, known)


def vouched(register: Register, member: int, keys: Keys, terms: Terms) -> bytes:
    """What a device shows of one of its partitions: its keys, and the SuperNode's signature.

    The signature has 64, 96 or 132 bytes by the kind of its key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    message, own = _message(member, keys, terms), register.own
    if not isinstance(own, ec.EllipticCurvePrivateKey):
        return keys.as_bytes + own.sign(message)
    size = (own.key_size + 7) // 8
    pair = decode_dss_signature(own.sign(message, ec.ECDSA(hash_of_curve(own.curve.name))))
    return keys.as_bytes + b"".join(number.to_bytes(size, "big") for number in pair)


def check_vouched(register: Register, shown: Mapping[int, bytes], terms: Terms) -> None:
    """Refuse a roster in which anybody's keys are not signed by who the register says it is.

    Raises:
        Refused: whose, and why; its words say nothing of data.
    """
    wrong = {p: why for p in sorted(shown) if (why := _wrong(register, p, shown[p], terms))}
    if wrong:
        named = [f"client {p} ({why})" for p, why in wrong.items()]
        more = [f"{len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
        text = UNSIGNED + ", ".join(named[:_MOST_NAMED] + more)
        raise Refused("secure", text, told=text)


def _wrong(register: Register, member: int, shown: bytes, terms: Terms) -> str:
    keys, signature = keys_and_signature(shown)
    if member not in register.signers:
        return "not in them"
    if not signature:
        return "no signature"
    right = _verified(register.signers[member], signature, _message(member, keys, terms))
    return "" if right else "wrong signature"


def _verified(key: Public, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message)
            return True
        size = (key.key_size + 7) // 8
        if len(signature) != 2 * size:
            return False
        pair = (int.from_bytes(part, "big") for part in (signature[:size], signature[size:]))
        key.verify(encode_dss_signature(*pair), message, ec.ECDSA(hash_of_curve(key.curve.name)))
    except InvalidSignature:
        return False
    return True


def _message(member: int, keys: Keys, terms: Terms) -> bytes:
    """What is signed: it begins as nothing does that Flower signs with the same key."""
    return f"fedprune secagg+ 1 keys|{member}|".encode() + terms.binding + keys.as_bytes

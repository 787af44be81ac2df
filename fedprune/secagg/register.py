"""Who a client is: keys of SuperNodes that a device knows from elsewhere than its server.

A device signs what it shows for a sum with the key of its SuperNode, and computes with nobody whose
keys are not signed so (Bonawitz et al., eprint 2017/281, figure 4, rounds 0 and 1: the public-key
infrastructure of its active adversary). The key with which a client confirms who is in the sum is
among what is signed, so that this is its SuperNode's word too. Whoever stands between cannot make
up a client, put one in another's place, or show keys of another sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedprune.options.refusal import Refused
from fedprune.secagg.keys import Keys, keys_and_signature
from fedprune.secagg.terms import Terms

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    Private = EllipticCurvePrivateKey | Ed25519PrivateKey
    Public = EllipticCurvePublicKey | Ed25519PublicKey

UNSIGNED = "keys that are not signed by who is in this device's signers: "
"""How a device begins to say whose keys it does not compute with."""

_KINDS = "ECDSA on P-256, P-384 or P-521, or Ed25519"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves of OpenSSH, which `flower-supernode` takes, and the hash of each."""

_LONGEST = 2**24
"""Bytes that a file of keys may have: about 100,000 devices."""

_MOST_NAMED = 8
"""Clients that one refusal names."""


@dataclass(frozen=True)
class Register:
    """What a device signs with, and what it knows of everyone.

    Attributes:
        own: its SuperNode's private key.
        signers: partition to the public key of the SuperNode that holds it.
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
        _refuse("signing-key", "cryptography is not installed", "pip install 'fedprune[privacy]'")
    own = _private(_read("signing-key", signing_key, "signers"))
    known = _signers(_read("signers", signers, "signing-key"))
    for partition in partitions:
        if partition not in known:
            _refuse("signers", f"no line for partition {partition}", "a line for each client")
        if _raw(known[partition]) != _raw(own.public_key()):
            _refuse(
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
    pair = decode_dss_signature(own.sign(message, ec.ECDSA(_hash(own.curve.name))))
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
        key.verify(encode_dss_signature(*pair), message, ec.ECDSA(_hash(key.curve.name)))
    except InvalidSignature:
        return False
    return True


def _message(member: int, keys: Keys, terms: Terms) -> bytes:
    """What is signed: it begins as nothing does that Flower signs with the same key."""
    return f"fedprune secagg+ 1 keys|{member}|".encode() + terms.binding + keys.as_bytes


def _hash(curve: str) -> Any:
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, _CURVES[curve])()


def _read(key: str, path: Any, other: str) -> bytes:
    if path is None:
        _refuse(key, f"not given, while {other} is", "both of them, or neither")
    if not isinstance(path, str) or not path:
        _refuse(key, "no path", f'a path in double quotes, {key}="/keys/..."')
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or "not a path"
        _refuse(key, f"cannot be read ({why})", "a file that the SuperNode's user can read")
    if len(data) > _LONGEST:
        _refuse(key, f"longer than {_LONGEST:,} bytes", "a file of keys")
    return data


def _private(data: bytes) -> Private:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_ssh_private_key,
    )

    ssh = data.lstrip().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    key, locked = None, False
    try:
        key = (load_ssh_private_key if ssh else load_pem_private_key)(data, None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        locked = "password" in str(error).lower()
    if locked:
        _refuse("signing-key", "it has a passphrase", "a private key without one")
    if not _signs(key):
        _refuse("signing-key", "no private key of a kind that signs here", _KINDS)
    return key  # type: ignore[return-value]  # `_signs` looked


def _signs(key: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey)


def _signers(data: bytes) -> dict[int, Public]:
    known: dict[int, Public] = {}
    at: dict[int, int] = {}
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        _refuse("signers", "no text", "OpenSSH public keys, one a line")
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        key, partitions = _signer(line, number)
        for partition in partitions:
            if partition in at:
                what = f"partition {partition} is in line {at[partition]} and in line {number}"
                _refuse("signers", what, "one key for each partition")
            known[partition], at[partition] = key, number
    return known


def _signer(line: str, number: int) -> tuple[Public, list[int]]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not _signs(key):
        _refuse("signers", f"line {number} is no public key that counts", f"OpenSSH, {_KINDS}")
    comment = "".join(line.split()[2:])
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", comment):
        _refuse("signers", f"line {number} names no partition", "a number, or 3,4, as its comment")
    return key, [int(p) for p in comment.split(",")]  # type: ignore[return-value]


def _raw(key: Public) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _refuse(key: str, what: str, allowed: str) -> NoReturn:
    text = f"{key}: {what}; allowed: {allowed}"
    raise Refused(key, text, told=text)

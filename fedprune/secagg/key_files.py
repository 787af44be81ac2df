"""Keys of devices as files: a private key, and who signs for which partitions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedprune.options.refusal import Refused

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


_KINDS = "ECDSA on P-256, P-384 or P-521, or Ed25519"

_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves of OpenSSH, which `flower-supernode` takes, and the hash of each."""

_LONGEST = 2**24
"""Bytes that a file of keys may have: about 100,000 devices."""


def key_file(key: str, path: Any, other: str) -> bytes:
    """The bytes of a file that a device names."""
    if path is None:
        refuse_key(key, f"not given, while {other} is", "both of them, or neither")
    if not isinstance(path, str) or not path:
        refuse_key(key, "no path", f'a path in double quotes, {key}="/keys/..."')
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or "not a path"
        refuse_key(key, f"cannot be read ({why})", "a file that the SuperNode's user can read")
    if len(data) > _LONGEST:
        refuse_key(key, f"longer than {_LONGEST:,} bytes", "a file of keys")
    return data


def private_key(data: bytes) -> Private:
    """The private key that a file holds."""
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
        refuse_key("signing-key", "it has a passphrase", "a private key without one")
    if not _signs(key):
        refuse_key("signing-key", "no private key of a kind that signs here", _KINDS)
    return key  # type: ignore[return-value]  # `_signs` looked


def _signs(key: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey)


def signers_in(data: bytes) -> dict[int, Public]:
    """Who signs for each partition: OpenSSH public keys, one a line."""
    known: dict[int, Public] = {}
    at: dict[int, int] = {}
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        refuse_key("signers", "no text", "OpenSSH public keys, one a line")
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        key, partitions = _signer(line, number)
        for partition in partitions:
            if partition in at:
                what = f"partition {partition} is in line {at[partition]} and in line {number}"
                refuse_key("signers", what, "one key for each partition")
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
        refuse_key("signers", f"line {number} is no public key that counts", f"OpenSSH, {_KINDS}")
    comment = "".join(line.split()[2:])
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", comment):
        refuse_key(
            "signers", f"line {number} names no partition", "a number, or 3,4, as its comment"
        )
    return key, [int(p) for p in comment.split(",")]  # type: ignore[return-value]


def raw_key(key: Public) -> bytes:
    """A public key as bytes that are the same however it was written."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def refuse_key(key: str, what: str, allowed: str) -> NoReturn:
    """Refuse a key of a device, with what is allowed."""
    text = f"{key}: {what}; allowed: {allowed}"
    raise Refused(key, text, told=text)


def hash_of_curve(curve: str) -> Any:
    """The hash with which keys on a curve sign."""
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, _CURVES[curve])()

"""The cryptography that secure sums use, all of it from the package `cryptography`.

Keys here are 32 bytes. Nothing is random: a party's secrets are all derived from its seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedprune.secagg.fixed_point import Ring

_NO_NONCE = bytes(12)
"""Each key below serves one message or one stream, so the nonce need not differ."""

TAG = 16
"""Bytes by which what is sealed is longer."""

_BLOCK = 2**16
"""Coordinates that are masked at a time: they stay in the processor's cache."""


def derived(secret: bytes, label: str, context: bytes) -> bytes:
    """A key for one purpose in one context: HKDF-SHA256 (RFC 5869), the context as salt."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, context, b"fedprune secagg+ " + label.encode()).derive(secret)


def public_of(private: bytes) -> bytes:
    """The public key of an X25519 private key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, label: str, context: bytes) -> bytes:
    """The key that two parties share, for one purpose: X25519 (RFC 7748), then HKDF.

    Raises:
        ValueError: if `public` is a point of low order, which would make the key a constant.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    own = X25519PrivateKey.from_private_bytes(private)
    return derived(own.exchange(X25519PublicKey.from_public_bytes(public)), label, context)


def verifier_of(private: bytes) -> bytes:
    """The public key of an Ed25519 private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def signed(private: bytes, message: bytes) -> bytes:
    """A signature of 64 bytes: Ed25519 (RFC 8032)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether who has the private key of `public` signed the message."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sealed(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """`plain` encrypted and, with `bound`, authenticated: ChaCha20-Poly1305 (RFC 8439)."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, plain, bound)


def unsealed(key: bytes, cipher: bytes, bound: bytes) -> bytes | None:
    """What was sealed; None if the key, a byte or what it was bound to differs."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(_NO_NONCE, cipher, bound)
    except InvalidTag:
        return None


def _key_stream(key: bytes) -> Any:
    """The ChaCha20 key stream of a 256-bit key."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    return Cipher(ChaCha20(key, bytes(16)), None).encryptor()


def stream(key: bytes, size: int) -> bytes:
    """The first bytes of the ChaCha20 key stream of a 256-bit key."""
    return bytes(_key_stream(key).update(bytes(size)))


def mask(vector: Ring, key: bytes, *, add: bool) -> None:
    """Add the key's stream to `vector` in its ring, or take it away, in place.

    The stream is made block by block, so it takes no memory to speak of.
    """
    cipher = _key_stream(key)
    apply = np.add if add else np.subtract
    zeros, buffer = bytes(_BLOCK * vector.itemsize), bytearray(_BLOCK * vector.itemsize)
    little = vector.dtype.newbyteorder("<")
    for first in range(0, len(vector), _BLOCK):
        part = vector[first : first + _BLOCK]
        cipher.update_into(memoryview(zeros)[: part.nbytes], buffer)
        apply(part, np.frombuffer(buffer, little, len(part)), out=part)

"""Key files of SuperNodes, as `ssh-keygen` and OpenSSL write them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

MADE = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def written(key: Any, path: Path, *, pem: bool = False) -> str:
    """Write a private key, and give back its path."""
    form = forms.PrivateFormat.PKCS8 if pem else forms.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(forms.Encoding.PEM, form, forms.NoEncryption()))
    return str(path)


def line(key: Any, comment: object) -> str:
    """A line of a file of signers."""
    raw = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    return f"{raw.decode()} {comment}"


def signed_up(folder: Path, partitions: Iterable[int], kind: str = "P-256") -> dict[int, Any]:
    """A key for each partition, in files of their numbers, and all of them in `signers`."""
    keys = {p: MADE[kind]() for p in partitions}
    for p, key in keys.items():
        written(key, folder / f"{p}.key")
    text = "\n".join(line(key, p) for p, key in keys.items())
    (folder / "signers").write_text(f"# everyone\n\n{text}\n")
    return keys

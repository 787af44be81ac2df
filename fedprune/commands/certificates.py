"""``fedprune devices certificates``: an authority, a server's certificate, keys of devices."""

from __future__ import annotations

import ipaddress
import re
import shlex
import subprocess
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedprune.options.refusal import ConfigError

AUTHORITY, SERVER = "ca", "server"  # Names of files without their endings

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes")
_AUTHORITY_DAYS = 3650

_OF_A_SERVER = """\
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


def make_certificates(given: Namespace) -> int:
    """Make what was asked for and is not there; the server's certificate anew each time."""
    folder, names = Path(given.folder), [n for n in given.names.split(",") if n]
    keys = [k for k in given.keys.split(",") if k]
    if not names and not keys:
        raise ConfigError("names: nothing asked for; allowed: --names A,B, --keys P,Q, or both")
    for i, key in enumerate(keys):
        if not re.fullmatch("0|[1-9][0-9]{0,8}", key) or key in keys[:i]:
            raise ConfigError(f"keys={given.keys!r}: no partitions; allowed: numbers, as 0,1,2")
        if (folder / key).exists():
            raise ConfigError(f"keys={key!r}: {folder / key} is there; allowed: another folder")
    alternatives = ",".join(map(_alternative, names))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"folder={str(folder)!r}: a file is there; allowed: a folder") from None
    if names:
        _server(folder, names[0], alternatives, given.days)
    for key in keys:
        made = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", key]
        _do([*made, "-f", str(folder / key)])
    return 0


def _server(folder: Path, name: str, alternatives: str, days: int) -> None:
    at = {end: str(folder / f"{AUTHORITY}.{end}") for end in ("key", "crt")}
    own = {end: str(folder / f"{SERVER}.{end}") for end in ("key", "crt", "csr", "ext")}
    if not Path(at["key"]).is_file():
        put = ["-keyout", at["key"], "-out", at["crt"], "-days", str(_AUTHORITY_DAYS)]
        may = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _do(["openssl", "req", "-x509", *_CURVE, *put, "-subj", "/CN=fedprune devices", *may])
    put = ["-keyout", own["key"], "-out", own["csr"], "-subj", f"/CN={name[:64]}"]
    _do(["openssl", "req", *_CURVE, *put])
    extensions = f"subjectAltName={alternatives}\n{_OF_A_SERVER}"
    print(f"{own['ext']}:\n{extensions}", end="")
    Path(own["ext"]).write_text(extensions)
    signer = ["-CA", at["crt"], "-CAkey", at["key"], "-CAcreateserial", "-extfile", own["ext"]]
    signed = ["openssl", "x509", "-req", "-in", own["csr"], *signer]
    _do([*signed, "-days", str(days), "-out", own["crt"]])
    for end in ("csr", "ext"):
        Path(own[end]).unlink()
    for key in (at["key"], own["key"]):
        Path(key).chmod(0o600)


def _alternative(name: str) -> str:
    """A name or an address as a certificate has it."""
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        pass
    if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*", name):
        allowed = "as server.example,192.0.2.7"
        raise ConfigError(f"names={name!r}: no name or address of a machine; allowed: {allowed}")
    return f"DNS:{name}"


def check_there(folder: Path, names: Sequence[str], how: str) -> list[str]:
    """The absolute paths of files of a folder."""
    for name in names:
        if not (folder / name).is_file():
            allowed = f"fedprune devices certificates {folder} {how}"
            raise ConfigError(f"folder={str(folder)!r}: no {name} there; allowed: {allowed}")
    return [str((folder / name).resolve()) for name in names]


def show(command: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
    """Print a command as one types it."""
    before = [f"{key}={shlex.quote(value)}" for key, value in (settings or {}).items()]
    print("$ " + " ".join([*before, shlex.join(command)]), flush=True)


def _do(command: Sequence[str]) -> None:
    """Print a command and run it."""
    show(command)
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError(f"{command[0]}: no such program; allowed: install it") from None
    if done.returncode:
        what = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ConfigError(f"{command[0]}: {what}; allowed: the command above, by hand")

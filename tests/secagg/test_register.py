"""Devices that know each other's keys compute with nobody else, whatever the server shows them."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import dsa, ec

from fedprune.options.refusal import Refused
from fedprune.secagg.client_stages import serve_call
from fedprune.secagg.keys import KEY, keys_and_signature, keys_of
from fedprune.secagg.messages import Call
from fedprune.secagg.register import Register, register_of, vouched
from fedprune.secagg.rehearsal import rehearse
from fedprune.secagg.terms import Terms, terms_of
from tests.runs import tiny
from tests.secagg.signers import MADE, line, signed_up, written

MEMBERS = tuple(range(5))


def seed(member: int, of: str = "") -> bytes:
    return hashlib.sha256(f"{of}{member}".encode()).digest()


@pytest.fixture(scope="module")
def registers(tmp_path_factory: pytest.TempPathFactory) -> list[Register]:
    """Of five devices; the last one's key is an Ed25519 one."""
    folder = tmp_path_factory.mktemp("keys")
    keys = signed_up(folder, MEMBERS) | {4: MADE["Ed25519"]()}
    written(keys[4], folder / "4.key")
    (folder / "signers").write_text("\n".join(line(k, p) for p, k in keys.items()))
    return [register_of(str(folder / f"{p}.key"), str(folder / "signers"), [p]) for p in MEMBERS]


@pytest.fixture
def host() -> Any:
    return SimpleNamespace(config=tiny(secure="secagg", secure_minimum=2))


def roster_of(registers: list[Register], terms: Terms) -> dict[int, bytes]:
    return {p: vouched(registers[p], p, keys_of(seed(p), terms), terms) for p in terms.members}


def made_up(member: int, terms: Terms) -> bytes:
    return keys_of(seed(member, "server"), terms).as_bytes


class Seen(NamedTuple):
    """What a lying server has at hand: keys of this sum, of an earlier one, the terms."""

    true: dict[int, bytes]
    old: dict[int, bytes]
    terms: Terms


Lie = Callable[[Seen], dict[int, bytes]]
LIES: dict[str, tuple[Lie, str]] = {
    "one key replaced": (
        lambda s: {2: made_up(2, s.terms) + keys_and_signature(s.true[2])[1]},
        r"client 2 \(wrong signature\)$",
    ),
    "one bit of a masking key": (
        lambda s: {2: s.true[2][:KEY] + bytes([s.true[2][KEY] ^ 1]) + s.true[2][KEY + 1 :]},
        r"client 2 \(wrong signature\)$",
    ),
    "everyone else made up": (
        lambda s: {p: made_up(p, s.terms) for p in MEMBERS if p},
        r"client 1 \(no signature\), .*client 4 \(no signature\)$",
    ),
    "two partitions swapped": (
        lambda s: {2: s.true[3], 3: s.true[2]},
        r"client 2 \(wrong signature\), client 3 \(wrong signature\)$",
    ),
    "keys and signatures of another session": (
        lambda s: {p: s.old[p] for p in MEMBERS if p},
        r"client 1 \(wrong signature\), .*client 4 \(wrong signature\)$",
    ),
    "keys of this and signatures of another session": (
        lambda s: {3: keys_and_signature(s.true[3])[0].as_bytes + keys_and_signature(s.old[3])[1]},
        r"client 3 \(wrong signature\)$",
    ),
    "one's own signature beside made up keys": (
        lambda s: {2: made_up(2, s.terms) + keys_and_signature(s.true[0])[1]},
        r"client 2 \(wrong signature\)$",
    ),
    "a signature of another size": (
        lambda s: {2: s.true[2] + bytes(32)},
        r"client 2 \(wrong signature\)$",
    ),
    "zeros for a signature": (
        lambda s: {p: made_up(p, s.terms) + bytes(64) for p in (2, 4)},
        r"client 2 \(wrong signature\), client 4 \(wrong signature\)$",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_about_keys_gets_nothing(registers, host, lie):
    bend, words = LIES[lie]
    now, before = (terms_of(host.config, session, MEMBERS) for session in (b"now", b"before"))
    seen = Seen(roster_of(registers, now), roster_of(registers, before), now)
    roster = seen.true | bend(seen)
    for stage in ("shares", "masked", "confirm", "unmask"):
        call = Call(stage, b"now", MEMBERS, roster, frozenset(MEMBERS), frozenset(MEMBERS))
        with pytest.raises(Refused, match=words) as error:
            serve_call(host, call, [0], seed, register=registers[0])
        assert error.value.told == str(error.value)


def test_a_client_that_nobody_registered_is_named(registers, host):
    terms = terms_of(host.config, b"s", (0, 1, 7))
    call = Call("shares", b"s", terms.members, roster_of([*registers, *registers], terms))
    with pytest.raises(Refused, match=r"client 7 \(not in them\)$"):
        serve_call(host, call, [0], seed, register=registers[0])


def test_without_a_register_who_makes_up_the_others_opens_a_vector_and_with_one_it_does_not(
    registers, host
):
    """What a register is for: the server plays all but client 0, and keeps to the protocol."""
    terms = terms_of(host.config, b"s", MEMBERS)
    secret = np.arange(7, dtype=np.uint64) * np.uint64(2**60 + 3)
    vectors = dict.fromkeys(MEMBERS, np.zeros(7, np.uint64)) | {0: secret}
    seeds = {p: seed(p, "" if p == 0 else "server") for p in MEMBERS}
    assert rehearse(seeds, vectors, terms, {}).total.tolist() == secret.tolist()
    own = vouched(registers[0], 0, keys_of(seed(0), terms), terms)
    call = Call("shares", b"s", MEMBERS, {p: made_up(p, terms) for p in MEMBERS} | {0: own})
    assert serve_call(host, call, [0], seed).shares[0]
    with pytest.raises(Refused, match="client 1"):
        serve_call(host, call, [0], seed, register=registers[0])


def test_who_keeps_to_it_is_heard_and_the_rest_of_what_is_said_stays(registers, host):
    call = Call("keys", b"s", MEMBERS)
    shown = {p: serve_call(host, call, [p], seed, register=registers[p]).keys[p] for p in MEMBERS}
    bare = {p: serve_call(host, call, [p], seed).keys[p] for p in MEMBERS}
    assert {p: k[:128] for p, k in shown.items()} == bare
    assert {len(k) for k in shown.values()} == {128 + 64}
    signed, plain = (replace(call, stage="shares", roster=r) for r in (shown, bare))
    for p in MEMBERS:
        found = serve_call(host, signed, [p], seed, register=registers[p])
        assert found == serve_call(host, plain, [p], seed)
        assert found.failures == ()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_what_ssh_keygen_writes_is_read(tmp_path):
    """The command of docs/devices.md; with a passphrase it would wait for somebody to type it."""
    for name, phrase in (("open", ""), ("locked", "five5")):
        made = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-C", "3"]
        subprocess.run([*made, "-N", phrase, "-f", name], cwd=tmp_path, check=True)
    signers = str(tmp_path / "open.pub")
    assert sorted(register_of(str(tmp_path / "open"), signers, [3]).signers) == [3]
    refused("signing-key: it has a passphrase", str(tmp_path / "locked"), signers, tmp_path)


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_key_signs_at_one_length(tmp_path, kind):
    keys, terms = signed_up(tmp_path, (0, 1, 2), kind), Terms(b"s", (0, 1, 2), 2, 2, 64)
    path = written(keys[1], tmp_path / "pem", pem=True)
    register = register_of(path, str(tmp_path / "signers"), [1])
    sizes = {len(vouched(register, 1, keys_of(seed(p), terms), terms)) for p in range(40)}
    assert sizes == {128 + {"P-384": 96, "P-521": 132}.get(kind, 64)}
    keys_and_signature(vouched(register, 1, keys_of(seed(1), terms), terms))


def test_a_site_signs_for_all_of_its_partitions(tmp_path):
    key = MADE["P-384"]()
    text = "\r\n".join(["\ufeff# a site", line(key, "3, 4"), line(MADE["P-256"](), 5)])
    (tmp_path / "signers").write_text(text, encoding="utf-8")
    path = written(key, tmp_path / "key")
    register = register_of(path, str(tmp_path / "signers"), [3, 4])
    assert sorted(register.signers) == [3, 4, 5]
    with pytest.raises(Refused, match="the line of partition 5 is of another key"):
        register_of(path, str(tmp_path / "signers"), [4, 5])


def pem(key: Any, locked: bool = False) -> bytes:
    how = forms.BestAvailableEncryption(b"x") if locked else forms.NoEncryption()
    found: bytes = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, how)
    return found


ONE, TWO = MADE["P-256"](), MADE["P-384"]()
NO_KIND = "signing-key: no private key of a kind"
WRONG_KEYS: dict[str, tuple[Any, str]] = {
    "none": (None, "signing-key: not given, while signers is; allowed: both of them, or neither"),
    "a number": (5, "signing-key: no path; allowed: a path in double quotes"),
    "no words": ("", "signing-key: no path"),
    "a folder": (".", r"signing-key: cannot be read \(Is a directory\)"),
    "nothing": ("none", r"signing-key: cannot be read \(No such file or directory\)"),
    "no name of a file": ("a\0b", "signing-key: cannot be read"),
    "an empty file": (b"", f"{NO_KIND} that signs here; allowed: ECDSA"),
    "bytes": (bytes(range(256)), "signing-key: no private key"),
    "the public key": (line(ONE, 0).encode(), "signing-key: no private key"),
    "a passphrase": (pem(ONE, locked=True), "signing-key: it has a passphrase"),
    "another curve": (pem(ec.generate_private_key(ec.SECP256K1())), NO_KIND),
    "DSA": (pem(dsa.generate_private_key(1024)), NO_KIND),
    "somebody else's": (pem(TWO), "signers: the line of partition 0 is of another key than"),
}
WRONG_SIGNERS: dict[str, tuple[Any, str]] = {
    "none": (None, "signers: not given, while signing-key is; allowed: both of them, or neither"),
    "nothing": ("none", r"signers: cannot be read \(No such file"),
    "an empty file": (b"", "signers: no line for partition 0; allowed: a line for each client"),
    "all but one's own": (line(TWO, 1), "signers: no line for partition 0"),
    "twice": ([line(ONE, 0), line(TWO, 1), line(TWO, 0)], "partition 0 is in line 1 and in line 3"),
    "twice in a line": (line(ONE, "0,1,0"), "partition 0 is in line 1 and in line 1"),
    "no comment": (line(ONE, ""), "line 1 names no partition; allowed: a number, or 3,4"),
    "who and where": ([line(ONE, 0), line(TWO, "me@here")], "line 2 names no partition"),
    "a sign": (line(ONE, "-1"), "line 1 names no partition"),
    "digits of another script": (line(ONE, "\u0663"), "line 1 names no partition"),
    "a number without end": (line(ONE, "9" * 5000), "line 1 names no partition"),
    "a private key": (pem(ONE), "line 1 is no public key that counts"),
    "a broken line": ([line(ONE, 0), line(TWO, 1)[30:]], "line 2 is no public key that counts"),
    "bytes": (b"\xff\xfe\x00", "signers: no text"),
    "PEM": (
        ONE.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo),
        "line 1 is no public key that counts; allowed: OpenSSH, ECDSA",
    ),
}


def given(folder: Path, what: Any, name: str) -> Any:
    if isinstance(what, list):
        what = "\n".join(what)
    if isinstance(what, str) and what.startswith(("ssh-", "ecdsa-")):
        what = what.encode()
    if not isinstance(what, bytes):
        return str(folder / what) if what in {".", "none", "a\0b"} else what
    (folder / name).write_bytes(what)
    return str(folder / name)


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_a_wrong_private_key_is_refused_in_a_line(tmp_path, case):
    what, words = WRONG_KEYS[case]
    (tmp_path / "signers").write_text(line(ONE, 0))
    refused(words, given(tmp_path, what, "private"), str(tmp_path / "signers"), tmp_path)


@pytest.mark.parametrize("case", WRONG_SIGNERS)
def test_a_wrong_file_of_signers_is_refused_in_a_line(tmp_path, case):
    what, words = WRONG_SIGNERS[case]
    refused(words, written(ONE, tmp_path / "private"), given(tmp_path, what, "file"), tmp_path)


def refused(words: str, key: Any, signers: Any, folder: Path) -> None:
    with pytest.raises(Refused, match=words) as error:
        register_of(key, signers, [0])
    text = error.value.told
    assert "; allowed: " in text
    assert text.isprintable()
    assert str(folder) not in text, "a path is the device's own affair"

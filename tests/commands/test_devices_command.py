"""``fedprune devices``: what it prints is what it runs, and what cannot be is one line."""

import configparser
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedprune.commands import device_node, devices, main, programs
from fedprune.commands.device_node import end_orphans, node_config_in
from fedprune.commands.devices import database_at

NODE = 'partition-id=0 data="/tmp"'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flower")
    names = ["--names", "localhost,server.example,127.0.0.1,::1"]
    assert main.main(["devices", "certificates", str(folder), *names, "--keys", "0,3"]) == 0
    return folder


def openssl(*arguments: str) -> str:
    return subprocess.run(
        ["openssl", *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_certificates_are_of_the_authority_and_the_names_and_renewed_by_it(made):
    ca, server = str(made / "ca.crt"), str(made / "server.crt")
    for check in (["-verify_hostname", "server.example"], ["-verify_ip", "127.0.0.1"]):
        assert openssl("verify", "-x509_strict", "-CAfile", ca, *check, server).endswith("OK\n")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("verify", "-CAfile", ca, "-verify_hostname", "other.example", server)
    secret = [made / name for name in ("ca.key", "server.key", "0", "3")]
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}
    assert (made / "3.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert (made / "3.pub").read_text().split()[-1] == "3"

    before = [(made / name).read_text() for name in ("ca.crt", "server.crt")]
    assert main.main(["devices", "certificates", str(made), "--names", "localhost,127.0.0.1"]) == 0
    after = [(made / name).read_text() for name in ("ca.crt", "server.crt")]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


class Replaced(Exception):
    """The process became another program."""


def replaced(_: str, words: list[str], env: dict[str, str]) -> None:
    raise Replaced(words, env)


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("program", ["superlink", "node"])
def test_what_is_printed_is_what_is_run(made, monkeypatch, capsys, program, insecure):
    monkeypatch.setattr(programs.os, "execve", replaced)
    monkeypatch.setattr(programs, "with_path", list)
    rest = ["--superlink", "127.0.0.1:8000", "--config", NODE] if program == "node" else []
    with pytest.raises(Replaced) as ran:
        main.main(["devices", program, str(made), *rest, *["--insecure"] * insecure])
    words, env = ran.value.args
    printed = shlex.split(capsys.readouterr().out.removeprefix("$ "))
    settings = [word for word in printed if word.startswith("FLWR_")]
    assert printed == [*settings, *words]
    assert dict(word.split("=") for word in settings).items() <= env.items()
    assert (words[0], words[1] == "--insecure") == (
        f"flower-super{program.removeprefix('super')}",
        insecure,
    )
    secured = "--enable-supernode-auth" if program == "superlink" else "--root-certificates"
    assert (secured in words) == (not insecure)
    assert program != "node" or words[-1] == NODE


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        (["running", "running", "finished:completed"], 0, ["running; Flower has", "completed"]),
        (["finished:failed"], 1, ["fedprune devices status", "finished:failed: no heartbeat"]),
        ([], 1, ["does not answer"]),
    ],
)
def test_a_run_is_waited_for_whatever_becomes_of_its_log(monkeypatch, capsys, said, code, shown):
    left, app = list(said), Path(__file__).parents[2]

    def looked(*_: Any, **__: Any) -> SimpleNamespace:
        runs = [{"status": left.pop(0), "status-details": "no heartbeat"}] if left else []
        return SimpleNamespace(stdout=json.dumps({"runs": runs}))

    monkeypatch.setattr(devices, "connect", lambda _: None)
    monkeypatch.setattr(devices, "run_shown", lambda _: (0, ["Successfully started run 17\n"]))
    monkeypatch.setattr(devices.subprocess, "run", looked)
    monkeypatch.setattr(devices, "LOOK_AGAIN", 0.0)
    assert main.main(["devices", "run", "f", "", "--superlink", "a:1", "--app", str(app)]) == code
    lines = [line for line in capsys.readouterr().out.splitlines() if "17" in line or "how" in line]
    assert len(lines) == len(shown)
    assert all(text in line for text, line in zip(shown, lines, strict=True))


def test_the_systemd_unit_of_the_docs_starts_a_node(made, tmp_path, monkeypatch):
    def stopped(*words: str, more: dict[str, str]) -> None:
        raise Replaced(*words, more)

    docs = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    unit = docs.partition("```ini\n")[2].partition("```")[0]
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read_string(unit)
    service = read["Service"]
    assert (service["Restart"], service["KillMode"]) == ("always", "control-group")
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "fedprune"
    at = {"/home/fedprune/flower": str(made), 'partition-id=0 data="/data/a"': NODE}
    monkeypatch.setattr(device_node, "become", stopped)
    with pytest.raises(Replaced) as ran:
        main.main([at.get(word, word) for word in words])
    assert (ran.value.args[0], *ran.value.args[-2:]) == ("flower-supernode", NODE, {})
    if shutil.which("systemd-analyze") is None:
        return  # what else stands there is looked at where systemd is
    (tmp_path / "node.service").write_text(unit.replace(program, sys.executable))
    words = ["systemd-analyze", "verify", "--man=no", "--generators=no"]
    said = subprocess.run(
        [*words, str(tmp_path / "node.service")], capture_output=True, text=True, check=True
    )
    assert said.stderr == ""


CONFIGS = {
    "partition-id=0": "no data",
    f"{NODE} max-rounds=0": "max-rounds=0",
    f"{NODE} noise=1": "noise=1",
    f"{NODE} max-round=9": "max-round",
    f"{NODE} x": "not understood",
    'partition-id="a" data="/tmp"': "'a'",
    'partition-id=0 data="/no"': "/no",
    'partition-id=0 data=""': "data=''",
    'partition-id="2,2" data="/tmp"': "partition-id='2,2'",
    'partition-id=-1 data="/tmp"': "partition-id=-1: no partition",
    'partition-id=7 data="/tmp"': "no 7",
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rest"], "rest"),
        ([], "WHAT"),
        (["status", "{made}"], "no config.toml there"),
        (["certificates", "{made}"], "names: nothing asked for"),
        (["certificates", "{made}", "--names", "a_b"], "names='a_b'"),
        (["certificates", "{made}", "--names", "-x"], "--names"),
        (["certificates", "{made}", "--keys", "../0"], "keys='../0'"),
        (["certificates", "{made}", "--keys", "0"], "keys='0': "),
        (["certificates", "{made}", "--keys", "8,8"], "keys='8,8': no partitions"),
        (["certificates", "{made}", "--keys", "08"], "keys='08': no partitions"),
        (["certificates", "{made}", "--keys", "\u0663"], "no partitions"),
        (["certificates", "{made}/0.pub", "--keys", "8"], "a file is there"),
        (["certificates", "{made}/0.pub/x", "--keys", "8"], "a file is there"),
        (["certificates", "{made}", "--names", "a", "--days", "0"], "--days"),
        (["superlink", "{made}/x"], "no ca.crt there"),
        (["superlink", "{made}", "--port", "70000"], "--port"),
        (["superlink", "{made}", "--insecure", "--host", "0.0.0.0"], "host='0.0.0.0'"),
        (["node", "{made}", "--superlink", "here", "--config", NODE], "superlink='here'"),
        (["node", "{made}", "--superlink", "a:1", "--insecure", "--config", NODE], "superlink='a'"),
        *((["node", "{made}", "--superlink", "a:1", "--config", x], y) for x, y in CONFIGS.items()),
        (["register", "{made}/0", "{made}", "--superlink", "a:1"], "no public key"),
        (["run", "{made}", "", "--superlink", "a:1", "--app", "{made}"], "no pyproject.toml"),
    ],
)
def test_what_cannot_be_is_one_line(made, capsys, words, said):
    code = main.main(["devices", *(word.replace("{made}", str(made)) for word in words)])
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1)
    assert said in told


def test_a_node_config_is_read_as_flower_reads_it():
    from flwr.common.config import parse_config_args

    for text in (
        NODE,
        f'{NODE} require-secure=true max-epsilon=2.5 noise="secret"',
        'partition-id="3,4" data="/a b/c=d"  max-bytes=1000000',
    ):
        assert node_config_in(text) == parse_config_args([text])


def test_flower_is_told_where_the_superlink_is_once(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    given = devices.Namespace(superlink="127.0.0.1:8000", insecure=True, folder=str(made))
    devices.connect(given)
    first = (tmp_path / "config.toml").read_text()
    assert first.startswith('[superlink]\ndefault = "devices"\n')
    devices.connect(given)
    assert (tmp_path / "config.toml").read_text() == first
    given.superlink = "127.0.0.1:8001"
    with pytest.raises(ValueError, match="allowed: the same"):
        devices.connect(given)


@contextmanager
def sleeping(program: Path, *each: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs of this name that sleep, with their arguments."""
    program.write_text("import time\ntime.sleep(60)\n")
    started = [subprocess.Popen([sys.executable, str(program), *words]) for words in each]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def within_seconds(look: Callable[[], Any]) -> Any:
    """What is found at last."""
    deadline = time.monotonic() + 10
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_only_an_orphan_of_the_port_is_ended(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    each = [
        ["--runtime-api-address", f"127.0.0.1:{port}", "--parent-pid", str(parent)]
        for port, parent in ((1, os.getpid()), (2, gone.pid), (1, gone.pid))
    ]
    with sleeping(tmp_path / "flower-superexec", *each) as (own, other, orphan):
        assert within_seconds(lambda: end_orphans(1)) == [orphan.pid]
        assert orphan.wait(10) != 0
        assert (own.poll(), other.poll()) == (None, None)


def test_a_node_that_has_the_same_data_is_found(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "link").symlink_to(own)
    each = [["--node-config", f'partition-id=0 data="{tmp_path / at}"'] for at in ("link", "")]
    with sleeping(tmp_path / "flower-supernode", *each) as (same, _):
        assert within_seconds(lambda: device_node.nodes_with(str(own))) == [same.pid]


@pytest.mark.parametrize("ahead", [600, -600, -60, 4])
def test_a_node_waits_until_its_clock_is_one_that_is_taken(made, monkeypatch, capsys, ahead):
    now, offs = 1_700_000_000, iter([ahead, ahead, None, 2, 2])
    refused = ahead not in (-60, 4)

    def asked(*_: Any, **__: Any) -> Any:
        if (off := next(offs)) is None:
            raise OSError("it is restarted")
        clock.now = now + off
        answer = SimpleNamespace(headers={"Date": formatdate(now, usegmt=True)})
        return nullcontext(answer)

    waited = list[float]()
    clock = SimpleNamespace(now=now, time=lambda: clock.now, sleep=waited.append)
    monkeypatch.setattr(device_node, "time", clock)
    monkeypatch.setattr(device_node.urllib.request, "urlopen", asked)
    monkeypatch.setattr(programs, "with_path", list)
    monkeypatch.setattr(programs.os, "execve", replaced)
    with pytest.raises(Replaced) as ran:
        main.main(["devices", "node", str(made), "--superlink", "127.0.0.1:1", "--config", NODE])
    shown, said = capsys.readouterr().out, ran.value.args[1].get("FEDPRUNE_CLOCK")
    assert (said, len(waited)) == ((f"{ahead} {now + 2}", 2) if refused else (None, 0))
    if refused:
        side = "ahead of" if ahead > 0 else "behind"
        assert f"clock: 600 s {side} the SuperLink's, which refuses this device" in shown
        assert f"FEDPRUNE_CLOCK='{said}'" in shown
    else:
        assert "clock" not in shown


def test_of_a_superlink_that_does_not_answer_no_clock_is_known(tmp_path):
    assert device_node.clock_ahead("127.0.0.1:1", str(tmp_path / "none.crt")) is None


@pytest.mark.parametrize("name", ["flower", "with space", "100%", "what?"])
def test_the_superlink_waits_for_a_database_that_others_write_to(name, tmp_path):
    """Flower gives a file's name, or an address as it is, to SQLAlchemy."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    (tmp_path / name).mkdir()
    file = tmp_path / name / "superlink.db"
    given = database_at(file)
    engine = sqlalchemy.create_engine(given if "://" in given else f"sqlite:///{given}")
    if "?" not in name:  # an address cannot hold it
        with engine.begin() as link:
            link.exec_driver_sql("create table t (i integer)")
            assert link.exec_driver_sql("pragma busy_timeout").scalar() == 600_000
        assert file.is_file()
    else:
        assert given == str(file)

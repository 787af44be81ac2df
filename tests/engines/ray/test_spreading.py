"""A command on a node of a cluster: begun again where the node goes, seen when its work is; what is
sent to nodes that lack it.
"""

import importlib.metadata
import io
import subprocess
import zipfile
from pathlib import Path

import pytest
import ray
from ray.exceptions import NodeDiedError, TaskCancelledError, WorkerCrashedError

from fedprune.engines.ray import node_command
from fedprune.engines.ray.node_files import _packed, packages_needed
from fedprune.engines.ray.spreading import LIVES, NodeCommand
from fedprune.runtime.ending import FAILED, INTERRUPTED


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Makes a command whose tasks come to what is said; and the words of each that was begun."""
    words = []

    def made(*ends):
        def get(task):
            if isinstance(ends[task], Exception):
                raise ends[task]
            return ends[task]

        def submit(said, _):
            words.append(said)
            return len(words) - 1

        monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)
        names = iter("abcdefgh")
        return NodeCommand(lambda: [next(names)], tmp_path / "SUMS", tmp_path / "log", submit)

    return made, words


def test_what_is_lost_with_its_node_is_begun_anew_in_words_of_then(begun, tmp_path):
    made, words = begun
    command = made(NodeDiedError("gone"), WorkerCrashedError(), 3)
    assert [command.poll(), command.poll(), command.poll()] == [None, None, 3]
    assert words == [["a"], ["b"], ["c"]]
    assert not (tmp_path / "log").exists()


def test_what_is_lost_each_time_fails_and_says_why(begun, tmp_path):
    made, words = begun
    command = made(*[NodeDiedError("it is gone") for _ in range(LIVES)])
    assert command.wait(5) == FAILED
    assert len(words) == LIVES
    assert (tmp_path / "log").read_text() == "lost with its node or worker: it is gone\n"


@pytest.mark.parametrize(
    ("end", "code"), [(TaskCancelledError(), INTERRUPTED), (NodeDiedError("gone"), FAILED)]
)
def test_one_that_is_interrupted_is_not_begun_again(begun, end, code):
    made, words = begun
    command = made(end, 0)
    command.terminate()
    assert command.poll() == code
    assert words == [["a"]]


def test_why_a_node_began_nothing_is_in_the_log(begun, tmp_path):
    said = "node 10.0.0.7: why; allowed: what"
    assert begun[0](said).poll() == FAILED
    assert (tmp_path / "log").read_text() == f"{said}\n"


def test_work_that_is_done_and_not_seen_yet_is_waited_for(begun, tmp_path, monkeypatch):
    """A disk that machines share shows what others wrote after a while."""
    command = begun[0](0)
    assert command.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        command.wait(0)
    (tmp_path / "SUMS").touch()
    assert command.poll() == 0
    (tmp_path / "SUMS").unlink()
    monkeypatch.setattr("fedprune.engines.ray.spreading.LAG", 0.0)
    assert command.poll() == 0


@pytest.fixture
def needs(monkeypatch):
    monkeypatch.setattr(node_command, "_name", lambda: "10.0.0.7")
    return {**packages_needed(), "files": {}}


def test_a_node_that_does_not_see_the_folder_says_so(needs, tmp_path):
    sign = tmp_path / "sign"
    said = "node 10.0.0.7: out='{}' is not the driver's there; allowed: --out in a folder that all "
    assert node_command.unfit(needs, str(sign)).startswith(said.format(tmp_path))
    why = node_command.run_here(["run"], str(tmp_path / "log"), "/", needs, str(sign))
    assert why == node_command.unfit(needs, str(sign))
    assert not (tmp_path / "log").exists()
    sign.touch()
    assert node_command.unfit(needs, str(sign)) == ""


def test_a_node_with_other_packages_says_so(needs, tmp_path):
    (sign := tmp_path / "sign").touch()
    other = {**needs, "package": "another digest", "versions": {"torch": "0.1", "no-such": "2"}}
    why = node_command.unfit(other, str(sign))
    here = importlib.metadata.version("torch")
    assert why.startswith(f"node 10.0.0.7: torch is {here}, 0.1 is wanted; no-such is not")
    assert "another fedprune than the driver's, or none; allowed: the same packages" in why


PROGRAM = """#!/bin/sh
trap 'echo told; exit 130' TERM
echo "$@" in "$PWD"
while [ -z "$ONCE" ]; do sleep 0.05; done
exit 7
"""


@pytest.fixture
def _program(monkeypatch, tmp_path) -> None:
    """Takes the place of Python: it waits to be told to end, or with ONCE ends with 7."""
    monkeypatch.setattr(node_command, "unfit", lambda *_: "")
    (path := tmp_path / "python").write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(path))


@pytest.mark.usefixtures("_program")
def test_a_command_is_a_process_in_the_folder_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("ONCE", "1")
    log = tmp_path / "log"
    log.write_text("before\n")
    assert node_command.run_here(["run", "--x"], str(log), str(tmp_path), {}, "") == 7
    assert log.read_text() == f"before\n-m fedprune run --x in {tmp_path}\n"
    why = node_command.run_here(["run"], str(tmp_path / "no" / "log"), "/", {}, "")
    assert str(why).startswith("node ")
    assert "No such file" in str(why)


@pytest.mark.usefixtures("_program")
def test_an_interruption_ends_the_process_in_order(tmp_path, monkeypatch):
    log, sleep = tmp_path / "log", node_command.time.sleep
    came = []

    def interrupted(seconds):
        sleep(seconds)
        if not came and log.read_text():
            came.append(seconds)
            raise KeyboardInterrupt

    monkeypatch.setattr(node_command.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        node_command.run_here(["run"], str(log), str(tmp_path), {}, "")
    assert log.read_text().endswith("\ntold\n")


FILES = {
    "a/own.py": "import beside\nfrom lib.inner import x\nimport json, torch\n",
    "a/beside.py": "import lib.other\n",
    "a/unused.py": "",
    "b/lib/__init__.py": "",
    "b/lib/inner.py": "x = 1\n",
    "b/lib/other.py": "",
    "b/lib/unused.py": "",
    "b/lib/__pycache__/inner.py": "",
}


WITH_IT = {"own.py", "beside.py", "lib/__init__.py", "lib/inner.py", "lib/other.py"}


@pytest.mark.parametrize(
    ("kind", "given", "sent"),
    [
        ("plugin", "a/own.py", WITH_IT),
        ("data", "a", {"a/own.py", "a/beside.py", "a/unused.py"}),
        ("data", "a/own.py", {"own.py"}),
    ],
)
def test_files_go_under_their_name_and_a_plug_in_with_what_it_imports_from_wherever_python_looks(
    tmp_path, monkeypatch, kind, given, sent
):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "b")
    name, content = _packed(kind, tmp_path / given)
    assert name == Path(given).name
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert set(file.namelist()) == sent

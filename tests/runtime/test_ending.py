"""One line and a code for whatever ends a command."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from fedprune.records import folder as files
from fedprune.report.screen import Screen
from fedprune.runtime.ending import ended, interruptible
from simulations.run import main

QUICK = ["--task", "digits", "--model", "mlp", "--engine", "inline", "--clients", "2"]
QUICK += ["--rounds", "2", "--local-steps", "1", "--agreement", "false"]


def lines(capsys):
    return capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG])
def test_a_disk_that_takes_no_more_is_one_line(number, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "save_state", full)
    assert main([*QUICK, "--out", str(tmp_path / "run")]) == 1
    (line,) = lines(capsys)
    assert line.startswith(f"run.py: error: out='{tmp_path / 'run'}': [Errno {number}]")
    assert line.endswith(f"--resume {tmp_path / 'run'}")


def test_a_folder_that_cannot_be_made_is_bad_input(capsys):
    assert main([*QUICK, "--out", "/proc/none/run"]) == 2
    (line,) = lines(capsys)
    assert line.startswith("run.py: error: out='/proc/none/run': ")


def test_sigterm_interrupts_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    kept = files.save_state

    def killed(*given):
        kept(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(files, "save_state", killed)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        assert main([*QUICK, "--out", str(tmp_path / "run")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert lines(capsys)[-1].endswith(f"fedprune run --resume {tmp_path / 'run'}")
    assert (tmp_path / "run" / "checkpoint" / "pruned.safetensors").is_file()


def test_a_closed_pipe_is_one_line_through_the_screen_too(capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        screen = Screen()
        screen.console.file = closed
        assert ended(lambda: screen.line("x" * 10**6) or 0, "fedprune") == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
    assert lines(capsys) == ["fedprune: error: the output was closed by what read it"]


def test_signals_are_as_they_were_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_console_of_another_encoding_shows_escapes():
    # Without the package around it, which takes seconds to import.
    code = "import runpy; f = runpy.run_path('fedprune/runtime/ending.py'); "
    code += "f['ended'](lambda: print('\\u00b2') or 0, 'x')"
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "\\xb2\n"


DEAF = {
    "a call into C that does not come back": (
        "import ctypes; lock = ctypes.create_string_buffer(64); take = ctypes.CDLL(None)\n"
        "take.pthread_mutex_lock(lock); take.pthread_mutex_lock(lock)"
    ),
    "code that catches it and goes on": (
        "while True:\n  try: threading.Event().wait()\n  except KeyboardInterrupt: pass"
    ),
}


@pytest.mark.parametrize("deaf", DEAF)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_whatever_does_not_return(number, deaf):
    code = f"""
import os, signal, sys, threading
from fedprune.runtime import ending
ending.GRACE = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
def deaf():
    try:
        threading.Thread(target=os.kill, args=(os.getpid(), {int(number)})).start()
        threading.Event().wait()
    except KeyboardInterrupt: pass
    exec({DEAF[deaf]!r})
def work():
    with ending.resumable("to go on: --resume runs/1"):
        deaf()
sys.exit(ending.ended(work, "run.py"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    hint, line = done.stderr.strip().splitlines()
    assert hint == "interrupted; to go on: --resume runs/1"
    assert line.startswith("fedprune: error: ended after 0.1 s, for this did not return: ")


def test_what_is_forked_is_interrupted_by_itself():
    mine = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible():
            child = os.fork()
            if not child:
                os._exit(signal.set_wakeup_fd(-1) != -1)
            assert os.waitpid(child, 0)[1] == 0
            ours = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(ours)
            assert ours != -1
    finally:
        signal.signal(signal.SIGINT, mine)

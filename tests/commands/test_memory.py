import sys
from pathlib import Path

import pytest

from fedprune.commands import memory
from fedprune.commands.memory import measured_peak, peak_of

ABOUT = {"task": None, "keys": {}, "dense": False, "batch": 4, "changes": {}}


@pytest.mark.skipif(sys.platform != "linux", reason="the mark can be set back on Linux only")
@pytest.mark.slow
def test_a_larger_batch_takes_more_in_a_fresh_process(run_folder):
    about = {**ABOUT, "path": str(run_folder)}
    small, large = measured_peak({**about, "batch": 1}), peak_of({**about, "batch": 4096})
    images = 4 * (4096 - 1) * 64
    assert large - small > images * 4, "the first layer's output has many channels"


def test_a_process_that_fails_says_why(monkeypatch):
    """Python is `ls` here, which knows no option -m of a module's name."""
    monkeypatch.setattr(memory.sys, "executable", "ls")
    with pytest.raises(ValueError, match=r"memory: the process .* ended with an error: .*ls"):
        peak_of(ABOUT)


@pytest.mark.slow
def test_elsewhere_it_is_not_measured(run_folder, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere"))
    assert measured_peak({**ABOUT, "path": str(run_folder)}) is None

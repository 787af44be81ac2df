import sys
from pathlib import Path

import pytest

from fedprune.commands import memory
from fedprune.commands.memory import measured_peak, peak_of

ABOUT = {"task": None, "keys": {}, "dense": False, "batch": 4, "changes": {}}

linux = pytest.mark.skipif(sys.platform != "linux", reason="the mark can be set back on Linux only")


@linux
@pytest.mark.slow
def test_a_larger_batch_takes_more_in_a_fresh_process(run_folder):
    small, large = (
        peak_of({**ABOUT, "path": str(run_folder), "batch": batch}) for batch in (1, 4096)
    )
    images = 4 * (4096 - 1) * 64
    assert large - small > images * 4, "the first layer's output has many channels"


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match=r"memory: .*nothing is there"):
        peak_of({**ABOUT, "path": "nowhere"})


@pytest.mark.slow
def test_elsewhere_it_is_not_measured(run_folder, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere"))
    assert measured_peak({**ABOUT, "path": str(run_folder)}) is None

"""Peak memory of a forward pass, each in a fresh process: ``python -m fedprune.commands.memory``.

What a process has resident is mostly libraries. So the figure is the bytes of the model's tensors
and the rise of the high-water mark during one pass, after a first pass that loaded what is loaded
on use. A system that is short of memory takes pages of libraries away and puts them back, so it is
the median over three passes. The mark can be set back on Linux only (``clear_refs``).
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fedprune.commands.subject import Subject, subject
from fedprune.config import with_values
from fedprune.export.measure import forward_of, size_of
from fedprune.protocol.models import dense_model

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(about: Mapping[str, Any]) -> int | None:
    """Bytes of a model and of what a forward pass has resident beside it at most.

    `about`: ``path``, ``task``, ``keys`` as for `subject`; ``batch`` and ``length`` of the input;
    ``dense``: the dense model of the same configuration instead.

    Returns:
        None: the system does not tell, or the task has no example.
    """
    command = [sys.executable, "-m", "fedprune.commands.memory", json.dumps(dict(about))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"memory: the process that was measured ended with an error: {last}")
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def measured_peak(about: Mapping[str, Any]) -> int | None:
    """In the process that is measured: what `peak_of` gives back."""
    if not _CLEAR.exists():
        return None
    torch.set_num_threads(1)
    looked = subject(about["path"], about["task"], about["keys"])
    model = dense_model(looked.config).eval() if about["dense"] else looked.model
    looked = Subject(looked.name, model, with_values(looked.config, about["changes"]))
    forward = forward_of(looked.task, model, looked.config, about["batch"])
    if forward is None:
        return None
    forward.through(model)
    rises = [_rise(lambda: forward.through(model)) for _ in range(3)]
    return size_of(model).bytes_held + sorted(rises)[1]


def _rise(work: Callable[[], object]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    print(json.dumps(measured_peak(json.loads(sys.argv[1]))))

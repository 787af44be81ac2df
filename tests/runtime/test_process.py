"""What a call changes in its process is as it was when it ends, also after an error."""

import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import datasets
import numpy as np
import pytest
import torch
from transformers.utils import logging as transformers

from fedprune import NoRoundCompleted, Task, federate
from fedprune.client.host import build_host
from fedprune.engines.inline import inline_port
from fedprune.runtime.process import FREE, LOOKS, put_back, resident, trim_memory
from fedprune.tasks.catalog import TASKS
from tests.runs import tiny


def seen():
    """All that a user would notice."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "exact": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "levels": {n: logging.getLogger(n).level for n in ("", "absl", "flwr", "fedprune")},
        "transformers": (transformers.get_verbosity(), transformers.is_progress_bar_enabled()),
        "datasets": datasets.is_progress_bar_enabled(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    }


def disturb() -> None:
    """What a user's own loss might do, or a library on the way."""
    torch.set_num_threads(3)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"], os.environ["FEDPRUNE_TEST"] = "7", "1"
    os.environ.pop("HOME", None)
    for name in ("", "absl", "flwr", "fedprune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    transformers.set_verbosity_debug()
    transformers.disable_progress_bar()
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """Settings that are not the defaults."""
    with put_back(), warnings.catch_warnings():
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.simplefilter("once")
        logging.getLogger("absl").setLevel(logging.DEBUG)
        transformers.set_verbosity_info()
        transformers.enable_progress_bar()
        datasets.enable_progress_bars()
        yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_happens_within_is_put_back(fails):
    before = seen()
    try:
        with put_back():
            assert torch.get_num_threads() == 1
            disturb()
            assert all(seen()[k] != before[k] for k in before.keys() - {"signals", "warn only"})
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert seen() == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", [{}, {"dp": "client", "dp_noise": 1.0, "panel": 1}])
def test_a_run_leaves_nothing(keys, tmp_path):
    config = tiny(model="mlp", rounds=2, warmup=0, end=1, **keys)
    before = seen()
    federate(config, folder=tmp_path / "run")
    assert seen() == before
    port = inline_port(build_host(config))
    assert seen() == before
    federate(config, port)
    assert seen() == before


def test_nor_does_a_run_whose_task_disturbs_and_fails(monkeypatch):
    digits = TASKS["digits"]

    def loss(*_):
        disturb()
        raise ZeroDivisionError

    monkeypatch.setitem(TASKS, "digits", Task(**{**vars(digits), "loss": loss}))
    before = seen()
    with pytest.raises((NoRoundCompleted, ValueError)):
        federate(tiny(model="mlp", rounds=2, warmup=0, end=1))
    assert seen() == before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc hands memory back")
def test_what_lies_free_between_pieces_in_use_is_handed_back_whatever_the_model():
    def questions() -> None:
        for _ in range(LOOKS):  # one of which looks
            trim_memory(1)

    questions()
    pieces = [torch.ones(2**12) for _ in range(6 * FREE // 2**14)]
    there = resident()
    del pieces[1::2]
    questions()
    assert resident() < there - FREE
    left = resident()
    questions()  # nothing was freed since
    assert abs(resident() - left) < FREE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc hands memory back")
def test_large_pieces_are_handed_back_when_they_are_freed_also_after_a_larger_one_was():
    code = """
import torch
from fedprune.runtime.process import hand_back_at_once, resident
torch.ones(2**22)
hand_back_at_once()
pieces = [torch.ones(2**19) for _ in range(32)]
there = resident()
del pieces[1::2]
assert resident() < there - 2**24
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""Gradients a block at a time: the same bits as all at once, and a part of the memory."""

import gc
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune import federate
from fedprune.config.streamed import why_unstreamed
from fedprune.methods import global_mask
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.parts_asked import at_once_words
from fedprune.streaming.blocks import is_streamed
from fedprune.streaming.filed import filed
from fedprune.tensors.lazy import LazyTensors
from tests.streaming.saved import assert_same_model, reference, saved, saved_model, untrained

GLOBAL = {"scope": "global"}
GRADUAL = {"schedule": "cubic", "rounds": 2, "end": 2}
FEW = {"score_examples": 3, "batch_size": 2, "clients": 2}
ADAPTED = {"adapters": "lora", "rank": 2, "local_steps": 1, "lr": 0.02}
UNITS = {"score": "taylor", **GLOBAL, "unit": "head-neuron", "shrink": "end"}
IN_PARTS = [
    {"score": "taylor", "scope": "row"},
    {"score": "fisher", "scope": "layer", "sparsity": 0.371, **GRADUAL},  # no whole numbers
    {"score": "second_moment_per_client", "scope": "column", "sparsity": 0.37},
    {"score": "taylor", **GLOBAL},
    {"score": "fisher", **GLOBAL, "score_steps": 2},
    {"score": "taylor_second", "scope": "erk", **GRADUAL},
    {"score": "taylor", "scope": "owl"},
    {"score": "taylor", **GLOBAL, "sparsity": None, "threshold": 1e-5},
    {"score": "taylor", "unit": "n:m", "scope": None},
    UNITS,
    {"score": "fisher", "scope": "layer", "unit": "neuron", "pool": "l2", "shrink": "never"},
    {"score": "taylor_signed", "unit": "head-neuron", "shrink": "every", **GLOBAL, **GRADUAL},
    {"score": "gradient", **GLOBAL, "unit": "sublayer", "pool": "max"},
    {"score": "second_moment_per_batch", **GLOBAL, "unit": "layer", "sparsity": 0.34},
    {"score": "taylor", **GLOBAL, "unit": "row"},
    {"score": "fisher", **GLOBAL, "unit": "block"},
    {"score": "taylor", **GLOBAL, "unit": "neuron", "reduce": ("dead",)},
    {"score": "taylor", **GLOBAL, "reduce": ("low-rank",)},
    {"score": "taylor", **GLOBAL, "secure": "secagg", "clients": 3},
    {"score": "taylor", **GLOBAL, **ADAPTED, **GRADUAL},
    {"score": "fisher", "scope": "row", **ADAPTED, "ranks": (1, 2), **GRADUAL},
    {"score": "taylor", **GLOBAL, "unit": "head-neuron", **ADAPTED, "shrink": "end"},
]


@pytest.fixture
def asked_about(monkeypatch):
    """How many tensors each question about a score was about."""
    asked, numbers = global_mask.asked, list[int]()

    def counted(model, r, names, sparsity):
        numbers.append(len(names))
        return (yield from asked(model, r, names, sparsity))

    monkeypatch.setattr(global_mask, "asked", counted)
    return numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize("changes", IN_PARTS, ids=str)
def test_what_is_asked_in_parts_makes_the_same_model(asked_about, changes):
    keys = {**FEW, **changes}
    at_once = reference(untrained(saved("llama"), **keys))
    assert set(asked_about) == {0}, "all tensors in one question"
    asked_about.clear()
    config = untrained(saved("llama"), **keys, gradient_blocks=True, stream="off")
    assert not at_once_words(config, layout_for(config, dense_model(config)))
    in_parts = federate(config)
    assert len(asked_about) >= 3
    assert all(asked_about), "a block in each question"
    assert not is_streamed(in_parts.model)
    assert_same_model(in_parts, at_once)
    if not why_unstreamed(config):
        streamed = federate(untrained(saved("llama"), **keys, gradient_blocks=True, stream="on"))
        assert is_streamed(streamed.model)
        assert_same_model(streamed, at_once)


AT_ONCE = [
    {"combine": "votes", **GLOBAL},
    {"combine": "mean", "scope": "row"},
    {"agreement": True, **GLOBAL},
    {"normalise": "l1", **GLOBAL},
    {"base": "sent", **GLOBAL},
    {"base": "sent", "scope": "row", **ADAPTED},
]


@pytest.mark.parametrize("changes", AT_ONCE, ids=str)
def test_what_depends_on_all_tensors_is_asked_at_once(asked_about, changes):
    config = untrained(saved("llama"), **{**FEW, **changes}, score="taylor", gradient_blocks=True)
    federate(config)
    assert set(asked_about) == {0}
    said = at_once_words(config, layout_for(config, dense_model(config)))
    assert re.match(r"--gradient-blocks asks for all .* \(.+\): up to 0.0004\d? GB more", said)


class Alive(TorchDispatchMode):
    """Counts the bytes of what was computed and is not let go of yet."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.now, self.most = dict[StorageWeakRef, int](), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.device.type == "cpu":
                storage = t.untyped_storage()
                ref = StorageWeakRef(storage)
                self.now += 0 if ref in self.held else storage.nbytes()
                self.held[ref] = storage.nbytes()
        if self.now > self.most:
            for gone in [ref for ref in self.held if ref.expired()]:
                self.now -= self.held.pop(gone)
            self.most = max(self.most, self.now)
        return out


@pytest.mark.parametrize("changes", [UNITS, {"score": "taylor", "scope": "row"}], ids=str)
def test_a_run_takes_less_than_eight_bytes_a_parameter(tmp_path, monkeypatch, changes):
    """Of tensors, activations included; above 20 where all gradients are asked for at once."""
    monkeypatch.setattr("fedprune.selection.cut.VERY_MANY", 0)  # ranked as a large model's weights
    folder = saved_model(tmp_path / "base", "llama", torch.bfloat16, "10MB", blocks=7, width=128)
    few = {"score_examples": 1, "clients": 2, "length": 8, "stream": "off"}

    def most(blocks: bool) -> float:
        gc.collect()
        with Alive() as alive:
            result = federate(untrained(folder, **few, **changes, gradient_blocks=blocks))
        return alive.most / result.summary["parameters"]

    assert most(blocks=True) < 8
    if changes["scope"] == "row":
        assert most(blocks=False) > 16, "which would be seen"


def test_tensors_wait_in_a_file_and_come_back_as_they_were():
    open_before = len(os.listdir("/proc/self/fd"))
    some = {
        "b": torch.randn(3, 5, dtype=torch.float64),
        "a": torch.randn(7).bfloat16().t(),
        "none": torch.empty(0, 4),
        "lines": torch.arange(12.0).view(3, 4).t(),
        "flag": torch.tensor(True),
    }
    was = {n: t.clone() for n, t in some.items()}
    held = filed(some)
    assert not some, "each is let go of"
    assert isinstance(held, LazyTensors)
    for names in (list(was), list(was)[::-1]):  # in any order, as often as one likes
        for n in names:
            assert held[n].dtype == was[n].dtype
            assert torch.equal(held[n], was[n])
    del held
    assert len(os.listdir("/proc/self/fd")) == open_before, "and so is the file"


def test_a_full_disk_is_the_system_s_error(monkeypatch):
    with Path("/dev/full").open("wb", 0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        with pytest.raises(OSError, match=f"No space left.*{tempfile.gettempdir()}"):
            filed({"a": torch.zeros(3)})

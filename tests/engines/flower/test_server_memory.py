"""What a server of devices holds beside its model: one answer, and no sum while answers come.

What is done for large models alone changes no result: here with a small one taken for large.
"""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from fedprune import federate, opening
from fedprune.codec.wire import Packet
from fedprune.config import configure
from fedprune.engines.flower import exchange, messages
from fedprune.engines.flower.exchange import reply_in
from fedprune.engines.flower.grid import grid_port
from fedprune.privacy.noise import keyed_source
from fedprune.protocol import choice, limits, sum_in_file
from fedprune.protocol.sum_in_file import SumInFile
from fedprune.selection import cut
from fedprune.server.state import Model, first_state
from fedprune.server.watch import Watch
from tests.server.grids import HttpGrid, run_on

RUN = {"task": "digits", "model": "mlp", "clients": 3, "local_steps": 1}
RUN |= {"rounds": 3, "warmup": 1, "end": 2}


def doubles():
    """Values in float64 that are in memory, in tensors that are not small."""
    found = [t for t in gc.get_objects() if type(t) is Tensor and t.dtype == torch.float64]
    return sum(t.numel() for t in found if t.numel() > 500)


@pytest.mark.parametrize("combine", ["sum", "votes"])
def test_sums_are_in_memory_only_while_something_is_made_of_them(devices, monkeypatch, combine):
    config = configure({**RUN, "combine": combine})
    whole = run_on(devices(3), config)
    gc.collect()
    gc.freeze()  # what other tests hold in this process is not looked through, or counted
    reading, pruning, under = [], [], Model.under

    def read(message):
        reading.append(doubles())
        return reply_in(message)

    def pruned(model, masks):
        pruning.append(doubles())
        return under(model, masks)

    monkeypatch.setattr(sum_in_file, "FROM", 1)
    monkeypatch.setattr(exchange, "reply_in", read)
    monkeypatch.setattr(Model, "under", pruned)
    found = run_on(devices(3), config)
    assert found.rows == whole.rows
    assert len(reading) > 20
    assert not any(reading), "a sum was in memory while an answer came"
    assert pruning
    assert not any(pruning), "a sum was in memory while the weights were copied"


def test_what_a_run_begins_with_goes_with_the_first_round(devices, monkeypatch):
    config, first, left = configure(RUN), [], []

    def noted(*given, **more):
        state = first_state(*given, **more)
        first.extend(weakref.ref(w) for w in state.weights.values())
        return state

    def row(*_):
        left.append(any(w() is not None for w in first))

    monkeypatch.setattr(opening, "first_state", noted)
    federate(config, grid_port(devices(3), config), watch=Watch(row=row))
    assert first
    assert left == [True, False, False], "after round one it is what a void round goes back to"


def test_a_full_disk_ends_the_run_and_is_no_client_s_failure(devices, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sum_in_file, "FROM", 1)
    monkeypatch.setattr(SumInFile, "add", full)
    with pytest.raises(OSError, match="No space left"):
        run_on(devices(3), configure(RUN))


def test_what_noise_is_to_hide_is_hidden_on_disk_and_has_the_same_bits(devices, monkeypatch):
    once = {"rounds": 2, "warmup": 0, "end": 1, "dp": "client", "epsilon": 5.0}
    config = configure({**RUN, **once})
    keys, added, add = iter(range(1000)), [], SumInFile.add

    def known():  # the noise of both runs is the same
        return keyed_source(next(keys).to_bytes(32, "little"), secret=True)

    def adding(to, values, factor):
        added.append(to.hidden is not None)
        add(to, values, factor)

    monkeypatch.setattr(limits, "secret_source", known)
    monkeypatch.setattr(SumInFile, "add", adding)
    whole = run_on(devices(3), config)
    assert not added
    keys = iter(range(1000))
    monkeypatch.setattr(sum_in_file, "FROM", 1)
    found = run_on(devices(3), config)
    assert found.rows == whole.rows
    assert len(added) > 6
    assert all(added)


def no_copy(*given, **more):
    raise AssertionError(f"all scores at once: {given}, {more}")


@pytest.mark.parametrize("combine", ["sum", "votes"])
def test_a_model_taken_for_large_gives_the_same_bits(devices, monkeypatch, combine):
    config = configure({**RUN, "combine": combine, "rounds": 2, "warmup": 0, "end": 1})
    rows = [run_on(devices(3), config).rows]
    monkeypatch.setattr(cut, "VERY_MANY", 1)
    monkeypatch.setattr(messages, "PIECE", 1000)
    monkeypatch.setattr(choice, "select_by", no_copy)
    monkeypatch.setattr(exchange, "TOGETHER", 1)
    grid, packets, alive = HttpGrid(devices(3)), [], set()

    def read(message):
        alive.add(sum(packet() is not None for packet in packets))
        packet = reply_in(message)
        if isinstance(packet, Packet) and packet.buffers:
            packets.append(weakref.ref(packet))
        return packet

    monkeypatch.setattr(exchange, "reply_in", read)
    rows.append(run_on(grid, config).rows)
    assert rows[0] == rows[1]
    assert set(grid.pulled) == {1, 3}, "answers one by one, greetings together"
    assert alive == {0}, "each is gone before the next one is read"
    assert rows[0][-1]["sparsity"] > 0.5
    assert not rows[0][-1]["failures"]

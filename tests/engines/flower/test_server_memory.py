"""What a server of devices holds beside its model: one answer, and no sum while answers come."""

import gc
import weakref
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from fedprune import federate, opening
from fedprune.config import configure
from fedprune.engines.flower import exchange
from fedprune.engines.flower.exchange import Incoming, reply_in
from fedprune.engines.flower.grid import grid_port
from fedprune.privacy.noise import Source, keyed_source
from fedprune.protocol import noise, sum_in_file
from fedprune.protocol.sum_in_file import SumInFile
from fedprune.server.rows import Row
from fedprune.server.state import Model, State, first_state
from fedprune.server.watch import Watch

RUN = {"task": "digits", "model": "mlp", "clients": 3, "rounds": 3, "warmup": 1, "end": 2}


def doubles() -> int:
    """Values in float64 that are in memory, in tensors that are not small."""
    found = [t for t in gc.get_objects() if type(t) is Tensor and t.dtype == torch.float64]
    return sum(t.numel() for t in found if t.numel() > 500)


@pytest.mark.parametrize("combine", ["sum", "votes"])
def test_sums_are_in_memory_only_while_something_is_made_of_them(
    devices: Any, monkeypatch: pytest.MonkeyPatch, combine: str
):
    config = configure({**RUN, "combine": combine, "local_steps": 1})
    whole = federate(config, grid_port(devices(3), config))
    gc.collect()
    gc.freeze()  # what other tests hold in this process is not looked through, or counted
    reading, pruning, under = list[int](), list[int](), Model.under

    def read(message: Message) -> Incoming:
        reading.append(doubles())
        return reply_in(message)

    def pruned(model: Model, masks: dict[str, Tensor]) -> Model:
        pruning.append(doubles())
        return under(model, masks)

    monkeypatch.setattr(sum_in_file, "FROM", 1)
    monkeypatch.setattr(exchange, "reply_in", read)
    monkeypatch.setattr(Model, "under", pruned)
    found = federate(config, grid_port(devices(3), config))
    assert found.rows == whole.rows
    assert len(reading) > 20
    assert not any(reading), "a sum was in memory while an answer came"
    assert pruning
    assert not any(pruning), "a sum was in memory while the weights were copied"


def test_what_a_run_begins_with_goes_with_the_first_round(
    devices: Any, monkeypatch: pytest.MonkeyPatch
):
    config, first = configure({**RUN, "local_steps": 1}), list[weakref.ref[Tensor]]()
    left = list[bool]()

    def noted(*given: Any, **more: Any) -> State:
        state = first_state(*given, **more)
        first.extend(weakref.ref(w) for w in state.weights.values())
        return state

    def row(*_: Row | float | State) -> None:
        left.append(any(w() is not None for w in first))

    monkeypatch.setattr(opening, "first_state", noted)
    federate(config, grid_port(devices(3), config), watch=Watch(row=row))
    assert first
    assert left == [True, False, False], "after round one it is what a void round goes back to"


def test_a_full_disk_ends_the_run_and_is_no_client_s_failure(
    devices: Any, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sum_in_file, "FROM", 1)
    monkeypatch.setattr(SumInFile, "add", full)
    config = configure({**RUN, "local_steps": 1})
    with pytest.raises(OSError, match="No space left"):
        federate(config, grid_port(devices(3), config))


def test_what_noise_is_to_hide_is_hidden_on_disk_and_has_the_same_bits(
    devices: Any, monkeypatch: pytest.MonkeyPatch
):
    once = {"rounds": 2, "warmup": 0, "end": 1, "dp": "client", "epsilon": 5.0}
    config = configure({**RUN, "local_steps": 1, **once})
    keys, added, add = iter(range(1000)), list[bool](), SumInFile.add

    def known() -> Source:  # the noise of both runs is the same
        return keyed_source(next(keys).to_bytes(32, "little"), secret=True)

    def adding(to: SumInFile, values: Tensor, factor: float) -> None:
        added.append(to.hidden is not None)
        add(to, values, factor)

    monkeypatch.setattr(noise, "secret_source", known)
    monkeypatch.setattr(SumInFile, "add", adding)
    whole = federate(config, grid_port(devices(3), config))
    assert not added
    keys = iter(range(1000))
    monkeypatch.setattr(sum_in_file, "FROM", 1)
    found = federate(config, grid_port(devices(3), config))
    assert found.rows == whole.rows
    assert len(added) > 6
    assert all(added)

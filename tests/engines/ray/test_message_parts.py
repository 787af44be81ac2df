"""Messages in parts, and what of Flower they depend on."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedprune.engines.flower.messages import let_go, packet_in
from fedprune.engines.ray.grid import RayGrid
from fedprune.engines.ray.identity import OURSELVES, as_a_task, name_message
from fedprune.engines.ray.message_parts import LARGE, joined, parted


def message(*sizes: int) -> Message:
    arrays = {f"b{i}": Array("uint8", (n,), "bytes", bytes([i]) * n) for i, n in enumerate(sizes)}
    content = {"fields": ConfigRecord({"head": "x"}), "buffers": ArrayRecord(arrays)}
    with as_a_task():
        return Message(RecordDict(content), OURSELVES, "train.tune")


@pytest.mark.parametrize("sizes", [(), (0,), (LARGE - 1,), (LARGE,), (3, 2 * LARGE, LARGE, 7)])
def test_a_message_is_the_same_after_it_was_parted(sizes):
    sent = message(*sizes)
    head, large = parted(sent)
    assert [len(b) for b in large] == [n for n in sizes if n >= LARGE]
    assert len(head) < 4096 + sum(n for n in sizes if n < LARGE)
    shared = [np.frombuffer(b, np.uint8) for b in large]
    got = joined(head, shared)
    assert got.metadata.message_type == "train.tune"
    assert dict(got.content.config_records["fields"]) == {"head": "x"}
    buffers = [array.data for array in got.content.array_records["buffers"].values()]
    assert [bytes(b) for b in buffers] == [bytes([i]) * n for i, n in enumerate(sizes)]
    # the large ones are not copied, neither on the way out nor on the way in
    own = {id(a.data) for a in sent.content.array_records["buffers"].values()}
    assert all(id(b) in own for b in large)
    views = [np.frombuffer(b, np.uint8) for b in buffers if len(b) >= LARGE]
    assert all(map(np.shares_memory, views, shared))


def test_what_a_message_held_is_free_as_soon_as_it_was_let_go():
    """Flower's records refer to themselves: without that it waits for Python to find out."""
    head, large = parted(message(LARGE))
    shared = np.frombuffer(large[0], np.uint8).copy()
    there = weakref.ref(shared)
    gc.disable()
    try:
        got = joined(head, [shared])
        del shared
        packet = packet_in(got)
        let_go(got)
        assert there() is not None
        assert len(packet.buffers["b0"]) == LARGE
        del packet, got
        assert there() is None
    finally:
        gc.enable()


def test_flower_makes_messages_where_we_say_who_we_are_and_names_them_as_we_do():
    """Of Flower's inside: a version that changes it fails here, and not in a run."""
    before = vars(TaskIdentity)["_run_id"]
    sent = message(1)
    assert vars(TaskIdentity)["_run_id"] == before
    name_message(sent, "a name")
    with as_a_task():
        reply = Message(RecordDict(), reply_to=sent)
    assert reply.metadata.reply_to_message_id == sent.metadata.message_id == "a name"


def test_the_grid_is_flowers():
    assert issubclass(RayGrid, Grid)
    assert not getattr(RayGrid, "__abstractmethods__", None)

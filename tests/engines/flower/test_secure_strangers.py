"""A device that says anything in a stage of a secure sum is left out; no other one is blamed."""

import os
from collections.abc import Callable

import pytest
from flwr.app import Array, Message

from fedprune import federate
from fedprune.engines.flower.grid import grid_port
from fedprune.secagg.keys import KEY
from fedprune.secagg.packets import table_bytes, table_of
from tests.runs import tiny

Table = dict[int, dict[int, bytes]]
LIAR = 78  # holds partition 1


def each(change: Callable[[bytes], bytes]) -> Callable[[Table], Table]:
    return lambda table: {p: {q: change(d) for q, d in row.items()} for p, row in table.items()}


def for_strangers(table: Table) -> Table:
    return {p: {9 + q: data for q, data in row.items()} for p, row in table.items()}


LOW_ORDER = bytes(KEY)
LIES: dict[str, tuple[str, str, Callable[[Table], Table]]] = {
    "a channel key of low order": ("query.keys", "keys", each(lambda d: LOW_ORDER + d[KEY:])),
    "a masking key of low order": (
        *("query.keys", "keys"),
        each(lambda d: d[:KEY] + LOW_ORDER + d[2 * KEY :]),
    ),
    "one key twice": ("query.keys", "keys", each(lambda d: 2 * d[:KEY] + d[2 * KEY :])),
    "shares that nobody can open": ("query.shares", "shares", each(lambda d: os.urandom(len(d)))),
    "shares of a megabyte": ("query.shares", "shares", each(lambda _: bytes(2**20))),
    "shares for strangers": ("query.shares", "shares", for_strangers),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_stage_costs_the_liar(devices, lie):
    kind, name, bend = LIES[lie]

    def meddle(node: int, question: Message, reply: Message) -> Message:
        if node == LIAR and question.metadata.message_type == kind:
            buffers = reply.content.array_records["buffers"]
            data = table_bytes(bend(table_of(buffers[name].data)))
            buffers[name] = Array("uint8", (len(data),), "fedprune.bytes", data)
        return reply

    keys = {"clients": 3, "cohort": 3, "rounds": 1, "warmup": 0, "end": 1, "local_steps": 1}
    keys |= {"secure": "secagg", "secure_minimum": 2, "min_clients": 2}
    config = tiny(**keys, sparsity=0.0, noise_source="secret")
    result = federate(config, grid_port(devices(3, meddle=meddle), config))
    (row,) = result.rows
    assert (row["answered"], row["undone"]) == (2, None)
    assert {f["partition"] for f in row["failures"]} == {1}
    assert {f["field"] for f in row["failures"]} == {name}

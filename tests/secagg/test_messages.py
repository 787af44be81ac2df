"""Calls and replies on their way between server and hosts: as they went, or refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.options.refusal import Refused
from fedprune.protocol.failures import Failure
from fedprune.protocol.replies import Packet
from fedprune.secagg.messages import Call, StageReply, call_for, merged_replies
from fedprune.secagg.packets import (
    call_of,
    call_packet,
    reply_of,
    reply_packet,
    table_bytes,
    table_of,
)

KEYS = {p: bytes([p]) * 128 for p in (1, 4, 5)}
CALL = Call(
    "unmask",
    b"\x00\xff" * 16,
    (1, 4, 5),
    KEYS,
    frozenset({1, 4, 5}),
    frozenset({1, 4}),
    {1: {4: b"four", 5: b""}, 4: {1: b"one"}},
    b"open",
    said={4: bytes(64)},
)
REPLY = StageReply(
    total=np.array([1, 2**64 - 1, 0], np.uint64),
    summed=(4, 1),
    failures=(Failure(5, "masked", "w", "left"),),
    bytes_up=77,
)


def test_a_call_comes_back_as_it_went_and_a_host_is_told_its_own_shares_and_everyones_keys():
    assert call_of(call_packet(CALL)) == CALL
    bare = Call("keys", b"s", (2, 3))
    assert call_of(call_packet(bare)) == bare
    assert call_packet(bare).buffers == {}
    mine = call_for(CALL, [4])
    assert mine.sealed == {4: {1: b"one"}}
    assert mine.roster == KEYS
    assert call_packet(mine).size() < call_packet(CALL).size()


@given(
    st.dictionaries(
        st.integers(0, 2**32 - 1),
        st.dictionaries(st.integers(0, 2**32 - 1), st.binary(max_size=9), min_size=1, max_size=3),
        max_size=4,
    )
)
def test_any_table_comes_back_and_a_cut_one_does_not(table):
    data = table_bytes(table)
    assert table_of(data) == table
    if data:
        for cut in (data[:-1], data[:5]):
            with pytest.raises(ValueError, match="within an entry"):
                table_of(cut)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_reply_comes_back_as_it_went(bits):
    kind = np.uint32 if bits == 32 else np.uint64
    reply = replace(REPLY, total=np.array([1, 2**bits - 1, 0], kind))
    seen = reply_of(reply_packet(reply), [5, 4, 1], "masked", bits, 3)
    assert seen.total.dtype == kind
    assert seen.total.tolist() == [1, 2**bits - 1, 0]
    assert replace(seen, total=None) == replace(reply, total=None)
    keys = StageReply(keys=KEYS, bytes_up=3)
    assert reply_of(reply_packet(keys), list(KEYS), "keys", bits) == keys


def about(**changes: Any) -> Packet:
    packet = reply_packet(REPLY)
    fields = {**json.loads(packet.fields["about"]), **changes}
    return replace(packet, fields={"about": json.dumps(fields)})


@pytest.mark.parametrize(
    "packet",
    [
        about(summed=[4]),
        about(summed=[4, 1, 1]),
        about(summed=[4, 1, 9]),
        about(summed="all"),
        about(bytes_up=-1),
        about(bytes_up=None),
        about(failures=[]),
        about(failures=[{"partition": 5}]),
        Packet({}, {}),
        Packet({"about": "["}, {}),
        Packet({"about": "{}"}, {"total": b""}),
        replace(reply_packet(REPLY), buffers={}),
        replace(reply_packet(REPLY), buffers={"total": bytes(16)}),
        replace(reply_packet(REPLY), buffers={"total": bytes(25)}),
        replace(reply_packet(REPLY), buffers={"total": bytes(24), "shares": b"\x01"}),
        replace(reply_packet(StageReply(keys={1: b"short"})), fields=reply_packet(REPLY).fields),
    ],
)
def test_a_reply_that_is_not_what_was_asked_is_refused(packet):
    with pytest.raises(Refused):
        reply_of(packet, [1, 4, 5], "keys", 64, 3)


def test_replies_of_hosts_are_added_in_the_ring():
    other = StageReply(total=np.array([2**64 - 1, 2, 0], np.uint64), summed=(7,), bytes_up=3)
    both = merged_replies([replace(REPLY, total=np.array([1, 2**64 - 1, 0], np.uint64)), other])
    assert both.total.tolist() == [0, 1, 0]
    assert both.summed == (4, 1, 7)
    assert both.bytes_up == 80
    assert both.present == {1, 4, 7}

"""What a device remembers: one vector and one opening a sum, the same words if asked again."""

from dataclasses import replace

import pytest

from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.messages import Failure
from fedprune.secagg.device_memory import Memory, recalled
from fedprune.secagg.messages import Call, Reply, reply_packet

KEYS = Call("keys", b"first", (1, 2, 3))
SHARES = replace(KEYS, stage="shares", roster={1: bytes(96)})
MASKED = replace(SHARES, stage="masked", shared=frozenset({1, 2, 3}))
CONFIRM = replace(MASKED, stage="confirm", summed=frozenset({1, 2, 3}))
UNMASK = replace(CONFIRM, stage="unmask")
QUESTION = Packet({"head": b"{}"}, {"values": b"1234"})


class Device:
    """Serves with whatever seed it is given, and writes the seeds down."""

    def __init__(self) -> None:
        self.memory: Memory | None = None
        self.seeds: list[bytes] = []
        self.refuses = False

    def ask(self, call: Call, packet: Packet | None = None) -> Packet:
        self.memory, reply = recalled(self.memory, call, packet, self._serve)
        return reply

    def _serve(self, seed: bytes) -> Reply:
        self.seeds.append(seed)
        if self.refuses:
            return Reply(failures=(Failure(1, "unmask", "secure", "no"),))
        return Reply(shares={1: {2: seed}})

    def through(self) -> None:
        self.ask(KEYS)
        self.ask(SHARES)
        self.ask(MASKED, QUESTION)
        self.ask(CONFIRM)


def test_one_seed_a_sum_and_another_one_in_the_next():
    device = Device()
    device.through()
    device.ask(KEYS)
    assert len(set(device.seeds)) == 1
    assert len(device.seeds[0]) == 32
    device.ask(replace(KEYS, session=b"second"))
    assert len(set(device.seeds)) == 2


def test_the_seed_is_gone_once_the_sum_is_open_and_the_reply_can_be_had_again():
    device = Device()
    device.through()
    first = device.ask(UNMASK)
    assert device.memory is not None
    assert device.memory.seed == b""
    served = len(device.seeds)
    assert device.ask(UNMASK) == first
    assert len(device.seeds) == served
    with pytest.raises(Refused, match="open already"):
        device.ask(MASKED, QUESTION)
    device.ask(KEYS)
    assert device.seeds[-1] != device.seeds[0], "keys of an open sum are new ones"


@pytest.mark.parametrize(
    ("call", "packet"),
    [
        (MASKED, replace(QUESTION, buffers={"values": b"1235"})),
        (MASKED, replace(QUESTION, fields={"head": b"{ }"})),
        (replace(MASKED, shared=frozenset({1, 2})), QUESTION),
        (replace(MASKED, open=b"x"), QUESTION),
        (replace(MASKED, roster={1: bytes(95) + b"1"}), QUESTION),
    ],
)
def test_a_second_vector_in_one_session_is_refused(call: Call, packet: Packet):
    """The difference of two vectors under one mask would show."""
    device = Device()
    device.through()
    device.ask(MASKED, QUESTION)
    with pytest.raises(Refused, match="second, different request"):
        device.ask(call, packet)


def test_a_second_opening_of_one_session_is_refused():
    """It could give both shares of a neighbour away."""
    device = Device()
    device.through()
    device.ask(UNMASK)
    with pytest.raises(Refused, match="second, different request"):
        device.ask(replace(UNMASK, summed=frozenset({1, 2})))


def test_who_refused_to_open_has_said_nothing_and_keeps_its_seed():
    device = Device()
    device.through()
    device.refuses = True
    device.ask(replace(UNMASK, summed=frozenset({1})))
    device.refuses = False
    opened = device.ask(UNMASK)
    assert opened.buffers == reply_packet(Reply(shares={1: {2: device.seeds[0]}})).buffers


@pytest.mark.parametrize("call", [SHARES, MASKED, UNMASK])
def test_of_another_session_nothing_is_known(call: Call):
    device = Device()
    with pytest.raises(Refused, match="showed no keys"):
        device.ask(call, QUESTION)
    device.ask(replace(KEYS, session=b"second"))
    with pytest.raises(Refused, match="showed no keys"):
        device.ask(call, QUESTION)


def test_a_sum_that_the_device_gave_nothing_to_is_not_opened():
    device = Device()
    device.ask(KEYS)
    for call in (CONFIRM, UNMASK):
        with pytest.raises(Refused, match="gave nothing"):
            device.ask(call)


def test_a_second_set_of_clients_is_not_confirmed_in_one_session():
    device = Device()
    device.through()
    assert device.ask(CONFIRM) == device.ask(CONFIRM)
    with pytest.raises(Refused, match="second, different request"):
        device.ask(replace(CONFIRM, summed=frozenset({1, 2})))

"""What a device says is data from a stranger: a reply is understood or refused, and ends no run."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedprune import RunConfig, federate
from fedprune.engines.flower.announced import node_of
from fedprune.engines.flower.fleet import Fleet
from fedprune.engines.flower.grid import grid_port
from fedprune.options.refusal import Refused
from fedprune.protocol.replies import Packet, folded_of, parts_in
from fedprune.protocol.versions import OWN_VERSION
from fedprune.secagg.packets import reply_of
from tests.runs import tiny
from tests.server.grids import FakeGrid, HttpGrid, delivered

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([0, 1, -5, 200_000, 10**400, "1", "\x1b[31m", [], {}]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FAILURE = st.fixed_dictionaries(
    {"partition": SCALARS, "phase": SCALARS, "field": SCALARS, "reason": SCALARS}
)
ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "answered": st.lists(SCALARS, max_size=3) | JSON,
        "summed": st.lists(SCALARS, max_size=3) | JSON,
        "failures": st.lists(FAILURE, max_size=3) | JSON,
        "failure": FAILURE | JSON,
        "labels": st.dictionaries(st.text(max_size=9), SCALARS, max_size=3) | JSON,
        "device": JSON,
        "bytes_up": JSON,
        "weight": JSON,
        "totals": JSON,
    },
)
BUFFERS = st.dictionaries(
    st.sampled_from(
        ["1.head", "1.values", "1.bits", "0.head", "total", "votes", "keys", "shares", "x"]
    ),
    st.binary(max_size=20),
)
TEXTS = st.one_of(
    ABOUT.map(json.dumps), st.text(max_size=30), st.integers(), st.just("[" * 99_999), st.none()
)
LETTERS = st.builds(
    lambda about, buffers: Packet({"about": about}, buffers), TEXTS, BUFFERS
) | st.builds(Packet, st.just({}), BUFFERS)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "read",
    [
        lambda packet: parts_in(packet, [0, 1], "tune"),
        lambda packet: folded_of(packet, [0, 1]),
        lambda packet: reply_of(packet, [0, 1], "masked", 64, 5),
        lambda packet: node_of(packet, 20),
    ],
    ids=["parts", "a sum", "a stage of a secure sum", "hello"],
)
@given(packet=LETTERS)
def test_any_packet_is_understood_or_refused(read, packet):
    refusal = None
    try:
        read(packet)
    except Refused as refused:
        refusal = str(refused)
    assert refusal is None or (refusal.isprintable() and len(refusal) < 500)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("an unknown phase", {"answered": [], "failures": [
        {"partition": 1, "phase": "\x07dance", "field": "\x1b[2J", "reason": "no\n\x1b[31mway"}]}),
    ("bytes that no number holds", {"bytes_up": 10**400}),
    ("a failure of another", {"answered": [], "failures": [
        {"partition": 0, "phase": "tune", "field": "", "reason": ""}]}),
    ("a list", {"answered": [[1]], "summed": [[1]]}),
]  # fmt: skip


@pytest.fixture
def three() -> Callable[..., RunConfig]:
    def made(**changes: Any) -> RunConfig:
        few = {"clients": 3, "cohort": 3, "rounds": 2, "warmup": 0, "end": 1, "local_steps": 1}
        return tiny(**{**few, **changes})

    return made


@pytest.mark.sampled(3)
@pytest.mark.parametrize("secure", ["none", "secagg"])
@pytest.mark.parametrize("about", [b for _, b in BAD], ids=[name for name, _ in BAD])
def test_no_reply_ends_a_run(devices, three, about, secure):
    """The second of three devices lies in every reply; the others' round goes on."""

    def meddle(node: int, question: Message, reply: Message) -> Message:
        if node == 78 and question.metadata.message_type != "query.hello":
            fields = reply.content.config_records["fields"]
            said = json.loads(str(fields["about"]))
            fields["about"] = json.dumps({**said, **about})
            if "answered" in about and not about["answered"]:
                for name in list(reply.content.array_records["buffers"]):
                    del reply.content.array_records["buffers"][name]
        return reply

    fewest = {"secure_minimum": 2} if secure == "secagg" else {}
    config = three(secure=secure, **fewest)
    result = federate(config, grid_port(devices(3, meddle=meddle), config))
    assert result.summary["rounds_completed"] == 2
    told = [f for row in result.rows for f in row["failures"]]
    lied = "bytes_up" not in about
    assert bool(told) == lied, "what a device says of its own bytes is not read"
    for failure in told:
        assert failure["phase"] in {"score", "tune", "evaluate", "describe"}
        assert (failure["field"] + failure["reason"]).isprintable()


RECORDS = [
    RecordDict({"fields": ConfigRecord({"about": b"\xff"}), "buffers": ArrayRecord({})}),
    RecordDict({"fields": MetricRecord({"about": 1})}),
    RecordDict({"fields": ConfigRecord({"about": "{}"}), "buffers": MetricRecord({"x": 1})}),
    RecordDict({"fields": ConfigRecord({"missing": [1, 2]}),
                "buffers": ArrayRecord({"1.head": Array("f", (1,), "s", b"")})}),
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("content", RECORDS, ids=range(len(RECORDS)))
@pytest.mark.parametrize("kind", ["query.hello", "train.tune", "evaluate"])
def test_records_of_any_kind_are_refused(devices, three, content, kind):
    def meddle(node: int, question: Message, reply: Message) -> Message:
        lies = node == 78 and question.metadata.message_type == kind
        return Message(content, reply_to=question) if lies else reply

    config = three(rounds=1)
    result = federate(config, grid_port(devices(3, meddle=meddle), config))
    assert result.summary["rounds_completed"] == 1


class Replaying:
    """A grid on which every reply comes again at every later look."""

    def __init__(self, inner: FakeGrid) -> None:
        self.inner, self.before = inner, list[Message]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        new = self.inner.pull_messages(message_ids)
        old = list(map(delivered, self.before))
        self.before += map(delivered, new)
        return [*old, *new, *map(delivered, new)]


def test_a_reply_that_comes_again_counts_once(devices, three):
    config = three()
    grid = Replaying(devices(3))
    often, once = (federate(config, grid_port(g, config)) for g in (grid, devices(3)))
    assert len(grid.before) > 20
    assert often.rows == once.rows
    assert often.state.book.traffic == once.state.book.traffic


@pytest.mark.parametrize("secure", ["none", "secagg"])
def test_what_a_device_has_answered_before_is_no_answer_to_another_question(devices, three, secure):
    before: dict[str, Message] = {}

    def meddle(node: int, question: Message, reply: Message) -> Message:
        if node != 78 or not question.metadata.message_type.startswith("train"):
            return reply
        old = before.setdefault(question.metadata.message_type, delivered(reply))
        return Message(delivered(old).content, reply_to=question)

    config = three(secure=secure, min_clients=2)
    result = federate(config, grid_port(devices(3, meddle=meddle), config))
    first, *later = result.rows
    assert not first["failures"]
    assert later
    for row in later:
        why = [f["reason"] for f in row["failures"] if f["partition"] == 1]
        assert why, row["failures"]
        assert "another question" in why[0]


@pytest.mark.parametrize("name", ["head", "values"])
def test_a_reply_that_is_too_large_is_refused_by_a_line_that_names_the_limit(devices, three, name):
    def meddle(node: int, question: Message, reply: Message) -> Message:
        if node == 78 and question.metadata.message_type == "train.tune":
            arrays = reply.content.array_records["buffers"]
            arrays[f"1.{name}"].data += bytes(10**6)
        return reply

    config = three(rounds=1)
    (row,) = federate(config, grid_port(devices(3, meddle=meddle), config)).rows
    (failure,) = row["failures"]
    assert (failure["partition"], failure["field"]) == (1, "reply")
    assert re.fullmatch(r"(a head of )?\d+ bytes; allowed: \d+", failure["reason"])
    assert row["answered"] == 2


HELLOS = [
    {"device": False, "labels": {}, "failure": {
        "partition": 0, "phase": "hello", "field": "", "reason": "no room"}},
    {"device": False, "labels": {str(p): 5 for p in range(3)}},
    {"device": True, "labels": {str(p): 1 for p in range(200_000)}},
    {"device": True, "labels": {"-5": 1}},
    {"device": True, "labels": {"3": 1}},
    {"device": True, "labels": {"0": 10**400}},
    {"device": True, "labels": {"2": 5}, "clock": "inf 0"},
    {"device": True, "labels": {"2": 5}, "clock": "1 2 3"},
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("hello", HELLOS, ids=range(len(HELLOS)))
def test_a_node_that_announces_what_cannot_be_takes_no_part(devices, three, hello, caplog):
    def meddle(node: int, question: Message, reply: Message) -> Message:
        if node == 77 and question.metadata.message_type == "query.hello":
            reply.content.config_records["fields"]["about"] = json.dumps(OWN_VERSION | hello)
        return reply

    config = three(min_clients=3, timeout=9.0)
    fleet = Fleet(HttpGrid(devices(3, meddle=meddle)), config)  # type: ignore[arg-type]
    assert list(fleet.present()) == [0, 1]
    assert "could not join" in caplog.text
    assert len(caplog.text) < 3000


def test_a_node_without_a_partition_is_told_so(devices, three, folders, joined):
    grid = devices(2)
    grid.contexts[5] = joined(5, 0, folders[2])
    del grid.contexts[5].node_config["partition-id"]
    fleet = Fleet(grid, three())
    assert list(fleet.present()) == [0, 1]
    failed, (said,) = fleet.news.take()
    assert failed == ()
    assert "partition-id=None: no partition; allowed: a number" in said

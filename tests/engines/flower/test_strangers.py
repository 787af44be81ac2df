"""What a device says is data from a stranger: a reply is understood or refused, and ends no run."""

import json
import re

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedprune.engines.flower.announced import node_of
from fedprune.options.refusal import Refused
from fedprune.protocol.replies import Packet, folded_of, parts_in
from fedprune.secagg.packets import reply_of
from tests.runs import tiny
from tests.server.grids import at, delivered, failures, run_on

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
NAMES = ["1.head", "1.values", "1.bits", "0.head", "total", "votes", "keys", "shares", "x"]
BUFFERS = st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=20))
TEXTS = st.one_of(
    ABOUT.map(json.dumps), st.text(max_size=30), st.integers(), st.just("[" * 99_999), st.none()
)
FIELDS = TEXTS.map(lambda about: {"about": about}) | st.just({})
LETTERS = st.builds(Packet, FIELDS, BUFFERS)


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
    try:
        read(packet)
    except Refused as refused:
        assert str(refused).isprintable()  # noqa: PT017
        assert len(str(refused)) < 500  # noqa: PT017


BAD = [
    ("an unknown phase", {"answered": [], "failures": [
        {"partition": 1, "phase": "\x07dance", "field": "\x1b[2J", "reason": "no\n\x1b[31mway"}]}),
    ("bytes that no number holds", {"bytes_up": 10**400}),
    ("a failure of another", {"answered": [], "failures": [
        {"partition": 0, "phase": "tune", "field": "", "reason": ""}]}),
    ("a list", {"answered": [[1]], "summed": [[1]]}),
]  # fmt: skip


def three(**changes):
    few = {"clients": 3, "cohort": 3, "rounds": 2, "warmup": 0, "end": 1, "local_steps": 1}
    return tiny(**{"model": "mlp", **few, **changes})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("secure", ["none", "secagg"])
@pytest.mark.parametrize("about", [b for _, b in BAD], ids=[name for name, _ in BAD])
def test_no_reply_ends_a_run(devices, about, secure):
    """The second of three devices lies in every reply; the others' round goes on."""

    def meddle(node, question, reply):
        if node == 78 and question.metadata.message_type != "query.hello":
            fields = reply.content.config_records["fields"]
            said = json.loads(str(fields["about"]))
            fields["about"] = json.dumps({**said, **about})
            if "answered" in about and not about["answered"]:
                for name in list(reply.content.array_records["buffers"]):
                    del reply.content.array_records["buffers"][name]
        return reply

    fewest = {"secure_minimum": 2} if secure == "secagg" else {}
    result = run_on(devices(3, meddle=meddle), three(secure=secure, **fewest))
    assert result.summary["rounds_completed"] == 2
    told = failures(result)
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
def test_records_of_any_kind_are_refused(devices, content, kind):
    other = at(78, kind, lambda question, _: Message(content, reply_to=question))
    result = run_on(devices(3, meddle=other), three(rounds=1))
    assert result.summary["rounds_completed"] == 1


class Replaying:
    """A grid on which every reply comes again at every later look."""

    def __init__(self, inner):
        self.inner, self.before = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def pull_messages(self, message_ids):
        new = self.inner.pull_messages(message_ids)
        old = list(map(delivered, self.before))
        self.before += map(delivered, new)
        return [*old, *new, *map(delivered, new)]


def test_a_reply_that_comes_again_counts_once(devices):
    grid = Replaying(devices(3))
    often, once = (run_on(g, three()) for g in (grid, devices(3)))
    assert len(grid.before) > 20
    assert often.rows == once.rows
    assert often.state.book.traffic == once.state.book.traffic


@pytest.mark.parametrize("secure", ["none", "secagg"])
def test_what_a_device_has_answered_before_is_no_answer_to_another_question(devices, secure):
    before = {}

    def repeated(question, reply):
        old = before.setdefault(question.metadata.message_type, delivered(reply))
        return Message(delivered(old).content, reply_to=question)

    grid = devices(3, meddle=at(78, "train", repeated))
    result = run_on(grid, three(secure=secure, min_clients=2))
    first, *later = result.rows
    assert not first["failures"]
    assert later
    for row in later:
        why = [f["reason"] for f in row["failures"] if f["partition"] == 1]
        assert why, row["failures"]
        assert "another question" in why[0]


@pytest.mark.parametrize("name", ["head", "values"])
def test_a_reply_that_is_too_large_is_refused_by_a_line_that_names_the_limit(devices, name):
    def larger(_, reply):
        reply.content["buffers"][f"1.{name}"].data += bytes(10**6)
        return reply

    (row,) = run_on(devices(3, meddle=at(78, "train.tune", larger)), three(rounds=1)).rows
    (failure,) = row["failures"]
    assert (failure["partition"], failure["field"]) == (1, "reply")
    assert re.fullmatch(r"(a head of )?\d+ bytes; allowed: \d+", failure["reason"])
    assert row["answered"] == 2

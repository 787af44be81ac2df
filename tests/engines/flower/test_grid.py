"""The port over a grid: what is folded, what is refused, what is asked again."""

import json
from functools import cache

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.codec.flags import pack_flags
from fedprune.config import to_toml
from fedprune.engines.flower import exchange
from fedprune.engines.flower.waiting import NOT_HEARD_OF
from fedprune.engines.inline import inline_port
from fedprune.tasks.losses import f1_names
from fedprune.tensors.named import as_bytes
from tests.runs import Spy, played, tiny
from tests.server.grids import HttpGrid, an_error, at, failures, run_on


def device_config(**changes):
    """Three rounds on two devices: one dense, one that prunes, one that recovers."""
    return tiny(**{"clients": 2, "cohort": 2, "rounds": 3, "warmup": 1, "end": 2, **changes})


@pytest.fixture
def right(devices):
    """The digest of three rounds, or fewer, on so many devices that say what is so."""

    @cache
    def made(count, **changes):
        return run_on(devices(count), device_config(**changes)).summary["weights_digest"]

    return made


def tampered(kind, about=None, head=None, **buffers):
    """The second device lies: in what it says about its answer, its head or its buffers."""

    def lie(_, reply):
        fields, arrays = (reply.content[name] for name in ("fields", "buffers"))
        was = json.loads(arrays["1.head"].data)
        lies = {"1.head": json.dumps({**was, **(head or {})}).encode()}
        lies |= {f"1.{name}": data for name, data in buffers.items()}
        for name, data in lies.items():
            arrays[name] = Array("uint8", (len(data),), "b", data)
        fields["about"] = json.dumps({**json.loads(str(fields["about"])), **(about or {})})
        return reply

    return at(78, kind, lie)


def floats(*values, count=1):
    return bytes(as_bytes(torch.tensor(values).float().repeat(count)))


FORMS = [
    {"combine": "median"},
    {"combine": "votes", "score_wire": "fp16"},
    {"masks": "union", "wire": "bf16"},
    {"uplink": "int4"},
    {"score_during": "tune"},
    {"schedule": "regrow"},
    {"score": "grasp", "warmup": 0, "schedule": "one-shot", "end": 1},
    {"calibration": "sequential", "scope": "layer", "score": "wanda"},
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("count", "keys"), [(1, {}), (5, {}), *((2, k) for k in FORMS)], ids=str)
def test_workers_give_the_bits_of_one_process_in_every_form(workers, count, keys):
    config = tiny(**{"rounds": 3, "warmup": 1, "end": 3, "local_steps": 1, **keys})
    ticks = []
    seen = run_on(workers(count), config, tick=ticks.append)
    assert seen.rows == played(config).rows
    assert sum(ticks) >= sum(len(row["cohort"]) for row in seen.rows)
    assert not failures(seen)


NAN, FLAGS = float("nan"), pack_flags(torch.ones(7, dtype=torch.bool))
LIES = [
    ({"combine": "median"}, "train.score", {"values": floats(*range(7))}, "values"),
    ({"combine": "median"}, "train.score", {"values": floats(NAN, count=12944)},
     "features.0.weight"),
    ({"masks": "union"}, "train.tune", {"bits": b""}, "votes"),
    ({"masks": "union"}, "train.tune", {"bits": FLAGS}, ""),
    ({"score_during": "tune"}, "train.tune", {"more": floats(0, 0, 0),
     "head": {"more": "fp32"}}, "statistics"),
    ({"score_wire": "fp16"}, "train.score", {"head": {"totals": {"count": 3}}}, "totals"),
    ({"uplink": "int8"}, "train.tune", {"values": floats(1, 2)}, ""),
    ({}, "train.score", {"bits": FLAGS}, ""),
    ({}, "train.score", {"bits": b"no mask"}, ""),
    ({}, "train.score", {"head": {"wire": "none"}}, ""),
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("keys", "kind", "changes", "field"), LIES, ids=str)
def test_a_lie_in_a_new_field_is_refused_at_once(devices, keys, kind, changes, field):
    seen = run_on(devices(2, meddle=tampered(kind, **changes)), device_config(**keys))
    assert {(f["partition"], f["field"]) for f in failures(seen)} == {(1, field)}
    assert seen.summary["rounds_completed"] == 3
    assert seen.summary["sparsity"] == pytest.approx(0.7, abs=1e-4)


def test_a_simulations_workers_keep_nothing(workers):
    grid = workers(2)
    run_on(grid, tiny(rounds=3, end=3))
    assert all(not context.state for context in grid.contexts.values())
    assert all("config" in fields for _, _, fields, _ in grid.asked)


def test_devices_prune_and_get_a_mask_and_the_configuration_once(devices):
    grid = devices(2)
    result = run_on(grid, device_config())
    n = result.summary["prunable_parameters"]
    assert n - result.summary["kept_parameters"] == int(0.7 * n + 0.5)
    assert [(row["cohort"], row["answered"]) for row in result.rows] == [([0, 1], 2)] * 3
    assert not failures(result)
    asked = [(kind, bool(f["config"]), "bits" in b) for i, kind, f, b in grid.asked if i == 79]
    assert asked == [
        ("query.hello", True, False),
        ("evaluate", False, True),
        ("train.tune", False, False),
        ("evaluate", False, False),
        ("evaluate", False, False),
        ("train.score", False, False),
        ("train.tune", False, True),
        ("evaluate", False, False),
        ("train.tune", False, False),
        ("evaluate", False, False),
        ("evaluate", False, False),
    ]


@pytest.mark.slow
def test_the_order_in_which_devices_came_does_not_matter(devices, right, joined, folders):
    grid = devices(0)
    grid.contexts.update({5: joined(5, 1, folders[1]), 6: joined(6, 0, folders[0])})
    assert run_on(grid, device_config()).summary["weights_digest"] == right(2)


@pytest.mark.slow
def test_a_device_that_forgot_is_asked_again_and_weighed(devices):
    def forget(node, question, reply):
        head = question.content.config_records["fields"].get("head", b"")
        if node == 78 and b'"kind":"evaluate"' in bytes(head):
            grid.contexts[78].state = RecordDict()
        return reply

    grid = devices(2, meddle=forget)
    seen, right = run_on(grid, device_config()), run_on(devices(2), device_config())
    assert seen.summary["weights_digest"] == right.summary["weights_digest"]
    assert not failures(seen)
    # Two questions, to score and to tune, were put under a mask that it should have had; each came
    # again, with the mask.
    assert [grid.kinds(78).count(kind) for kind in ("train.score", "train.tune")] == [2, 4]
    more = [s["bytes_down"] - r["bytes_down"] for s, r in zip(seen.rows, right.rows, strict=True)]
    gone = sum(row["removed"] for row in right.rows[:2])
    sizes = 4 * (2 * right.summary["parameters"] - gone)
    assert more[0] == 0 < more[1] < more[2]
    text = 2 * len(to_toml(device_config()))
    assert sizes + text < more[2] < sizes + text + 6000, "values, the mask and the configuration"


@pytest.mark.slow
def test_a_device_that_never_remembers_fails(devices, right):
    def missing(node, question, reply):
        if node != 78 or question.metadata.message_type == "query.hello":
            return reply
        fields = {"fields": ConfigRecord({"missing": True}), "buffers": ArrayRecord({})}
        return Message(RecordDict(fields), reply_to=question)

    seen = run_on(devices(2, meddle=missing), device_config())
    assert seen.summary["weights_digest"] == right(1)
    why = {(f["partition"], f["reason"]) for f in failures(seen)}
    assert why == {(1, "lacks the mask or the configuration")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["devices", "workers"])
def test_a_reply_lost_once_is_asked_for_again(request, engine):
    made, lost = request.getfixturevalue(engine), []

    def lose(_, question, reply):
        kind = question.metadata.message_type
        if kind == "query.hello" or kind in lost:
            return reply
        lost.append(kind)
        return an_error(question, reply)

    config = device_config()
    seen, right = run_on(made(2, meddle=lose), config), run_on(made(2), config)
    assert len(lost) == 3
    assert seen.summary["weights_digest"] == right.summary["weights_digest"]
    assert not failures(seen)
    more = seen.rows[-1]["bytes_down"] - right.rows[-1]["bytes_down"]
    assert (more > 0) == (engine == "devices"), "what a simulation resends no device receives"


def test_a_reply_lost_twice_is_a_failure(devices):
    grid = devices(2, meddle=at(78, "train.tune", an_error))
    seen = run_on(grid, device_config())
    assert grid.kinds(78).count("train.tune") == 6
    assert [row["answered"] for row in seen.rows] == [1, 1, 1]
    failed = {"partition": 1, "phase": "tune", "field": "", "reason": "lost"}
    assert failures(seen) == [failed] * 3


MEASURED = {"loss": 1, "correct": 1, "count": 3, **dict.fromkeys(f1_names(10), 0)}


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("kind", "changes", "field", "reason"),
    [
        ("tune", {"values": floats(NAN, count=13850)}, "features.0.weight", "NaN or infinite"),
        ("tune", {"values": floats(0, count=7)}, "values", "wrong shape: 7 values"),
        ("tune", {"head": {"weight": 0}}, "weight", "0.0 is not a positive number"),
        ("tune", {"head": {"weight": float("inf")}}, "weight", "inf is not"),
        ("tune", {"head": {"totals": {"loss": 1, "count": NAN}}}, "count", "nan is not"),
        ("tune", {"head": {"totals": {"count": 3}}}, "totals", "expected ['count', 'loss']"),
        ("tune", {"head": {"totals": "many"}}, "totals", "no sums by name"),
        ("tune", {"about": {"answered": [0]}}, "reply", "malformed"),
        ("tune", {"about": {"answered": []}}, "answered", "speaks for partitions []"),
        ("tune", {"about": {"answered": [1, 1]}}, "answered", "speaks for partitions [1, 1]"),
        ("tune", {"about": {"failures": "x"}}, "reply", "malformed"),
        ("tune", {"teacher": b"x"}, "reply", "a buffer that nobody asked for: '1.teacher'"),
        ("evaluate", {"head": {"totals": {"loss": 1, "count": 3}}}, "totals", "expected ['cor"),
        ("evaluate", {"head": {"totals": {**MEASURED, "count": -3}}}, "count", "-3.0 is negative"),
        ("evaluate", {"head": {"totals": {**MEASURED, "fp_7": -1}}}, "fp_7", "negative"),
    ],
    ids=str,
)
def test_a_lying_devices_sum_is_refused_at_once(devices, right, kind, changes, field, reason):
    few, message = {"rounds": 2, "sparsity": 0.0}, kind.replace("tune", "train.tune")
    grid = devices(2, meddle=tampered(message, **changes))
    seen = run_on(grid, device_config(**few))
    bad = failures(seen)
    assert {(f["partition"], f["phase"], f["field"]) for f in bad} == {(1, kind, field)}
    assert reason in bad[0]["reason"]
    assert grid.kinds(78).count("train.tune") == 2, "a lie is not asked for again"
    assert seen.summary["weights_digest"] == right(1 if kind == "tune" else 2, **few)


def answer_with(content):
    def meddle(node, question, reply):
        if node != 78 or question.metadata.message_type == "query.hello":
            return reply
        if isinstance(content, RecordDict) and "fields" in content.config_records:
            to = reply.content.config_records["fields"]["to"]
            content.config_records["fields"]["to"] = to
        return Message(content, reply_to=question)

    return meddle


def said(about):
    return RecordDict({"fields": ConfigRecord({"about": about}), "buffers": ArrayRecord({})})


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        (RecordDict(), "reply", "malformed"),
        (RecordDict({"fields": MetricRecord({"about": 1})}), "reply", "malformed"),
        (said("{"), "reply", "malformed"),
        (said("[" * 99999), "reply", "malformed"),
        (Error(code=0, reason="out of\nmemory " * 99), "", "out of memory out of"),
        (Error(code=5, reason="Node Unavailable"), "", "left: its SuperLink hears nothing of it"),
    ],
    ids=["nothing", "other records", "no json", "deep json", "an error", "a node that is gone"],
)
def test_a_malformed_reply_is_a_failure(devices, right, content, field, reason):
    seen = run_on(devices(2, meddle=answer_with(content)), device_config(rounds=2))
    first = failures(seen)[0]
    assert first["field"] == field
    assert first["reason"].startswith(reason)
    assert len(first["reason"]) <= 300
    assert seen.summary["weights_digest"] == right(1, rounds=2)


@pytest.mark.parametrize(
    ("made", "why"), [(lambda grid: grid, "left"), (HttpGrid, NOT_HEARD_OF)], ids=["here", "far"]
)
def test_a_node_that_leaves_while_it_is_awaited_is_not_asked_again(devices, monkeypatch, made, why):
    monkeypatch.setattr(exchange, "ROLL_CALL", 0.0)

    grid = devices(2, meddle=at(78, "train.score", lambda *_: grid.contexts.pop(78) and None))
    seen = run_on(made(grid), device_config())
    assert failures(seen) == [
        {"partition": 1, "phase": "score", "field": "", "reason": why},
        {"partition": 1, "phase": "tune", "field": "", "reason": "could not be reached"},
    ]
    assert grid.kinds(78).count("train.score") == 1
    assert [row["cohort"] for row in seen.rows] == [[0, 1], [0, 1], [0]]


@pytest.mark.slow
def test_a_client_that_raises_in_a_worker_leaves_the_bits_of_one_never_asked(workers):
    config = tiny(task="failing", plugin="tests/failing_task.py", cohort=5, split="iid")
    seen = run_on(workers(2), config)
    assert [row["answered"] for row in seen.rows] == [5, 5, 4, 4, 4]
    why = {(f["partition"], f["reason"]) for f in failures(seen)}
    assert why == {(1, "MemoryError: no room for this batch")}
    without = lambda q, p: p == 1 and (q.round > 3 or (q.round, q.kind) == (3, "tune"))  # noqa: E731
    never = Spy(inline_port(build_host(config)), without)
    assert seen.summary["weights_digest"] == federate(config, never.port).summary["weights_digest"]


@pytest.mark.slow
def test_a_client_that_kills_its_worker_leaves_the_bits_of_one_never_asked(workers):
    def breaks(_, message, reply):
        asked = dict(message.content.config_records["fields"])
        if message.metadata.message_type == "query.hello" or 1 not in asked["partitions"]:
            return reply
        return Message(Error(code=0, reason="the worker died"), reply_to=message)

    config = tiny(cohort=5, hosts=2)
    grid = workers(2, meddle=breaks)
    seen = run_on(grid, config)
    assert {(f["partition"], f["reason"]) for f in failures(seen)} == {(1, "the worker died")}
    assert [row["answered"] for row in seen.rows] == [4] * 5
    never = Spy(inline_port(build_host(config)), without=lambda _, p: p == 1)
    right = federate(config, never.port)
    assert seen.summary["weights_digest"] == right.summary["weights_digest"]
    assert [row["bytes_up"] for row in seen.rows] == [row["bytes_up"] for row in right.rows]
    groups = [f["partitions"] for _, _, f, _ in grid.asked if 1 in f.get("partitions", [])]
    assert sum(len(group) > 1 for group in groups) == 2, "then it is kept apart"
    assert seen.rows[0]["bytes_down"] > right.rows[0]["bytes_down"], "the question reached it"

"""Law 11: whatever leaves a party is in the ledger, in every kind of run, field by field."""

import json
from dataclasses import fields
from typing import Any

import pytest

from fedprune import federate
from fedprune.client import partition_answers, serving
from fedprune.codec.wire import Packet, head_of
from fedprune.config import configure
from fedprune.engines import inline as this_process
from fedprune.engines import inline_sums as inline
from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import Broadcast
from fedprune.protocol.replies import sum_packet
from fedprune.secagg.messages import StageReply

BASE = {"task": "digits", "clients": 6, "cohort": 4, "rounds": 3, "warmup": 1, "hosts": 2}
BASE |= {"engine": "inline", "local_steps": 2, "batch_size": 8, "sparsity": 0.6}
BASE |= {"model": "mlp"}
NOISE = {"dp": "client", "dp_noise": 2.0}

EXAMPLES: list[dict[str, Any]] = [
    {"model": "cnn"},
    {"score": "magnitude"},
    {"score": "wanda", "score_wire": "fp16"},
    {"combine": "votes"},
    {"combine": "median"},
    {"score": "grasp", "warmup": 0},
    {"score_during": "tune"},
    {"masks": "union"},
    {"blend": "global"},
    {"schedule": "adaptive"},
    {"distil": 0.5},
    {"uplink": "int8", "error_feedback": True},
    {"scaffold": True, "optimizer": "sgd"},
    {"reconstruct": "outputs", "reduce": ["dead"], "end": 2},
    {"defence": 0.2},
    {"score": "sparsegpt"},
    NOISE,
    {**NOISE, "sampling": "poisson"},
    {**NOISE, "panel": 2, "blend": "global"},
    {**NOISE, "combine": "votes"},
    {**NOISE, "combine": "mean-absolute"},
    {**NOISE, "score_during": "tune"},
    {**NOISE, "score": "random"},
    {**NOISE, "dp": "example"},
    {**NOISE, "dp": "example", "score": "wanda", "dp_score_clip": 0.1, "panel": 2},
    {"combine": "votes", "unit": "row", "response": 20.0},
    {**NOISE, "dp_score_noise": 0.0, "allow_uncovered": True},
]

ENCODING = {"wire": (), "more": (), "scale": ("values",), "count": ("values",)}
ENCODING |= {"more_scale": ("statistics",), "flags": ("votes",)}
"""Keys in the head that say how a buffer is encoded, and the field that they belong to."""


def fields_in(packet: Packet) -> set[str]:
    """The fields that an answer's packet carries, by the ledger's names."""
    head = head_of(packet)
    buffers = {"values": packet["values"], "votes": packet["bits"], "statistics": packet["more"]}
    found = {name for name, data in buffers.items() if len(data)}
    found |= {f"totals.{name}" for name in head.pop("totals")} | {"weight"}
    head.pop("weight")
    for key in head:
        found |= {name for name in ENCODING[key] if name in found}
    assert packet.buffers.keys() <= {"values", "bits", "more"}
    return found


Left = list[tuple[str, int, set[str]]]
"""Of what left: the kind of question, the round, and the fields in it."""


def tapped(monkeypatch: pytest.MonkeyPatch) -> tuple[Left, Left, Left]:
    """What will be encoded to leave clients, hosts and the server, in order."""
    up, sums, down = (list[tuple[str, int, set[str]]]() for _ in range(3))
    answer, question = partition_answers.encode_answer, this_process.broadcast
    serve = serving.serve

    def heard(given: Any, asked: Any, *rest: Any, **more: Any) -> Packet:
        packet = answer(given, asked, *rest, **more)
        up.append((asked.kind, asked.round, fields_in(packet)))
        return packet

    def said(asked: Any, wire: str, **how: Any) -> Broadcast:
        sent = question(asked, wire, **how)
        down.append((asked.kind, asked.round, {"head", *sent.common.buffers, *sent.own}))
        return sent

    def served(host: Any, packet: Packet, *rest: Any) -> Aggregate:
        aggregate = serve(host, packet, *rest)
        head = head_of(packet)
        sums.append((head["kind"], head["round"], summed_fields(aggregate)))
        return aggregate

    monkeypatch.setattr(partition_answers, "encode_answer", heard)
    monkeypatch.setattr(this_process, "broadcast", said)
    for module in (serving, this_process):
        monkeypatch.setattr(module, "serve", served)
    return up, sums, down


def summed_fields(aggregate: Aggregate) -> set[str]:
    """The fields of a host's sum, by the ledger's names."""
    packet = sum_packet(aggregate)
    found = {"values" if name == "total" else name for name, data in packet.buffers.items() if data}
    about = json.loads(packet.fields["about"])
    found |= {f"totals.{name}" for name in about.pop("totals")}
    return found | {name for name, value in about.items() if value}


QUICK = [EXAMPLES[0], NOISE]
CASES = [e if e in QUICK else pytest.param(e, marks=pytest.mark.slow) for e in EXAMPLES]


@pytest.mark.slow
@pytest.mark.parametrize("keys", CASES, ids=lambda keys: " ".join(map(str, keys.values())))
def test_whatever_left_is_in_the_ledger(keys, monkeypatch, tmp_path):
    up, sums, down = tapped(monkeypatch)
    config = configure({**BASE, **keys})
    result = federate(config, folder=tmp_path / "run")
    lines = read_ledger(tmp_path / "run" / LEDGER_NAME)
    booked: dict[tuple[str, str, int], set[str]] = {}
    for line in lines:
        booked.setdefault((line["way"], line["kind"], line["round"]), set()).update(line["fields"])
    assert up
    for way, left in (("up", up), ("up", sums), ("down", down)):
        for kind, round_, seen in left:
            assert seen <= booked[way, kind, round_], kind
    # Nothing is booked as noised that did not leave.
    for (way, kind, round_), names in booked.items():
        left = [s for k, r, s in [*up, *sums] if (k, r) == (kind, round_)]
        if way == "up" and left:
            arrays = {"values", "votes", "statistics"} & names
            assert arrays <= set().union(*left), kind
    covered = all(line["covered"] for line in lines)
    assert (result.summary["privacy"]["total"] == "infinity") == (not covered)
    assert covered == ("dp" in keys and not keys.get("allow_uncovered"))
    if config.dp == "none":
        assert any(line["fields"] == ["labels"] for line in lines)


SEALED: list[dict[str, Any]] = [
    {"secure": "secagg"},
    {"secure": "secagg", "masks": "union"},
    {**NOISE, "secure": "secagg"},
    {**NOISE, "secure": "secagg", "dp": "example"},
]
NAMES = {"total": "masked", "summed": "answered", "said": "signatures"}
"""What a stage of a secure sum calls what the ledger calls otherwise."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", SEALED, ids=lambda keys: " ".join(map(str, keys.values())))
def test_of_a_secure_sum_nothing_else_leaves(keys, monkeypatch, tmp_path):
    seen, serve_call = set[str](), inline.serve_call

    def served(*given: Any) -> StageReply:
        reply = serve_call(*given)
        given_up = {f.name: getattr(reply, f.name) for f in fields(reply)}
        del given_up["resent"]  # what the server sent
        seen.update(n for n, v in given_up.items() if v is not None and (n == "bytes_up" or len(v)))
        return reply

    monkeypatch.setattr(inline, "serve_call", served)
    config = configure({**BASE, **keys})
    federate(config, folder=tmp_path / "run")
    lines = read_ledger(tmp_path / "run" / LEDGER_NAME)
    booked = {name for line in lines if line["way"] == "up" for name in line["fields"]}
    assert {"keys", "shares", "total", "summed", "bytes_up"} <= seen
    assert {NAMES.get(name, name) for name in seen} <= booked
    assert "labels" not in booked
    assert all(line["covered"] for line in lines) == (config.dp != "none")


def test_a_field_that_is_not_booked_is_noticed():
    head = '{"weight":1.0,"totals":{"loss":1.0,"secret":2.0},"wire":"fp32"}'
    packet = Packet({"head": head}, {"values": b"1234"})
    assert fields_in(packet) == {"weight", "totals.loss", "totals.secret", "values"}
    with pytest.raises(KeyError):
        fields_in(Packet({"head": '{"weight":1.0,"totals":{},"wire":"fp32","name":"Alice"}'}))

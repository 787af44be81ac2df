"""Neighbouring data give messages of one length, in every kind of run that hides data."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from test_wiretap import BASE, EXAMPLES, NOISE

from fedprune import Shard, federate
from fedprune.client import partition_answers, serving
from fedprune.client.host import Host, build_host
from fedprune.codec.wire import Packet
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Question
from tests.played import watched

HIDING = [e for e in EXAMPLES if "dp" in e]
SECURE = {"secure": "secagg"}
SUMMED: list[dict[str, Any]] = [
    SECURE,
    {**SECURE, "secure_bits": 32},
    {**SECURE, "dp": "client", "dp_noise": 1.0, "dp_metric_clip": 5.0},
    {**SECURE, "dp": "example", "dp_noise": 1.0},
    {**SECURE, "blend": "global"},
    {**SECURE, "dp": "client", "dp_noise": 1.0, "panel": 3, "cohort": 3},
]
QUICK = [NOISE, next(e for e in HIDING if e.get("combine") == "votes")]
CASES = [e if e in QUICK else pytest.param(e, marks=pytest.mark.slow) for e in HIDING]


def neighbours(shard: Shard) -> list[Shard]:
    """The same client with other labels, with one picture that is NaN or infinite."""

    def other(**parts: Any) -> Shard:
        every = {
            name: {
                **getattr(shard, name),
                **{k: f(getattr(shard, name)[k]) for k, f in parts.items()},
            }
            for name in ("train", "validation", "test")
        }
        return replace(shard, **every)

    def spoilt(value: float) -> Shard:
        def put(images: torch.Tensor) -> torch.Tensor:
            images = images.clone()
            images[0] = value
            return images

        return other(images=put)

    flipped, same = (lambda y: 9 - y), (lambda y: y * 0)
    return [other(labels=flipped), other(labels=same), spoilt(float("nan")), spoilt(float("inf"))]


@pytest.mark.slow
@pytest.mark.parametrize("keys", CASES, ids=lambda keys: " ".join(map(str, keys.values())))
def test_the_length_of_an_answer_tells_nothing_of_the_data(keys, monkeypatch):
    seen, released = set[str](), partition_answers.released

    def heard(host: Host, question: Question, partition: int, *rest: Any) -> Packet:
        packet = encoded(host, question, partition, *rest)
        if partition or question.kind in seen:
            return packet
        seen.add(question.kind)
        with monkeypatch.context() as patch:
            patch.setattr(serving, "encoded", encoded)
            for shard in neighbours(host.shards[0]):
                other = replace(host, shards={**host.shards, 0: shard})
                found = released(other, question, 0)
                assert [len(x) for x in parts(found)] == [len(x) for x in parts(packet)]
        return packet

    def parts(packet: Packet) -> list[Any]:
        return [packet.head, *(packet[name] for name in ("values", "bits", "more"))]

    encoded = serving.encoded
    monkeypatch.setattr(serving, "encoded", heard)
    config = configure({**BASE, **keys, "cohort": 6 - keys.get("panel", 0), "rounds": 2})
    result = federate(config)
    assert {"tune", "evaluate"} <= seen | ({"evaluate"} if keys.get("panel") else set())
    assert result.summary["failures"] == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("keys", SUMMED, ids=lambda keys: " ".join(map(str, keys.values())))
def test_what_a_secure_round_weighs_tells_nothing_of_the_data(keys):
    """All stages, both ways, until the first sum of a mask that follows from the data."""
    config = configure({**BASE, **keys, "rounds": 1, "warmup": 0, "end": 1, "sparsity": 0.0})
    host = build_host(config)
    weighed = set()
    for shard in [host.shards[0], *neighbours(host.shards[0])[:2]]:
        found = federate(config, inline_port(replace(host, shards={**host.shards, 0: shard})))
        assert found.summary["failures"] == 0
        (row,) = found.rows
        weighed.add((row["bytes_up"], row["bytes_down"], row["bytes_evaluation"]))
    assert len(weighed) == 1


def seen_of(host: Host, folder: Path) -> dict[str, Any]:
    """What anybody sees of a whole run beside the numbers in it, to which noise was added."""
    sent = list[Any]()

    def heard(host: Host, question: Question, partition: int, *rest: Any) -> Packet:
        packet = encoded(host, question, partition, *rest)
        sizes = {name: len(data) for name, data in packet.buffers.items()}
        sent.append((question.kind, question.round, partition, len(packet.head), sizes))
        return packet

    encoded = serving.encoded
    with patch.object(serving, "encoded", heard):
        run = watched(host.config, inline_port(host), folder=folder)
    rows = [
        (row.keys(), row["answered"], row["failures"], row["bytes_up"], row["sparsity"])
        for row in run.result.rows
    ]
    files = {path.relative_to(folder) for path in folder.rglob("*")}
    summary = run.result.summary
    booked = [{k: v for k, v in line.items() if k != "digest"} for line in run.lines]
    return {
        **{"sent": sent, "rows": rows, "files": files, "booked": booked},
        **{"privacy": summary["privacy"], "summary": summary.keys()},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [NOISE, {**NOISE, "combine": "votes"}, {**NOISE, "dp": "example"}], ids=str
)
def test_two_runs_that_differ_in_one_row_look_alike_from_end_to_end(keys, tmp_path):
    seeded = {"noise_source": "seeded", "rounds": 2}  # or others would be asked
    host = build_host(configure({**BASE, **keys, **seeded}))
    first = host.shards[0].train
    rows = {"images": 1 - first["images"][:1], "labels": 9 - first["labels"][:1]}
    train = {name: torch.cat([rows[name], values[1:]]) for name, values in first.items()}
    other = replace(host, shards={**host.shards, 0: replace(host.shards[0], train=train)})
    one, another = seen_of(host, tmp_path / "one"), seen_of(other, tmp_path / "another")
    assert len(one["sent"]) > 12
    for name in one:
        assert one[name] == another[name], name

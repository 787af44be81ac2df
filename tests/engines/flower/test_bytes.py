"""What is counted is what is sent: on devices, both ways, whatever is asked."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from fedprune import Result, RunConfig, federate
from fedprune.client.host import build_host
from fedprune.engines.flower import messages
from fedprune.engines.flower.grid import grid_port
from fedprune.engines.inline import inline_port
from fedprune.tasks.images import DIGITS
from tests.gallery import UNPRUNED
from tests.remembering import MARK
from tests.runs import tiny

OVERHEAD = 200
"""Bytes a message that rows leave out: names of fields, whom it is for, who answered."""

CASES: list[dict[str, Any]] = [
    {},
    {"wire": "bf16"},
    {"uplink": "int8", "score_wire": "log8"},
    {"uplink": "int4", "error_feedback": True},
    {"plugin": "tests/remembering.py", "score": "moving"},
    {"scaffold": True, "optimizer": "sgd"},
    {"method": "lotteryfl", "method_options": {"threshold": 0.0}, "model": "mlp", "end": 3},
    {"method": "heterofl", "unit": "row", "sparsity": 0.3, "model": "mlp", "end": 3},
    {"combine": "median"},
    {"combine": "votes", "score_wire": "fp16"},
    {"masks": "union"},
    {"score_during": "tune"},
    {"schedule": "regrow", "warmup": 0},
    {"schedule": "adaptive"},
    {"blend": "global"},
    {"distil": 0.5},
    {"reduce": ("low-rank",), "model": "mlp"},
    {"unit": "channel", "shrink": "every", "sparsity": 0.4},
    {"dp": "client", "model": "mlp", "dp_noise": 1.0, "metrics": "noised"},
    {"secure": "secagg"},
    {"secure": "secagg", "masks": "union"},
    {"adapters": "lora", "rank": 2, "model": "mlp"},
    {"adapters": "lora", "rank": 2, "model": "mlp", "secure": "secagg"},
    {"base": "held", "model": "mlp"},
    {"method": "fedselect", **UNPRUNED, "method_options": {"every": 1}, "model": "mlp"},
    {"method": "dispfl", "warmup": 0, "end": 1, "model": "mlp"},
    {"score_cohort": 2},
    {"engine": "flower", "cohort": 2, "over_select": 1.5},
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger travels in pieces, here as of a large model."""
    monkeypatch.setattr(messages, "PIECE", 5_000)


def sizes(record: RecordDict) -> int:
    """Bytes of the values in a message's records, as Flower's own records count them."""
    arrays = sum(len(a.data) for r in record.array_records.values() for a in r.values())
    fields = [v for r in record.config_records.values() for v in r.values()]
    return arrays + sum(len(v) if isinstance(v, bytes) else len(str(v)) for v in fields)


def buffers_in(record: RecordDict) -> dict[str, bytes]:
    """What a message carries beside its fields: buffers, and pieces of large ones."""
    whole = {n: a.data for n, a in record.array_records["buffers"].items()}
    pieces = {n: r["bytes"] for n, r in record.config_records.items() if n != "fields"}
    return whole | pieces  # type: ignore[return-value]


class Scale:
    """Weighs the messages of a grid, but for the greetings: those are not in a row."""

    def __init__(self) -> None:
        self.up = self.down = self.messages = 0

    def __call__(self, node: int, question: Message, reply: Message) -> Message:
        del node
        if question.metadata.message_type != "query.hello":
            self.down += sizes(question.content)
            self.up += sizes(reply.content)
            self.messages += 1
        return reply


@pytest.fixture
def config_of() -> Callable[..., RunConfig]:
    def made(**changes: Any) -> RunConfig:
        few = {"clients": 3, "cohort": 3, "rounds": 3, "warmup": 1, "end": 2, "local_steps": 1}
        return tiny(**{**few, **changes})

    return made


def on_devices(grid: Any, config: RunConfig) -> Result:
    return federate(config, grid_port(grid, config))


def simulated(config: RunConfig, folders: Iterable[Path]) -> Result:
    """The same run in one process, on the devices' data."""
    assert DIGITS.local is not None
    own = {p: DIGITS.local(folder, config) for p, folder in enumerate(folders)}
    return federate(config, inline_port(build_host(config, own)))


def close(reported: float, sent: float, messages: int) -> bool:
    return abs(reported - sent) <= 0.02 * sent + OVERHEAD * messages


@pytest.mark.sampled(4)
@pytest.mark.parametrize("keys", CASES, ids=str)
def test_rows_say_what_devices_send_and_get_and_what_a_simulation_says(
    devices, config_of, folders, keys
):
    config, scale = config_of(**keys), Scale()
    seen = on_devices(devices(3, meddle=scale), config)
    t = seen.state.book.traffic
    assert close(t.up + t.down + t.evaluation, scale.up + scale.down, 2 * scale.messages)
    assert scale.messages > 10
    # Noise is fresh in both; in a simulation nobody is faster than another.
    if config.dp == "none" and config.over_select == 1:
        assert seen.rows == simulated(config, folders[:3]).rows
    assert not seen.state.book.failed


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", CASES[:3], ids=str)
def test_each_way_for_itself(devices, config_of, keys):
    """Without what is measured, which rows do not tell apart."""
    config, scale = config_of(**keys), Scale()

    def train(node: int, question: Message, reply: Message) -> Message:
        kind = question.metadata.message_type
        return scale(node, question, reply) if kind.startswith("train") else reply

    row = on_devices(devices(3, meddle=train), config).rows[-1]
    assert close(row["bytes_up"], scale.up, scale.messages)
    assert close(row["bytes_down"], scale.down, scale.messages)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("keys", "summed"),
    [
        ({}, True),
        ({"uplink": "int4", "score_wire": "log8"}, False),
        ({"combine": "median", "uplink": "int4"}, False),
    ],
    ids=str,
)
def test_a_site_of_several_partitions_sends_what_is_smaller(
    devices, joined, config_of, folders, tmp_path, keys, summed
):
    config = config_of(hosts=1, **keys)
    for p in range(3):
        (tmp_path / str(p)).symlink_to(folders[p])
    scale, totals = Scale(), set[bool]()

    def look(node: int, question: Message, reply: Message) -> Message:
        if question.metadata.message_type.startswith("train"):
            totals.add(any(n.startswith("total") for n in buffers_in(reply.content)))
        return scale(node, question, reply)

    grid = devices(0, meddle=look)
    grid.contexts[7] = joined(7, "0,1,2", tmp_path)
    seen, right = on_devices(grid, config), simulated(config, folders[:3])
    assert totals == {summed}
    digests = [[row["weights_digest"] for row in result.rows] for result in (seen, right)]
    assert digests[0] == digests[1]
    t = seen.state.book.traffic
    assert close(t.up + t.down + t.evaluation, scale.up + scale.down, 2 * scale.messages)
    assert t.down < right.state.book.traffic.down / 2, "the question came once, not three times"


@pytest.mark.slow
def test_sites_that_cut_across_hosts_give_the_bits_of_a_simulation(
    devices, joined, config_of, folders, tmp_path
):
    config = config_of(hosts=2)  # partitions 0 and 1, and 2
    for p in (1, 2):
        (tmp_path / str(p)).symlink_to(folders[p])
    grid = devices(1)
    grid.contexts[7] = joined(7, "2,1", tmp_path)
    seen, right = on_devices(grid, config), simulated(config, folders[:3])
    assert [r["weights_digest"] for r in seen.rows] == [r["weights_digest"] for r in right.rows]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["devices", "workers"])
def test_what_a_client_remembers_is_weighed_nowhere_and_never_leaves_a_device(
    devices, workers, config_of, folders, where
):
    """It travels in a simulation alone; its mark is in nothing that a device sends."""
    kept = {"plugin": "tests/remembering.py", "score": "moving", "uplink": "int8", "end": 3}
    config, scale = config_of(**kept, error_feedback=True), Scale()
    carried, marked, mark = Counter[str](), set[str](), torch.full((64,), MARK).numpy().tobytes()

    def look(node: int, question: Message, reply: Message) -> Message:
        for name, message in (("down", question), ("up", reply)):
            buffers = buffers_in(message.content)
            carried[name] += sum(buffer.startswith("remembered ") for buffer in buffers)
            marked.update(name for data in buffers.values() if mark in data)
        return scale(node, question, reply)

    made = devices if where == "devices" else workers
    result = on_devices(made(3, meddle=look), config)
    assert not result.state.book.failed
    t = result.state.book.traffic
    total = t.up + t.down + t.evaluation
    if where == "workers":
        assert marked == {"up", "down"}
        assert carried["up"] > carried["down"] > 0
        plain = federate(config)
        assert plain.state.book.traffic == t
        assert plain.rows == result.rows
        return
    assert not marked
    assert not any(carried.values())
    assert close(total, scale.up + scale.down, 2 * scale.messages)
    there = list(Path(f"{folders[0]}.remembered").glob("*/score%20moving/0/*.safetensors"))
    assert any(mark in path.read_bytes() for path in there)

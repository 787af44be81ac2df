"""What is counted is what is sent: on devices, both ways, whatever is asked."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.engines.flower import messages
from fedprune.engines.inline import inline_port
from fedprune.tasks.images import DIGITS
from tests.gallery import UNPRUNED
from tests.remembering import MARK
from tests.runs import tiny
from tests.server.grids import run_on

OVERHEAD = 200
"""Bytes a message that rows leave out: names of fields, whom it is for, who answered."""

CASES = [
    {},
    {"wire": "bf16", "masks": "union"},
    {"uplink": "int8", "score_wire": "log8"},
    {"uplink": "int4", "error_feedback": True, "distil": 0.5},
    {"plugin": "tests/remembering.py", "score": "moving"},
    {"scaffold": True, "optimizer": "sgd"},
    {"method": "lotteryfl", "method_options": {"threshold": 0.0}, "end": 3},
    {"method": "heterofl", "unit": "row", "sparsity": 0.3, "end": 3},
    {"combine": "median"},
    {"combine": "votes", "score_wire": "fp16"},
    {"score_during": "tune"},
    {"schedule": "adaptive"},
    {"schedule": "regrow", "warmup": 0, "blend": "global"},
    {"reduce": ("low-rank",)},
    {"model": "cnn", "unit": "channel", "shrink": "every", "sparsity": 0.4},
    {"dp": "client", "dp_noise": 1.0, "metrics": "noised"},
    {"secure": "secagg", "masks": "union"},
    {"adapters": "lora", "rank": 2},
    {"adapters": "lora", "rank": 2, "secure": "secagg"},
    {"base": "held"},
    {"method": "fedselect", **UNPRUNED, "method_options": {"every": 1}},
    {"method": "dispfl", "warmup": 0, "end": 1},
    {"score_cohort": 2},
    {"engine": "flower", "cohort": 2, "over_select": 1.5},
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger travels in pieces, here as of a large model."""
    monkeypatch.setattr(messages, "PIECE", 5_000)


def sizes(record):
    """Bytes of the values in a message's records, as Flower's own records count them."""
    arrays = sum(len(a.data) for r in record.array_records.values() for a in r.values())
    fields = [v for r in record.config_records.values() for v in r.values()]
    return arrays + sum(len(v) if isinstance(v, bytes) else len(str(v)) for v in fields)


def buffers_in(record):
    """What a message carries beside its fields: buffers, and pieces of large ones."""
    whole = {n: a.data for n, a in record.array_records["buffers"].items()}
    return whole | {n: r["bytes"] for n, r in record.config_records.items() if n != "fields"}


class Scale:
    """Weighs the messages of a grid, but for the greetings: those are not in a row.

    Attributes:
        train: (up, down) of what is said for scores and changes, which rows have apart.
        all: of all there is.
    """

    def __init__(self):
        self.train, self.all, self.messages = Counter(), Counter(), Counter()

    def __call__(self, _, question, reply):
        kind = question.metadata.message_type
        for kinds, sums in (("train", self.train), ("", self.all)):
            if kind.startswith(kinds) and kind != "query.hello":
                sums.update(down=sizes(question.content), up=sizes(reply.content))
                self.messages[kinds] += 1
        return reply

    def weighed(self, result):
        """Whether the book has what went over this scale."""
        t = result.state.book.traffic
        return close(t.up + t.down + t.evaluation, self.all.total(), 2 * self.messages[""])


def config_of(**changes):
    few = {"clients": 3, "cohort": 3, "rounds": 3, "warmup": 1, "end": 2, "local_steps": 1}
    return tiny(**{"model": "mlp", **few, **changes})


def simulated(config, folders):
    """The same run in one process, on the devices' data."""
    own = {p: DIGITS.local(folder, config) for p, folder in enumerate(folders)}
    return federate(config, inline_port(build_host(config, own)))


def close(reported, sent, messages):
    return abs(reported - sent) <= 0.02 * sent + OVERHEAD * messages


@pytest.mark.sampled(4)
@pytest.mark.parametrize("keys", CASES, ids=str)
def test_rows_say_what_devices_send_and_get_and_what_a_simulation_says(devices, folders, keys):
    config, scale = config_of(**keys), Scale()
    seen = run_on(devices(3, meddle=scale), config)
    assert scale.weighed(seen)
    assert scale.messages[""] > 10
    if keys in CASES[:3]:  # what others measure in between rows do not tell apart
        for way in ("up", "down"):
            assert close(seen.rows[-1][f"bytes_{way}"], scale.train[way], scale.messages["train"])
    # Noise is fresh in both; in a simulation nobody is faster than another.
    if config.dp == "none" and config.over_select == 1:
        assert seen.rows == simulated(config, folders[:3]).rows
    assert not seen.state.book.failed


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
    devices, joined, folders, tmp_path, keys, summed
):
    config = config_of(hosts=1, **keys)
    for p in range(3):
        (tmp_path / str(p)).symlink_to(folders[p])
    scale, totals = Scale(), set()

    def look(node, question, reply):
        if question.metadata.message_type.startswith("train"):
            totals.add(any(n.startswith("total") for n in buffers_in(reply.content)))
        return scale(node, question, reply)

    grid = devices(0, meddle=look)
    grid.contexts[7] = joined(7, "0,1,2", tmp_path)
    seen, right = run_on(grid, config), simulated(config, folders[:3])
    assert totals == {summed}
    assert [r["weights_digest"] for r in seen.rows] == [r["weights_digest"] for r in right.rows]
    assert scale.weighed(seen)
    ours, theirs = (run.state.book.traffic.down for run in (seen, right))
    assert ours < theirs / 2, "the question came once, not three times"


@pytest.mark.slow
def test_sites_that_cut_across_hosts_give_the_bits_of_a_simulation(
    devices, joined, folders, tmp_path
):
    config = config_of(hosts=2)  # partitions 0 and 1, and 2
    for p in (1, 2):
        (tmp_path / str(p)).symlink_to(folders[p])
    grid = devices(1)
    grid.contexts[7] = joined(7, "2,1", tmp_path)
    seen, right = run_on(grid, config), simulated(config, folders[:3])
    assert [r["weights_digest"] for r in seen.rows] == [r["weights_digest"] for r in right.rows]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["devices", "workers"])
def test_what_a_client_remembers_is_weighed_nowhere_and_never_leaves_a_device(
    devices, workers, folders, where
):
    """It travels in a simulation alone; its mark is in nothing that a device sends."""
    kept = {"plugin": "tests/remembering.py", "score": "moving", "uplink": "int8", "end": 3}
    config, scale = config_of(**kept, error_feedback=True), Scale()
    carried, marked, mark = Counter(), set(), torch.full((64,), MARK).numpy().tobytes()

    def look(node, question, reply):
        for name, message in (("down", question), ("up", reply)):
            buffers = buffers_in(message.content)
            carried[name] += sum(buffer.startswith("remembered ") for buffer in buffers)
            marked.update(name for data in buffers.values() if mark in data)
        return scale(node, question, reply)

    made = devices if where == "devices" else workers
    result = run_on(made(3, meddle=look), config)
    assert not result.state.book.failed
    if where == "workers":
        assert marked == {"up", "down"}
        assert carried["up"] > carried["down"] > 0
        plain = federate(config)
        assert plain.state.book.traffic == result.state.book.traffic
        assert plain.rows == result.rows
        return
    assert not marked
    assert not any(carried.values())
    assert scale.weighed(result)
    there = list(Path(f"{folders[0]}.remembered").glob("*/score%20moving/0/*.safetensors"))
    assert any(mark in path.read_bytes() for path in there)

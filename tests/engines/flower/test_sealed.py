"""Secure sums over a grid: the bits of one process, and devices that keep their secrets."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Array, ConfigRecord, Error, Message

from fedprune import Result, RunConfig, federate
from fedprune.config import to_toml
from fedprune.engines.flower.grid import grid_port
from fedprune.run import NoRoundCompleted
from tests.runs import played, tiny
from tests.server.grids import FakeGrid

Made = Callable[..., Any]


@pytest.fixture
def sealed() -> Callable[..., RunConfig]:
    """Three rounds on devices, all of them asked: one dense, one that prunes, one that recovers."""

    def made(**changes: Any) -> RunConfig:
        sizes = {"clients": 3, "cohort": 3, "rounds": 3, "warmup": 1, "end": 2}
        return tiny(**{**sizes, "secure": "secagg", **changes})

    return made


def run_on(grid: Any, config: RunConfig) -> Result:
    return federate(config, grid_port(grid, config))


def failures(result: Result) -> list[tuple[int, str]]:
    return [(f["partition"], f["reason"]) for row in result.rows for f in row["failures"]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_the_bits_of_one_process(workers, count):
    config = tiny(secure="secagg", cohort=4)
    seen = run_on(workers(count), config)
    assert seen.rows == played(config).rows
    assert seen.summary["shard_sizes"] == []


def test_workers_do_not_pass_off_derived_keys_as_secret(workers):
    config = tiny(secure="secagg", noise_source="secret", engine="flower", rounds=1, sparsity=0.0)
    with pytest.raises(NoRoundCompleted, match="keeps no secret"):
        run_on(workers(1), config)


@pytest.mark.slow
def test_devices_add_up_what_nobody_saw(devices, sealed):
    grid = devices(3)
    result = run_on(grid, sealed())
    plain = run_on(devices(3), sealed(secure="none"))
    assert result.summary["mask_digest"] == plain.summary["mask_digest"]
    assert result.rows[-1]["loss"] == pytest.approx(plain.rows[-1]["loss"], rel=1e-6)
    assert failures(result) == []
    kinds = grid.kinds(79)
    assert {"query.keys", "query.shares", "train.tune", "query.unmask"} <= set(kinds)
    assert kinds.count("query.keys") == kinds.count("query.unmask")


@pytest.mark.slow
def test_a_device_forgets_its_seed_when_the_sum_is_open(devices, sealed):
    seen: list[int] = []

    def look(asked: int, question: Message, reply: Message) -> Message:
        record = grid.contexts[asked].state.config_records.get("secure")
        if question.metadata.message_type != "query.hello":
            assert record is not None
            seen.append(len(record["seed"]))
            assert (len(record["seed"]) == 0) == (question.metadata.message_type == "query.unmask")
        return reply

    grid = devices(3, meddle=look)
    run_on(grid, sealed(rounds=1, warmup=0, end=1))
    assert {0, 32} == set(seen)


def test_two_devices_are_too_few_and_nobody_is_asked(devices, sealed):
    grid = devices(2)
    with pytest.raises(NoRoundCompleted, match="2 clients are fewer than secure-minimum=3"):
        run_on(grid, sealed())
    assert set(grid.kinds(79)) == {"query.hello"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["query.shares", "train.tune", "query.unmask"])
def test_a_reply_that_is_lost_is_given_again(devices, sealed, kind):
    """An error in place of one device's reply to a stage: the device says the same once more."""
    lost: list[str] = []

    def lose(asked: int, question: Message, reply: Message) -> Message | None:
        if asked == 78 and question.metadata.message_type == kind and not lost:
            lost.append(kind)
            return Message(Error(code=0, reason="lost"), reply_to=question)
        return reply

    config = sealed(rounds=1, warmup=0, end=1)
    result = run_on(devices(3, meddle=lose), config)
    assert lost
    right = run_on(devices(3), config)
    assert result.rows[0]["weights_digest"] == right.rows[0]["weights_digest"]
    assert failures(result) == failures(right)
    more, less = result.state.book.traffic, right.state.book.traffic
    assert more.down + more.evaluation > less.down + less.evaluation, "it went out twice"
    assert more.up == less.up


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["query.keys", "query.shares", "train.tune", "query.unmask"])
def test_a_device_that_never_replies_in_a_stage_leaves_the_others(devices, sealed, stage):
    """Two of three cannot restore what the third one masked: they begin again by themselves."""

    def lose(asked: int, question: Message, reply: Message) -> Message | None:
        return None if asked == 78 and question.metadata.message_type == stage else reply

    config = sealed(rounds=1, warmup=0, end=1, secure_minimum=2, min_clients=2)
    result = run_on(devices(3, meddle=lose), config)
    row = result.rows[0]
    assert row["answered"] == 2
    assert 1 in {p for p, _ in failures(result)}
    if stage in {"query.keys", "query.shares"}:
        pair = run_on(devices_without(devices, 78), config)
        assert result.summary["weights_digest"] == pair.summary["weights_digest"]


def devices_without(devices: Made, node: int) -> Any:
    grid = devices(3)
    del grid.contexts[node]
    return grid


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "changes",
    [
        {"summed": [0, 1]},
        {"summed": []},
        {"bytes_up": -1},
        {"failures": "none"},
    ],
)
def test_a_reply_that_is_malformed_counts_as_none(devices, sealed, changes):
    def meddle(asked: int, question: Message, reply: Message) -> Message:
        if asked == 78 and question.metadata.message_type == "train.tune":
            about = json.loads(str(reply.content.config_records["fields"]["about"]))
            reply.content.config_records["fields"] = ConfigRecord(
                {"about": json.dumps(about | changes)}
            )
        return reply

    config = sealed(rounds=1, warmup=0, end=1, secure_minimum=2, min_clients=2)
    result = run_on(devices(3, meddle=meddle), config)
    assert any(p == 1 for p, _ in failures(result))
    assert result.rows[0]["answered"] == 2


@pytest.mark.slow
def test_a_vector_of_another_length_counts_as_none(devices, sealed):
    def meddle(asked: int, question: Message, reply: Message) -> Message:
        if asked == 78 and question.metadata.message_type == "train.tune":
            total = reply.content.array_records["buffers"]["total"].data[:-8]
            reply.content.array_records["buffers"]["total"] = Array(
                "uint8", (len(total),), "bytes", total
            )
        return reply

    config = sealed(rounds=1, warmup=0, end=1, secure_minimum=2, min_clients=2)
    result = run_on(devices(3, meddle=meddle), config)
    assert any(p == 1 and "integers, expected" in reason for p, reason in failures(result))


@dataclass
class Twice(FakeGrid):
    """A server that asks one device for its vector under two configurations."""

    other: str = ""
    gave: list[bool] = field(default_factory=list)

    def _reply(self, message: Message) -> Message | None:
        if message.metadata.dst_node_id != 79 or message.metadata.message_type != "train.tune":
            return super()._reply(message)
        fields = message.content.config_records["fields"]
        given = str(fields["config"])
        for text in (self.other, given):
            fields["config"] = text
            reply = super()._reply(message)
            assert reply is not None
            self.gave.append("total" in reply.content.array_records["buffers"])
        return reply


@pytest.mark.slow
def test_a_device_masks_no_second_vector_under_another_configuration(devices, sealed):
    """The masks would be the same: with a learning rate of nothing, what is left is its change."""
    config = sealed(rounds=1, warmup=0, end=1, secure_minimum=2, min_clients=2)
    other = to_toml(config.model_copy(update={"local_steps": 1, "lr": 1e-9}))
    grid = Twice(devices(3).contexts, other=other)
    result = run_on(grid, config)
    assert grid.gave[:2] == [True, False]
    assert result.rows[0]["answered"] == 2

"""Runs whose clients send few bits: bytes, engines, failures, and going on after a kill."""

from dataclasses import replace

import pytest
import torch

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.client.memory import ClientMemory, in_run
from fedprune.client.serving import serve
from fedprune.config import from_toml
from fedprune.engines.inline import inline_port
from fedprune.protocol.broadcast import encode_question
from fedprune.protocol.messages import Question
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, count_kept
from tests.runs import Killed, Spy, house_of, killed_after, overheard, played, tiny

FEEDBACK = {"uplink": "int4", "error_feedback": True}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("keys", "up", "down"),
    [
        ({}, 32, 32),
        ({"wire": "fp16"}, 16, 16),
        ({"wire": "bf16"}, 16, 16),
        ({"uplink": "bf16"}, 16, 32),
        ({"uplink": "int8"}, 8, 32),
        ({"uplink": "int4"}, 4, 32),
    ],
)
def test_clients_send_so_many_bits_and_get_so_many(keys, up, down):
    """At a loss that is about the same; a smaller type costs bits of the result."""
    config, usual = tiny(**keys), played(tiny()).summary
    result, asked, _ = overheard(config)
    free = sum(t.numel() for n, t in result.state.weights.items() if n not in result.state.masks)
    for question, cohort, aggregate in asked:
        if question.kind == "tune":
            count = count_kept(question.masks) + free
            assert 0 < aggregate.bytes_up / len(cohort) - count * up / 8 < 120 + 4 * count / 512
            packet = encode_question(question, config.wire)
            assert len(packet["values"]) == count * down / 8
            assert len(packet.head) < 250
    found = result.summary
    assert (found["weights_digest"] == usual["weights_digest"]) == (not keys)
    if keys.get("uplink") != "int4":
        loss = usual["quality"]["final"]["loss"]
        assert found["quality"]["final"]["loss"] == pytest.approx(loss, rel=0.05)
    assert down < 32 or found["bytes_down"] == pytest.approx(usual["bytes_down"], rel=0.01)
    assert found["bytes_up"] <= usual["bytes_up"]


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_as_an_unbroken_one(tmp_path):
    config = tiny(**FEEDBACK, model="mlp")
    whole = federate(config, folder=tmp_path / "whole")

    with pytest.raises(Killed):
        federate(config, folder=tmp_path / "cut", watch=killed_after(3))
    # Files of a round that does not count any more must not be read.
    stale = list((tmp_path / "cut" / "remembered" / "tune").glob("*/*-3.safetensors"))
    assert stale
    for file in stale:
        (file.parent / file.name.replace("-3.", "-4.")).write_bytes(file.read_bytes())
    resumed = federate(config, folder=tmp_path / "cut", resume=True)
    assert resumed.summary["weights_digest"] == whole.summary["weights_digest"]
    told = from_toml((tmp_path / "whole" / "config.toml").read_text())
    assert "out" not in told, "the file runs again as it is, elsewhere"


def test_any_process_finds_what_another_one_kept(tmp_path):
    config, memory = tiny(**FEEDBACK, hosts=5), in_run(tmp_path)
    hosts = [build_host(config) for _ in range(2)]
    weights = copied(state_of(hosts[0].model))
    masks = {n: torch.ones_like(weights[n], dtype=torch.bool) for n in hosts[0].layout.prunable}

    def sum_of(host, round_, memory=memory):
        question = Question("tune", round_, weights, masks, lr=0.1, counted={1: round_ - 1})
        packet = encode_question(question, "fp32")
        return serve(host, packet, [1], memory=memory).total

    sum_of(hosts[0], 1)
    (kept,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert kept.relative_to(tmp_path).as_posix() == "remembered/tune/1/1-1.safetensors"
    here, there = sum_of(hosts[0], 2), sum_of(hosts[1], 2)
    assert torch.equal(here, there)
    other = ClientMemory()
    assert not torch.equal(here, sum_of(hosts[0], 1, other)), "what was kept back is in it"
    assert sum_of(hosts[0], 5, other) is None, "it is missed, not taken for nothing"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [{(1, 1), (1, 2), (1, 3)}, {(p, 2) for p in range(5)}])
def test_what_was_lost_on_the_way_does_not_count_as_sent(lost):
    """The bits of a run that did not ask: those clients kept something back all the same."""
    config = tiny(**FEEDBACK, model="mlp", cohort=4)

    def without(question, partition):
        return question.kind == "tune" and (partition, question.round) in lost

    spared = federate(config, Spy(inline_port(house_of(config)), without).port)
    port = inline_port(house_of(config))
    eye = Spy(port, without)

    def ask(question, partitions):
        if question.kind == "tune":
            port.ask(question, partitions)  # everyone answers, but not all of it arrives
        return eye.port.ask(question, partitions)

    result = federate(config, replace(port, ask=ask))
    assert result.summary["weights_digest"] == spared.summary["weights_digest"]
    assert sum(row["answered"] for row in result.rows) < 4 * config.rounds


def test_a_client_that_failed_keeps_nothing_back():
    host, memory = build_host(tiny(**FEEDBACK)), ClientMemory()
    weights = {n: torch.full_like(t, torch.nan) for n, t in copied(state_of(host.model)).items()}
    question = Question("tune", 1, weights, {}, lr=0.1)
    aggregate = serve(host, encode_question(question, "fp32"), [0], memory=memory)
    assert [f.partition for f in aggregate.failures] == [0]
    assert not memory.held

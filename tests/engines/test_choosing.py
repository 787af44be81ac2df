"""Which engine is taken where a run leaves it open, and what a client takes."""

from dataclasses import replace

import pytest
import torch

from fedprune.client.footprint import Footprint, footprint_of
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.choosing import (
    REPORT_COST,
    ROUND_COST,
    START,
    chosen_engine,
    inline_seconds,
    ray_seconds,
)
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied

STEP = Footprint(memory=1.0, turn=0.02, step=0.01)


def config_of(**keys):
    given = {"task": "digits", "clients": 5, "cohort": 3, "rounds": 4, "local_steps": 10}
    return configure({**given, **keys})


@pytest.fixture
def shards(cnn):
    return cnn[0].shards


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def test_what_is_done_sooner_is_taken(shards):
    few, many = config_of(), config_of(rounds=4000)
    assert chosen_engine(few, shards, STEP).engine == "inline"
    assert chosen_engine(many, shards, STEP).engine == "ray"
    for config in (few, many):
        inline, ray = (f(config, shards, STEP) for f in (inline_seconds, ray_seconds))
        choice = chosen_engine(config, shards, STEP)
        assert choice.engine == ("ray" if ray < inline else "inline")
        assert choice.why.startswith("about ")
        assert "in this process" in choice.why
        assert "with 2 workers, start included" in choice.why


def test_small_rounds_are_played_in_this_process():
    """20 of 100 clients, eleven rounds: on two workers of Ray they took twice as long in all."""
    keys = {"model": "mlp", "split": "iid", "clients": 100, "cohort": 20, "rounds": 11}
    host = build_host(config_of(**keys))
    assert chosen_engine(host.config, host.shards, footprint_of(host)).engine == "inline"


def test_the_start_is_in_the_estimate_and_work_is_shared(shards):
    config = config_of(rounds=4000)
    inline, ray = (f(config, shards, STEP) for f in (inline_seconds, ray_seconds))
    work = inline - REPORT_COST - 4000 * ROUND_COST
    assert START + inline - work / 2 < ray < START + inline


@pytest.mark.parametrize(
    ("keys", "more"),
    [
        ({"rounds": 8}, True),
        ({"local_steps": 20}, True),
        ({"cohort": 5}, True),
        ({"baselines": ("dense",)}, True),
        ({"local_steps": 0, "local_epochs": 50}, True),
        ({"sparsity": 0.0}, False),
    ],
)
def test_more_work_takes_longer(keys, more, shards):
    longer = inline_seconds(config_of(**keys), shards, STEP)
    assert (longer > inline_seconds(config_of(), shards, STEP)) == more


def test_the_warm_up_that_baselines_share_is_counted_once(shards):
    """And none of them asks for scores: an arm costs what as many rounds without prunings do."""
    keys = {"rounds": 8, "warmup": 5, "end": 7}
    alone, beside = (
        inline_seconds(config_of(**keys, baselines=arms), shards, STEP) for arms in ((), ("dense",))
    )
    three, six = (inline_seconds(config_of(rounds=n, sparsity=0.0), shards, STEP) for n in (3, 6))
    assert beside - alone == pytest.approx(six - three)


@pytest.mark.parametrize(
    ("keys", "engine", "why"),
    [
        ({"workers": 2}, "ray", "--workers 2 asks for it"),
        ({"ray_address": "a:1"}, "ray", "--ray-address asks for it"),
        ({"gpus": 1.0}, "ray", "--gpus asks for it"),
        ({"secure": "secagg", "noise_source": "secret", "rounds": 4000}, "inline", "no secret"),
    ],
)
def test_what_decides_without_an_estimate(keys, engine, why, shards):
    choice = chosen_engine(config_of(**keys), shards, STEP)
    assert choice.engine == engine
    assert why in choice.why


def test_without_ray_or_a_measurement_it_is_this_process(shards, monkeypatch):
    many = config_of(rounds=4000)
    assert chosen_engine(many, shards, Footprint()).engine == "inline"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    choice = chosen_engine(many, shards, STEP)
    assert (choice.engine, choice.why) == ("inline", "flwr is not installed")


def test_what_a_client_takes_is_measured_and_nothing_is_left_of_it():
    host = build_host(config_of(model="mlp"))
    before, drawn = copied(state_of(host.model)), torch.get_rng_state()
    takes = footprint_of(host)
    assert takes.memory > 24 * host.layout.parameters
    assert takes.turn >= takes.step > 0
    assert takes.card == takes.card_room == 0
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(t, before[n]) for n, t in state_of(host.model).items())


@pytest.mark.parametrize(("score", "asked"), [("taylor", 1), ("grasp", 2), ("magnitude", 0)])
def test_where_nobody_trains_what_is_measured_is_scoring_and_measuring(score, asked):
    """One batch of either, and no step: that would take the memory of gradients and momentum."""
    keys = {"local_steps": 0, "schedule": "one-shot", "score": score, "warmup": 0}
    host = build_host(config_of(model="mlp", **keys))
    batches = []

    def noted(model, batch):
        batches.append(len(batch["labels"]))
        return host.task.loss(model, batch)

    def trained(*_, **__):
        raise AssertionError("nobody trains")

    task = replace(host.task, loss=noted)
    takes = footprint_of(replace(host, task=task, train=trained))
    assert takes.turn >= takes.step > 0
    assert len(batches) == asked + 1
    assert max(batches) <= host.config.score_batch
    longer = config_of(model="mlp", **keys, cohort=2)
    assert inline_seconds(longer, host.shards, takes) < 60


def test_a_step_that_raises_is_its_clients_affair():
    host = build_host(config_of(model="mlp"))

    def broken(*_):
        raise RuntimeError("out of order")

    takes = footprint_of(replace(host, task=replace(host.task, loss=broken)))
    assert takes.turn == takes.step == 0


def test_workers_are_as_many_as_memory_holds(shards, monkeypatch):
    """The line says the number that the time is of."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    config, roomy = config_of(hosts=4, rounds=50), Footprint(turn=0.5, step=0.4)
    large = replace(roomy, memory=2.0**60)
    assert ray_seconds(config, shards, large) > 2 * ray_seconds(config, shards, roomy)
    assert "with 1 worker," in chosen_engine(config, shards, large).why
    assert "with 4 workers," in chosen_engine(config, shards, roomy).why

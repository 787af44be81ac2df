"""Noise is nobody's to take away again, unless it is simulated, which is said beside epsilon."""

import json
from dataclasses import replace

import pytest
import torch

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.commands.main import main
from fedprune.config import RunConfig, configure
from fedprune.engines.inline import inline_port
from fedprune.privacy.accounting_terms import SIMULATED
from fedprune.protocol.port import Port
from fedprune.report.privacy_lines import after, before
from fedprune.tensors.named import gathered

MLP = {"task": "digits", "model": "mlp", "clients": 4, "cohort": 4, "rounds": 1, "warmup": 0}
MLP |= {"engine": "inline", "hosts": 1, "local_steps": 1, "sparsity": 0.5, "seed": 3}
PRIVATE = {**MLP, "dp": "client", "dp_noise": 4.0}


def port_of(config: RunConfig) -> Port:
    """All of the task's clients, the first of them with other labels."""
    host = build_host(config)
    train = host.shards[0].train
    first = replace(host.shards[0], train={**train, "labels": 9 - train["labels"]})
    return inline_port(replace(host, shards={**host.shards, 0: first}))


def scored(config: RunConfig, port: Port | None = None) -> torch.Tensor:
    """What a run ends with, as one vector."""
    return gathered(federate(config, port).state.weights, {})


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("more", "least"), [({}, 2.0), ({"dp": "example"}, 1e-4), ({"secure": "secagg"}, 2.0)], ids=str
)
def test_two_runs_of_one_seed_do_not_share_their_noise(more, least):
    """One client's data changed, or nothing at all: the difference is all noise."""
    config = configure({**PRIVATE, "score": "random", **more})
    one, again, other = scored(config), scored(config), scored(config, port_of(config))
    for difference in (one - again, one - other):
        free = difference[difference != 0]
        assert free.numel() > 0.4 * one.numel()
        assert float(free.std()) > least


@pytest.mark.slow
def test_seeded_noise_is_the_same_twice_and_goes_from_a_difference():
    config = configure({**PRIVATE, "noise_source": "seeded"})
    assert torch.equal(scored(config), scored(config))


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_what_is_simulated_is_called_so_beside_every_epsilon(tmp_path, capsys):
    config = configure({**PRIVATE, "noise_source": "seeded"})
    summary = federate(config, folder=tmp_path / "run").summary
    assert any(SIMULATED in line for line in before(config))
    assert SIMULATED in after(summary)[-1]
    told = json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]
    assert told["noise"] == SIMULATED
    first, *_, gaps = told["statement"].split("\n\n")
    assert SIMULATED in first
    assert SIMULATED in gaps
    assert (tmp_path / "run" / "report.html").read_text().count(SIMULATED) >= 5
    assert main(["audit", str(tmp_path / "run"), "--canaries", "10"]) == 0
    assert SIMULATED in " ".join(capsys.readouterr().out.split())
    assert SIMULATED in (tmp_path / "run" / "audit.html").read_text()


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ({}, "seeded"),
        ({"dp": "client", "dp_noise": 1.0}, "secret"),
        ({"dp": "example", "dp_noise": 1.0}, "secret"),
        ({"combine": "votes", "unit": "row", "response": 9.0}, "secret"),
        ({"dp": "client", "dp_noise": 1.0, "secure": "secagg", "engine": "ray"}, "secret"),
        ({"secure": "secagg"}, "seeded"),
    ],
    ids=str,
)
def test_noise_is_secret_unless_it_is_asked_for_otherwise(keys, source):
    config = configure({**MLP, **keys})
    assert config.noise_source == source
    said = " ".join(before(config))
    assert SIMULATED not in said
    assert ("keys        simulated" in said) == ("secure" in keys)

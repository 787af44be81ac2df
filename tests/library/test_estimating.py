"""What a run is said to take beforehand, against what it takes."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from fedprune import ConfigError, estimate, federate, own_task
from fedprune.client.host import build_host
from fedprune.commands.run import main
from fedprune.engines.inline import inline_port
from fedprune.library import estimating
from fedprune.run import run_federated
from tests.runs import TINY, played, tiny

RUNS = [
    {"baselines": ("dense",), "model": "mlp"},
    {"uplink": "int8", "error_feedback": True, "model": "mlp"},
    {"method": "heterofl", "model": "mlp"},
    {"secure": "secagg", "model": "mlp"},
    {"robust": "median", "combine": "median", "model": "mlp"},
    {"unit": "channel", "shrink": "every", "sparsity": 0.5},
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("changes", RUNS, ids=lambda c: " ".join(map(str, c.values())))
def test_bytes_are_those_that_the_run_then_sends(changes):
    """Of every method: they are counted on real answers, of one client for many."""
    config = tiny(**changes)
    found, summary = estimate(config), played(config).summary
    for key, told in found.traffic.items():
        assert told == pytest.approx(summary[key], rel=0.05), key
    assert found.sparsity == pytest.approx(summary["sparsity"], abs=0.03)
    assert (found.parameters, found.rehearsed) == (summary["parameters"], found.rounds)
    assert found.flops > 0 < found.seconds < 60


@pytest.mark.slow
def test_operations_are_those_of_every_step_and_example():
    """Twice the steps are twice the training; scoring and measuring stay as they were."""
    keys = {"model": "mlp", "rounds": 1, "warmup": 0, "end": 1}
    one, two, three = (estimate(tiny(**keys, local_steps=n)).flops for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert two > one


@pytest.mark.slow
def test_operations_where_chance_draws_the_examples_of_a_step():
    keys = {"dp": "example", "dp_noise": 1.0, "dp_rate": 0.02, "panel": 1}
    config = tiny(model="mlp", rounds=1, warmup=0, end=1, local_steps=40, **keys)
    said = estimate(config).flops
    with FlopCounterMode(display=False) as counter:
        run_federated(config, inline_port(build_host(config)))
    assert said == pytest.approx(counter.get_total_flops(), rel=0.25)


@pytest.mark.slow
def test_what_is_not_rehearsed_is_as_the_last_round(monkeypatch):
    whole = estimate(tiny(model="mlp"))
    monkeypatch.setattr(estimating, "REHEARSAL", 0.0)
    cut = estimate(tiny(model="mlp"))
    assert (cut.rehearsed, cut.rounds) == (1, 5)
    assert cut.traffic["bytes_up"] == pytest.approx(whole.traffic["bytes_up"], rel=0.5)


def test_nothing_is_written_and_the_lines_say_it(tmp_path, capsys):
    keys = [w for k, v in TINY.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    assert main([*keys, "--model", "mlp", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for word in ('task = "digits"', "17,226, 16,384 prunable", " up, ", "operations", "memory"):
        assert word in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume", "runs/one"], "dry-run: not beside --resume"),
        (["--seeds", "0-2", "--out", "x"], "dry-run: not beside --seeds"),
        (["--engine", "flower"], "engine='flower': no dry run"),
        (["--sparsity", "2"], "sparsity"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_a_line(options, words, capsys):
    assert main(["--dry-run", *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_task_of_this_program_is_estimated_too():
    data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 2)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    options = {"clients": 3, "rounds": 2, "warmup": 0, "local_steps": 2}
    found = estimate(own_task(net, data), **options)
    summary = federate(own_task(net, data), **options).summary
    assert found.parameters == summary["parameters"] == 86
    assert found.traffic["bytes_up"] == pytest.approx(summary["bytes_up"], rel=0.05)


def test_options_beside_a_configuration_are_refused():
    with pytest.raises(ConfigError, match="beside a configuration"):
        estimate(tiny(), clients=3)

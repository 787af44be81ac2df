"""Rounds in which nobody trains: ``--local-steps 0``."""

import json

import pytest
import torch

from fedprune import federate
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from fedprune.tensors.models import state_of
from tests.choices import spelled
from tests.runs import house_of, played, tiny

FREE = {"local_steps": 0, "schedule": "one-shot", "end": 3, "score": "wanda", "scope": "row"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("score", ["magnitude", "wanda", "taylor"])
def test_what_is_kept_is_as_it_was(score):
    scope = {"scope": "row"} if score == "wanda" else {"scope": "global"}
    config = tiny(**{**FREE, "score": score, **scope})
    dense = state_of(house_of(config).model)
    dense = {name: t.clone() for name, t in dense.items()}
    state = played(config).state
    for name, weight in state.weights.items():
        mask = state.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight, torch.where(mask, dense[name], 0.0))
    assert played(config).summary["sparsity"] == pytest.approx(0.7, abs=1e-3)


def test_bytes_are_those_of_scoring_alone():
    sent = [row["bytes_up"] for row in played(tiny(**FREE)).rows]
    pruning = tiny(**FREE).warmup
    assert sent[pruning] > 0
    assert sent == [0] * pruning + [sent[pruning]] * (len(sent) - pruning)
    asks_nobody = tiny(**{**FREE, "score": "magnitude", "scope": "global"})
    assert played(asks_nobody).rows[-1]["bytes_up"] == 0


@pytest.mark.slow
def test_the_ledger_has_what_was_planned(tmp_path):
    config = tiny(**FREE, model="mlp", dp="client", dp_noise=1.0)
    federate(config, inline_port(house_of(config)), folder=tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run" / "privacy.jsonl").read_text().splitlines()]
    kinds = {line["quantity"] for line in lines if "quantity" in line}
    assert kinds == {"counts", "metrics", "model", "participation", "scores"}


NEEDLESS = """
lr=0.3 | optimizer=adamw | proximal=0.1 | momentum=0.5 | distil=0.5 | server_lr=0.5 | blend=layer
server_optimizer=adam | moving=ema | robust=median | masks=union | score=movement scope=global
method=fedrts | method=lotteryfl | schedule=regrow end=4 | uplink=int8 error_feedback=true
sparsity=0.0 | local_epochs=1 local_steps=2
"""


@pytest.mark.parametrize("given", NEEDLESS.strip().replace("\n", " | ").split(" | "))
def test_what_only_training_reads_is_refused(given):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        tiny(**{**FREE, **spelled(given)})
    line = str(error.value)
    assert "nobody trains" in line or "exclude each other" in line or "regrow" in line


def test_defaults_of_a_task_may_be_said_again():
    usual = configure({"task": "digits", "local_steps": 0, "schedule": "one-shot"})
    said = {"lr": usual.lr, "optimizer": usual.optimizer, "server_lr": 1.0}
    again = configure({"task": "digits", "local_steps": 0, "schedule": "one-shot", **said})
    assert again == usual

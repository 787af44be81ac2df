"""Clients that train at once say what each says by itself, to rounding; who fails, fails alone."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedprune import TASKS
from fedprune.client.host import Host, build_host
from fedprune.client.serving import parts_of
from fedprune.codec.wire import digest_of
from fedprune.config import configure, with_values
from fedprune.options.refusal import ConfigError, Refused
from fedprune.protocol.broadcast import encode_question
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import understood
from fedprune.scores.gradients import SumOverBatches
from fedprune.scores.inputs import SumOverInputs
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, masked
from tests.runs import played, tiny

NEAR = 1e-5

MLP = {"model": "mlp", "hosts": 1, "cohort": 5}
WORDS = {"clients": 3, "cohort": 3, "length": 16, "depth": 1, "width": 32, "sparsity": 0}
NOISE = {"dp": "client", "dp_noise": 1.0, "dp_clip": 0.3, "noise_source": "seeded"}
TEXT = {**WORDS, "hosts": 1, "batch_size": 4, "optimizer": "sgd", "lr": 0.3, "local_steps": 2}


class Net(nn.Module):
    """A user's own, with dropout here and there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.3, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, images: Tensor) -> Tensor:
        seen: Tensor = self.layer(self.first(images[:, 0])).mean(1)
        out: Tensor = self.head(seen)
        return out


class Mixed(nn.Module):
    """What it says of a row depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.first(images.flatten(1))
        out: Tensor = self.head(rows - rows.mean(0))
        return out


class Recurrent(nn.Module):
    """What vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(8, 8), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(self.first(images[:, 0]))[0][:, -1])
        return out


def without_each(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """A loss that tells sums alone."""
    return replace(TASKS["digits"].loss(model, batch), each=None)


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, net in (("net", Net), ("mixed", Mixed), ("recurrent", Recurrent)):
        task = replace(TASKS["digits"], model=lambda _, net=net: net(), models={})
        monkeypatch.setitem(TASKS, name, task)
    monkeypatch.setitem(TASKS, "sums", replace(TASKS["digits"], loss=without_each))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a client trains by itself")


def answers_of(host: Host, question: Question, batched: int) -> Iterator[Any]:
    """What everybody's packets say, or why there is none."""
    config = with_values(host.config, {"batched": batched})
    host = replace(host, config=config)
    form = form_of(question, config, host.layout)
    for part in parts_of(host, encode_question(question, "fp32"), sorted(host.shards)):
        try:
            yield str(part.failure) if part.failure else understood(part.packet, question, form)
        except Refused as refused:  # a number that is none
            yield str(refused)


def question_for(host: Host, **what: Any) -> Question:
    """To tune under a mask that removes a third."""
    gen = torch.Generator().manual_seed(5)
    weights = copied(state_of(host.model))
    shapes = {n: weights[n].shape for n in host.layout.prunable}
    masks = {n: torch.rand(shape, generator=gen) > 0.3 for n, shape in shapes.items()}
    return Question("tune", 2, masked(weights, masks), masks, lr=host.config.lr, **what)


def apart(host: Host, question: Question, batched: int) -> float:
    """How far summands are from each client's own."""
    by_itself = answers_of(host, question, 1)
    at_once = answers_of(replace(host, train=never), question, batched)
    far = 0.0
    for alone, together in zip(by_itself, at_once, strict=True):
        assert isinstance(alone, Answer)
        assert alone.weight == together.weight
        assert alone.totals.keys() == together.totals.keys()
        assert alone.totals.get("count") == together.totals.get("count")
        for name, total in alone.totals.items():
            assert together.totals[name] == pytest.approx(total, rel=1e-4, abs=1e-4)
        if alone.votes is not None:
            assert torch.equal(alone.votes, together.votes)
        assert alone.values.abs().max() > 1e-3
        far = max(far, float((alone.values - together.values).abs().max()))
    return far


GALLERY: dict[str, dict[str, Any]] = {
    "momentum": MLP,
    "adam": {**MLP, "optimizer": "adam", "lr": 0.001, "weight_decay": 0.1},
    "adamw, epochs": {**MLP, "optimizer": "adamw", "lr": 0.01, "local_epochs": 2},
    "unequal shards": {**MLP, "local_epochs": 1, "batch_size": 16, "alpha": 0.1, "clip": 0.1},
    "accumulated": {**MLP, "accumulate": 3, "local_epochs": 1, "batch_size": 5, "clip": 0.0},
    "all terms": {**MLP, "proximal": 0.5, "l1": 1e-3, "l2": 1e-2, "group_lasso": 1e-3,
                  "unit": "row", "shrinkage": "gradient", "local_steps": 3},
    "proximal steps": {**MLP, "l1": 0.05, "group_lasso": 0.01, "unit": "row", "local_epochs": 1},
    "statistics of batches": {"hosts": 1, "cohort": 5, "local_epochs": 1},
    "dropout": {"task": "net", "hosts": 1, "cohort": 5, "local_epochs": 1},
    "a loss of sums": {**MLP, "task": "sums", "local_epochs": 1},
    "llama": {**TEXT, "task": "shakespeare"},
    "gpt2": {**TEXT, "task": "shakespeare", "model": "gpt2", "clip": 0.0},
    "bert": {**TEXT, "task": "shakespeare-masked", "local_epochs": 1, "batch_size": 256},
    "t5": {**TEXT, "task": "shakespeare-restore"},
    "uplink": {**MLP, "uplink": "fp16"},
    "noise for a client": {**MLP, **NOISE},
}  # fmt: skip


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", GALLERY)
def test_summands_are_those_of_each_client_by_itself(name):
    steps = {"local_steps": 0} if GALLERY[name].get("local_epochs") else {}
    host = build_host(tiny(**{**GALLERY[name], **steps}))
    question = question_for(host)
    if name == "uplink":  # what is rounded to half precision may be rounded the other way
        question = replace(question, lr=0.01)
    assert apart(host, question, 5) < NEAR


@pytest.mark.parametrize("masks", ["union", "intersection"])
def test_clients_under_masks_of_their_own(masks):
    host = build_host(tiny(**MLP, masks=masks, score="taylor"))
    assert apart(host, question_for(host, score="taylor", sparsity=0.5), 3) < NEAR


SCORES: dict[str, dict[str, Any]] = {
    "taylor": {**MLP, "score_batch": 9},
    "gradient": {"hosts": 1, "cohort": 5, "combine": "mean", "normalise": "l1"},
    "wanda": {"hosts": 1, "cohort": 5, "score_batch": 16},
    "activation": {**TEXT, "task": "shakespeare", "sparsity": 0.5},
    "taylor_signed": {**TEXT, "task": "shakespeare-masked", "sparsity": 0.5, "score_examples": 20},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_each_client_by_itself(score, monkeypatch):
    host = build_host(tiny(**SCORES[score], score=score))
    question = replace(question_for(host), kind="score", lr=0.0, score=score)
    if host.config.combine == "mean":
        question = replace(question, sparsity=0.5)
    alone = list(answers_of(host, question, 1))
    for collect in (SumOverBatches, SumOverInputs):
        monkeypatch.setattr(collect, "__call__", never)
    together = list(answers_of(host, question, 5))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Answer)
        assert one.totals == other.totals
        near = 1e-5 * one.values.abs().max()
        assert torch.allclose(one.values, other.values, rtol=1e-3, atol=near)


@pytest.mark.slow
def test_a_teacher_teaches_all_at_once():
    host = build_host(tiny(**MLP, distil=0.5, local_epochs=1, local_steps=0))
    teacher = copy.deepcopy(host.model).eval().requires_grad_(False)
    host.teachers[digest_of(b"own")] = teacher
    question = question_for(host, teacher=b"own", distil=0.8)
    answer: Any = next(answers_of(host, question, 1))
    assert answer.totals["divergence"] > 0.01
    assert apart(host, question, 5) < NEAR


@pytest.mark.parametrize("dp", [{}, NOISE])
def test_who_fails_fails_alone(dp, caplog):
    """Of five, one has a label that there is not, and another weights that overflow."""
    host = build_host(tiny(**MLP, **dp, local_epochs=1, local_steps=0))
    shards = dict(host.shards)
    for p, name, odd in ((1, "labels", shards[1].train["labels"] + 90), (3, "images", torch.inf)):
        part = shards[p].train
        shards[p] = replace(shards[p], train={**part, name: part[name] * 0 + odd})
    host = replace(host, shards=shards)
    question = question_for(host)
    alone, together = (list(answers_of(host, question, n)) for n in (1, 5))
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            assert (one.values - other.values).abs().max() < NEAR
    assert [isinstance(a, str) for a in alone] == [False, not dp, False, not dp, False]
    assert "one by one" in caplog.text


@pytest.mark.slow
def test_a_whole_run_comes_to_the_same():
    """Rows to rounding; the same clients failed, the same is in the ledger, to the last digit."""
    keys = {**MLP, **NOISE, "local_epochs": 1, "local_steps": 0}
    alone, together = (played(tiny(**keys, batched=n)) for n in (1, 4))
    assert alone.summary["privacy"] == together.summary["privacy"]
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        assert one["answered"] == other["answered"]


REFUSED = {
    "recurrent": "cannot train for several: RuntimeError: Batching rule not implemented",
    "mixed": "its gradients are not those of each client by itself",
}


@pytest.mark.parametrize("task", REFUSED)
def test_a_model_or_code_that_cannot_is_refused_before_the_start(task):
    assert build_host(tiny(task=task)).config.batched == 1
    with pytest.raises(ConfigError, match=f"^batched=2: the model .*{REFUSED[task]}.*allowed: 1$"):
        build_host(tiny(task=task, batched=2))
    with pytest.raises(ConfigError, match=r"^batched=3: clients train by code of their own"):
        build_host(tiny(batched=3), train=never)


def test_hosts_are_as_few_as_make_groups_of_that_size():
    keys = {"task": "digits", "clients": 20, "cohort": 12}
    found = [configure({**keys, "batched": n}).hosts for n in (1, 2, 4, 12)]
    assert found == [8, 6, 3, 1]

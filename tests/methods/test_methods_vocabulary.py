"""Tokens that nobody uses leave the model before round one, in runs of every family."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune import Result, RunConfig, Shard, federate, load
from fedprune.client.host import Host, build_host
from fedprune.client.tokens import special_tokens_of, token_counts
from fedprune.engines.inline import inline_port
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.structure.edits import Edit
from fedprune.structure.tables import embedding_path
from fedprune.tasks.language import cut_streams
from fedprune.tasks.masked import masked_shards
from fedprune.tasks.restore import cut_in_order, pair_rows, pairs_of
from fedprune.tasks.token_rows import encode
from fedprune.tasks.tokenization import symbols_of
from tests.runs import tiny

TEXTS = ["abc de\n" * 50 + "Zq?\n" * 5, "abd fe\n" * 60 + "Y\n" * 5]
"""Two clients; capitals and marks are in their test parts only."""

PURPOSES = {
    "shakespeare": "causal", "shakespeare-masked": "masked", "shakespeare-restore": "seq2seq",
}  # fmt: skip
FAMILIES = [
    pytest.param("shakespeare", "gpt2", marks=pytest.mark.slow),
    ("shakespeare", "llama"),
    pytest.param("shakespeare", "llama-tied", marks=pytest.mark.slow),
    pytest.param("shakespeare-masked", "roberta", marks=pytest.mark.slow),
    ("shakespeare-restore", "t5"),
]


def shard_of(text: str, config: RunConfig) -> Shard:
    if config.task == "shakespeare-masked":
        return masked_shards([text], config)[0]
    if config.task == "shakespeare-restore":
        return cut_in_order(pair_rows(pairs_of([text], 16), config, 16))
    return cut_streams([text], config, "causal")[0]


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    def made(task: str, model: str, **more: Any) -> RunConfig:
        sizes = {"clients": 2, "cohort": 2, "rounds": 2, "warmup": 1, "end": 2, "local_steps": 1}
        keys = {"task": task, "model": model, "length": 16, "vocabulary": "used"}
        return tiny(**{**sizes, **keys, "hosts": 2, **more})

    return made


def played(config: RunConfig, folder: Path | None = None) -> tuple[Result, Host]:
    shards = {p: shard_of(text, config) for p, text in enumerate(TEXTS)}
    host = build_host(config, shards)
    return federate(config, inline_port(host), folder=folder), host


def edit_of(result: Result) -> Edit:
    (edit,) = [e for e in result.state.edits if e.kind == "vocab"]
    return edit


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("task", "model"), FAMILIES)
def test_a_run_keeps_what_its_clients_train_and_validate_on_and_the_marks(
    task, model, config, tmp_path
):
    c = config(task, model)
    result, host = played(c, tmp_path / "run")
    size = symbols_of(c, PURPOSES[task]).size
    seen = {
        int(i)
        for shard in host.shards.values()
        for part in (shard.train, shard.validation)
        for name in ("inputs", "labels")
        for i in part[name].flatten()
        if i >= 0
    }
    marks, unknown = special_tokens_of(host.task, c, host.model)
    assert edit_of(result).kept == tuple(sorted(seen | marks))
    assert edit_of(result).like == str(unknown) == "1"
    if task != "shakespeare-masked":  # which draws other characters to hide some behind
        assert set(encode("Zq?Y").tolist()).isdisjoint(edit_of(result).kept)
    path = embedding_path(host.model)
    assert path == edit_of(result).path
    table = result.model.get_submodule(path)
    assert table.weight.shape[0] == len(edit_of(result).kept) < size
    assert result.summary["failures"] == 0
    assert result.summary["quality"]["final"]["loss"] < 20.0, "unknown tokens are no catastrophe"
    assert result.summary["parameters_left"] < result.summary["parameters"]
    back = load(tmp_path / "run")
    assert torch.equal(back.get_submodule(path).weight, table.weight)


@pytest.mark.slow
def test_without_asking_nothing_is_cut_and_no_client_is_asked(config):
    asked = []
    for vocabulary in ("full", "used"):
        c = config("shakespeare", "llama", vocabulary=vocabulary, length=16)
        host = build_host(c, {p: shard_of(t, c) for p, t in enumerate(TEXTS)})
        port = inline_port(host)

        def ask(question: Question, partitions: Any, port: Any = port) -> Aggregate:
            asked.append(question.kind)
            return port.ask(question, partitions)

        result = federate(c, replace(port, ask=ask))
        assert ("tokens" in asked) == bool(result.state.edits) == (vocabulary == "used")
    assert asked.count("tokens") == 1


def test_counts_add_up_and_test_parts_are_not_looked_at(config):
    c = config("shakespeare", "llama")
    shards = [shard_of(text, c) for text in TEXTS]
    host = build_host(c, dict(enumerate(shards)))
    total = sum(token_counts(s, host.task, 98) for s in shards)
    pooled = torch.cat([p[n].flatten() for s in shards for p in (s.train, s.validation)
                        for n in ("inputs", "labels")])  # fmt: skip
    assert torch.equal(total, torch.bincount(pooled[pooled >= 0], minlength=98).float())
    scribbled = replace(shards[0], test={n: t * 0 + 97 for n, t in shards[0].test.items()})
    assert torch.equal(
        token_counts(scribbled, host.task, 98), token_counts(shards[0], host.task, 98)
    )


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 9])
def test_a_census_that_nobody_answers_is_asked_for_again(lost, config):
    c = config("shakespeare", "llama")
    host = build_host(c, {p: shard_of(t, c) for p, t in enumerate(TEXTS)})
    port, asked = inline_port(host), []

    def ask(question: Question, partitions: Any) -> Aggregate:
        asked.extend([question.round] * (question.kind == "tokens"))
        kept = question.kind != "tokens" or len(asked) > lost
        return port.ask(question, partitions) if kept else Aggregate()

    result = federate(c, replace(port, ask=ask))
    cut = [e.kind for e in result.state.edits]
    assert (cut, asked) == ((["vocab"], [0, 1]) if lost == 1 else ([], [0, 1, 2]))
    assert result.summary["reached"] == (lost == 1)


@pytest.mark.slow
def test_cuts_of_units_go_with_it_and_a_further_run_keeps_the_vocabulary(config, tmp_path):
    keys = {"unit": "neuron", "sparsity": 0.3, "shrink": "every"}
    first, _ = played(config("shakespeare", "llama", **keys), tmp_path / "one")
    assert {e.kind for e in first.state.edits} == {"vocab", "neuron"}
    again, _ = played(config("shakespeare", "llama", **keys, init=str(tmp_path / "one")))
    assert edit_of(again) == edit_of(first)


@pytest.mark.slow
def test_a_run_that_is_resumed_gives_the_same_bits(config, tmp_path):
    class Cut(Exception):
        pass

    def stop(_row: Any, _seconds: float, state: State) -> None:
        if state.round == 1:
            raise Cut

    c = config("shakespeare", "llama")
    whole, host = played(c)
    with pytest.raises(Cut):
        federate(c, inline_port(host), folder=tmp_path / "run", watch=Watch(row=stop))
    again = federate(c, inline_port(host), folder=tmp_path / "run", resume=True)
    assert again.summary["weights_digest"] == whole.summary["weights_digest"]
    assert again.state.edits == whole.state.edits
    assert again.rows[-1] == whole.rows[-1]


def test_a_model_without_a_table_is_refused(monkeypatch):
    from fedprune import TASKS

    task = TASKS["digits"]
    odd = replace(task, tokens=("labels",), tokenizer=lambda _: None)
    monkeypatch.setitem(TASKS, "odd", odd)
    with pytest.raises(ValueError, match="vocabulary='used': the model has no table of tokens"):
        build_host(tiny(task="odd", vocabulary="used"))

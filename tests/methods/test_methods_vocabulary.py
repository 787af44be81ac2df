"""Tokens that nobody uses leave the model before round one, in runs of every family."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune import TASKS, Result, RunConfig, Shard, federate, load
from fedprune.client.host import Host, build_host
from fedprune.client.tokens import special_tokens_of
from fedprune.engines.inline import inline_port
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.structure.edits import Edit
from fedprune.structure.tables import embedding_path
from fedprune.tasks.language import cut_streams
from fedprune.tasks.masked import masked_shards
from fedprune.tasks.restore import cut_in_order, pair_rows, pairs_of
from fedprune.tasks.token_rows import encode
from fedprune.tasks.tokenization import symbols_of
from tests.runs import cut_short, tiny

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


def config(task: str = "shakespeare", model: str = "llama", **more: Any) -> RunConfig:
    sizes = {"clients": 2, "cohort": 2, "rounds": 2, "warmup": 1, "end": 2, "local_steps": 1}
    keys = {"task": task, "model": model, "length": 16, "vocabulary": "used"}
    return tiny(**{**sizes, **keys, **more})


def host_of(c: RunConfig) -> Host:
    return build_host(c, {p: shard_of(text, c) for p, text in enumerate(TEXTS)})


def edit_of(result: Result) -> Edit:
    (edit,) = [e for e in result.state.edits if e.kind == "vocab"]
    return edit


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("task", "model"), FAMILIES)
def test_a_run_keeps_what_its_clients_train_and_validate_on_and_the_marks(task, model, tmp_path):
    c = config(task, model)
    host = host_of(c)
    result = federate(c, inline_port(host), folder=tmp_path / "run")
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
@pytest.mark.parametrize("lost", [0, 1, 9])
def test_clients_are_asked_once_and_again_where_nobody_answers(lost):
    c, asked = config(), list[int]()
    port = inline_port(host_of(c))

    def ask(question: Question, partitions: Any) -> Aggregate:
        asked.extend([question.round] * (question.kind == "tokens"))
        kept = question.kind != "tokens" or len(asked) > lost
        return port.ask(question, partitions) if kept else Aggregate()

    result = federate(c, replace(port, ask=ask))
    assert asked == [0, 1, 2][: lost + 1]
    assert [e.kind for e in result.state.edits] == (["vocab"] if lost < 9 else [])
    assert result.summary["reached"] == (lost < 9)


@pytest.mark.slow
def test_cuts_of_units_go_with_it_and_further_and_resumed_runs_keep_the_vocabulary(tmp_path):
    keys = {"unit": "neuron", "sparsity": 0.3, "shrink": "every"}
    c = config(**keys)
    whole = federate(c, inline_port(host_of(c)), folder=tmp_path / "one")
    assert {e.kind for e in whole.state.edits} == {"vocab", "neuron"}
    further = config(**keys, init=str(tmp_path / "one"))
    assert edit_of(federate(further, inline_port(host_of(further)))) == edit_of(whole)
    cut_short(c, tmp_path / "two", 1, host_of(c))
    again = federate(c, inline_port(host_of(c)), folder=tmp_path / "two", resume=True)
    assert again.state.edits == whole.state.edits
    assert again.rows == whole.rows


def test_a_model_without_a_table_is_refused(monkeypatch):
    odd = replace(TASKS["digits"], tokens=("labels",), tokenizer=lambda _: None)
    monkeypatch.setitem(TASKS, "odd", odd)
    with pytest.raises(ValueError, match="vocabulary='used': the model has no table of tokens"):
        build_host(tiny(task="odd", vocabulary="used"))

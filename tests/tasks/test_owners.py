"""Who is a client, who only trains, and who is left out, where rows have owners."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.config import RunConfig, configure
from fedprune.options.refusal import ConfigError
from fedprune.records.summary import population_of
from fedprune.tasks.dealt_rows import shares
from fedprune.tasks.masked import hidden
from fedprune.tasks.owners import SMALL_OWNERS, owned, sentences
from fedprune.tasks.splits import cut_at_random
from fedprune.tasks.task import batches, examples
from fedprune.tasks.tokenization import characters

OWNERS = ["b"] * 12 + ["a"] * 10 + ["few"] * 9 + ["c"] * 11 + ["one"] + ["d"] * 3 + ["e"] * 2


def natural(asked: Any, **keys: Any) -> Any:
    return asked("text-to-text", split="natural", client_column="who", **keys)


def whose(dealt: list[list[int]], owners: list[str] = OWNERS) -> list[set[str]]:
    return [{owners[i] for i in own} for own in dealt]


@pytest.mark.parametrize(
    ("small", "clients", "told"),
    [
        ("train-only", "a b c d e few one", {"train_only": 4}),
        ("drop", "a b c", {"dropped": 4, "rows_dropped": 15}),
        ("group", "a b c d+e+few+one", {"grouped": 4}),
    ],
)
def test_small_owners_are_what_was_asked(small, clients, told, asked):
    config = natural(asked, small_owners=small, clients=None)
    dealt, found = owned(config, OWNERS, [1] * len(OWNERS), 10)
    assert ["+".join(sorted(names)) for names in whose(dealt)] == clients.split()
    counts = {"clients": len(dealt), "possible": len(dealt), "owners": 7, **told}
    assert {k: v for k, v in vars(found).items() if v} == counts


def test_the_largest_are_asked_and_the_rest_is_told(asked):
    config = natural(asked, small_owners="train-only", clients=2)
    dealt, told = owned(config, OWNERS, [1] * len(OWNERS), 10)
    assert whose(dealt) == [{"b"}, {"c"}]
    assert (told.unasked, told.rows_dropped, told.possible) == (5, 25, 7)
    assert sentences(vars(told)) == [
        "the 2 largest of 7 possible ones; owners left out: 5",
        "rows of those left out: 25",
    ]
    assert sentences({}) == []


@given(
    owners=st.lists(st.sampled_from(["u", "v", "007", "7", "x y", ""]), min_size=30, max_size=90),
    small=st.sampled_from(sorted(SMALL_OWNERS)),
    fewest=st.integers(2, 12),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_held_once_or_told_to_be_left_out(owners, small, fewest):
    assume(small == "group" or max(Counter(owners).values()) >= fewest)  # else nobody measures
    config: Any = type("C", (), {"client_column": "w", "small_owners": small, "clients": None})
    dealt, told = owned(config, owners, [1] * len(owners), fewest)
    held = [i for own in dealt for i in own]
    assert len(set(held)) == len(held) == len(owners) - told.rows_dropped
    assert all(own == sorted(own) for own in dealt)
    counts, together = Counter(owners), [{owners[i] for i in own} for own in dealt]
    assert sum(map(len, together)) == len(set().union(*together)) == told.owners - told.dropped
    if small != "train-only":
        assert all(len(own) >= fewest for own in dealt)
    assert told.train_only == sum(len(own) < fewest for own in dealt)
    lost = set(counts) - set().union(*together)
    assert small == "drop" or sum(counts[owner] for owner in lost) < fewest


def test_what_nobody_could_measure_is_refused(asked):
    columns = {"client": ["a"] * 3 + ["b"] * 12}

    def refused(message: str, **keys: Any) -> None:
        with pytest.raises(ValueError, match=message):
            shares(natural(asked, **keys), columns, {})

    refused(r"clients=3: client-column='who' makes 2 \(1 of its 2 owners has too little", clients=3)
    refused(r"small-owners='train-only': 1 client has too", clients=2, metrics="noised")
    columns = {"client": ["b"] * 3 + ["a"] * 12}
    refused(r"panel=1: these clients have too little to be measured on", clients=2, panel=1)
    columns = {"client": ["a", "b"] * 5}
    refused(r"client-column='who': 2 of its 2 owners .* nobody can be measured", clients=2)


def test_a_part_of_no_rows_has_no_batches_and_few_symbols_hide_one():
    rows = {"x": torch.arange(9.0)}
    shard = cut_at_random(rows, 0, 0)
    assert sorted(shard.train["x"].tolist()) == rows["x"].tolist()
    assert [examples(p) for p in (shard.validation, shard.test)] == [0, 0]
    assert list(batches(shard.test, 4)) == []
    for seed in range(20):
        part = {"inputs": torch.tensor([[5, 6, 0, 0]]), "attention": torch.tensor([[1, 1, 0, 0]])}
        gen = torch.Generator().manual_seed(seed)
        labels = hidden(part, characters("masked"), gen)["labels"]
        assert 1 <= int((labels != -100).sum()) <= 2
        assert labels[0, 2:].tolist() == [-100, -100]


TASKS = ("text-classification", "language-modelling", "masked-language-modelling", "text-to-text")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("owners") / "rows.csv"
    owned_by = ["big", "007", "7"] * 12 + ["tiny"] + ["small"] * 4
    lines = [f"{o},row {i} says,{i % 2},ROW {i}" for i, o in enumerate(owned_by)]
    path.write_text("\n".join(["who,text,label,target", *lines, "big,,0,"]) + "\n")
    return path


def asked_of(rows: Path, task: str, **keys: Any) -> RunConfig:
    given = {"task": task, "data": str(rows), "client_column": "who", "engine": "inline"}
    sizes = {"rounds": 2, "warmup": 1, "local_steps": 1, "length": 16, "depth": 1, "width": 16}
    return configure({**given, **sizes, **keys})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_with_clients_that_only_train_measures_on_the_others(task, rows):
    config = asked_of(rows, task)
    assert (config.clients, config.cohort, config.small_owners) == (5, 5, "train-only")
    result = federate(config)
    assert [row["answered"] for row in result.rows] == [5, 5]
    assert result.summary["failures"] == 0
    assert result.summary["quality"]["final"]["loss"] == pytest.approx(
        result.summary["quality"]["final"]["loss"]
    ), "not NaN"
    told = result.summary["population"]
    assert told == population_of(config)
    streams = "language" in task
    assert (told["train_only"], told["rows_empty"]) == (1 if streams else 2, 1)
    shards = build_host(config).shards
    alone = [shard for shard in shards.values() if not examples(shard.test)]
    assert len(alone) == told["train_only"]
    assert all(examples(shard.train) for shard in alone)


@pytest.mark.parametrize(("small", "clients"), [("drop", 3), ("group", 3), ("train-only", 5)])
def test_the_number_of_clients_follows_from_the_data(small, clients, rows):
    assert asked_of(rows, TASKS[0], small_owners=small).clients == clients
    assert asked_of(rows, TASKS[0], small_owners=small, clients=2).clients == 2
    assert asked_of(rows, TASKS[0], split="iid", client_column=None, clients=2).split == "iid"


def test_data_that_cannot_be_read_is_refused_with_the_configuration(rows):
    with pytest.raises(ConfigError, match="client-column='owner': no such column"):
        asked_of(rows, TASKS[0], client_column="owner")
    assert asked_of(rows.with_name("not yet.csv"), TASKS[0]).clients == 20


def test_names_of_classes_are_read_once_for_a_configuration(rows, monkeypatch):
    from fedprune.tasks import userdata

    calls: list[Any] = []
    read = userdata.rows_with_text
    monkeypatch.setattr(
        userdata, "rows_with_text", lambda c, *more: calls.append(c) or read(c, *more)
    )
    federate(asked_of(rows, TASKS[0]))
    assert 1 <= len(calls) <= 4

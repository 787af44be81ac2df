"""What is read back is of the type that was written, to the last number, or is refused by name.

Digests are made to fit: what one of them catches says nothing about what is behind it.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from test_checkpoint import FULL, KINDS

from fedprune.options.refusal import ConfigError
from fedprune.privacy.ledger import AccountingTerms, open_ledger
from fedprune.privacy.ledger_file import END_NAME, LEDGER_NAME
from fedprune.privacy.release import Occasion, Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.stored import store, stored_in
from fedprune.records.bound import gone_on_with, keep_began
from fedprune.records.checkpoint import check_beside, load_state, save_state
from fedprune.records.folder import read_rows
from fedprune.runtime.files import read_verified, write_verified
from fedprune.runtime.sums import summary_in


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


ODD = [True, 3, 2.5, "3", None, [], [[1]], {}, float("nan"), 10**400]


def kind_of(value: Any) -> Any:
    """What JSON can tell of a value; what is no float of any type is of a kind of its own."""
    unlike = value != value or (type(value) is int and abs(value) >= 2**63)
    return value if unlike else type(value)


def changed(said: Any, odds: Sequence[Any] = ODD) -> Iterator[Any]:
    """The JSON again and again, each time with a value of another type at one place.

    Not where something else may be: a whole number for a float, nothing for a list of one, and in
    the place of nothing.
    """

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            if isinstance(value[key], dict | list):
                yield from places(value[key])

    for within, key in list(places(said)):
        was = within[key]
        for odd in odds if was is not None or not isinstance(key, str) else ():
            fits = isinstance(was, float) and type(odd) is int and odd == 3
            nothing = isinstance(was, list) and (odd is None or odd == [])
            if kind_of(odd) != kind_of(was) and not fits and not nothing:
                within[key] = odd
                yield copy.deepcopy(said)
        if isinstance(within, dict):
            del within[key]
            yield copy.deepcopy(said)
            within[key + " "] = was
            yield copy.deepcopy(said)
            del within[key + " "]
        within[key] = was


def with_head(path: Path, change: Callable[[Any], Iterator[Any]]) -> Iterator[None]:
    """A sound file for each change of the JSON that lies beside its tensors."""
    content = read_verified(path)
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fedprune"])
    tensors = load(content)
    for other in change(said):
        write_verified(path, save(tensors, {"fedprune": json.dumps(other)}))
        yield
    write_verified(path, content)


@pytest.mark.slow
def test_a_state_is_of_its_types_or_refused_by_name(tmp_path):
    path = tmp_path / "run" / "checkpoint" / "pruned.safetensors"
    totals = {key: {"loss": 0.5} for key in ("dense_at_pruning", "tested", "tested_own")}
    save_state(replace(FULL, **totals), path)
    count = 0

    def harmed(said: Any) -> Iterator[Any]:
        yield from ({**said, "state": s} for s in changed(said["state"]))
        for name, memory in said["memories"].items():
            for other in changed(memory):
                yield {**said, "memories": {**said["memories"], name: other}}

    for _ in with_head(path, lambda said: islice(harmed(said), 0, None, 3)):
        count += 1
        with pytest.raises(ValueError, match=r"pruned\.safetensors"):
            load_state(path, KINDS)
    assert count > 170
    assert load_state(path, KINDS).round == FULL.round


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model/masks/z", torch.ones(2, 2)),
        ("model/masks/z", torch.ones(4).bool()),
        ("memory/distil/teacher", torch.ones(3)),
    ],
)
def test_a_tensor_is_what_it_is_for(name, tensor, tmp_path):
    path = tmp_path / "pruned.safetensors"
    save_state(FULL, path)
    content = read_verified(path)
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    write_verified(path, save({**load(content), f"/{name}": tensor}, about))
    with pytest.raises(ValueError, match=r"pruned\.safetensors: .*(mask of z|teacher)"):
        load_state(path, KINDS)


def test_what_lies_beside_a_checkpoint_is_told_in_its_types(tmp_path):
    path = tmp_path / "checkpoint" / "pruned.safetensors"
    (tmp_path / "rounds.jsonl").write_text("{}\n")
    save_state(FULL, path, [tmp_path / "rounds.jsonl"])
    beside = [{"../rounds.jsonl": {"size": 0, "sha256": ""}}, {"/etc/passwd": {"size": 0}}, [], 3]

    def harmed(said: Any) -> Iterator[Any]:
        for other in [*changed(said["beside"]), *beside]:
            if isinstance(other, dict) and "rounds.jsonl " in other:
                continue  # another file, which is not there
            if other:
                yield {**said, "beside": other}

    for _ in with_head(path, harmed):
        with pytest.raises(ValueError, match=r"pruned\.safetensors"):
            check_beside(path)
    assert check_beside(path) == {"rounds.jsonl": 3}


WHOLE = Aggregate(
    *(torch.ones(3).double(), 2.0, {"loss": 1.5}, torch.ones(2).long(), (0, 2)),
    failures=(Failure(1, "tune", "values", "why"),),
    bytes_up=7,
    norms=(0.5,),
    loud=((3, 1e4),),
    notices=("n",),
)


def test_a_stored_sum_is_of_its_types_or_not_used(tmp_path):
    """It is asked for again, and booked."""
    path = tmp_path / "arm-1-name-0"
    store(path, WHOLE)
    back = stored_in(path)
    assert (back.loud, back.failures, back.norms) == (WHOLE.loud, WHOLE.failures, WHOLE.norms)
    for _ in with_head(path, changed):
        assert stored_in(path) is None


def test_a_line_of_a_ledger_is_of_its_types_or_refused(tmp_path):
    path = tmp_path / LEDGER_NAME
    terms = AccountingTerms(dp="client", cohort=4, population=4, noise_source="secret")
    ledger = open_ledger(path, terms)
    when = Occasion("pruned", 1, "tune", 0, "cohort", (0, 1, 3), 4, "name")
    what = Release("changes", ("values",), "up", "client", "skellam", 1.0, 1.0, 2.0, (0.5, 0.1))
    ledger.book(when, [Release(**{**vars(what), "covered": True, "denominator": 4.0})])
    line = json.loads(path.read_text())
    del line["chain"]

    def written(said: Any) -> None:
        chain = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        path.write_text(json.dumps({**said, "chain": chain}) + "\n")
        end = {"lines": 1, "chain": chain}
        path.with_name(END_NAME).write_text(json.dumps(end))

    written(line)
    assert open_ledger(path, terms, resume=True).epsilon == ledger.epsilon
    ranges = ["0-99999999999999", "0-1", "0,1,3,", "1-0,0-3", "x", "0--1", "\u0663"]
    given = [odd for odd in ODD if odd is not None]
    for other in [*changed(line, given), *({**line, "partitions": r} for r in ranges)]:
        written(other)
        with pytest.raises(ConfigError, match=r"privacy\.jsonl"):
            open_ledger(path, terms, resume=True)


def test_what_a_run_began_with_is_of_its_types(tmp_path):
    began = {"config.toml": "a", "data": "", "plugin": ""}
    path = tmp_path / "checkpoint" / "began.json"
    keep_began(tmp_path, began)
    for other in [*changed({**began, "anyway": ["x"]}), [], None]:
        if isinstance(other, dict) and other.keys() != {*began, "anyway"}:
            continue  # what an older version did not write is not compared
        write_verified(path, json.dumps(other).encode())
        with pytest.raises(ValueError, match=r"began\.json"):
            gone_on_with(tmp_path, began, anyway=True)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"rou', '{"round": true, "arm": "a"}'])
def test_a_row_is_one_of_a_round_and_an_arm(text, tmp_path):
    path = tmp_path / "rounds.jsonl"
    for line in (text, "[" * 10**5, '{"round": 1.0, "arm": "a"}', '{"round": 1, "arm": 3}'):
        path.write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"rounds\.jsonl: line 1 is damaged"):
            read_rows(path)
    path.write_text(f'{{"arm": "a", "round": 1}}\n{text}\n{{"arm": "a", "round": 3}}\n')
    with pytest.raises(ValueError, match=r"rounds\.jsonl: line 2 is damaged"):
        read_rows(path)
    path.write_text('{"arm": "a", "round": 1}\n{"round": 2')
    assert read_rows(path) == [{"arm": "a", "round": 1}], "a crash cut the last one short"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"quality": 3, "command": ""}', '{"quality": {}}', "[" * 10**5]
)
def test_a_summary_is_one_of_a_run(text, tmp_path):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json: no summary of a run"):
        summary_in(tmp_path)

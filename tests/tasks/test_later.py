"""Shards that are built when needed: the same as if all were there, and bounded."""

import dataclasses
import pickle
import random
from collections import OrderedDict

import pytest
import torch

from fedprune.client.host import build_host, labels_of
from fedprune.config import RunConfig, configure
from fedprune.engines.ray.serving import _shards, shards_sent
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.later import (
    OVERHEAD,
    Later,
    LazyShards,
    count_of,
    each_shard,
    labels_in,
    rows_counted,
)
from fedprune.tasks.shards import built_later, data_digest, shards_of
from fedprune.tasks.task import Shard

CONFIG: RunConfig = configure(
    {"task": "digits", "model": "mlp", "clients": 12, "cohort": 4, "split": "iid"}
)


def shard(partition: int) -> Shard:
    """Rows whose numbers say whose they are."""
    sizes = (6 + partition, 2, 2)
    images = (torch.full((n, 1, 8, 8), partition + i / 10) for i, n in enumerate(sizes))
    return Shard(*({"images": x, "labels": torch.arange(len(x)) % 10} for x in images))


def test_what_is_kept_is_bounded_and_what_was_let_go_comes_again_the_same():
    """Against a list in which the newest used is last."""
    size, asked, gen = count_of(shard(11)).size + OVERHEAD, [], random.Random(3)
    shards = LazyShards(range(12), lambda p: asked.append(p) or shard(p), most=3 * size)
    kept: OrderedDict[int, None] = OrderedDict()
    for _ in range(400):
        p, before = gen.randrange(12), len(asked)
        found = shards[p]
        assert torch.equal(found.train["images"], shard(p).train["images"])
        assert (len(asked) == before) == (p in kept)
        kept[p] = None
        kept.move_to_end(p)
        while sum(count_of(shard(q)).size + OVERHEAD for q in kept) > 3 * size:
            kept.popitem(last=False)
    assert len(set(asked)) == 12 < len(asked) < 400
    with pytest.raises(KeyError):
        shards[12]


def test_who_is_asked_as_all_are_takes_nobody_s_room():
    asked: list[int] = []
    room = 3 * (count_of(shard(11)).size + OVERHEAD)
    shards = LazyShards(range(12), lambda p: asked.append(p) or shard(p), most=room)
    both = [shards[3], shards[4]]
    for _ in range(2):
        assert [len(s.train["labels"]) for _, s in each_shard(shards)] == list(range(6, 18))
    assert [shards[3], shards[4]] == both
    assert (asked.count(3), asked.count(4), asked.count(0), asked.count(11)) == (1, 1, 1, 2)


def test_one_that_alone_is_more_than_is_kept_is_served_all_the_same():
    shards = LazyShards(range(3), shard, most=1)
    assert [shards[p].train["images"].shape[0] for p in (0, 1, 2, 0)] == [6, 7, 8, 6]


def test_a_sequence_of_them_is_one_of_shards():
    given = Later(12, shard)
    assert len(list(given)) == len(given) == 12
    assert [len(s.train["labels"]) for s in given[2:4]] == [8, 9]
    assert len(given[-1].train["labels"]) == 17
    with pytest.raises(IndexError):
        given[12]


def task(make) -> object:
    return dataclasses.replace(TASKS["digits"], shards=lambda config: Later(config.clients, make))


def test_rows_and_labels_of_all_are_known_without_any_being_built():
    built: list[int] = []
    own = task(lambda p: built.append(p) or shard(p))
    shards = shards_of(own, CONFIG)
    assert labels_in(own, shards) == {p: 6 + p for p in range(12)}
    digest = data_digest(shards)
    assert digest == data_digest({p: shard(p) for p in range(12)})
    shards = dataclasses.replace(shards, most=1)
    built.clear()
    assert [n.train for n in rows_counted(shards).values()] == [6 + p for p in range(12)]
    assert labels_in(own, shards) == {p: 6 + p for p in range(12)}
    assert not built


def but_the_seventh(change) -> object:
    return task(lambda p: change(shard(p)) if p == 7 else shard(p))


def without(one: Shard, part: str) -> Shard:
    return dataclasses.replace(one, **{part: {n: t[:0] for n, t in getattr(one, part).items()}})


ODD = {"labels": torch.zeros(2)}
WRONG = {
    "no shard": (but_the_seventh(lambda _: "no shard"), "shard 7 is a str"),
    "other names": (
        but_the_seventh(lambda one: dataclasses.replace(one, test=ODD)),
        "shard 7's test has",
    ),
    "nothing to train on": (
        but_the_seventh(lambda one: without(one, "train")),
        "shard 7 has no train examples",
    ),
    "nobody measures": (task(lambda p: without(shard(p), "test")), "no partition has any test"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_one_of_them_is_said_before_round_one(name):
    own, told = WRONG[name]
    with pytest.raises(ValueError, match=told):
        shards_of(own, CONFIG)


@pytest.mark.parametrize(
    "keys",
    [
        {"task": "digits", "model": "mlp", "split": "dirichlet"},
        {"task": "shakespeare", "split": "natural"},
        {"task": "shakespeare-masked", "split": "iid"},
    ],
    ids=lambda keys: keys["task"],
)
def test_workers_on_ray_make_the_same_shards_of_what_they_are_sent(keys):
    """Of plain types: a worker on a node without fedprune gets them before it gets fedprune."""
    config = configure({**keys, "clients": 4, "cohort": 2})
    host = build_host(config)
    labels = labels_of(host)
    sent = pickle.dumps(shards_sent(config, host.shards))
    assert b"fedprune" not in sent
    there = _shards(config, pickle.loads(sent))
    assert data_digest(there) == data_digest(host.shards)
    assert isinstance(there, LazyShards)
    assert there.labels == labels
    assert rows_counted(there) == rows_counted(host.shards)


def test_of_many_shards_workers_build_those_they_need(monkeypatch):
    monkeypatch.setattr("fedprune.engines.ray.serving.KEPT", 1000)
    shards = built_later(shard, CONFIG)
    rows_counted(shards)
    sent = shards_sent(CONFIG, shards)
    assert "arrays" not in sent
    assert "rows" not in sent
    monkeypatch.setattr("fedprune.engines.ray.serving.tasks_of", lambda _: {"digits": task(shard)})
    assert data_digest(_shards(CONFIG, sent)) == data_digest(shards)

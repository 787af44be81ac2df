from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.config import configure
from fedprune.randomness import derive, generator
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.language import cut_streams
from fedprune.tasks.masked import hidden_by_content, masked_shards, stretches
from fedprune.tasks.restore import cut_pairs, local_phrases, pair_rows, pairs_of
from fedprune.tasks.splits import FEWEST_ROWS, SPLITS, cut_at_random, cut_by_content, partition
from fedprune.tasks.task import Part, examples
from fedprune.tasks.tokenization import characters
from tests.runs import tiny

ROWS, CLASSES = 600, 6
LABELS = [int(x) for x in np.random.default_rng(0).integers(0, CLASSES, ROWS)]
ROLES = [
    f"role {x}" for x in np.random.default_rng(1).choice(5, ROWS, p=[0.5, 0.2, 0.2, 0.05, 0.05])
]
COLUMNS = {"label": LABELS, "role": ROLES}
COLUMN = {"natural": "role", "iid": "", "dirichlet": "label", "shards": "label"}


def dealt(split: str, clients: int = 5, **keys: object) -> list[list[int]]:
    # One task has every split.
    keys = {"alpha": 0.5, **keys} if split == "dirichlet" else keys
    config = tiny(task="shakespeare", split=split, clients=clients, **keys)
    return partition(config, COLUMN[split], COLUMNS)


def test_dealing_leaves_the_global_random_states_alone():
    def states() -> list[object]:
        return [torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()]

    before = states()
    for split in SPLITS:
        dealt(split)
    assert states() == before


@pytest.mark.parametrize("split", ["iid", "shards"])
def test_a_partition_too_small_to_cut_in_three_is_refused(split):
    message = r"clients=80: of the 600 rows of data one client would hold \d; allowed: at least 10"
    with pytest.raises(ValueError, match=message):
        dealt(split, 80)


@pytest.mark.parametrize(("rows", "what"), [(1, "more data"), (20, "fewer clients, or more data")])
def test_a_file_of_too_few_lines_is_refused_with_what_lacks(rows, what):
    config = tiny(task="shakespeare", split="iid", clients=3)
    with pytest.raises(
        ValueError, match=rf"the {rows} rows? of data .* at least 10 rows.*\({what}\)"
    ):
        partition(config, "", {"label": LABELS[:rows]})


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
def test_a_dirichlet_split_that_cannot_be_had_is_refused():
    with pytest.raises(ValueError, match=r"(alpha|clients)=.*allowed: "):
        dealt("dirichlet", 55, alpha=0.01)


@pytest.mark.parametrize("n", [*range(FEWEST_ROWS, 31), 103])
def test_a_shard_is_cut_in_three_without_overlap_by_seed_and_partition(n):
    rows = {"images": torch.arange(float(n)), "labels": torch.arange(n)}
    shard = cut_at_random(rows, 3, 1)
    parts = [shard.train, shard.validation, shard.test]
    assert [len(part["labels"]) for part in parts] == [n - 2 * (n // 10), n // 10, n // 10]
    assert all(torch.equal(part["images"], part["labels"].float()) for part in parts)
    together = torch.cat([part["labels"] for part in parts])
    assert together.sort().values.tolist() == list(range(n))
    cuts = [cut_at_random(rows, *key).train["labels"].tolist() for key in [(3, 1), (3, 2), (4, 1)]]
    assert cuts[0] == shard.train["labels"].tolist()
    assert len(set(map(tuple, cuts))) == 3


CONTENTS = {
    "images": lambda n, g: {"images": torch.rand(n, 2, 3, generator=g), "labels": torch.arange(n)},
    "tokens": lambda n, g: {"inputs": torch.randint(0, 9, (n, 7), generator=g)},
    "half": lambda n, g: {"x": torch.rand(n, 3, generator=g).half(), "flag": torch.arange(n) > 3},
    "scaled": lambda n, g: {
        "inputs": torch.randint(0, 9, (n, 7), generator=g),
        "labels": torch.rand(n, generator=g),
        "scaling": torch.rand(1, 2, generator=g).repeat(n, 1),
    },
}


@pytest.mark.parametrize("name", CONTENTS)
def test_one_row_more_or_less_moves_no_other_where_noise_hides_examples(name):
    """Whatever the place of the row, and whatever is made from all labels."""
    g = torch.Generator().manual_seed(1)
    whole = CONTENTS[name](49, g)
    key = next(k for k in ("images", "inputs", "x") if k in whole)

    def places(rows: Part, seed: int = 3) -> list[tuple[int, list[float]]]:
        shard = cut_by_content(rows, seed)
        parts = enumerate((shard.train, shard.validation, shard.test))
        return sorted((p, row.flatten().tolist()) for p, part in parts for row in part[key])

    before = places(whole)
    assert len(before) == 49
    assert len({p for p, _ in before}) == 3
    for lost in (0, 17, 48):
        kept = torch.arange(49) != lost
        left = places({n: t[kept] for n, t in whole.items()})
        gone = [x for x in before if x[1] == whole[key][lost].flatten().tolist()]
        assert len(gone) >= 1
        assert sorted([*left, gone[0]]) == before
    if "scaling" in whole:
        other = {**whole, "labels": whole["labels"] * 2, "scaling": whole["scaling"] + 1}
        assert places(other) == before
    assert places({n: t.flip(0) for n, t in whole.items()}) == before
    twice = places({n: torch.cat([t, t]) for n, t in whole.items()})
    assert twice == sorted([*before, *before]), "copies go together"
    assert places(whole, seed=4) != before


def test_a_task_whose_noise_hides_examples_is_cut_by_content():
    keys = {"task": "digits", "model": "mlp", "dp": "example", "dp_noise": 1.0, "clients": 6}
    config = configure({**keys, "cohort": 3, "panel": 2})
    for shard in TASKS["digits"].shards(config):
        parts = (shard.train, shard.validation, shard.test)
        rows = {n: torch.cat([part[n] for part in parts]) for n in shard.train}
        again = cut_by_content(rows, config.seed)
        assert all(torch.equal(again.train[n], t) for n, t in shard.train.items())


def parts_by_example(rows: dict[str, torch.Tensor], cut: Callable[[Part], Any]) -> list[Any]:
    """Every row of every part, by all its columns."""
    shard = cut(rows)
    parts = enumerate((shard.train, shard.validation, shard.test))
    return sorted(
        (p, *(part[n][i].flatten().tolist() for n in sorted(part)))
        for p, part in parts
        for i in range(examples(part))
    )


@pytest.mark.parametrize("lost", [0, 7, 39])
def test_a_phrase_or_a_window_more_moves_and_hides_no_other(lost, asked):
    """Pairs of texts by content; of what is masked, the symbols that are hidden."""
    config = asked("shakespeare-restore", dp="example", dp_noise=1.0)
    pairs = [(f"word {i} of many", f"Word {i}, of many.") for i in range(40)]
    left = [pair for i, pair in enumerate(pairs) if i != lost]

    def rows(some: list[tuple[str, str]]) -> list[Any]:
        return parts_by_example(pair_rows(some, config, 24), lambda r: cut_pairs(r, config))

    whole = rows(pairs)
    assert {p for p, *_ in whole} == {0, 1, 2}
    assert len(whole) - 1 == len(rows(left)) == sum(row in whole for row in rows(left))

    symbols, ids = characters("masked"), torch.randint(2, 98, (40, 16), generator=generator(1, "x"))
    part = {"inputs": ids, "attention": torch.ones_like(ids)}
    kept = torch.arange(40) != lost
    every = hidden_by_content(part, symbols, 3)
    again = hidden_by_content({n: t[kept] for n, t in part.items()}, symbols, 3)
    assert all(torch.equal(t, every[n][kept]) for n, t in again.items())
    assert 0.08 < (every["labels"] != -100).float().mean() < 0.22
    nobody = {n: t[:0] for n, t in part.items()}
    assert hidden_by_content(nobody, symbols, 3)["labels"].shape == (0, 16)


def test_tasks_of_pairs_and_masks_are_made_by_content_where_noise_hides_examples(asked, tmp_path):
    text = "O for a Muse of fire, that would ascend\nThe brightest heaven of invention;\n" * 30
    config = asked("shakespeare-masked", dp="example", dp_noise=1.0)
    shard = masked_shards([text], config)[0]
    plain = cut_streams([text], config, "masked", stretches)[0]
    again = hidden_by_content(plain.train, characters("masked"), config.seed)
    assert all(torch.equal(t, again[n]) for n, t in shard.train.items())
    config = asked("shakespeare-restore", dp="example", dp_noise=1.0)
    (tmp_path / "a.txt").write_text(text)
    shard = local_phrases(tmp_path, config)
    again = cut_by_content(pair_rows(pairs_of([text], 24), config, 24), config.seed)
    assert all(torch.equal(t, again.train[n]) for n, t in shard.train.items())


def by_flower(config: Any, column: str, columns: dict[str, list[Any]]) -> list[list[int]]:
    """What flwr-datasets' own partitioners deal."""
    from datasets import Dataset
    from flwr_datasets import partitioner

    rows, seed = len(next(iter(columns.values()))), derive(config.seed, "split") % 2**31
    chosen = {column: columns[column]} if column else {}
    table = Dataset.from_dict({"row": list(range(rows)), **chosen})
    n = config.clients
    labelled = {"num_partitions": n, "partition_by": column, "seed": seed}
    size = -(-rows // (2 * n))
    made = {
        "natural": lambda: partitioner.NaturalIdPartitioner(partition_by=column),
        "iid": lambda: partitioner.IidPartitioner(num_partitions=n),
        "dirichlet": lambda: partitioner.DirichletPartitioner(
            **labelled, alpha=config.alpha, min_partition_size=FEWEST_ROWS
        ),
        "shards": lambda: partitioner.ShardPartitioner(
            **labelled, shard_size=size, keep_incomplete_shard=True
        ),
    }[config.split]()
    made.dataset = table.shuffle(seed=seed) if config.split == "iid" else table
    return [sorted(made.load_partition(i)["row"][:]) for i in range(made.num_partitions)]


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("rows", "clients", "seed", "words"),
    [(600, 5, 3, False), (601, 7, 4, True), (397, 13, 5, False), (1000, 3, 6, True)],
)
def test_rows_are_dealt_as_flower_deals_them(split, rows, clients, seed, words):
    gen = np.random.default_rng(seed)
    labels = [int(x) for x in gen.integers(0, 4, rows)]
    columns = {
        "label": [f"kind {x}" for x in labels] if words else labels,
        "role": [f"{'äzA'[x % 3]} {x}" for x in labels],
    }
    keys = {"alpha": 0.7} if split == "dirichlet" else {}
    config = tiny(task="shakespeare", split=split, clients=clients, seed=seed, **keys)
    parts = partition(config, COLUMN[split], columns)
    assert parts == by_flower(config, COLUMN[split], columns)
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert min(map(len, parts)) >= FEWEST_ROWS

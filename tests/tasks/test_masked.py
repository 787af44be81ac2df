import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.randomness import generator
from fedprune.tasks.losses import label_tokens
from fedprune.tasks.masked import HIDDEN, hidden, local_masked_shard, masked_shards, stretches
from fedprune.tasks.task import Part, Shard
from fedprune.tasks.token_rows import encode
from fedprune.tasks.tokenization import ALPHABET, Symbols, characters

TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 60
SYMBOLS = characters("masked")
MASK = len(ALPHABET)


def parts_of(shard: Shard) -> list[Part]:
    return [shard.train, shard.validation, shard.test]


@given(st.integers(2, 200), st.integers(8, 40))
def test_stretches_are_the_text_padded(n, length):
    ids = torch.arange(n) % 90 + 2
    part = stretches(ids, torch.ones(n), SYMBOLS, length)
    there = part["attention"] == 1
    assert torch.equal(part["inputs"][there], ids)
    assert (part["inputs"][~there] == SYMBOLS.pad).all()
    assert part["inputs"].shape == (-(-n // length), length)


def test_what_is_hidden_is_what_stood_there(asked):
    config = asked("shakespeare-masked")
    shard = masked_shards([TEXT], config)[0]
    ids = encode(TEXT)
    held = len(ids) // 10
    for part, expected in zip(
        parts_of(shard), ids.split([len(ids) - 2 * held, held, held]), strict=True
    ):
        there, chosen = part["attention"] == 1, part["labels"] != -100
        restored = torch.where(chosen, part["labels"], part["inputs"])
        assert torch.equal(restored[there], expected)
        assert not (chosen & ~there).any(), "padding is never hidden"
        assert label_tokens(part) == chosen.sum()


def test_of_fifteen_in_a_hundred_most_are_masked():
    n = 200_000
    ids = torch.full((n // 50, 50), 10)
    part = {"inputs": ids, "attention": torch.ones_like(ids)}
    out = hidden(part, SYMBOLS, generator(0, "hide"))
    chosen = out["labels"] != -100
    assert chosen.float().mean() == pytest.approx(HIDDEN, abs=0.005)
    seen = out["inputs"][chosen]
    shares = [(seen == MASK).float().mean(), (seen == 10).float().mean()]
    other = (seen != MASK) & (seen != 10)
    assert shares[0] == pytest.approx(0.8, abs=0.02)
    assert shares[1] == pytest.approx(0.1 + 0.1 / 96, abs=0.02)
    assert other.float().mean() == pytest.approx(0.1, abs=0.02)
    assert seen[other].min() >= 2, "neither padding nor unknown"
    assert seen[other].max() < MASK
    assert torch.equal(out["inputs"][~chosen], ids[~chosen])
    assert torch.equal(part["inputs"], ids), "what was given is left alone"


def test_the_seed_the_partition_and_the_part_decide(asked):
    config = asked("shakespeare-masked")

    def labels(seed: int, partition: int) -> list[list[int]]:
        shard = masked_shards([TEXT] * 2, asked("shakespeare-masked", seed=seed))[partition]
        return [p["labels"].flatten().tolist() for p in parts_of(shard)]

    assert labels(0, 0) == labels(0, 0)
    assert len({str(labels(*key)) for key in [(0, 0), (0, 1), (1, 0)]}) == 3
    same = masked_shards(["x" * 1000], config)[0]
    assert not torch.equal(same.validation["labels"], same.test["labels"])


def test_a_tokenizer_without_a_mask_is_refused(asked, monkeypatch):
    bare = Symbols(98, 0, characters("causal").tokenizer, "characters")
    monkeypatch.setattr("fedprune.tasks.masked.symbols_of", lambda *_: bare)
    with pytest.raises(ValueError, match="model='bert': its tokenizer has no mask; allowed"):
        masked_shards([TEXT], asked("shakespeare-masked"))


def test_a_device_reads_its_own_folder(tmp_path, asked):
    (tmp_path / "a.txt").write_text(TEXT)
    config = asked("shakespeare-masked")
    device, here = local_masked_shard(tmp_path, config), masked_shards([TEXT], config)[0]
    for one, two in zip(parts_of(device), parts_of(here), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)

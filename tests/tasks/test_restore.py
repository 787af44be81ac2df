import string
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.randomness import seeded
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.losses import token_loss
from fedprune.tasks.metrics import rouge_l
from fedprune.tasks.restore import (
    GENERATED,
    GENERATION_SUMS,
    PHRASE,
    SHAKESPEARE_RESTORE,
    bare,
    cut_in_order,
    generation_sums,
    local_phrases,
    pair_rows,
    pairs_of,
)
from fedprune.tasks.task import examples
from fedprune.tasks.tokenization import ALPHABET, characters

LINES = [
    "Now, is the Winter", "of our discontent!", "O! who's there?", "...", "Long live the King:",
]  # fmt: skip
END = len(ALPHABET)
TOKENIZER = characters("seq2seq").tokenizer


def test_pairs_are_phrases_and_what_is_left_of_them():
    assert pairs_of(["\n".join(LINES[:3]), LINES[3]], PHRASE) == [
        ("now is the winter", "Now, is the Winter"),
        ("of our discontent", "of our discontent!"),
        ("o whos there", "O! who's there?"),
    ]
    long = "Made glorious summer by this sun of York; And all the clouds"
    phrases = [target for _, target in pairs_of([long], 24)]
    assert " ".join(phrases) == long
    assert all(len(phrase) < 24 for phrase in phrases)


@given(st.text(alphabet=string.printable, max_size=60))
def test_bare_is_small_letters_and_single_spaces(line):
    left = bare(line)
    assert not set(left) & set(string.punctuation + string.ascii_uppercase + "\n\t")
    assert "  " not in left
    assert left == bare(left), "twice is once"
    assert [c for c in line.lower() if c.isalnum()] == [c for c in left if c.isalnum()]


def test_rows_hold_both_texts_and_an_end(asked):
    config = asked("shakespeare-restore")
    pairs = pairs_of(LINES, PHRASE)
    part = pair_rows(pairs, config, PHRASE)
    assert part["inputs"].shape == part["labels"].shape == (len(pairs), PHRASE)
    for i, (given_, target) in enumerate(pairs):
        labels = part["labels"][i]
        assert labels[labels != -100][-1] == END
        assert TOKENIZER.decode(labels[labels != -100], skip_special_tokens=True) == target
        assert TOKENIZER.decode(part["inputs"][i], skip_special_tokens=True) == given_
        assert part["bytes"][i].sum() == len(target.encode())
        assert part["whole"][i].all()
        assert part["attention"][i].sum() == len(given_) + 1


@pytest.mark.parametrize("n", [3, 10, 25, 101])
def test_the_cut_keeps_the_order(n):
    shard = cut_in_order({"labels": torch.arange(n).view(n, 1)})
    sizes = [examples(p) for p in (shard.train, shard.validation, shard.test)]
    held = max(1, n // 10)
    assert sizes == [n - 2 * held, held, held]
    joined = torch.cat([p["labels"] for p in (shard.train, shard.validation, shard.test)])
    assert joined.flatten().tolist() == list(range(n))


def written(texts: list[str]) -> Any:
    """A model that writes these texts."""

    def generate(**given_: Any) -> torch.Tensor:
        rows = len(given_["input_ids"])
        ids = TOKENIZER(texts[:rows], padding=True)["input_ids"]
        return torch.tensor([[0, *row] for row in ids])

    return SimpleNamespace(generate=generate)


def test_an_exam_adds_up_what_was_written(asked):
    config = asked("shakespeare-restore")
    part = pair_rows(pairs_of(LINES, PHRASE), config, PHRASE)
    found = generation_sums(
        written(["Now, is the Winter", "of our discontent", "O who", "x"]), part, config
    )
    assert tuple(found) == GENERATION_SUMS == SHAKESPEARE_RESTORE.test_sum_names
    expected = {"exact": 1.0, "rouge_l": 1 + 2 / 3 + 0 + 0, "examined": 4.0}
    pairs = pairs_of(LINES, PHRASE)[:4]
    copied = {
        "copied_exact": sum(given == wanted for given, wanted in pairs),
        "copied_rouge_l": sum(rouge_l(given, wanted) for given, wanted in pairs),
    }
    assert 0 < copied["copied_rouge_l"] < 4
    assert dict(found) == pytest.approx({**expected, **copied})


def test_an_exam_is_of_the_first_texts_only_and_leaves_the_model_alone(asked):
    config = asked("shakespeare-restore")
    part = pair_rows(pairs_of(LINES * 12, PHRASE), config, PHRASE)
    with seeded(0, "init"):
        model = SHAKESPEARE_RESTORE.model(config).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = generation_sums(model, part, config)
    assert found["examined"] == GENERATED
    assert 0 <= found["exact"] <= found["rouge_l"] <= GENERATED
    assert found == generation_sums(model, part, config), "greedy: the same again"
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_device_reads_its_own_folder(tmp_path, asked):
    config = asked("shakespeare-restore")
    with pytest.raises(FileNotFoundError, match=r"data=.*: 0 characters"):
        local_phrases(tmp_path, config)
    (tmp_path / "a.txt").write_text("\n".join(LINES * 10))
    shard = local_phrases(tmp_path, config)
    assert [examples(p) for p in (shard.train, shard.validation, shard.test)] == [32, 4, 4]


@pytest.mark.parametrize("task", ["shakespeare-restore", "text-to-text"])
def test_what_is_unknown_or_cut_off_is_never_written_exactly(task, asked, monkeypatch):
    monkeypatch.setattr("fedprune.tasks.restore.check_known", lambda *_: None)
    config = asked(task, length=16)
    pairs = [("日本語", "中文字"), ("same", "same"), ("a", "a" * 40), ("a" * 40, "a" * 15)]
    part = pair_rows(pairs, config, 16)
    tokenizer = TASKS[task].tokenizer(config)  # type: ignore[misc]

    def generate(**_: Any) -> torch.Tensor:
        """The ids that are wanted, as a model that learned them by heart writes them."""
        return part["labels"].where(part["labels"] >= 0, tokenizer.pad_token_id)

    found = generation_sums(SimpleNamespace(generate=generate), part, config)  # type: ignore[arg-type]
    known = task == "text-to-text"
    assert found["exact"] == 2 + known
    assert found["rouge_l"] == 3 + known
    assert found["copied_exact"] == 1
    part["labels"][:, :3] = part["unknown"][:, None]
    loss = token_loss(nn.functional.one_hot(part["labels"].clamp(min=0), 300).float(), part)
    there = (part["labels"] >= 0) & (part["labels"] != part["unknown"][:, None])
    assert loss.correct == int(there.sum())
    assert loss.extra["bytes"] == int(part["bytes"][there].sum())

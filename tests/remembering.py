"""A plug-in for tests: scores whose clients remember something of their own; a task of planes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedprune import SCORES as BUILT_IN
from fedprune import Loss, RunConfig, Score, Shard, Task
from fedprune.scores.score import Ask, Evidence, Probe
from fedprune.tasks.task import Part

MARK = 0.7071067


def moving(probe: Probe) -> dict[str, Tensor]:
    """The client's own running mean of its gradient statistics; beside it, a mark of its own."""
    (ask,) = BUILT_IN["taylor"].asks
    before = probe.remembered
    now = {n: s + 0.5 * before.get(n, torch.zeros(())) for n, s in ask.collect(probe).items()}
    probe.remember({**now, "mark": torch.full((64,), MARK), "times": before_and_one(before)})
    return now


def before_and_one(before: dict[str, Tensor]) -> Tensor:
    return before.get("times", torch.zeros((), dtype=torch.int64)) + 1


def recalled(probe: Probe) -> dict[str, Tensor]:
    """How often this client's answer has counted; it keeps nothing yet."""
    n = float(before_and_one(probe.remembered)) - 1
    return {name: torch.full(probe.layout.shapes[name], n) for name in probe.prunable}


def times(probe: Probe) -> dict[str, Tensor]:
    """How often this client's answer has counted, with this one; under every weight."""
    n = before_and_one(probe.remembered)
    probe.remember({"times": n})
    return {name: torch.full(probe.layout.shapes[name], float(n)) for name in probe.prunable}


def given(evidence: Evidence) -> dict[str, Tensor]:
    del evidence
    return {"zero": torch.zeros(1)}


def early(probe: Probe) -> dict[str, Tensor]:
    probe.remember({})
    return times(probe)


def sizes(evidence: Evidence) -> dict[str, Tensor]:
    return {n: w.abs() for n, w in evidence.weights.items()}


def kept(evidence: Evidence) -> dict[str, Tensor]:
    return {n: s.abs() for n, s in evidence.sums.items()}


SCORES = {
    "moving": Score("|Σ moving w·g|", "tests", kept, (Ask(moving),), remembers=True),
    "times": Score(
        "|w|, asked twice", "tests", sizes, (Ask(recalled), Ask(times, given=given)), remembers=True
    ),
    "early": Score("|w|", "tests", sizes, (Ask(early), Ask(times, given=given)), remembers=True),
    "silent": Score("|w|", "tests", sizes, (Ask(times),)),
}


def plane(config: RunConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    return nn.Linear(8, 3, bias=False)


class Stack(nn.Module):
    """Blocks on a residual stream, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.children():
            x = x + block(x)
        return self.head(x)


def stack(config: RunConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    return Stack()


def round_of_blocks(
    weights: Mapping[str, Tensor], parts: Sequence[Part], kept: Sequence[Iterable[int]]
) -> dict[str, Tensor]:
    """A round in plain torch: two steps of each client's blocks, means over who holds a tensor."""
    sums = {n: torch.zeros_like(w) for n, w in weights.items()}
    held = dict.fromkeys(weights, 0.0)
    for part, blocks in zip(parts, kept, strict=True):
        own = Stack().double()
        own.load_state_dict(weights)
        own.blocks = nn.ModuleDict({str(i): own.blocks[i] for i in sorted(blocks)})
        descent = torch.optim.SGD(own.parameters(), 0.01)
        for _ in range(2):
            descent.zero_grad()
            error = own(part["x"].double()) - part["y"].double()
            (error.square().sum() / len(error)).backward()
            descent.step()
        for n, w in own.state_dict().items():
            sums[n] += len(part["x"]) * w
            held[n] += len(part["x"])
    return {n: sums[n] / held[n] for n in sums}


def squares(model: nn.Module, batch: Part) -> Loss:
    error = model(batch["x"]) - batch["y"]
    return Loss(error.square().sum(), len(error), int((error.abs() < 0.5).all(1).sum()))


def apart(config: RunConfig) -> list[Shard]:
    """Clients of planes of their own."""
    gen = torch.Generator().manual_seed(config.seed)

    def part(rows: int, slope: Tensor) -> Part:
        x = torch.randn(rows, 8, generator=gen)
        return {"x": x, "y": x @ slope.t() + 0.1 * torch.randn(rows, 3, generator=gen)}

    slopes = [torch.randn(3, 8, generator=gen) for _ in range(config.clients)]
    return [Shard(part(12 + 4 * p, s), part(6, s), part(6, s)) for p, s in enumerate(slopes)]


TASKS = {
    "planes": Task("planes", metric="accuracy", unit="points", model=plane, loss=squares,
                   shards=apart, output=(), splits={"iid": ""}),
    "stack": Task("blocks", metric="accuracy", unit="points", model=stack, loss=squares,
                  shards=apart, output=(), splits={"iid": ""}),
}  # fmt: skip

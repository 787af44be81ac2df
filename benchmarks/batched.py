"""Client updates a second with `--batched N` against one client after the other, on one core.

    python benchmarks/batched.py [--together 8 32] [--turns 5] [--parameters 1000 ... 1000000]

An update is all that a host does for a client that tunes: the weights that were sent are loaded,
ten steps of 16 rows are taken, the change is encoded, counted, decoded, checked and added up
(`fedprune.client.serving.serve`). The curve is over perceptrons on digits; digits' own models and
the default task's LLaMA follow, and the LLaMA with short texts and few of them. Both ways take
turns in one process. A figure is from the median of a way's processor seconds: other work on the
machine disturbs them less.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from fedprune.client.host import Host, build_host
from fedprune.client.serving import serve
from fedprune.config import configure, with_values
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import encode_question
from fedprune.protocol.messages import Question
from fedprune.tasks.catalog import TASKS as BUILT_IN
from fedprune.tasks.networks import Perceptron
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, full_masks

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
"""Parameters of the perceptrons, about."""


def perceptron(size: int, _config: Any) -> nn.Module:
    """Two hidden layers of one width, with that many parameters in all or a few less."""
    width = int((math.sqrt(76**2 + 4 * (size - 10)) - 76) / 2)  # w² + 76 w + 10 = size
    return Perceptron(8, (width, width), 10)


TASKS = {
    f"perceptron-{size}": replace(BUILT_IN["digits"], models={}, model=partial(perceptron, size))
    for size in SIZES
}
"""As a plug-in: `--plugin benchmarks/batched.py --task perceptron-1000`."""

MODELS: dict[str, dict[str, Any]] = {
    "digits, mlp": {"task": "digits", "model": "mlp"},
    "digits, cnn (BatchNorm)": {"task": "digits"},
    "shakespeare, llama": {"task": "shakespeare", "local_steps": 2},
    "the same, 4 rows of 16": {"task": "shakespeare", "batch_size": 4, "length": 16},
    "the same, 1 row of 16": {"task": "shakespeare", "batch_size": 1, "length": 16},
}
"""Models of the built-in tasks: their own options but for those given."""


@dataclass(frozen=True)
class Measured:
    """What came of one model.

    Attributes:
        parameters: of the model.
        plain: client updates a second, one after the other.
        ratios: how many times as many with so many at once.
        apart: largest difference between the sums of changes, over the largest change.
    """

    parameters: int
    plain: float
    ratios: dict[int, float]
    apart: float


def house(keys: dict[str, Any], clients: int) -> Host:
    """A host that serves so many clients."""
    own = {"plugin": __file__} if keys["task"] in TASKS else {}
    split = {"split": "iid"} if keys["task"] != "shakespeare" else {}
    steps = {"local_steps": 10, "local_epochs": 0}
    given = {"engine": "inline", "clients": clients, "cohort": clients, "hosts": 1, "seed": 1}
    return build_host(configure({**given, **own, **split, **steps, **keys}))


def asked(host: Host, together: int) -> Callable[[], Aggregate]:
    """What asks all clients to tune, so many at once."""
    weights = copied(state_of(host.model))
    masks = full_masks(weights, host.layout.prunable)
    packet = encode_question(Question("tune", 1, weights, masks, lr=host.config.lr), "fp32")
    of_those = replace(host, config=with_values(host.config, {"batched": together}))
    return lambda: serve(of_those, packet, sorted(host.shards))


def measured(keys: dict[str, Any], together: Sequence[int], turns: int) -> Measured:
    """Both ways in turns."""
    clients = max(together) if keys["task"] != "shakespeare" else min(20, max(together))
    host = house(keys, clients)
    ways = {n: asked(host, min(n, clients)) for n in (1, *together)}
    sums = {n: way().total for n, way in ways.items()}  # and what is done once is done
    seconds: dict[int, list[float]] = {n: [] for n in ways}
    for _ in range(turns):
        for n, way in ways.items():
            began = time.process_time()
            way()
            seconds[n].append(time.process_time() - began)
    first = sums[1]
    assert first is not None
    apart = max(float((total - first).abs().max()) for total in sums.values() if total is not None)
    size = sum(p.numel() for p in host.model.parameters())
    best = {n: median(found) for n, found in seconds.items()}
    ratios = {n: best[1] / best[n] for n in together}
    return Measured(size, clients / best[1], ratios, apart / float(first.abs().max()))


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--together", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parameters", type=int, nargs="+", default=SIZES, choices=SIZES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {f"perceptron-{n}": {"task": f"perceptron-{n}"} for n in options.parameters} | MODELS
    ways = " | ".join(f"{n} at once" for n in options.together)
    print(f"| model | parameters | updates a second, one by one | {ways} | sums apart |")
    print("| --- " + "| ---: " * (3 + len(options.together)) + "|")
    for name, keys in rows.items():
        m = measured(keys, options.together, options.turns)
        ratios = " | ".join(f"{m.ratios[n]:.2f}x" for n in options.together)
        cells = f"{m.parameters:,} | {m.plain:.1f} | {ratios} | {m.apart:.0e}"
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

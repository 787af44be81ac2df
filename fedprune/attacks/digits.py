"""The images that the studies attack, dealt to clients."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune.attacks.shadows import everything
from fedprune.config import configure
from fedprune.randomness import generator
from fedprune.tasks.images import digits
from fedprune.tasks.task import Part

SHAPE = torch.Size([1, 8, 8])
CLASSES = 10


def all_digits() -> Part:
    """The 1,797 digits.

    Raises:
        FileNotFoundError: scikit-learn is not installed.
    """
    return everything(digits(configure({"task": "digits", "split": "iid", "clients": 1})))


def one_each(data: Part, clients: int, seed: int) -> list[Part]:
    """A single image for each of so many clients."""
    order = torch.randperm(len(data["labels"]), generator=generator(seed, "attacked images"))
    return [{name: t[i : i + 1] for name, t in data.items()} for i in order[:clients].tolist()]


def skewed(data: Part, clients: int, size: int, seed: int) -> list[Part]:
    """Images for so many clients, labels by a Dirichlet distribution of 0.3, with repetition."""
    gen = generator(seed, "attacked shards", size)
    alpha = torch.full((CLASSES,), 0.3, dtype=torch.float64)
    rows = [torch.where(data["labels"] == c)[0] for c in range(CLASSES)]

    def drawn() -> Tensor:
        shares = torch._sample_dirichlet(alpha, gen)
        wanted = torch.multinomial(shares, size, replacement=True, generator=gen).tolist()
        spots = torch.rand(size, generator=gen).tolist()
        chosen = [rows[c][int(s * len(rows[c]))] for c, s in zip(wanted, spots, strict=True)]
        return torch.stack(chosen)

    shards = [drawn() for _ in range(clients)]
    return [{name: t[some] for name, t in data.items()} for some in shards]

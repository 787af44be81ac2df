"""PruneFL: as many weights as pay for their time, first on one client, then with all.

Jiang et al. 2022, arXiv 1909.12326, sections 4 and 5, and its code (jiangyuang/PruneFL). A weight j
brings g_j² of a round's decrease of the loss and costs t_j of its time. A reconfiguration chooses
the weights M that bring most for a round's time,

    Gamma(M) = Σ_{j in M} g_j² / (c + Σ_{j in M} t_j),

by algorithm 1: of every layer the largest |w| stay (all but the part ``dec`` of those it has, which
halves every ``half_life`` rounds); all others, removed ones too, are taken in the order of
g_j² / t_j for as long as that is above Gamma of what is there. So density may fall and rise.
The first pruning happens on one client alone, which trains and reconfigures by its own g² until
the number of weights has changed by a tenth at most, five times in a row, or ``initial`` times.
Then everybody trains, and every so many rounds (``--frequency``) the weights are chosen by

    g_j² = Σ_rounds Σ_k n_k (Σ_steps gradient of client k / steps)_j²,

over the rounds since the last reconfiguration, each gradient a step's mean, taken before it is
clipped, of removed weights too; n_k: labels that client k trained on in the round.

t_j = comm + comp · (rows that its layer sees in an example): seconds, by default those that the
paper's code has for its smallest model on a Raspberry Pi, as is the constant c.

Where it departs from the paper and its code: clients send their squares in every round before a
reconfiguration (the code's clients add the rounds up and send one sum); the sum of a round's
gradients is divided by its steps before it is squared, which is the same to a factor where all
clients take as many; n_k counts labels trained on, not those that a client has; g² of what is not
prunable is left out of Gamma; no weight is added beyond the density ``most``, an option of the code
(those that stay by size stay even beyond it), which is 1 - ``--sparsity`` unless given: with
``most`` 1 nothing but what pays bounds the density, as in the paper; the selected client is the one
with the lowest number (if it fails, the lowest of the cohort that does not), and as all it trains
in the first pruning is of one round, it takes the same batches each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedprune.config import RunConfig
from fedprune.methods.apart import NO_STATISTICS, not_read
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.growing import growing_conflicts, grown_in, kept_in_all
from fedprune.methods.method import Method, Refusable
from fedprune.methods.tuning import TOO_FEW, fedavg, tuned, tuning_ask
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Masks, Tensors, count_kept

EARNED = "second_moment_per_client"
"""The statistic: a client's summed gradients, squared, times its labels."""


@dataclass(frozen=True)
class Memory:
    """g² since the last reconfiguration; none, if nobody has trained since."""

    earned: Tensors = field(default_factory=dict)


class Options(Section):
    """What ``--method-options`` takes."""

    constant: float = option("method", "seconds of a round without weights (c)", 6.25, ge=0)
    comm: float = option("method", "seconds that a weight takes to be sent", 5.56e-6, ge=0)
    comp: float = option("method", "seconds of a weight and row that goes through", 9e-7, ge=0)
    dec: float = option("method", "part of a layer's weights that may go at first", 0.3, ge=0, lt=1)
    half_life: Count = option("method", "rounds after which that part is half", 10_000)
    initial: Count = option("method", "most reconfigurations on the first client", 10)
    most: float = option(
        "method", "density beyond which no weight is added (0: 1 - sparsity)", 0.0, ge=0, le=1
    )


def _reconfigured(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The mask that brings most for its time: on one client at first, then by all."""
    if not r.prunings:
        return (yield from _on_one_client(model, memory, r))
    if not memory.earned:
        return Step(model, memory, undone="not pruned: nobody trained since the last time")
    return _told(model, r, reconfigured(model, r, memory.earned))


def _on_one_client(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The first pruning, on the client with the lowest number; if it fails, on another."""
    first = min(r.training())
    step = yield from _alone(model, memory, r, first)
    for other in (p for p in sorted(r.cohort) if p != first):
        if not step.undone:
            break
        step = yield from _alone(model, memory, r, other)
    return step


def _alone(model: Model, memory: Memory, r: Round, one: int) -> Talk[Step]:
    """One client trains and prunes by itself until its model's size stays as it is."""
    still = 0
    for _ in range(r.options.initial):
        (changes,) = yield [tuning_ask(model, r, [one], **COLLECTING)]
        found = _earned(model, r, changes)
        if changes.total is None or found is None:
            return Step(model, memory, undone=TOO_FEW)
        model = fedavg(model, r, changes)
        before = count_kept(model.masks)
        model = model.under(reconfigured(model, r, found))
        still = still + 1 if abs(count_kept(model.masks) / before - 1) <= 0.1 else 0
        if still == 5:
            break
    return _told(model, r, model.masks)


COLLECTING = {"score": EARNED, "dense": True}
"""What a question to tune says where clients send g² of all weights with their changes."""


def _about(r: Round) -> dict[str, Any]:
    """What the question to tune says: g² is sent where a later round reconfigures."""
    later = any(r.plan.prunes(n) for n in range(r.number + 1, r.config.rounds + 1))
    return dict(COLLECTING) if later else {}


def _earned(model: Model, r: Round, changes: Aggregate) -> Tensors | None:
    """g² of all weights, removed ones too; None, if nobody sent any."""
    if changes.statistics is None:
        return None
    form = form_of(r.question(model, "tune", **COLLECTING), r.config, r.layout)
    return form.named_sums(changes.statistics)


def _added(model: Model, memory: Memory, r: Round, changes: Aggregate) -> Talk[Step]:
    """The memory with what the round's clients sent."""
    yield from ()
    found, before = _earned(model, r, changes), memory.earned
    if found is None:
        return Step(model, memory)
    return Step(model, Memory({n: before.get(n, 0.0) + g.float() for n, g in found.items()}))


def _told(model: Model, r: Round, masks: Masks) -> Step:
    time = r.options.constant
    time += sum(int(masks[n].sum()) * t for n, t in seconds(masks, r).items())
    told = {"density": 1.0 - sparsity_of(masks, r.layout), "round_seconds": time}
    notes = Notes(method=told, exchanged=grown_in(masks, model.masks))
    return Step(model.under(masks), Memory(), notes)


def seconds(masks: Masks, r: Round) -> Mapping[str, float]:
    """What a weight of each tensor costs in a round."""
    rows, o = r.plan.positions, r.options
    return {n: o.comm + o.comp * rows.get(n, 1.0) for n in masks}


def reconfigured(model: Model, r: Round, found: Tensors) -> Masks:
    """The mask of algorithm 1."""
    o, masks, cost = r.options, model.masks, seconds(model.masks, r)
    part = o.dec * 0.5 ** (r.number / o.half_life)
    stays = {n: _largest(model.weights[n].abs(), m, part) for n, m in masks.items()}
    earned = np.concatenate([found[n].double().numpy().ravel() for n in masks])
    costs = np.concatenate([np.full(m.numel(), cost[n]) for n, m in masks.items()])
    kept = np.concatenate([stays[n].numpy().ravel() for n in masks])
    chosen = worth(earned, costs, kept, o.constant, _most(r))
    parts = torch.from_numpy(chosen).split([m.numel() for m in masks.values()])
    return {n: p.reshape(m.shape) for (n, m), p in zip(masks.items(), parts, strict=True)}


def _most(r: Round) -> int:
    """How many weights there may be at most, but for those that stay by size."""
    return round(r.options.most * r.layout.whole) if r.options.most else kept_in_all(r)


def _largest(sizes: torch.Tensor, mask: torch.Tensor, part: float) -> torch.Tensor:
    """The mask without that part of its weights, the smallest."""
    few = int(part * int(mask.sum()))
    order = torch.where(mask, sizes, torch.inf).flatten().argsort(stable=True)
    return mask.flatten().index_fill(0, order[:few], False).reshape(mask.shape)


def worth(
    earned: np.ndarray, costs: np.ndarray, kept: np.ndarray, constant: float, most: int
) -> np.ndarray:
    """Which weights are kept: those that are, and others while they bring more for their time.

    Args:
        earned: g² of every weight.
        costs: its seconds.
        kept: which are, whatever they bring.
        constant: seconds without any.
        most: how many there may be; of those that are kept anyway, however many they are.
    """
    rest = np.flatnonzero(~kept)
    order = rest[np.argsort(-earned[rest] / costs[rest], kind="stable")]
    gain = earned[kept].sum() + np.concatenate([[0.0], np.cumsum(earned[order])])
    time = constant + costs[kept].sum() + np.concatenate([[0.0], np.cumsum(costs[order])])
    pays = earned[order] * time[:-1] > gain[:-1] * costs[order]
    many = len(order) if pays.all() else int(np.argmin(pays))
    out = kept.copy()
    out[order[: min(many, max(0, most - int(kept.sum())))]] = True
    return out


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    free = options.comm + options.comp == 0
    alone = config.robust != "none"
    idle = "half_life" in config.method_options and options.dec == 0
    low = 0.0 < options.most < 1.0 - (config.sparsity or 0.0)
    least = f"{1.0 - (config.sparsity or 0.0):g} to 1, or left out"
    return [
        ("method-options", free, "weights cost no time", "comm or comp above 0"),
        ("method-options", idle, "a part of 0 has no half", "leave half_life out"),
        ("method-options", low, f"most={options.most:g} is below 1 - sparsity", least),
        ("robust", alone, "the first pruning is of one client", "none"),
        ("batched", config.batched > 1, "each client's gradients are watched", "1"),
        ("compile", config.compile, "a compiled model is not watched", "false"),
        *not_read(config, ("regrow",), "as much is exchanged as pays"),
        *not_read(config, NO_STATISTICS, "g² is collected while clients tune"),
        *growing_conflicts(config),
    ]


METHOD = Method(
    "weights with the most squared gradient for a round's seconds; first on one client",
    "PruneFL, Jiang et al. 2022, arXiv 1909.12326; g² travels with the changes",
    tune=tuned(_about),
    before=_reconfigured,
    after=_added,
    memory=Memory,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"warmup": 0},
)

"""The noise that the server adds to a sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.config.cohort import asked_of
from fedprune.config.kinds import KINDS
from fedprune.privacy.mechanisms import GAUSSIAN
from fedprune.privacy.noise import DRAWN_AT_ONCE, Source, gaussian
from fedprune.privacy.release import Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.client_privacy import asks_signed
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Question
from fedprune.tasks.client_spread import PREFIX
from fedprune.tasks.measures import COUNTS_BY_LABEL
from fedprune.tasks.options import Data


def noised_sum(
    aggregate: Aggregate,
    question: Question,
    form: Form,
    config: RunConfig,
    booked: Sequence[Release],
    draw: Source,
) -> Aggregate:
    """The sum with its noise, over denominators that do not depend on who answered."""
    if not KINDS[question.kind].weights:
        return aggregate  # of the panel, or nobody is asked
    if KINDS[question.kind].totals_only:
        return _measured(aggregate, config, booked, draw)
    size = float(asked_of(question.kind, config))
    sd = {f: _server_noise(r) for r in booked if r.way == "up" for f in r.fields}

    def with_noise(sum_: Tensor | None, length: int, name: str, **how: bool) -> Tensor | None:
        return _with_noise(sum_, length, sd.get(name, 0.0), draw, **how)

    positive = not asks_signed(question, config)  # sums of what is never negative
    total = with_noise(
        aggregate.total, form.values, "values", fresh=aggregate.fresh, positive=positive
    )
    return replace(
        aggregate,
        total=total,
        votes=with_noise(aggregate.votes, form.voters, "votes"),
        statistics=with_noise(aggregate.statistics, form.statistics, "statistics"),
        weight=size,
        totals={"count": size},
    )


def _server_noise(release: Release) -> float:
    """Standard deviation of the noise that the server adds: clients add all other noise."""
    here = release.mechanism == GAUSSIAN.name and release.unit == "client"
    return (release.z or 0.0) * (release.sensitivity or 0.0) if here else 0.0


def _with_noise(
    total: Tensor | None,
    size: int,
    sd: float,
    draw: Source,
    *,
    fresh: bool = False,
    positive: bool = False,
) -> Tensor | None:
    """A sum of so many values with noise on every one; of nobody's answers, noise alone.

    A `fresh` sum may be written over; of a `positive` one what is below 0 becomes 0.
    """
    if not size:
        return total
    if total is None:
        own = torch.zeros(size, dtype=torch.float64)
    elif fresh or not (sd or positive):
        own = total.double()
    else:
        own = total.to(torch.float64, copy=True)
    for part in own.split(DRAWN_AT_ONCE) if sd else ():
        part.add_(gaussian(len(part), sd, draw))  # the same words as drawn all together
    return own.clamp_(min=0.0) if positive else own


def _measured(
    aggregate: Aggregate, config: Data, booked: Sequence[Release], draw: Source
) -> Aggregate:
    """Totals of clients' means, noised, over everyone who could have answered."""
    if config.metrics == "exact":
        return aggregate
    (release,) = (r for r in booked if r.quantity == "metrics")
    size = float(config.clients)
    names = [f.removeprefix("totals.") for f in release.fields]
    sd = _server_noise(release)
    noise = gaussian(len(names), sd, draw).tolist() if sd else [0.0] * len(names)
    sums = {n: aggregate.totals.get(n, 0.0) + extra for n, extra in zip(names, noise, strict=True)}
    # A part of a client's labels is between 0 and 1; a loss, or bytes a label, only not negative.
    # Losses of candidates stay as they are: of two below 0 the lower one is likelier to be better;
    # and so do counts of clients, which add up: cut at 0, noise would be clients.
    most = {n: size if n.startswith(COUNTS_BY_LABEL) else math.inf for n in names}
    least = {n: -math.inf if n.startswith(("loss_", PREFIX)) else 0.0 for n in names}
    totals = {n: min(most[n], max(least[n], value)) for n, value in sums.items()}
    return replace(aggregate, totals={**totals, "count": size})

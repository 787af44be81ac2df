"""The one seam, the server's side: every question is booked before it is put, every sum gets noise.

`private_port` wraps a port. What is asked is first written into the ledger, which stops the run
where the budget would be exceeded; what comes back is a sum of bounded summands
(`fedprune.protocol.client_privacy`), to which the server adds the noise that was booked. All that
is alive is flat and without gaps here, so removed coordinates get no noise and stay exactly 0.0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedprune.codec.model_digest import model_digest
from fedprune.config import RunConfig
from fedprune.config.cohort import asked_of, audience
from fedprune.config.kinds import KINDS
from fedprune.config.terms import noised
from fedprune.privacy.ledger import Ledger
from fedprune.privacy.mechanisms import GAUSSIAN
from fedprune.privacy.noise import Source, gaussian
from fedprune.privacy.release import Occasion, Release
from fedprune.protocol.client_privacy import asks_signed
from fedprune.protocol.forms import Form, form_of
from fedprune.protocol.messages import Aggregate, Question
from fedprune.protocol.models import layout_at
from fedprune.protocol.noise import noise_source_of
from fedprune.protocol.port import Port
from fedprune.protocol.releases import announced, most_votes, releases_of
from fedprune.protocol.stored import Stored, store, stored_in
from fedprune.tasks.measures import COUNTS_BY_LABEL
from fedprune.tensors import digest


@dataclass
class _Seen:
    """How many questions there were in a round of an arm, and how many clients could be drawn."""

    count: dict[tuple[str, int], int] = field(default_factory=dict)
    there: int = 0

    def order(self, arm: str, round_: int) -> int:
        n = self.count.get((arm, round_), 0)
        self.count[arm, round_] = n + 1
        return n


def private_port(
    port: Port, config: RunConfig, ledger: Ledger, arm: str, stored: Stored | None = None
) -> Port:
    """The port with every question booked and every sum noised as the configuration says.

    Its `ask` raises `fedprune.privacy.ledger.Spent` before a question that the budget does not
    allow for. What is `stored` of a run that was killed is given again instead of asked for.
    """
    seen = _Seen()
    shelf = stored or Stored(None)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        layout = layout_at(config, question.edits)
        form = form_of(question, config, layout)
        most = most_votes(question, config, form, layout)
        booked = releases_of(question, form, config, most)
        name = name_of(question, partitions, config)
        order = seen.order(arm, question.round)
        occasion = Occasion(
            arm,
            question.round,
            question.kind,
            order,
            audience(question.kind, config),
            tuple(partitions),
            seen.there or config.clients - config.panel,
            name,
        )
        place = shelf.place(occasion)
        before = stored_in(place)
        if before is not None:
            return before
        again = ledger.times(occasion) if name else 0
        ledger.book(occasion, booked)
        aggregate = port.ask(replace(question, again=again) if again else question, partitions)
        if config.dp != "none":
            purpose = f"noise {arm} {name}" + (f" {again}" if again else "")
            draw = noise_source_of(config, purpose, question.round)
            aggregate = _noised(aggregate, question, form, config, booked, draw)
        store(place, aggregate)
        return aggregate

    panel = frozenset(range(config.clients - config.panel, config.clients))

    def present() -> Mapping[int, int]:
        there = port.present()
        # Drawn from fewer, each is drawn more often than the configuration would have it.
        seen.there = len(there.keys() - panel)
        return there

    return replace(port, ask=ask, present=present, panel=panel)


def ready_port(
    port: Port, config: RunConfig, ledger: Ledger, arm: str, stored: Stored | None = None
) -> Port:
    """The guarded port, after what clients tell of themselves has been booked."""
    where = Occasion(arm, 0, "hello", 0, "start", tuple(range(config.clients)), config.clients)
    ledger.book(where, announced(config))
    return private_port(port, config, ledger, arm, stored)


def name_of(question: Question, partitions: Sequence[int], config: RunConfig) -> str:
    """A short name of what is asked and of whom; "" where nothing gets noise."""
    if not noised(config):
        return ""
    weights = digest(question.weights) if KINDS[question.kind].weights else ""
    about = (
        question.kind,
        question.round,
        question.score,
        question.ask,
        question.names,
        question.dense,
        question.sparsity,
        question.part,
        _tried(question),
        model_digest(question.masks, question.edits),
        weights,
        tuple(partitions),
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _tried(question: Question) -> object:
    """The candidates of a question and what lies on the way to them; 0 without any."""
    if not question.candidates:
        return 0
    places = [(c.far, sorted(c.apart.items())) for c in question.candidates]
    return places, digest(question.given), digest(question.rungs)


def _noised(
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

    def with_noise(sum_: Tensor | None, length: int, name: str) -> Tensor | None:
        return _with_noise(sum_, length, sd.get(name, 0.0), draw)

    total = with_noise(aggregate.total, form.values, "values")
    if total is not None and not asks_signed(question, config):
        total = total.clamp(min=0.0)  # sums of what is never negative
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


def _with_noise(total: Tensor | None, size: int, sd: float, draw: Source) -> Tensor | None:
    """A sum with noise on every coordinate; of nobody's answers, noise alone."""
    if not size:
        return total
    flat = torch.zeros(size, dtype=torch.float64) if total is None else total.double()
    return flat + gaussian(size, sd, draw) if sd else flat


def _measured(
    aggregate: Aggregate, config: RunConfig, booked: Sequence[Release], draw: Source
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
    most = {n: size if n.startswith(COUNTS_BY_LABEL) else math.inf for n in names}
    totals = {n: min(most[n], max(0.0, value)) for n, value in sums.items()}
    return replace(aggregate, totals={**totals, "count": size})

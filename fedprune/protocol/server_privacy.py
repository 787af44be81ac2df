"""The one seam, the server's side: every question is booked before it is put, every sum gets noise.

`private_port` wraps a port. What is asked is first written into the ledger, which stops the run
where the budget would be exceeded; what comes back is a sum of bounded summands
(`fedprune.protocol.client_privacy`), to which the server adds the noise that was booked. All that
is alive is flat and without gaps here, so removed coordinates get no noise and stay exactly 0.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedprune.codec.model_digest import model_digest
from fedprune.config import RunConfig
from fedprune.config.cohort import audience
from fedprune.config.kinds import KINDS
from fedprune.config.terms import noised
from fedprune.privacy.ledger import Ledger
from fedprune.privacy.release import Occasion, Release
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.limits import most_votes, noise_source_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.protocol.releases import announced, releases_of
from fedprune.protocol.server_noise import noised_sum
from fedprune.protocol.stored import Stored, store, stored_in
from fedprune.tensors.named import digest


@dataclass(frozen=True)
class _Booked:
    """An ask that was booked, the form of its answers, and what was booked of it.

    Its sum is kept at a place, its noise drawn for a purpose; `stored`: its sum, if it was put
    before a kill.
    """

    ask: Ask
    form: Form
    releases: Sequence[Release]
    place: Path | None
    purpose: str = ""
    stored: Aggregate | None = None


@dataclass
class _PrivatePort:
    """What stands before a port in an arm.

    `shelf` holds sums that a run had before it was killed; `count` how many questions there were in
    a round; `there` how many clients could be drawn, 0: it is not known yet.
    """

    port: Port
    config: RunConfig
    ledger: Ledger
    arm: str
    shelf: Stored
    count: dict[int, int] = field(default_factory=dict)
    there: int = 0

    @property
    def panel(self) -> frozenset[int]:
        """The partitions that only measure."""
        return frozenset(range(self.config.clients - self.config.panel, self.config.clients))

    def present(self) -> Mapping[int, int]:
        """Who can be asked now."""
        there = self.port.present()
        # Drawn from fewer, each is drawn more often than the configuration would have it.
        self.there = len(there.keys() - self.panel)
        return there

    def put(self, asks: Sequence[Ask]) -> list[Aggregate]:
        """One sum for each ask, in their order: all are booked before any is put."""
        booked = [self._book(ask) for ask in asks]
        sums = iter(self.port.put([b.ask for b in booked if b.stored is None]))
        return [self._noised(b, next(sums)) if b.stored is None else b.stored for b in booked]

    def _book(self, ask: Ask) -> _Booked:
        c, question = self.config, ask.question
        layout = layout_at(c, question.edits)
        form = form_of(question, c, layout)
        booked = releases_of(question, form, c, most_votes(question, c, form, layout))
        occasion = self._occasion(ask)
        place = self.shelf.place(occasion)
        before = stored_in(place)
        if before is not None:
            return _Booked(ask, form, booked, place, stored=before)
        again = self.ledger.times(occasion) if occasion.digest else 0
        self.ledger.book(occasion, booked)
        purpose = f"noise {self.arm} {occasion.digest}" + (f" {again}" if again else "")
        ask = replace(ask, question=replace(question, again=again)) if again else ask
        return _Booked(ask, form, booked, place, purpose)

    def _occasion(self, ask: Ask) -> Occasion:
        question, order = ask.question, self.count.get(ask.question.round, 0)
        self.count[question.round] = order + 1
        return Occasion(
            self.arm,
            question.round,
            question.kind,
            order,
            audience(question.kind, self.config),
            tuple(ask.partitions),
            self.there or self.config.clients - self.config.panel,
            name_of(question, ask.partitions, self.config),
        )

    def _noised(self, b: _Booked, aggregate: Aggregate) -> Aggregate:
        c, question = self.config, b.ask.question
        if c.dp != "none":
            draw = noise_source_of(c, b.purpose, question.round)
            aggregate = noised_sum(aggregate, question, b.form, c, b.releases, draw)
        store(b.place, aggregate)
        return aggregate


def private_port(
    port: Port, config: RunConfig, ledger: Ledger, arm: str, stored: Stored | None = None
) -> Port:
    """The port with every question booked and every sum noised as the configuration says.

    Its `ask` raises `fedprune.privacy.ledger.Spent` before a question that the budget does not
    allow for, and before all that go with it. What is `stored` of a run that was killed is given
    again instead of asked for.
    """
    gate = _PrivatePort(port, config, ledger, arm, stored or Stored(None))
    return replace(port, ask=Exchange(gate.put), present=gate.present, panel=gate.panel)


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
    weights += digest(question.adapters) if question.adapters else ""
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

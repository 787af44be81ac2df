"""Which clients' changes count, by what they and others sent before: bounds on norms, strikes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.config.cohort import audience
from fedprune.config.options import Federation
from fedprune.learning.options import Averaging
from fedprune.options.refusal import counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.checks import NOT_FINITE, NOT_NUMBERS, only_numbers
from fedprune.protocol.failures import Failure
from fedprune.protocol.port import Port
from fedprune.server.state import Book, State

TIMES = 5.0
"""So many times the running median may a norm be under ``--max-norm auto``."""

NORMS_REMEMBERED = 100
"""Norms that the running median is of."""


def limit_of(config: Averaging, norms: Sequence[float]) -> float:
    """The largest norm that counts; 0.0: none, and under auto none yet.

    `norms` are the newest that counted.
    """
    if config.max_norm != "auto":
        return config.max_norm or 0.0
    return TIMES * median(norms) if norms else 0.0


def weighed(book: Book, changes: Aggregate, config: Averaging) -> tuple[Book, Aggregate]:
    """The book with the norms that counted, and the changes: none, if they cannot be told apart.

    In the first round that ``auto`` has no limit for, the round's own median takes its place. Whose
    norm is beyond is named and the round is void: its sum holds them.
    """
    norms = dict(zip(changes.answered, changes.norms, strict=False))
    limit = TIMES * median(norms.values()) if norms and not book.norms else math.inf
    beyond = {p: norm for p, norm in norms.items() if norm > limit and config.max_norm == "auto"}
    failures = tuple(
        Failure(p, "tune", "values", f"a change of norm {norm:.4g}, max-norm is {limit:.4g}")
        for p, norm in beyond.items()
    )
    kept = [norm for p, norm in norms.items() if p not in beyond]
    book = replace(book, norms=(*book.norms, *kept)[-NORMS_REMEMBERED:]).with_failures(failures)
    if not beyond:
        return book, changes
    answered = tuple(p for p in changes.answered if p not in beyond)
    return book, Aggregate(answered=answered, failures=changes.failures + failures)


def why_void(changes: Aggregate, cohort: Sequence[int], config: Federation) -> str:
    """Why a round changes nothing."""
    came = f"{len(changes.answered)} of {len(cohort)} changes came"
    if len(changes.answered) >= max(1, config.min_clients):
        return f"{came}, and the others, beyond max-norm, are in the first sum"
    return f"{came}, min-clients={config.min_clients}"


def all_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether a model can take the place of the one before."""
    return all(map(only_numbers, weights.values()))


ALIKE = 1e-3
"""Part of the largest value from which a client's own stands out as well."""


def standing_out(changes: Aggregate) -> dict[int, float]:
    """Partition to size of whose changes hold the largest values; nobody, if all are as large."""
    sizes = dict(changes.loud)
    top = max(sizes.values(), default=0.0)
    found = {p: size for p, size in sizes.items() if size >= ALIKE * top}
    return found if len(found) < len(changes.answered) else {}


def booked(state: State, changes: Aggregate, why: str) -> tuple[State, Aggregate]:
    """The state after changes came that could count, and they: counted, or void for their model.

    Of a void round the culprits are named. A sum holds them for good. Where clients are added up in
    secret, or all of them sent much the same, there is nobody to name. The state is that of the new
    model or, if the round is void for this `why`, of the old one.
    """
    book, out = state.book, standing_out(changes)
    if not why:  # what clients kept in it is what they go on from
        fresh = {
            of: {**book.counted.get(of, {}), **dict.fromkeys(sorted(those), state.round)}
            for of, those in book.kept.items()
        }
        book = replace(book, kept={}, counted={**book.counted, **fresh})
        return replace(state, book=book), changes
    failures = [
        Failure(p, "tune", "values", f"a change of size {size:.4g}: {why}")
        for p, size in out.items()
    ]
    answered = tuple(p for p in changes.answered if p not in out)
    return replace(state, book=book.with_failures(failures)), replace(changes, answered=answered)


def numberless(failures: Iterable[Failure]) -> set[int]:
    """The partitions whose answer was no number."""
    return {f.partition for f in failures if f.reason.endswith((NOT_FINITE, NOT_NUMBERS))}


def resting_in(state: State) -> tuple[int, ...]:
    """The clients that are left out in the state's round, ascending."""
    return tuple(sorted(p for p, until in state.book.resting.items() if until >= state.round))


def without_resting(port: Port, state: State) -> Port:
    """The port without the clients that are left out in the state's round."""
    resting = resting_in(state)
    if not resting:
        return port

    def present() -> Mapping[int, int]:
        return {p: labels for p, labels in port.present().items() if p not in resting}

    return replace(port, present=present)


def _own_failures(
    failures: Sequence[Failure],
    config: RunConfig,
    cohort: Collection[int],
    measuring: Collection[int],
    scored: Collection[int],
) -> set[int]:
    """The partitions that failed, but for failures that are not their own, see `struck`."""
    found: set[int] = set()
    for phase in {f.phase for f in failures} - {"hello"}:
        others = scored if phase == "score" else measuring
        asked = cohort if audience(phase, config) == "cohort" else others
        those = [f for f in failures if f.phase == phase]
        if len(asked) < 2 or not numberless(those).issuperset(asked):
            found |= {f.partition for f in those}
    return found


def struck(
    state: State,
    config: RunConfig,
    cohort: Collection[int],
    measuring: Collection[int],
    scored: Collection[int] = (),
) -> Book:
    """The book after a round, with who failed in how many in a row, and who is left out for it.

    A client that comes back has one try: it is left out again unless it answers. It is no failure
    of a client that another node announces its partition, nor that a model gives no numbers to
    anybody who was asked.
    """
    book = state.book
    if config.strikes is None:
        return book
    asked = {*cohort, *measuring, *scored}
    failed = _own_failures(book.failures, config, cohort, measuring, scored)
    strikes = {p: n for p, n in book.strikes.items() if p in failed or p not in asked}
    strikes |= {p: book.strikes.get(p, 0) + 1 for p in sorted(failed)}
    until = state.round + config.strikes
    out = [p for p in sorted(failed) if strikes[p] >= config.strikes]
    said = tuple(
        f"client {p} failed in {counted(strikes[p], 'round')} in a row and is left out up to "
        f"round {until}"
        for p in out
    )
    resting = {p: last for p, last in book.resting.items() if last > state.round}
    return replace(
        book,
        strikes=strikes,
        resting={**resting, **dict.fromkeys(out, until)},
        notices=book.notices + said,
    )


def too_few(aggregate: Aggregate, config: RunConfig) -> bool:
    """Whether a round is void for want of answers.

    With Poisson sampling the number of those drawn is part of what is hidden, and voids nothing.
    """
    return config.sampling != "poisson" and len(aggregate.answered) < config.min_clients

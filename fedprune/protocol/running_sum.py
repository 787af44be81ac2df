"""How answers are added up, one client after the other and one host after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.protocol.aggregate import Aggregate, count_type, loud_in
from fedprune.protocol.messages import Answer
from fedprune.protocol.sum_in_file import SumInFile
from fedprune.tasks.resampling import resampled

_NOBODY = Aggregate()


class RunningSum:
    """A sum that pieces are added to as they come: let them come in the order of hosts.

    The pieces are left as they are. `outside` is where values are added up instead of in memory.
    """

    def __init__(self, outside: SumInFile | None = None) -> None:
        self._sum, self._outside = Aggregate(), outside
        self._ours: list[Tensor] = []  # made here, so that the next piece may be added in place
        self._rows: list[Tensor] = []

    def add(self, piece: Aggregate) -> None:
        """Add one more."""
        if self._outside is not None and piece.total is not None:
            self._outside.add(piece.total, 1.0)
            piece = replace(piece, total=None)
        out, plus = self._sum, self._plus
        self._rows += [] if piece.singles is None else [piece.singles]
        self._sum = Aggregate(
            plus(out.total, piece.total),
            out.weight + piece.weight,
            totals_added(out.totals, piece.totals),
            self._votes(piece),
            out.answered + piece.answered,
            out.failures + piece.failures,
            out.bytes_up + piece.bytes_up,
            out.bytes_down + piece.bytes_down,
            plus(out.statistics, piece.statistics),
            plus(out.held, piece.held),
            None,
            max(out.tries, piece.tries),
            out.norms + piece.norms,
            out.loud + piece.loud,
            out.notices + piece.notices,
            resampled=plus(out.resampled, piece.resampled),
        )

    def grow(self, step: Callable[[Aggregate], Aggregate]) -> None:
        """Let a step add to the sum, in place where its tensors were made here.

        It gives the sum with more, of tensors that are the sum's or new; no singles.
        """
        before = self._sum
        if all(any(t is own for own in self._ours) for t in _tensors(before)):
            self._sum = replace(step(before), tries=before.tries, notices=before.notices)
            self._ours = _tensors(self._sum)
        else:
            self.add(step(Aggregate()))

    def _plus(self, left: Tensor | None, right: Tensor | None) -> Tensor | None:
        if left is None or right is None:
            return right if left is None else left
        if any(left is tensor for tensor in self._ours):
            return left.add_(right)
        self._ours.append(left + right)
        return self._ours[-1]

    def _votes(self, piece: Aggregate) -> Tensor | None:
        """The votes with those of a piece, in a type that holds the counts of all who answered."""
        ours, more = self._sum.votes, piece.votes
        if ours is None or more is None:
            return self._plus(ours, more)
        most = count_type(len(self._sum.answered) + len(piece.answered))
        dtype = torch.promote_types(torch.promote_types(ours.dtype, more.dtype), most)
        return self._plus(ours if ours.dtype == dtype else ours.to(dtype), more)

    def whole(self) -> Aggregate:
        """The sum so far; it is written over where more is added."""
        rows = self._rows
        singles = rows[0] if len(rows) == 1 else torch.cat(rows) if rows else None
        if self._outside is None:
            return replace(self._sum, singles=singles)
        total = self._outside.total()
        return replace(self._sum, total=total, singles=singles, fresh=total is not None)


def _tensors(piece: Aggregate) -> list[Tensor]:
    those = (piece.total, piece.votes, piece.statistics, piece.held, piece.resampled)
    return [t for t in those if t is not None]


def summed(pieces: Iterable[Aggregate]) -> Aggregate:
    """Several sums as one, added in the order given: pass them in the order of hosts.

    The pieces are left as they are.
    """
    out = RunningSum()
    for piece in pieces:
        out.add(piece)
    return out.whole()


def as_sum(
    answer: Answer,
    partition: int,
    size: int,
    before: Aggregate = _NOBODY,
    *,
    singly: bool = False,
    held: bool = False,
    normed: bool = False,
    loud: float = math.inf,
    resamples: int | None = None,
    apart: bool = False,
) -> Aggregate:
    """One client's answer as a sum of one, or added to the answers `before` it, in place.

    Also: with `singly` its values are kept beside the sum; with `held` its votes are added times
    its weight; with `normed` the norm of its values is noted, and its largest value, if that is
    beyond `loud`; its totals are added to resamples that are drawn by the seed `resamples`. With
    `apart` its values are added elsewhere. `size` is bytes of it on the wire.
    """
    votes, holders = before.votes, before.held
    if answer.votes is not None:
        votes = _with(before.votes, answer.votes, 1, count_type(len(before.answered) + 1))
        if held:
            holders = _with(before.held, answer.votes, answer.weight, torch.float64)
    return Aggregate(
        None if apart else _with(before.total, answer.values, answer.weight, torch.float64),
        before.weight + answer.weight,
        totals_added(before.totals, answer.totals),
        votes,
        (*before.answered, partition),
        before.failures,
        before.bytes_up + size,
        before.bytes_down,
        _with_more(before.statistics, answer.statistics),
        holders,
        _with_row(before.singles, answer.values) if singly else before.singles,
        norms=(*before.norms, norm_of(answer.values)) if normed else before.norms,
        loud=before.loud
        + (() if loud == math.inf else loud_in(answer.values, (partition,), least=loud)),
        resampled=_with_more(
            before.resampled,
            None if resamples is None else resampled(answer.totals, resamples, partition),
        ),
    )


def _with_more(sums: Tensor | None, values: Tensor | None) -> Tensor | None:
    return sums if values is None else _with(sums, values, 1.0, torch.float64)


def norm_of(values: Tensor) -> float:
    """The L2 norm, in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _with_row(rows: Tensor | None, values: Tensor) -> Tensor:
    """The rows with one more: in their own memory if that has room for it, else in twice as much.

    So n rows cost n copies of a row and not n² / 2.
    """
    if rows is None:
        return values.clone().unsqueeze(0)
    n, width = rows.shape
    memory = rows.untyped_storage()
    if memory.nbytes() < (n + 1) * width * rows.element_size():
        wider = rows.new_empty(2 * (n + 1), width)
        wider[:n] = rows
        memory = wider.untyped_storage()
    out: Tensor = rows.new_empty(0).set_(memory, 0, (n + 1, width))  # type: ignore[call-overload]
    out[n] = values
    return out


_CHUNK = 2**17
"""Values that are widened at a time: what stays in the processor's cache is added much faster."""


def _with(total: Tensor | None, values: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    if total is None:
        return values.to(dtype, copy=True).mul_(factor)
    dtype = torch.promote_types(total.dtype, dtype)
    total = total.to(dtype)
    if values.numel() <= _CHUNK:
        return total.add_(_times(values, factor, dtype))
    for part, more in zip(total.split(_CHUNK), values.split(_CHUNK), strict=True):
        part.add_(_times(more, factor, dtype))
    return total


def _times(values: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """The product in a wider type."""
    wide = values.to(dtype)
    if factor == 1.0:
        return wide
    return wide * factor if wide is values else wide.mul_(factor)


def totals_added(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """Named sums added up; one that only one side has counts as 0 on the other."""
    return {k: left.get(k, 0.0) + right.get(k, 0.0) for k in {**left, **right}}

"""An answer as one vector of integers that can be masked and added, and the sum as it was.

Both sides know the form of an answer before anything is sent, and with it the pieces of the vector
and the scale of each. A scale is public: it follows from the configuration and from how many
clients are asked, never from what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from fedprune.client.measurement import LOST
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import ConfigError, Refused, counted
from fedprune.privacy.discretise import COARSER, MOST, RANGES, Noise
from fedprune.privacy.options import Privacy
from fedprune.protocol.aggregate import Aggregate, count_type
from fedprune.protocol.form import Form, fitting
from fedprune.protocol.messages import Answer
from fedprune.scores.score import Shapes
from fedprune.secagg.fixed_point import (
    OUT_OF_RANGE,
    Ring,
    Scale,
    from_ring,
    ring_type,
    scale_for,
    to_ring,
)
from fedprune.tensors.named import Masks, count_kept


@dataclass(frozen=True)
class Piece:
    """Coordinates that lie side by side in the vector and share a scale.

    Attributes:
        field: of the answer or its sum: values, weight, totals, votes, statistics, held.
        name: the tensor or the total; "" where there are no names.
        size: how many coordinates.
        scale: from a number to an integer and back.
    """

    field: str
    name: str
    size: int
    scale: Scale

    @property
    def wire(self) -> str:
        """What the field is called where it is booked."""
        return f"totals.{self.name}" if self.field == "totals" else self.field


Pieces = tuple[Piece, ...]


def pieces_of(
    kind: str,
    form: Form,
    config: Privacy,
    clients: int,
    noises: Mapping[str, Noise] | None = None,
    coarse: Mapping[str, int] | None = None,
) -> Pieces:
    """The pieces of an answer's vector, in order.

    So many clients may be added up without an overflow. `noises` are of the fields that clients add
    noise to, and say how finely these are cut; `coarse`, by how many steps of `COARSER` the ranges
    of fields were widened, see `widened`.
    """
    quantity = KINDS[kind].quantity
    found = [
        *(("values", n, size, quantity) for n, size in _sizes(form.shapes, form.masks)),
        ("weight", "", 1, "counts"),
        *(("totals", n, 1, "counts" if n == "count" else "metrics") for n in sorted(form.totals)),
        ("votes", "", form.voters, "votes"),
        *(("statistics", n, size, "scores") for n, size in _sizes(form.sums, form.masks)),
        ("held", "", form.voters if form.own else 0, "counts"),
    ]
    pieces = []
    for field, name, size, quantity in found:
        wider = COARSER ** (coarse or {}).get(field, 0)
        scale = scale_of(quantity, name or field, config, clients, wider)
        piece = Piece(field, name, size, scale)
        noise = (noises or {}).get(piece.wire)
        if noise is not None and quantity != "votes":
            piece = replace(piece, scale=_noisy(noise, config, clients))
        pieces += [piece] * (size > 0)
    return tuple(pieces)


_TAIL = 12.0
"""Standard deviations of noise that there is room for: it is beyond them with less than 1e-30."""


def _noisy(noise: Noise, config: Privacy, clients: int) -> Scale:
    """The scale of what is clipped and gets noise."""
    bits = config.secure_bits or 64
    largest = 1.01 * noise.clip  # float32 meets the norm to a millionth
    if clients * largest / noise.step + _TAIL * math.sqrt(noise.mu) >= 2.0 ** (bits - 1):
        raise ConfigError(
            f"secure-bits={bits}: no room for the noise of {counted(clients, 'client')}; "
            "allowed: 64"
        )
    return Scale(noise.step, largest)


def _sizes(shapes: Shapes, masks: Masks) -> Iterator[tuple[str, int]]:
    """Every tensor and how many of its values travel, in the order in which they do."""
    given = fitting(shapes, masks)
    for name in sorted(shapes):
        yield name, count_kept({name: given[name]}) if name in given else shapes[name].numel()


def widened(coarse: Mapping[str, int], told: Iterable[str], bits: int) -> dict[str, int] | None:
    """The steps by which ranges are wider in the next try; None: no wider ones will help.

    Integers of 32 bits are too few for one range that is wide and fine. The first one is fine;
    who has no room in it says so in public words, and of which field, and nothing else.
    """
    fields = {why.removeprefix(OUT_OF_RANGE).strip() for why in told if OUT_OF_RANGE in why}
    more = {f for f in fields & _WIDE if coarse.get(f, 0) < MOST}
    if bits != 32 or not more:
        return None
    return {**coarse, **{f: coarse.get(f, 0) + 1 for f in more}}


_WIDE = {"values", "statistics", "totals"}
"""Fields of real numbers; counts stay whole."""


def scale_of(quantity: str, name: str, config: Privacy, clients: int, wider: float = 1.0) -> Scale:
    """The scale of a quantity: its range fits as often as there are clients.

    A step is a power of two, so that whole numbers are exact wherever it is 1 or less.
    """
    bits = config.secure_bits or 64
    if quantity == "votes":
        return Scale(1.0, 1.0, whole=True)
    largest = RANGES[quantity][0 if bits == 64 else 1]
    largest *= 1.0 if quantity == "counts" else wider
    for pattern, given in config.ranges.items():
        if fnmatchcase(f"{quantity}/{name}", pattern):
            largest = given
    return scale_for(largest, clients, bits)


def length(pieces: Pieces) -> int:
    """How many integers the vector has."""
    return sum(piece.size for piece in pieces)


def vector_of(answer: Answer, pieces: Pieces, bits: int, held: Tensor | None = None) -> Ring:
    """The answer as one vector of integers.

    `held` is weight · votes, where the form wants it.

    Raises:
        Refused: a field is missing, not finite, or larger than its range.
    """
    if answer.votes is None and any(piece.field == "votes" for piece in pieces):
        raise Refused("votes", "none, expected one for each kept coordinate")
    flat = {
        "values": answer.values.double() * answer.weight,
        "weight": torch.tensor([answer.weight], dtype=torch.float64),
        "totals": _totals(answer, pieces),
        "votes": answer.votes,
        "statistics": answer.statistics,
        "held": held,
    }
    out = np.empty(length(pieces), dtype=ring_type(bits))
    at, start = 0, dict.fromkeys(flat, 0)
    for piece in pieces:
        source, first = flat[piece.field], start[piece.field]
        assert source is not None  # the form was checked
        numbers = source[first : first + piece.size].double().numpy()
        out[at : at + piece.size] = _integers(numbers, piece, bits)
        at, start[piece.field] = at + piece.size, first + piece.size
    return out


def _totals(answer: Answer, pieces: Pieces) -> Tensor:
    """The totals in order; a candidate that is lost has the largest loss that there can be."""
    named = [(piece.name, piece.scale.largest) for piece in pieces if piece.field == "totals"]
    totals = [
        min(answer.totals[n], m) if answer.totals[n] == LOST else answer.totals[n] for n, m in named
    ]
    return torch.tensor(totals, dtype=torch.float64)


def _integers(numbers: np.ndarray, piece: Piece, bits: int) -> Ring:
    try:
        return to_ring(numbers, piece.scale, bits, piece.name or piece.field)
    except Refused as refused:
        if refused.told:
            refused.told += f" {piece.field}"
        raise


def folded_from(total: Ring, pieces: Pieces, answered: Sequence[int], bits: int) -> Aggregate:
    """The sum of the clients' answers, from the sum of their vectors.

    It has no `singles`: nobody saw one.
    """
    parts: dict[str, list[np.ndarray]] = {}
    totals, votes, at = {}, None, 0
    for piece in pieces:
        units = total[at : at + piece.size]
        at += piece.size
        if piece.field == "votes":
            votes = _counts(units, len(answered), bits)
            continue
        numbers = from_ring(units, piece.scale, bits)
        if piece.field == "totals":
            totals[piece.name] = float(numbers[0])
        else:
            parts.setdefault(piece.field, []).append(numbers)
    flat = {field: torch.from_numpy(np.concatenate(found)) for field, found in parts.items()}
    return Aggregate(
        total=flat.get("values", torch.empty(0, dtype=torch.float64)),
        weight=float(flat["weight"]),
        totals=totals,
        votes=votes,
        answered=tuple(answered),
        statistics=flat.get("statistics"),
        held=flat.get("held"),
    )


def _counts(units: Ring, voters: int, bits: int) -> Tensor:
    """Votes in the smallest type that holds those of all, and whatever else a client may add."""
    counts = torch.from_numpy(units.view(np.int32 if bits == 32 else np.int64))
    least, most = (int(n) for n in torch.aminmax(counts))
    return counts.to(count_type(max(voters, most)) if least >= 0 else torch.int64)

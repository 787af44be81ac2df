"""A whole secure sum within one process, with drop-outs at will."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fedprune.secagg.client import confirmed, masked_vector, revealed, shares_of
from fedprune.secagg.fixed_point import Ring
from fedprune.secagg.graph import enough
from fedprune.secagg.keys import keys_of
from fedprune.secagg.server import Unrecoverable, unmasked
from fedprune.secagg.terms import Terms


@dataclass(frozen=True)
class Rehearsed:
    """What came out: the sum, in the ring, and whose vectors are in it."""

    total: Ring
    summed: frozenset[int]


def rehearse(
    seeds: Mapping[int, bytes],
    vectors: Mapping[int, Ring],
    terms: Terms,
    gone: Mapping[str, Collection[int]],
) -> Rehearsed:
    """All five stages among `terms.members`.

    `gone` says who drops out at which stage, before it sends; it stays away from then on.

    Raises:
        Unrecoverable: too few are left at a stage; says why. The sum can be tried again among
            those left, with another session.
    """
    left = frozenset(terms.members) - frozenset(gone.get("keys", ()))
    roster = {member: keys_of(seeds[member], terms) for member in sorted(left)}
    _require(enough("keys", roster, left, terms))

    left -= frozenset(gone.get("shares", ()))
    sent = {member: shares_of(seeds[member], member, roster, terms) for member in sorted(left)}
    _require(enough("shares", roster, left, terms))
    shared = left

    left -= frozenset(gone.get("masked", ()))
    total: Ring | None = None
    for member in sorted(left):
        more = masked_vector(seeds[member], member, roster, shared, vectors[member], terms)
        total = more if total is None else np.add(total, more, out=total)
    _require(enough("masked", roster, left, terms, shared=shared))
    summed = left

    left -= frozenset(gone.get("confirm", ()))
    told = summed, shared, terms
    said = {member: confirmed(seeds[member], member, roster, *told) for member in sorted(left)}
    _require(enough("confirm", roster, left, terms, shared=shared, summed=summed))

    left -= frozenset(gone.get("unmask", ()))
    shares = {}
    for member in sorted(left):
        received = {one: sent[one][member] for one in sent if member in sent[one]}
        shares[member] = revealed(seeds[member], member, roster, received, *told, said)
    assert total is not None  # `enough` saw to it
    return Rehearsed(unmasked(total, roster, shared, summed, shares, terms).total, summed)


def _require(lacking: str) -> None:
    if lacking:
        raise Unrecoverable(lacking)

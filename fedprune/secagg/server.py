"""The server's side of a secure sum: from the sum of masked vectors to the sum of vectors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fedprune.secagg.graph import enough, neighbours_of
from fedprune.secagg.keys import (
    KEY,
    Keys,
    commitment,
    mask_context,
    own_mask,
    pair_mask,
    tag,
)
from fedprune.secagg.primitives import mask, public_of
from fedprune.secagg.ring import Ring, ring_type
from fedprune.secagg.shamir import combine
from fedprune.secagg.terms import Terms


class Unrecoverable(ValueError):
    """The sum cannot be opened; nothing has been learned but that. Says why."""


def unmasked(
    total: Ring,
    roster: Mapping[int, Keys],
    shared: Collection[int],
    summed: Collection[int],
    shares: Mapping[int, Mapping[int, bytes]],
    terms: Terms,
) -> Ring:
    """The sum of the vectors of `summed`, in the ring.

    Restores the own masks of those summed and the masking keys of those who shared and then
    dropped out (Bonawitz et al., eprint 2017/281, figure 4, round 4), compares each with what its
    client showed, takes the masks away and compares the sum of tags.

    Args:
        total: the sum of the masked vectors of `summed`; left as it is.
        roster: everyone's keys, as the clients were told.
        shared: whose shares came, as the clients were told.
        summed: whose masked vectors are in `total`, as the clients were told.
        shares: what each client revealed, by client and whose share it is.
        terms: of this sum.

    Raises:
        Unrecoverable: too few shares, a share is wrong, or `total` is not the sum it should be. A
            wrong sum passes with probability 2^-bits if by accident; a client that lies about its
            own vector or its masks is not found out.
    """
    adding, sharing = frozenset(summed), frozenset(shared)
    if not adding <= sharing or not sharing <= roster.keys():
        raise Unrecoverable("those summed are not all among those who shared keys")
    lacking = enough("unmask", roster, shares, terms, shared=sharing, summed=adding)
    if lacking:
        raise Unrecoverable(lacking)
    if total.dtype != ring_type(terms.bits) or total.ndim != 1 or not len(total):
        raise Unrecoverable(f"the sum of masked vectors is not a flat one of uint{terms.bits}")
    context, out = mask_context(roster, sharing, terms), total.copy()
    for key, add in _to_cancel(roster, sharing, adding, shares, terms, context):
        mask(out, key, add=add)
    if int(out[-1]) != sum(tag(member, terms) for member in adding) % 2**terms.bits:
        raise Unrecoverable("the masks do not cancel: other vectors are in the sum than was said")
    return out[:-1]


def _to_cancel(
    roster: Mapping[int, Keys],
    sharing: frozenset[int],
    adding: frozenset[int],
    shares: Mapping[int, Mapping[int, bytes]],
    terms: Terms,
    context: bytes,
) -> Iterator[tuple[bytes, bool]]:
    """The keys of the masks that are still in the sum, and whether to add them."""
    for owner in sorted(sharing):
        near = adding.intersection(neighbours_of(owner, terms))
        if owner in adding:
            own = _restored(owner, shares, terms)
            if commitment(own, terms) != roster[owner].own:
                raise Unrecoverable(f"the shares of client {owner}'s own mask are wrong")
            yield own_mask(own, context), False
        elif near:
            private = _restored(owner, shares, terms)
            if public_of(private) != roster[owner].masking:
                raise Unrecoverable(f"the shares of client {owner}'s masking key are wrong")
            for member in sorted(near):  # the lower one of a pair added, the other took away
                key = pair_mask(private, roster[member].masking, owner, member, context)
                yield key, owner < member


def _restored(owner: int, shares: Mapping[int, Mapping[int, bytes]], terms: Terms) -> bytes:
    """The secret of `owner`, from the first shares of as many neighbours as it takes."""
    held = {
        terms.points[holder]: shares[holder][owner]
        for holder in neighbours_of(owner, terms)
        if owner in shares.get(holder, {})
    }
    if len(held) < terms.threshold:
        raise Unrecoverable(
            f"{len(held)} shares of client {owner} came, fewer than {terms.threshold}"
        )
    if any(len(share) != KEY for share in held.values()):
        raise Unrecoverable(f"a share of client {owner} has another size")
    return combine({point: held[point] for point in sorted(held)[: terms.threshold]})

"""The server's side of a secure sum: from the sum of masked vectors to the sum of vectors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from fedprune.secagg.decoding import astray
from fedprune.secagg.fixed_point import Ring, ring_type
from fedprune.secagg.graph import enough, neighbours_of
from fedprune.secagg.keys import KEY, Keys, commitment, mask_context, own_mask, pair_mask, tag
from fedprune.secagg.primitives import mask, public_of
from fedprune.secagg.shamir import combine
from fedprune.secagg.terms import Terms


class Unrecoverable(ValueError):
    """The sum cannot be opened; nothing has been learned but that. Says why.

    The dealer is the client whose own fault it is; -1 where nobody can tell.
    """

    def __init__(self, text: str, dealer: int = -1) -> None:
        super().__init__(text)
        self.dealer = dealer


@dataclass(frozen=True)
class Opened:
    """A sum that could be opened.

    Attributes:
        total: the sum of the vectors, in the ring.
        wrong: client to the clients of whose secret it showed another share than most did; either
            of the two may have lied. Looked for only where a secret was not right at once.
    """

    total: Ring
    wrong: Mapping[int, Collection[int]]


def unmasked(
    total: Ring,
    roster: Mapping[int, Keys],
    shared: Collection[int],
    summed: Collection[int],
    shares: Mapping[int, Mapping[int, bytes]],
    terms: Terms,
) -> Opened:
    """The sum of the vectors of `summed`, in the ring.

    Restores the own masks of those summed and the masking keys of those who shared and then
    dropped out (Bonawitz et al., eprint 2017/281, figure 4, round 4), compares each with what its
    client showed, takes the masks away and compares the sum of tags. Wrong shares are found and
    left out as long as they are at most half of those beyond the threshold, or the only one where
    one more came (`fedprune.secagg.decoding`).

    Args:
        total: the sum of the masked vectors of `summed`; left as it is.
        roster: everyone's keys, as the clients were told.
        shared: whose shares came, as the clients were told.
        summed: whose masked vectors are in `total`, as the clients were told.
        shares: what each client revealed, by client and whose share it is.
        terms: of this sum.

    Raises:
        Unrecoverable: too few shares, too many wrong ones, or `total` is not the sum it should be.
            A wrong sum passes with probability 2^-bits if by accident; a client that lies about its
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
    secrets = {
        owner: _restored(owner, roster, adding, shares, terms)
        for owner in sorted(sharing)
        if owner in adding or adding.intersection(neighbours_of(owner, terms))
    }
    context, out = mask_context(roster, sharing, terms), total.copy()
    for owner, found in secrets.items():
        for key, add in _to_cancel(owner, found.secret, roster, adding, terms, context):
            mask(out, key, add=add)
    if int(out[-1]) != sum(tag(member, terms) for member in adding) % 2**terms.bits:
        raise Unrecoverable("the masks do not cancel: other vectors are in the sum than was said")
    return Opened(out[:-1], _wrong(secrets, shares, terms))


def _to_cancel(
    owner: int,
    secret: bytes,
    roster: Mapping[int, Keys],
    adding: frozenset[int],
    terms: Terms,
    context: bytes,
) -> Iterator[tuple[bytes, bool]]:
    """The keys of the masks of one client that are still in the sum, and whether to add them."""
    if owner in adding:
        yield own_mask(secret, context), False
        return
    for member in sorted(adding.intersection(neighbours_of(owner, terms))):
        # The lower one of a pair added, the other took away.
        yield pair_mask(secret, roster[member].masking, owner, member, context), owner < member


@dataclass(frozen=True)
class _Restored:
    """A secret, and the members whose shares of it were found to be wrong."""

    secret: bytes
    wrong: frozenset[int] = frozenset()


def _restored(
    owner: int,
    roster: Mapping[int, Keys],
    adding: Collection[int],
    shares: Mapping[int, Mapping[int, bytes]],
    terms: Terms,
) -> _Restored:
    """The secret of `owner`, from shares of as many neighbours as it takes."""
    held, t = _held(owner, shares, terms), terms.threshold
    if len(held) < t:
        raise Unrecoverable(f"{len(held)} shares of client {owner} came, fewer than {t}")

    def without(wrong: Collection[int]) -> bytes:
        return combine({x: held[x] for x in [x for x in sorted(held) if x not in wrong][:t]})

    def right(secret: bytes) -> bool:
        if owner in adding:
            return commitment(secret, terms) == roster[owner].own
        return public_of(secret) == roster[owner].masking

    if right(first := without(())):
        return _Restored(first)
    found = astray(held, t) if len(held) > t else None
    single = [frozenset({x}) for x in held] if len(held) == t + 1 else []
    for wrong in [found] if found is not None else single:
        if right(secret := without(wrong)):
            return _Restored(secret, frozenset(terms.members[x - 1] for x in wrong))
    what = "own mask" if owner in adding else "masking key"
    dealer = -1 if found is None else owner  # most shares agree, and on another secret
    raise Unrecoverable(f"the shares of client {owner}'s {what} are wrong", dealer)


def _held(owner: int, shares: Mapping[int, Mapping[int, bytes]], terms: Terms) -> dict[int, bytes]:
    """The shares of `owner` that came, by the point; of another size they are none."""
    came = {m: shares[m].get(owner, b"") for m in neighbours_of(owner, terms) if m in shares}
    return {terms.points[m]: share for m, share in came.items() if len(share) == KEY}


def _wrong(
    secrets: Mapping[int, _Restored], shares: Mapping[int, Mapping[int, bytes]], terms: Terms
) -> dict[int, frozenset[int]]:
    """Of everyone who showed a wrong share, of whose secrets all of its shares are wrong."""
    suspects = frozenset().union(*(found.wrong for found in secrets.values()))

    def lies(holder: int, owner: int) -> bool:
        if owner not in secrets or len(shares[holder][owner]) != KEY:
            return True
        held, at = _held(owner, shares, terms), terms.points[holder]
        others = [x for x in sorted(held) if terms.members[x - 1] not in suspects]
        some = {x: held[x] for x in [at, *others[: terms.threshold - 1]]}
        return len(some) == terms.threshold and combine(some) != secrets[owner].secret

    return {h: frozenset(o for o in shares[h] if lies(h, o)) for h in sorted(suspects)}

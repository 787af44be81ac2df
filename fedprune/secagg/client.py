"""A client's side of a secure sum: pure functions of a seed of 32 bytes and of what it was told.

So a simulated client can be computed again anywhere, and a device has to keep its seed and one
fingerprint only, until the sum is opened. The stages are those of Bonawitz et al. 2017 (eprint
2017/281, figure 4) on the graph of Bell et al. 2020 (eprint 2020/704, figure 2).

In all of them `seed` is the client's, 32 bytes; `me` the client; `roster` everyone's keys as far as
they came; `shared` whose shares came, and `summed` whose masked vectors: the same for all clients.

A client that is told something inconsistent raises `fedprune.options.refusal.Refused`, field
"secure", and drops out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fedprune.options.refusal import Refused
from fedprune.secagg.fixed_point import Ring, ring_type
from fedprune.secagg.graph import enough, neighbours_of
from fedprune.secagg.keys import (
    KEY,
    Keys,
    Secrets,
    included,
    keys_of,
    mask_context,
    own_mask,
    pair_mask,
    roster_binding,
    secrets_of,
    tag,
)
from fedprune.secagg.primitives import (
    agreed,
    derived,
    mask,
    sealed,
    signed,
    stream,
    unsealed,
    verified,
)
from fedprune.secagg.shamir import split
from fedprune.secagg.terms import Terms

_FIELD = "secure"

UNREADABLE = "what client {} sent is missing or does not decrypt"


def shares_of(seed: bytes, me: int, roster: Mapping[int, Keys], terms: Terms) -> dict[int, bytes]:
    """The stage "shares": for each neighbour in the roster 80 bytes that only it can read.

    They hold a share of the seed of the client's own mask and one of its masking key.

    Raises:
        Refused: the client's own keys are not in the roster, a key is there twice or worthless, or
            fewer than `terms.threshold` neighbours are left.
    """
    near = _present_neighbours(seed, me, roster, roster, terms)
    secrets = secrets_of(seed, terms)
    points = [terms.points[member] for member in near]
    own = split(secrets.own, _coefficients(seed, "own", terms), points)
    masking = split(secrets.masking, _coefficients(seed, "masking", terms), points)
    bound = roster_binding(roster, terms)
    out = {}
    for member in near:
        point = terms.points[member]
        key = _channel_key(secrets, roster[member], me, member, bound)
        out[member] = sealed(key, own[point] + masking[point], bound)
    return out


def masked_vector(
    seed: bytes,
    me: int,
    roster: Mapping[int, Keys],
    shared: Collection[int],
    vector: Ring,
    terms: Terms,
) -> Ring:
    """The stage "masked": the vector plus the client's own mask and those with its neighbours.

    To the server it looks uniform. It is one coordinate longer than the vector: the last holds a
    public tag of the client. Beside the result it takes one block of memory. One seed masks one
    vector in one session, or the difference of two would show: not asking twice is the caller's
    part. The vector is flat, uint32 or uint64 by `terms.bits`, and left as it is.

    Raises:
        Refused: as `shares_of`, with those who shared for those in the roster.
        ValueError: the vector is of another type or shape.
    """
    if vector.dtype != ring_type(terms.bits) or vector.ndim != 1:
        raise ValueError(f"a secure sum adds flat vectors of uint{terms.bits}")
    near = _present_neighbours(seed, me, roster, shared, terms)
    secrets, context = secrets_of(seed, terms), mask_context(roster, shared, terms)
    out = np.empty(len(vector) + 1, vector.dtype)
    out[:-1], out[-1] = vector, tag(me, terms)
    mask(out, own_mask(secrets.own, context), add=True)
    for member in near:
        try:
            key = pair_mask(secrets.masking, roster[member].masking, me, member, context)
        except ValueError:
            raise Refused(_FIELD, _WORTHLESS) from None
        mask(out, key, add=me < member)
    return out


def confirmed(
    seed: bytes,
    me: int,
    roster: Mapping[int, Keys],
    summed: Collection[int],
    shared: Collection[int],
    terms: Terms,
) -> bytes:
    """The stage "confirm": the client's signature, 64 bytes, of who is in the sum.

    Bonawitz et al., figure 4, round 3 ("ConsistencyCheck"): without it a server could say of
    another set to each client, so that no set that anybody saw, but one of two or three clients, is
    opened. A client signs one set in a session.

    Raises:
        Refused: the client or others summed did not share, those summed are fewer than
            `terms.minimum` or not all connected, or too few neighbours are left.
    """
    _present_neighbours(seed, me, roster, shared, terms)
    adding = frozenset(summed)
    if me not in adding or not adding <= frozenset(shared):
        raise Refused(_FIELD, "the sum has clients who shared no keys, or lacks this one")
    lacking = enough("masked", roster, adding, terms, shared=shared)
    if lacking:
        raise Refused(_FIELD, lacking)
    return signed(secrets_of(seed, terms).signing, included(roster, shared, adding, terms))


def confirming(
    said: Mapping[int, bytes],
    roster: Mapping[int, Keys],
    summed: Collection[int],
    shared: Collection[int],
    terms: Terms,
) -> frozenset[int]:
    """Those of `summed` whose signature of who is in the sum is right."""
    message = included(roster, shared, summed, terms)
    return frozenset(
        member
        for member in summed
        if member in roster and verified(roster[member].signing, said.get(member, b""), message)
    )


def revealed(
    seed: bytes,
    me: int,
    roster: Mapping[int, Keys],
    received: Mapping[int, bytes],
    summed: Collection[int],
    shared: Collection[int],
    terms: Terms,
    said: Mapping[int, bytes],
) -> dict[int, bytes]:
    """The stage "unmask": of each neighbour who shared, one share of 32 bytes.

    It is of the neighbour's own mask if its vector is in the sum, else of its masking key; never
    both, which would open the neighbour's vector. A device answers this once in a session: see
    `fedprune.secagg.device_memory`. `received` is what the neighbours' `shares_of` hold for this
    client, `said` everyone's `confirmed`, this client's among them.

    Raises:
        Refused: as `confirmed`; fewer than `terms.confirmations` confirm that just these are in
            the sum, or this client did not; or what a neighbour sent is missing or does not
            decrypt under these terms and this roster.
    """
    near = _present_neighbours(seed, me, roster, shared, terms)
    own, adding = confirmed(seed, me, roster, summed, shared, terms), frozenset(summed)
    agreeing = confirming(said, roster, adding, shared, terms)
    lacking = enough("confirm", roster, agreeing, terms, shared=shared, summed=adding)
    if lacking or said.get(me) != own:
        raise Refused(_FIELD, lacking or "this client did not confirm who is in the sum")
    secrets, bound = secrets_of(seed, terms), roster_binding(roster, terms)
    out = {}
    for member in near:
        key = _channel_key(secrets, roster[member], member, me, bound)
        plain = unsealed(key, received.get(member, b""), bound)
        if plain is None or len(plain) != 2 * KEY:
            why = UNREADABLE.format(member)  # of messages of the sum alone, so it may be told
            raise Refused(_FIELD, why, told=why)
        out[member] = plain[:KEY] if member in adding else plain[KEY:]
    return out


def _coefficients(seed: bytes, name: str, terms: Terms) -> bytes:
    key = derived(seed, f"coefficients {name}", terms.binding)
    return stream(key, KEY * (terms.threshold - 1))


_WORTHLESS = "a neighbour's public key is worthless: every secret with it would be the same"


def _present_neighbours(
    seed: bytes, me: int, roster: Mapping[int, Keys], present: Collection[int], terms: Terms
) -> list[int]:
    """The neighbours who are still there, ascending, once roster and number are as they must be."""
    here = frozenset(present)
    if not here <= roster.keys() or not roster.keys() <= terms.points.keys():
        raise Refused(_FIELD, "clients without keys, or not among the members")
    if me not in here or roster[me] != keys_of(seed, terms):
        raise Refused(_FIELD, "this client's own keys are missing or replaced")
    public = [key for keys in roster.values() for key in vars(keys).values()]
    if len(set(public)) < len(public):
        raise Refused(_FIELD, "a key is used twice")
    near = [member for member in neighbours_of(me, terms) if member in here]
    if len(near) < terms.threshold:
        raise Refused(
            _FIELD, f"{len(near)} neighbours are left, fewer than the threshold {terms.threshold}"
        )
    return near


def _channel_key(secrets: Secrets, keys: Keys, sender: int, receiver: int, bound: bytes) -> bytes:
    """The key of the one message from `sender` to `receiver`; one of them is the caller."""
    try:
        return agreed(secrets.channel, keys.channel, f"shares {sender} to {receiver}", bound)
    except ValueError:
        raise Refused(_FIELD, _WORTHLESS) from None

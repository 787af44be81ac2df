"""A client helps to open sums and nothing else, whatever it is told."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedprune.options.refusal import Refused
from fedprune.secagg.client import confirmed, masked_vector, revealed, shares_of
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.keys import keys_of, secrets_of
from fedprune.secagg.shamir import combine
from fedprune.secagg.terms import Terms

TERMS = Terms(b"session", tuple(range(6)), 5, 4, 64)
EVERYONE = frozenset(range(6))


def seed(member):
    return hashlib.sha256(b"seed" + bytes([member])).digest()


def roster_of(terms=TERMS):
    return {m: keys_of(seed(m), terms) for m in terms.members}


def received_by(me, terms=TERMS, roster=None):
    roster = roster or roster_of(terms)
    return {m: shares_of(seed(m), m, roster, terms)[me] for m in neighbours_of(me, terms)}


def said_by(members, summed=EVERYONE, shared=EVERYONE, terms=TERMS):
    """What the members confirm; all of them were told the same."""
    return {m: confirmed(seed(m), m, roster_of(terms), summed, shared, terms) for m in members}


SAID = said_by(EVERYONE)


def test_shares_go_to_each_neighbour_and_are_small_and_different():
    sent = shares_of(seed(0), 0, roster_of(), TERMS)
    assert sorted(sent) == [1, 2, 3, 4, 5]
    assert {len(cipher) for cipher in sent.values()} == {80}
    assert len(set(sent.values())) == 5
    assert sent == shares_of(seed(0), 0, roster_of(), TERMS)


@pytest.mark.parametrize("summed", [EVERYONE, EVERYONE - {3}])
def test_one_share_of_each_neighbour_is_revealed_and_never_both(summed):
    own, masking, said = {}, {}, said_by(summed, summed)
    for me in sorted(summed):
        shown = revealed(seed(me), me, roster_of(), received_by(me), summed, EVERYONE, TERMS, said)
        assert sorted(shown) == sorted(EVERYONE - {me})
        assert {len(share) for share in shown.values()} == {32}
        for owner, share in shown.items():
            (own if owner in summed else masking).setdefault(owner, {})[me + 1] = share
    for owner in EVERYONE:
        secrets = secrets_of(seed(owner), TERMS)
        shares = (own if owner in summed else masking)[owner]
        first = combine({x: shares[x] for x in sorted(shares)[:4]})
        assert first == (secrets.own if owner in summed else secrets.masking)
        assert owner not in (masking if owner in summed else own)


def refused(words, call, *arguments, me=0):
    with pytest.raises(Refused, match=words) as error:
        call(seed(me), me, *arguments)
    assert error.value.field == "secure"


def closed(words, received=None, roster=None, summed=EVERYONE, shared=EVERYONE, terms=TERMS):
    """Client 0 does not help to open this sum."""
    roster, received = roster or roster_of(terms), received or received_by(0, terms)
    refused(words, revealed, roster, received, summed, shared, terms, SAID)


def test_a_changed_share_is_refused():
    received = received_by(0)
    for place in (0, 79):
        changed = bytearray(received[2])
        changed[place] ^= 1
        closed("client 2", received | {2: bytes(changed)})
    closed("does not decrypt", received | {2: received[3], 3: received[2]})
    del received[4]
    closed("missing", received)


def test_shares_of_another_session_are_refused():
    before = Terms(b"before", tuple(range(6)), 5, 4, 64)
    replayed = received_by(0, before)
    closed("decrypt", replayed)
    closed("own keys", replayed, roster_of(before))  # though the server shows those keys again


@pytest.mark.parametrize("part", ["channel", "masking", "own", "signing"])
def test_whoever_was_shown_other_keys_of_somebody_can_open_nothing(part):
    stranger, honest = keys_of(b"x" * 32, TERMS), roster_of()
    shown = honest | {5: replace(honest[5], **{part: getattr(stranger, part)})}
    closed("client 1", received_by(0) | {1: shares_of(seed(1), 1, shown, TERMS)[0]})


def test_own_keys_must_be_there_and_nobody_else_may_have_them():
    roster = roster_of()
    without = {m: keys for m, keys in roster.items() if m != 0}
    mine = roster[0]
    for bad, words in [
        (without, "missing or replaced"),
        (roster | {0: keys_of(b"x" * 32, TERMS)}, "missing or replaced"),
        (roster | {1: mine}, "used twice"),
        (roster | {1: roster[2]}, "used twice"),
        (roster | {1: replace(roster[1], masking=mine.channel)}, "used twice"),
        (roster | {1: replace(roster[1], signing=mine.signing)}, "used twice"),
        (roster | {1: replace(roster[1], channel=bytes(32))}, "worthless"),
        (roster | {99: keys_of(b"x" * 32, TERMS)}, "not among the members"),
    ]:
        refused(words, shares_of, bad, TERMS)
    bad, vector = roster | {1: replace(roster[1], masking=bytes(32))}, np.zeros(2, np.uint64)
    refused("worthless", masked_vector, bad, EVERYONE, vector, TERMS)


def test_too_few_neighbours_are_refused_at_each_stage():
    roster, few = roster_of(), frozenset({0, 1, 2, 3})
    refused("3 neighbours", shares_of, {m: roster[m] for m in few}, TERMS)
    refused("3 neighbours", masked_vector, roster, few, np.zeros(3, np.uint64), TERMS)
    closed("neighbours", summed=few)
    terms = Terms(b"few", tuple(range(6)), 5, 3, 64, minimum=5)
    closed("fewer than 5", summed=few, terms=terms)


def test_parts_of_a_sum_are_not_opened_apart():
    terms = Terms(b"ring", tuple(range(12)), 2, 2, 64)
    near = {m: {*neighbours_of(m, terms)} for m in terms.members}
    part = frozenset({0, *near[0]})  # nobody with two neighbours but client 0
    shared = frozenset(terms.members)
    closed("neighbours", summed=part, shared=shared, terms=terms)
    far = next(m for m in terms.members if not near[m] & part and m not in part)
    closed("connected", summed=part | {far}, shared=shared, terms=terms)


def test_only_who_is_in_the_sum_opens_it():
    closed("lacks this one", summed=EVERYONE - {0})
    closed("own keys", summed=EVERYONE - {0}, shared=EVERYONE - {0})
    closed("shared no keys", shared=EVERYONE - {1})


@pytest.mark.parametrize(
    "vector", [np.zeros(3, np.uint32), np.zeros((3, 1), np.uint64), np.zeros(3)]
)
def test_only_flat_vectors_of_the_ring_are_masked(vector):
    with pytest.raises(ValueError, match="flat vectors of uint64"):
        masked_vector(seed(0), 0, roster_of(), EVERYONE, vector, TERMS)


def test_of_two_stories_about_who_is_in_the_sum_at_most_one_is_opened():
    """A server tells some of everyone, the others of all but one: nobody has enough signatures."""
    one, other = EVERYONE, EVERYONE - {5}
    for told in range(1, 6):
        first, second = range(told), range(told, 5)
        said = said_by(first, one) | said_by(second, other)
        for story, some in ((one, first), (other, second)):
            if TERMS.confirmations <= len(some):
                continue
            for me in some:
                arguments = (roster_of(), received_by(me), story, EVERYONE, TERMS, said)
                refused("confirms? who is in the sum", revealed, *arguments, me=me)
    assert 2 * TERMS.confirmations > len(EVERYONE)


def test_signatures_that_are_wrong_or_made_for_another_sum_do_not_count():
    told = (roster_of(), received_by(0), EVERYONE, EVERYONE, TERMS)
    few = {m: SAID[m] for m in range(TERMS.confirmations)}
    assert revealed(seed(0), 0, *told, few)
    other = Terms(b"other", tuple(range(6)), 5, 4, 64)
    for wrong in (bytes(64), b"", SAID[2], said_by([1], terms=other)[1]):
        refused("confirm who", revealed, *told, few | {1: wrong})
    lacking = {m: s for m, s in SAID.items() if m}
    refused("this client did not confirm", revealed, *told, lacking)

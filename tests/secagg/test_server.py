"""The server opens the sum that was said, or none; what it sees on the way says nothing."""

import itertools

import numpy as np
import pytest

from fedprune.secagg.client import confirmed, masked_vector, revealed, shares_of
from fedprune.secagg.fixed_point import ring_type
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.keys import keys_of, mask_context, own_mask, pair_mask, secrets_of
from fedprune.secagg.primitives import mask
from fedprune.secagg.server import Unrecoverable, unmasked
from fedprune.secagg.shamir import split
from fedprune.secagg.strangers import wrong_shown
from fedprune.secagg.terms import Terms
from tests.secagg.test_client import EVERYONE, TERMS, seed


def vector(member, terms=TERMS):
    return np.arange(member, member + 5).astype(ring_type(terms.bits))


def played(summed=EVERYONE, shared=EVERYONE, terms=TERMS):
    """Roster, masked vectors of `summed`, and what each of them reveals."""
    roster = {m: keys_of(seed(m), terms) for m in terms.members}
    sent = {m: shares_of(seed(m), m, roster, terms) for m in shared}
    hidden = {m: masked_vector(seed(m), m, roster, shared, vector(m, terms), terms) for m in summed}
    said = {m: confirmed(seed(m), m, roster, summed, shared, terms) for m in summed}

    def shown(m):
        received = {one: sent[one][m] for one in neighbours_of(m, terms) if one in shared}
        return revealed(seed(m), m, roster, received, summed, shared, terms, said)

    return roster, hidden, {m: shown(m) for m in summed}


def added(vectors):
    chosen = list(vectors)
    return np.add.reduce(chosen, dtype=chosen[0].dtype)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_opened(bits):
    terms = Terms(b"bits", tuple(range(6)), 5, 4, bits)
    summed, shared = EVERYONE - {2}, EVERYONE
    roster, hidden, shares = played(summed, shared, terms)
    total = added(hidden.values())
    before = total.copy()
    opened = unmasked(total, roster, shared, summed, shares, terms).total
    assert opened.dtype == ring_type(bits)
    np.testing.assert_array_equal(opened, added(vector(m, terms) for m in summed))
    np.testing.assert_array_equal(total, before)


def test_any_four_of_five_holders_are_enough_and_any_three_are_not():
    roster, hidden, shares = played()
    total = added(hidden.values())
    for kept in itertools.combinations(range(6), 5):
        some = {m: shares[m] for m in kept}
        opened = unmasked(total, roster, EVERYONE, EVERYONE, some, TERMS).total
        np.testing.assert_array_equal(opened, added(map(vector, EVERYONE)))
    for kept in itertools.combinations(range(6), 4):
        some = {m: shares[m] for m in kept}
        with pytest.raises(Unrecoverable, match="fewer than 4"):
            unmasked(total, roster, EVERYONE, EVERYONE, some, TERMS)


def test_wrong_shares_give_no_sum():
    roster, hidden, shares = played(EVERYONE - {5})
    total = added(hidden.values())
    for owner, words in [(0, "own mask"), (5, "masking key")]:
        one = {m: dict(shown) for m, shown in shares.items()}
        one[4].pop(5, None)  # of either four shares came, which is what it takes
        one[3][owner] = bytes([one[3][owner][0] ^ 1]) + one[3][owner][1:]
        with pytest.raises(Unrecoverable, match=f"client {owner}'s {words} are wrong"):
            unmasked(total, roster, EVERYONE, EVERYONE - {5}, one, TERMS)
        one[3][owner] = b"short"
        with pytest.raises(Unrecoverable, match=f"3 shares of client {owner} came, fewer than 4"):
            unmasked(total, roster, EVERYONE, EVERYONE - {5}, one, TERMS)
        for m in (1, 2, 3):
            one[m].pop(owner, None)
        with pytest.raises(Unrecoverable, match=f"shares of client {owner} came"):
            unmasked(total, roster, EVERYONE, EVERYONE - {5}, one, TERMS)


def bent(shares, lies):
    """The shares with one byte of those that `lies(holder, owner)` changed."""
    return {
        h: {o: s[:9] + bytes([s[9] ^ lies(h, o)]) + s[10:] for o, s in shown.items()}
        for h, shown in shares.items()
    }


@pytest.mark.parametrize(
    ("threshold", "lies", "wrong"),
    [
        (4, lambda h, _: h == 3, {3: {0, 1, 2, 4, 5}}),
        (3, lambda h, _: h == 0, {0: {1, 2, 3, 4, 5}}),
        (4, lambda h, o: (h, o) == (3, 2), {3: {2}}),
        (4, lambda h, o: h == 3 and o != 5, {3: {0, 1, 2, 4}}),
        (3, lambda h, o: (h, o) in {(1, 2), (3, 0)}, {1: {2}, 3: {0}}),
    ],
)
def test_who_shows_wrong_shares_is_found_and_the_sum_is_right_without_them(threshold, lies, wrong):
    """Five shares of each came, so one of them may be wrong whether it takes three or four."""
    terms = Terms(b"liars", tuple(range(6)), 5, threshold, 64)
    roster, hidden, shares = played(terms=terms)
    some = bent(shares, lies)
    opened = unmasked(added(hidden.values()), roster, EVERYONE, EVERYONE, some, terms)
    np.testing.assert_array_equal(opened.total, added(vector(m, terms) for m in EVERYONE))
    assert opened.wrong == wrong
    said = wrong_shown({}, opened.wrong, some)
    blamed = [h for h, owners in wrong.items() if len(owners) > 2]
    assert [text.split(";")[0] for text in said if "or client" not in text] == [
        f"client {h} showed wrong shares" for h in blamed
    ]
    assert len(said) == len(wrong)


def test_who_dealt_shares_of_another_secret_is_found():
    roster, hidden, shares = played()
    other = split(b"o" * 32, b"c" * 96, [m + 1 for m in EVERYONE])
    some = {h: shown | ({2: other[h + 1]} if h != 2 else {}) for h, shown in shares.items()}
    total = added(hidden.values())
    with pytest.raises(Unrecoverable, match="client 2's own mask are wrong") as error:
        unmasked(total, roster, EVERYONE, EVERYONE, some, TERMS)
    assert error.value.dealer == 2
    two = bent(shares, lambda h, _: h in {1, 3})
    with pytest.raises(Unrecoverable, match="own mask are wrong") as error:
        unmasked(total, roster, EVERYONE, EVERYONE, two, TERMS)
    assert error.value.dealer == -1, "two of five, where one may be: nobody can tell"


def test_a_total_of_other_vectors_gives_no_sum():
    roster, hidden, shares = played()
    lacking = added(hidden[m] for m in range(5))
    twice = added([*hidden.values(), hidden[0]])
    clear = added([*(hidden[m] for m in range(5)), np.append(vector(5), np.uint64(0))])
    short = added(v[:-1] for v in hidden.values())
    for total in (lacking, twice, clear, short):
        with pytest.raises(Unrecoverable, match="do not cancel"):
            unmasked(total, roster, EVERYONE, EVERYONE, shares, TERMS)
    for total in (added(hidden.values()).astype(np.uint32), np.zeros(0, np.uint64)):
        with pytest.raises(Unrecoverable, match="flat"):
            unmasked(total, roster, EVERYONE, EVERYONE, shares, TERMS)

    hidden[3] = masked_vector(seed(3), 3, roster, EVERYONE - {1}, vector(3), TERMS)
    with pytest.raises(Unrecoverable, match="do not cancel"):  # told of others that shared
        unmasked(added(hidden.values()), roster, EVERYONE, EVERYONE, shares, TERMS)


@pytest.mark.parametrize("shared", [EVERYONE - {1}, EVERYONE | {9}])
def test_inconsistent_sets_give_no_sum(shared):
    roster, hidden, shares = played()
    with pytest.raises(Unrecoverable, match="not all among"):
        unmasked(added(hidden.values()), roster, shared, EVERYONE, shares, TERMS)


def unlikely(values):
    """How far the bytes are from uniform: chi-square as a normal deviate (255 degrees)."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    square = ((counts - values.nbytes / 256) ** 2).sum() / (values.nbytes / 256)
    return (square - 255) / np.sqrt(2 * 255)


@pytest.mark.parametrize("bits", [32, 64])
def test_what_the_server_sees_of_fixed_vectors_is_uniform(bits):
    terms = Terms(b"view", tuple(range(5)), 4, 3, bits)
    roster = {m: keys_of(seed(m), terms) for m in terms.members}
    fixed = np.full(50_000, 7, ring_type(bits))
    hidden = [masked_vector(seed(m), m, roster, terms.members, fixed, terms) for m in range(5)]
    views = [v for r in (1, 2, 3, 4, 5) for v in itertools.combinations(hidden, r)]
    for chosen in views:  # also every sum of them, as long as no own mask is known
        assert abs(unlikely(added(chosen))) < 5
    assert unlikely(fixed) > 1000  # the measure does tell


def test_without_one_vector_the_sum_of_the_others_stays_hidden_by_its_masks():
    """The server knows every own mask, but not the keys of one who shared and is not in the sum."""
    terms = Terms(b"lacking", tuple(range(5)), 4, 3, 64)
    roster = {m: keys_of(seed(m), terms) for m in terms.members}
    fixed = np.full(50_000, 7, np.uint64)
    context = mask_context(roster, terms.members, terms)
    left = np.zeros(50_001, np.uint64)
    for m in range(4):
        left += masked_vector(seed(m), m, roster, terms.members, fixed, terms)
        mask(left, own_mask(secrets_of(seed(m), terms).own, context), add=False)
    assert abs(unlikely(left[:-1])) < 5
    private = secrets_of(seed(4), terms).masking
    for m in range(4):  # and with its key it would not
        key = pair_mask(private, roster[m].masking, 4, m, context)
        mask(left, key, add=False)
    np.testing.assert_array_equal(left[:-1], 4 * fixed)

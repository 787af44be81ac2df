"""Terms: enough neighbours and shares for the drop-outs that are tolerated; graph and keys."""

import random

import pytest

from fedprune.config import RunConfig
from fedprune.secagg.graph import connected, enough, neighbours_of
from fedprune.secagg.keys import (
    Keys,
    commitment,
    keys_of,
    mask_context,
    pair_mask,
    roster_binding,
    secrets_of,
    tag,
)
from fedprune.secagg.primitives import public_of, verifier_of
from fedprune.secagg.terms import Terms, terms_of


def config(**keys):
    return RunConfig(task="digits", secure="secagg", **keys)


@pytest.mark.parametrize("n", range(3, 34))
def test_a_small_cohort_is_complete_and_survives_what_is_tolerated(n):
    terms = terms_of(config(), b"s", range(n))
    gone = 3 * n // 10
    assert terms.neighbours == n - 1
    assert terms.threshold == n - 1 - gone  # every survivor has exactly so many neighbours left
    assert terms.threshold > terms.neighbours / 2


def test_a_large_cohort_is_sparse_and_still_survives():
    terms = terms_of(config(secure_dropout=0.2), b"s", range(300))
    assert terms.neighbours == 126
    near = [set(neighbours_of(m, terms)) for m in terms.members]
    rng = random.Random(0)
    for _ in range(100):
        left = set(rng.sample(list(terms.members), 240))
        assert min(len(those & left) for those in near) >= terms.threshold


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.2, 0.3])
def test_a_lying_server_needs_a_third_of_a_clients_neighbours(dropout):
    """By trying who says what to whom: c collude, each other one gives one of its two shares."""
    for n in (*range(3, 72), 100, 150, 300, 1000):
        terms = terms_of(config(secure_dropout=dropout), b"s", range(n))
        k, t = terms.neighbours, terms.threshold
        opens = [c for c in range(k + 1) if any(c + h >= t <= k - h for h in range(k - c + 1))]
        assert min(opens) == terms.colluders >= k / 3, n
        assert 2 * terms.confirmations - n >= n / 3, n  # as many members for two stories
        assert terms.confirmations <= n - int(dropout * n + 1e-9), n


def test_keys_of_the_configuration_are_followed():
    keys = {"secure_neighbours": 5, "secure_bits": 32, "secure_minimum": 4, "secure_dropout": 0.0}
    terms = terms_of(config(**keys), b"s", [9, 3, 5, 1, 2, 30, 31])
    assert terms.members == (1, 2, 3, 5, 9, 30, 31)
    assert (terms.neighbours, terms.bits, terms.minimum) == (6, 32, 4)  # 7 x 5 is odd
    assert terms.threshold == 6  # nobody may go, so everyone is needed


@pytest.mark.parametrize(
    ("keys", "members", "words"),
    [
        ({}, range(2), "secure_minimum=3: 2 clients are too few"),
        ({"secure_minimum": 8}, range(7), "secure_minimum=8"),
    ],
)
def test_what_cannot_be_protected_is_refused(keys, members, words):
    with pytest.raises(ValueError, match=words):
        terms_of(config(**keys), b"s", members)


@pytest.mark.parametrize(
    "bad",
    [
        {"members": (2, 1, 3)},
        {"members": (1, 1, 3)},
        {"members": (1, 2)},
        {"neighbours": 5},
        {"neighbours": 0},
        {"neighbours": 3},  # five clients with three neighbours each: no such graph
        {"threshold": 2},
        {"threshold": 5},
        {"bits": 16},
        {"minimum": 1},
    ],
)
def test_a_device_refuses_terms_that_protect_nothing(bad):
    good = {"members": (1, 2, 3, 4, 5), "neighbours": 4, "threshold": 3, "bits": 64}
    Terms(b"s", **good)
    with pytest.raises(ValueError, match=r"secure|threshold|members"):
        Terms(b"s", **good | bad)


def test_every_term_is_in_the_binding():
    good = {"session": b"s", "members": (1, 2, 3, 4, 5), "neighbours": 4, "threshold": 3}
    good |= {"bits": 64, "minimum": 3}
    others = [
        {"session": b"t"},
        {"members": (1, 2, 3, 4, 6)},
        {"threshold": 4},
        {"bits": 32},
        {"minimum": 4},
        {"neighbours": 2, "threshold": 2},
    ]
    bindings = [Terms(**good | other).binding for other in [{}, *others]]
    assert len(set(bindings)) == len(bindings)
    assert Terms(**good).binding == bindings[0]


def circle(n, k, threshold=None, session=b"s"):
    return Terms(session, tuple(range(10, 10 + n)), k, threshold or k // 2 + 1, 64)


@pytest.mark.parametrize(("n", "k"), [(5, 4), (6, 3), (7, 2), (8, 7), (12, 5), (25, 10)])
def test_neighbours_are_mutual_and_everyone_has_as_many(n, k):
    terms = circle(n, k)
    near = {m: neighbours_of(m, terms) for m in terms.members}
    for member, others in near.items():
        assert len(set(others)) == k
        assert list(others) == sorted(others)
        assert member not in others
        assert all(member in near[other] for other in others)
    assert connected(terms.members, terms)


def test_the_graph_is_drawn_from_the_session():
    drawn = {neighbours_of(10, circle(30, 4, session=bytes([i]))) for i in range(20)}
    assert len(drawn) > 10
    assert neighbours_of(10, circle(30, 4)) == neighbours_of(10, circle(30, 4))


def test_two_halves_of_a_circle_are_not_connected():
    terms = circle(8, 2, 2)
    near = {m: {m, *neighbours_of(m, terms)} for m in terms.members}
    start = terms.members[0]
    opposite = next(m for m in terms.members if not near[m] & near[start])
    left = set(terms.members) - {start, opposite}
    assert not connected(left, terms)
    assert "not all connected" in enough("keys", left, left, terms)


def test_few_clients_are_not_enough_even_if_they_are_everyone():
    terms = Terms(b"s", (1, 2, 3, 4, 5), 4, 3, 64, minimum=5)
    everyone = {1, 2, 3, 4, 5}
    assert enough("keys", everyone, everyone, terms) == ""
    assert "4 clients are left after keys" in enough("keys", everyone, {1, 2, 3, 4}, terms)


def test_who_dropped_out_with_shares_out_needs_as_many_holders_as_who_is_summed():
    terms = Terms(b"s", tuple(range(6)), 5, 4, 64)
    everyone = set(range(6))
    assert enough("masked", everyone, everyone - {0}, terms) == ""
    # two gone: each survivor has three neighbours left, each of the gone four
    assert "3 neighbours of client 2" in enough("masked", everyone, everyone - {0, 1}, terms)
    # only one of them had shared anything, the other had not
    left = everyone - {0}
    assert "3 neighbours" in enough("unmask", everyone, left - {1}, terms, summed=left)
    assert enough("unmask", everyone, left, terms, shared=left, summed=left) == ""


def test_nobody_needs_the_keys_of_someone_whose_neighbours_all_left_too():
    terms = circle(12, 2, 2)
    lost = terms.members[3]
    present = set(terms.members) - {lost, *neighbours_of(lost, terms)}
    assert enough("unmask", terms.members, terms.members, terms, summed=present) == ""


FOUR = Terms(b"s", (1, 2, 3, 4), 3, 2, 64)
SEED = b"s" * 32


def test_keys_travel_as_128_bytes():
    keys = keys_of(SEED, FOUR)
    assert len(keys.as_bytes) == 128
    assert Keys.from_bytes(keys.as_bytes) == keys
    for wrong in (b"", keys.as_bytes[:-1], keys.as_bytes + b"x"):
        with pytest.raises(ValueError, match="128 bytes"):
            Keys.from_bytes(wrong)


def test_keys_are_the_public_side_of_the_secrets():
    secrets, keys = secrets_of(SEED, FOUR), keys_of(SEED, FOUR)
    assert keys.channel == public_of(secrets.channel)
    assert keys.masking == public_of(secrets.masking)
    assert keys.own == commitment(secrets.own, FOUR)
    assert keys.signing == verifier_of(secrets.signing)
    assert not {*vars(keys).values()} & {*vars(secrets).values()}


def test_each_session_and_seed_has_keys_of_its_own():
    other = Terms(b"t", (1, 2, 3, 4), 3, 2, 64)
    shown = [keys_of(SEED, FOUR), keys_of(SEED, other), keys_of(b"t" * 32, FOUR)]
    assert len({part for k in shown for part in (k.channel, k.masking, k.own)}) == 9
    with pytest.raises(ValueError, match="32 bytes"):
        keys_of(b"short", FOUR)


def test_masks_are_bound_to_roster_and_to_who_shared():
    roster = {m: keys_of(bytes([m]) * 32, FOUR) for m in FOUR.members}
    swapped = roster | {2: keys_of(b"x" * 32, FOUR)}
    assert roster_binding(roster, FOUR) != roster_binding(swapped, FOUR)
    contexts = {
        mask_context(roster, {1, 2, 3, 4}, FOUR),
        mask_context(roster, {1, 2, 3}, FOUR),
        mask_context(swapped, {1, 2, 3, 4}, FOUR),
    }
    assert len(contexts) == 3
    assert mask_context(roster, [3, 2, 1], FOUR) == mask_context(roster, (1, 2, 3), FOUR)


def test_both_of_a_pair_have_the_same_mask_and_no_other_pair_has():
    private = {m: secrets_of(bytes([m]) * 32, FOUR).masking for m in (1, 2, 3)}
    public = {m: public_of(key) for m, key in private.items()}
    one = pair_mask(private[1], public[2], 1, 2, b"c")
    assert one == pair_mask(private[2], public[1], 2, 1, b"c")
    assert one != pair_mask(private[1], public[3], 1, 3, b"c")
    assert one != pair_mask(private[1], public[2], 1, 2, b"d")


@pytest.mark.parametrize("bits", [32, 64])
def test_tags_fit_the_ring_and_differ(bits):
    terms = Terms(b"s", (1, 2, 3, 4), 3, 2, bits)
    tags = [tag(m, terms) for m in terms.members]
    assert len(set(tags)) == 4
    assert all(0 <= t < 2**bits for t in tags)

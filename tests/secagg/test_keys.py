"""Keys and what they are bound to."""

import pytest

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
from fedprune.secagg.terms import Terms

TERMS = Terms(b"s", (1, 2, 3, 4), 3, 2, 64)
SEED = b"s" * 32


def test_keys_travel_as_128_bytes():
    keys = keys_of(SEED, TERMS)
    assert len(keys.as_bytes) == 128
    assert Keys.from_bytes(keys.as_bytes) == keys
    for wrong in (b"", keys.as_bytes[:-1], keys.as_bytes + b"x"):
        with pytest.raises(ValueError, match="128 bytes"):
            Keys.from_bytes(wrong)


def test_keys_are_the_public_side_of_the_secrets():
    secrets, keys = secrets_of(SEED, TERMS), keys_of(SEED, TERMS)
    assert keys.channel == public_of(secrets.channel)
    assert keys.masking == public_of(secrets.masking)
    assert keys.own == commitment(secrets.own, TERMS)
    assert keys.signing == verifier_of(secrets.signing)
    assert not {*vars(keys).values()} & {*vars(secrets).values()}


def test_each_session_and_seed_has_keys_of_its_own():
    other = Terms(b"t", (1, 2, 3, 4), 3, 2, 64)
    shown = [keys_of(SEED, TERMS), keys_of(SEED, other), keys_of(b"t" * 32, TERMS)]
    assert len({part for k in shown for part in (k.channel, k.masking, k.own)}) == 9
    with pytest.raises(ValueError, match="32 bytes"):
        keys_of(b"short", TERMS)


def test_masks_are_bound_to_roster_and_to_who_shared():
    roster = {m: keys_of(bytes([m]) * 32, TERMS) for m in TERMS.members}
    swapped = roster | {2: keys_of(b"x" * 32, TERMS)}
    assert roster_binding(roster, TERMS) != roster_binding(swapped, TERMS)
    contexts = {
        mask_context(roster, {1, 2, 3, 4}, TERMS),
        mask_context(roster, {1, 2, 3}, TERMS),
        mask_context(swapped, {1, 2, 3, 4}, TERMS),
    }
    assert len(contexts) == 3
    assert mask_context(roster, [3, 2, 1], TERMS) == mask_context(roster, (1, 2, 3), TERMS)


def test_both_of_a_pair_have_the_same_mask_and_no_other_pair_has():
    private = {m: secrets_of(bytes([m]) * 32, TERMS).masking for m in (1, 2, 3)}
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

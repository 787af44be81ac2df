"""The cryptography is what the standards say, by their own vectors or by another route."""

import hashlib
import hmac

import numpy as np
import pytest

from fedprune.secagg.primitives import agreed, derived, mask, public_of, sealed, stream, unsealed


def test_public_keys_and_agreement_are_x25519():
    nine = (9).to_bytes(32, "little")  # RFC 7748, section 5.2: after one iteration
    once = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert public_of(nine).hex() == once
    assert agreed(nine, nine, "x", b"c") == derived(bytes.fromhex(once), "x", b"c")


def test_two_parties_agree_and_a_third_does_not():
    one, other, third = (bytes([i]) * 32 for i in (1, 2, 3))
    key = agreed(one, public_of(other), "x", b"c")
    assert key == agreed(other, public_of(one), "x", b"c")
    assert key != agreed(third, public_of(one), "x", b"c")
    assert key != agreed(other, public_of(one), "y", b"c")
    assert key != agreed(other, public_of(one), "x", b"d")


@pytest.mark.parametrize("low", [bytes(32), b"\1" + bytes(31)])
def test_a_public_key_of_low_order_is_refused(low):
    with pytest.raises(ValueError, match="computing shared key"):
        agreed(b"s" * 32, low, "x", b"")


def test_keys_are_derived_by_hkdf():
    kept = hmac.new(b"salt", b"secret", hashlib.sha256).digest()  # RFC 5869, extract and expand
    wanted = hmac.new(kept, b"fedprune secagg+ label\1", hashlib.sha256).digest()
    assert derived(b"secret", "label", b"salt") == wanted


ZEROS = (  # RFC 8439, appendix A.1, test vector 1
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)


def test_the_stream_is_chacha20():
    assert stream(bytes(32), 64).hex() == ZEROS
    assert stream(bytes(32), 10).hex() == ZEROS[:20]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 65536, 150_001])
def test_a_mask_is_the_stream_whatever_the_block(dtype, size):
    vector = np.full(size, 2**32 - 3, dtype)
    before = vector.copy()
    mask(vector, b"k" * 32, add=True)
    little = np.dtype(dtype).newbyteorder("<")
    drawn = np.frombuffer(stream(b"k" * 32, vector.nbytes), little).astype(dtype)
    np.testing.assert_array_equal(vector, before + drawn)
    mask(vector, b"k" * 32, add=False)
    np.testing.assert_array_equal(vector, before)


def test_what_is_sealed_opens_only_as_it_was():
    key, plain = b"k" * 32, b"p" * 64
    cipher = sealed(key, plain, b"bound")
    assert len(cipher) == 80
    assert unsealed(key, cipher, b"bound") == plain
    assert unsealed(b"l" * 32, cipher, b"bound") is None
    assert unsealed(key, cipher, b"other") is None
    assert unsealed(key, b"", b"bound") is None
    for place in (0, 40, 79):
        changed = bytearray(cipher)
        changed[place] ^= 1
        assert unsealed(key, bytes(changed), b"bound") is None

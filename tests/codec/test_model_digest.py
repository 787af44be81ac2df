import pytest
import torch

from fedprune.codec.masks import decode_mask, encode_mask, mask_digest
from fedprune.codec.model_digest import bits_of, edits_in, mask_bits, model_digest
from fedprune.structure.edits import Edit

MASKS = {"a": torch.tensor([[True, False], [False, True]]), "b": torch.ones(3, dtype=torch.bool)}
EDITS = (Edit("head", "h.0.attn", (0, 2)), Edit("rank", "h.0.mlp.c_fc", (3,)))


def test_without_edits_bits_and_digest_are_the_masks_own():
    assert bits_of(MASKS, ()) == encode_mask(MASKS)
    assert model_digest(MASKS, ()) == mask_digest(MASKS)
    assert edits_in(encode_mask(MASKS)) == ()
    assert edits_in(b"") == ()


def test_mask_and_edits_come_back():
    bits = bits_of(MASKS, EDITS)
    assert edits_in(bits) == EDITS
    back = decode_mask(mask_bits(bits))
    assert back.keys() == MASKS.keys()
    assert all(torch.equal(back[n], MASKS[n]) for n in MASKS)


def test_the_digest_tells_edits_apart():
    digests = {model_digest(MASKS, edits) for edits in [(), EDITS, EDITS[:1], EDITS[1:]]}
    assert len(digests) == 4


def test_damaged_edits_are_refused():
    bits = bytearray(bits_of(MASKS, EDITS))
    bits[12] ^= 255
    with pytest.raises(ValueError, match="edits"):
        edits_in(bytes(bits))

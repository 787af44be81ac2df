import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.codec.masks import decode_mask, encode_mask, mask_digest
from fedprune.codec.model_digest import bits_of, edits_in, mask_bits, model_digest
from fedprune.structure.edits import Edit

MILLION = 1_000_000


@st.composite
def masks_(draw: st.DrawFn) -> dict[str, Tensor]:
    """A few masks of any shape, each with a density of its own."""
    names = draw(st.lists(st.text(max_size=8), unique=True, max_size=5))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    masks = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 6), max_size=4))
        masks[name] = torch.rand(shape, generator=gen) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return masks


def spread_out(n: int, kept: int, seed: int = 0) -> Tensor:
    """A random mask that keeps exactly `kept` of n."""
    gen = torch.Generator().manual_seed(seed)
    return (torch.randperm(n, generator=gen) < kept).contiguous()


def entropy(mask: Tensor) -> float:
    """n * H(density) / 8, in bytes."""
    n, kept = mask.numel(), int(mask.sum())
    return sum(-c * math.log2(c / n) for c in (kept, n - kept) if c) / 8


def described(masks: dict[str, Tensor]) -> int:
    """What names and shapes may cost: the text, two bytes, and up to four for each axis."""
    return sum(len(n.encode()) + 2 + 4 * m.dim() for n, m in masks.items())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[n].shape == right[n].shape
        and right[n].dtype == torch.bool
        and torch.equal(left[n], right[n])
        for n in left
    )


@given(masks_())
def test_decoding_gives_back_what_was_encoded_in_never_more_than_a_bit_a_weight(masks):
    data = encode_mask(masks)
    assert same(masks, decode_mask(data))
    assert encode_mask(decode_mask(data)) == data
    n = sum(m.numel() for m in masks.values())
    assert len(data) <= math.ceil(n / 8) + 64 + described(masks)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("percent", range(1, 100))
def test_random_masks_are_within_two_percent_of_their_entropy(percent):
    masks = {"w": spread_out(MILLION, MILLION * percent // 100, percent)}
    data = encode_mask(masks)
    assert len(data) <= 1.02 * entropy(masks["w"]) + 64 + described(masks)
    if percent % 7 == 1:
        assert same(masks, decode_mask(data))


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 200, 300, 500, 700, 1000, 3000])
@pytest.mark.parametrize("flipped", [False, True])
def test_nearly_empty_and_nearly_full_masks_too(kept, flipped):
    masks = {"w": spread_out(MILLION, kept, kept) ^ flipped}
    data = encode_mask(masks)
    assert len(data) <= 1.02 * entropy(masks["w"]) + 64 + described(masks)
    assert same(masks, decode_mask(data))


def test_tensors_of_uneven_density_are_coded_for_themselves():
    kept = [5_000, 100_000, 250_000, 490_000]
    masks = {f"layer{i}": spread_out(500_000, k, i).reshape(500, -1) for i, k in enumerate(kept)}
    data = encode_mask(masks)
    assert len(data) <= 1.02 * sum(map(entropy, masks.values())) + 64 + described(masks)
    assert same(masks, decode_mask(data))


@pytest.mark.parametrize(
    ("mask", "at_most"),
    [
        (torch.arange(MILLION) % 4 < 2, 1_000),  # the same 2 of every 4
        (torch.arange(1000)[:, None].expand(1000, 1000) % 3 == 0, 10_000),  # whole rows
        (torch.zeros(MILLION, dtype=torch.bool), 40),
        (torch.ones(MILLION, dtype=torch.bool), 40),
    ],
)
def test_patterns_cost_far_less_than_their_entropy(mask, at_most):
    data = encode_mask({"w": mask})
    assert len(data) <= at_most
    assert same({"w": mask}, decode_mask(data))


def test_many_names_alike_cost_little_and_views_are_masks_too():
    masks = {
        f"model.layers.{i}.self_attn.q_proj.weight": torch.ones(8, 8, dtype=torch.bool)
        for i in range(100)
    }
    assert len(encode_mask(masks)) < described(masks) / 4
    assert same(masks, decode_mask(encode_mask(masks)))
    view = spread_out(120, 40).reshape(10, 12).t()
    assert same({"t": view}, decode_mask(encode_mask({"t": view}))), "not contiguous"


SAMPLE = {
    "a": torch.tensor([[True, False], [False, False]]),
    "é": torch.tensor(True),
    "": torch.empty(0, 3, dtype=torch.bool),
    "gaps": torch.arange(5000) % 977 == 5,
}


def test_bytes_that_are_damaged_cut_short_or_added_are_noticed():
    data = encode_mask(SAMPLE)
    for i in range(len(data)):
        hurt = [data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :] for flip in (1, 0x80, 0xFF)]
        for bad in (data[:i], *hurt):
            with pytest.raises(ValueError, match=r"encoded mask"):
                decode_mask(bad)
    with pytest.raises(ValueError, match="cut short or damaged"):
        decode_mask(data + b"\0")


def test_another_format_or_version_is_called_so():
    with pytest.raises(ValueError, match="not an encoded mask: it does not start with b'FPMK'"):
        decode_mask(b"\x93NUMPY" + bytes(100))
    data = encode_mask(SAMPLE)
    with pytest.raises(ValueError, match="has version 9, expected 1"):
        decode_mask(data[:4] + b"\x09" + data[5:])


def test_only_boolean_tensors_are_masks():
    for function in (encode_mask, mask_digest):
        with pytest.raises(ValueError, match=r"mask of 'w' must be boolean, got torch\.float32"):
            function({"w": torch.ones(3)})


def test_the_digest_ignores_the_order_and_nothing_else():
    digest = mask_digest(SAMPLE)
    assert digest == mask_digest(dict(reversed(SAMPLE.items())))
    assert digest == mask_digest(decode_mask(encode_mask(SAMPLE)))
    others = [
        SAMPLE | {"a": torch.tensor([[True, False], [False, True]])},
        SAMPLE | {"a": torch.tensor([[True, False, False, False]])},
        {("b" if n == "a" else n): m for n, m in SAMPLE.items()},
        {n: m for n, m in SAMPLE.items() if n},
        {},
    ]
    assert len({digest, *map(mask_digest, others)}) == 1 + len(others)


def test_the_digest_of_a_known_mask():
    masks = {"b": torch.tensor([True, False, True]), "a": torch.ones(2, 8, dtype=torch.bool)}
    # By name: its length, the name, number of axes, axes; then the bits, first one on top.
    plain = b"\x01a\x02\x02\x08\xff\xff" + b"\x01b\x01\x03\xa0"
    assert mask_digest(masks) == hashlib.sha256(plain).hexdigest()


PAIR = {"a": torch.tensor([[True, False], [False, True]]), "b": torch.ones(3, dtype=torch.bool)}
EDITS = (Edit("head", "h.0.attn", (0, 2)), Edit("rank", "h.0.mlp.c_fc", (3,)))


def test_without_edits_bits_and_digest_are_the_masks_own():
    assert bits_of(PAIR, ()) == encode_mask(PAIR)
    assert model_digest(PAIR, ()) == mask_digest(PAIR)
    assert edits_in(encode_mask(PAIR)) == ()
    assert edits_in(b"") == ()


def test_mask_and_edits_come_back_and_have_a_digest_or_are_refused():
    bits = bits_of(PAIR, EDITS)
    assert edits_in(bits) == EDITS
    assert same(PAIR, decode_mask(mask_bits(bits)))
    digests = {model_digest(PAIR, edits) for edits in [(), EDITS, EDITS[:1], EDITS[1:]]}
    assert len(digests) == 4
    with pytest.raises(ValueError, match="edits"):
        edits_in(bits[:12] + bytes([bits[12] ^ 255]) + bits[13:])

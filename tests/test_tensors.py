import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedprune.streaming.packed import masks_for
from fedprune.tensors.holding import count_true, packed_bits
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import found_in, load_into, state_of
from fedprune.tensors.named import (
    all_true,
    as_bytes,
    copied,
    count,
    count_kept,
    digest,
    full_masks,
    gathered,
    laid_out,
    masked,
    scattered,
    whole_of,
)

NAN = float("nan")
NAMED = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a": torch.tensor([5.0, 6.0])}
MASKS = {"b": torch.tensor([[True, False], [False, True]])}


class Tied(nn.Module):
    """An embedding, a head that shares its weight, and a norm with integer and float buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("angles", torch.arange(3.0), persistent=False)
        self.register_buffer("shift", torch.arange(2.0))


def test_the_state_holds_ties_once_no_integers_and_no_constants():
    names = ["table.weight", "norm.weight", "norm.bias"]
    assert list(state_of(Tied())) == [*names, "shift", "norm.running_mean", "norm.running_var"]


def test_the_state_is_a_view_and_a_copy_is_not():
    model = Tied()
    copy = copied(state_of(model))
    state_of(model)["norm.bias"].fill_(7.0)
    assert model.norm.bias.tolist() == [7.0] * 3
    assert copy["norm.bias"].tolist() == [0.0] * 3


def test_loading_keeps_ties_and_leaves_integer_buffers():
    model = Tied()
    model.norm.num_batches_tracked.fill_(4)
    before = {id(p) for p in model.parameters()}
    load_into(model, {n: torch.full_like(t, 2.0) for n, t in state_of(model).items()})
    assert model.head.weight is model.table.weight
    assert {id(p) for p in model.parameters()} == before
    assert model.head.weight.unique().tolist() == [2.0]
    assert model.norm.num_batches_tracked.item() == 4


@pytest.mark.parametrize("odd", ["missing", "extra"])
def test_loading_names_what_does_not_fit(odd):
    model = Tied()
    state = copied(state_of(model))
    name = "norm.bias" if odd == "missing" else "head.bias"
    if odd == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(5)
    with pytest.raises(ValueError, match=name):
        load_into(model, state)


def test_masked_is_exactly_zero_whatever_stood_there():
    tensors = {"w": torch.tensor([NAN, float("inf"), -1.0, 2.0]), "free": torch.tensor([NAN])}
    out = masked(tensors, {"w": torch.tensor([False, False, False, True])})
    assert out["w"].tolist() == [0.0, 0.0, 0.0, 2.0]
    assert not torch.signbit(out["w"]).any()
    assert out["free"].isnan().all()
    assert tensors["w"].isnan().any(), "the argument is left alone"


def test_kept_goes_by_sorted_names_in_c_order():
    assert gathered(NAMED, MASKS).tolist() == [5.0, 6.0, 1.0, 4.0]
    assert gathered(NAMED, {}).tolist() == [5.0, 6.0, 1.0, 2.0, 3.0, 4.0]
    assert gathered({}, {}).tolist() == []


def test_spread_puts_values_back_under_zeros_in_the_order_of_the_shapes():
    out = scattered(torch.tensor([5.0, 6.0, 1.0, 4.0]), shapes_of(NAMED), MASKS)
    assert list(out) == ["b", "a"]
    assert out["b"].tolist() == [[1.0, 0.0], [0.0, 4.0]]
    assert out["a"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize("length", [0, 3, 5])
def test_spread_refuses_another_length(length):
    with pytest.raises(ValueError, match=f"expected 4 values, got {length}"):
        scattered(torch.zeros(length), shapes_of(NAMED), MASKS)


@st.composite
def masked_tensors(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors, masks = {}, {}
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        tensors[name] = torch.randn(shape, generator=gen)
        if draw(st.booleans()):
            masks[name] = torch.rand(shape, generator=gen) < draw(st.sampled_from([0, 0.5, 1]))
    return tensors, masks


@given(masked_tensors())
def test_spread_inverts_kept(given_):
    tensors, masks = given_
    flat = gathered(tensors, masks)
    back, expected = scattered(flat, shapes_of(tensors), masks), masked(tensors, masks)
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], expected[name]) for name in tensors)
    assert flat.numel() == count(tensors) - sum(int((~m).sum()) for m in masks.values())


def test_what_is_spread_shares_no_memory_with_the_buffer():
    flat = torch.tensor([5.0, 6.0, 1.0, 4.0])
    scattered(flat, shapes_of(NAMED), MASKS)["a"].zero_()
    assert flat.tolist() == [5.0, 6.0, 1.0, 4.0]


def test_counts():
    masks = full_masks(NAMED, ["b"])
    assert (count(NAMED), count_kept(masks), count_kept(MASKS)) == (6, 4, 2)
    assert list(masks) == ["b"]
    assert masks["b"].dtype == torch.bool


def test_the_digest_is_sha256_over_names_shapes_types_and_bytes():
    said = b"a|(2,)|torch.float32|" + NAMED["a"].numpy().tobytes()
    said += b"b|(2, 2)|torch.float32|" + NAMED["b"].numpy().tobytes()
    assert digest(NAMED) == hashlib.sha256(said).hexdigest()
    assert digest(dict(reversed(NAMED.items()))) == digest(NAMED)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([5.0, 6.0])},
        {**NAMED, "b": NAMED["b"].reshape(4)},
        {**NAMED, "b": NAMED["b"].T.contiguous()},
        {**NAMED, "a": NAMED["a"].double()},
        {**NAMED, "a": torch.tensor([5.0, 6.0000005])},
        {"b": NAMED["b"], "c": NAMED["a"]},
    ],
    ids=["fewer", "shape", "order", "type", "last bit", "name"],
)
def test_the_digest_sees_every_difference(other):
    assert digest(other) != digest(NAMED)


def test_the_digest_does_not_see_strides():
    assert digest({"b": NAMED["b"].T.contiguous().T}) == digest({"b": NAMED["b"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_raw_bytes_of_any_type_without_a_copy(dtype):
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    raw = as_bytes(tensor)
    assert len(raw) == 3 * dtype.itemsize
    tensor[0] = 1
    assert bytes(raw[: dtype.itemsize]) == bytes(raw[dtype.itemsize : 2 * dtype.itemsize])


def weight(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(torch.full((5, 3), 7.0))


def inside(model: nn.Module) -> None:
    model.norm = nn.LayerNorm(3)


def more(model: nn.Module) -> None:
    model.head.register_buffer("late", torch.ones(1))


def less(model: nn.Module) -> None:
    del model.shift


def frozen(model: nn.Module) -> None:
    model.table.weight.requires_grad_(False)


@pytest.mark.parametrize("edit", [weight, inside, more, less, frozen])
def test_what_a_model_holds_is_found_again_when_it_holds_something_else(edit):
    model, fresh = Tied(), Tied()
    state_of(model)
    edit(model)
    edit(fresh)
    assert shapes_of(state_of(model)) == shapes_of(state_of(fresh))
    held = {id(t) for t in (*model.parameters(), *model.buffers())}
    found = found_in(model)
    assert {id(t) for t in (*found.parameters.values(), *found.buffers.values())} == held
    assert {id(m) for m in found.modules} == {id(m) for m in model.modules()} - {id(model)}


def test_tensors_that_lie_in_order_are_one_flat_tensor_without_a_copy():
    tensors = laid_out({"b": torch.Size([2, 3]), "a": torch.Size([4])})
    for i, t in enumerate(tensors.values()):
        t.copy_(torch.arange(t.numel()).view(t.shape) + 10 * i)
    whole = whole_of(tensors)
    assert torch.equal(whole, gathered(tensors, {}))
    assert whole.data_ptr() == tensors["a"].data_ptr()
    apart = [
        {**tensors, "a": tensors["a"].clone()},
        {"b": tensors["a"], "a": tensors["b"]},
        {**tensors, "b": tensors["b"].t()},
        {**tensors, "c": tensors["a"]},
        {},
    ]
    assert [whole_of(t) for t in apart] == [None] * 5


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (5, 7), (0, 4)])
def test_a_mask_that_keeps_all_is_one_flag_and_counts_as_many(shape: tuple[int, ...]):
    mask = masks_for({"w": torch.zeros(shape)}, ["w"])["w"]
    assert mask.untyped_storage().nbytes() == 1
    assert mask.shape == shape
    own = torch.ones(shape, dtype=torch.bool)
    for each in (mask, own, ~mask, ~own):
        flags = each.numpy()
        assert count_true(each) == flags.sum()
        assert all_true(each) == flags.all()
        packed = packed_bits(each)
        assert (packed is None) == flags.all()
        assert packed is None or packed.tobytes() == np.packbits(flags.reshape(-1)).tobytes()

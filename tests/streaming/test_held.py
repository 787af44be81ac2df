"""What of a large model lies in memory once: its head by parts, masks as coded, kept weights."""

import math

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fedprune.client.host import build_host
from fedprune.protocol.broadcast import encode_question
from fedprune.protocol.messages import Question
from fedprune.streaming import blocks, by_rows
from fedprune.streaming.by_rows import read_by_rows
from fedprune.streaming.packed import under_masks
from fedprune.tensors.named import masked
from tests.runs import same
from tests.streaming.saved import packed_masks, saved, untrained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("biased", [True, False])
def test_a_head_is_read_some_rows_at_a_time(monkeypatch, dtype, biased):
    gen, forgot = torch.Generator().manual_seed(0), list[int]()
    head = torch.nn.Linear(32, 1000, bias=biased, dtype=dtype)
    x = torch.randn(2, 5, 32, generator=gen).to(dtype)
    whole = head(x).detach()
    read_by_rows(head, lambda: forgot.append(1))
    with torch.no_grad():
        assert torch.equal(head(x), whole)
        assert not forgot, "it is no larger than what may be resident"
        monkeypatch.setattr(by_rows, "READ_AHEAD", 256 * 32 * dtype.itemsize)
        torch.testing.assert_close(head(x), whole)
    assert len(forgot) == 4
    head(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, head.weight.sum(0).expand(2, 5, 32))
    assert len(forgot) == 4, "for gradients it is read at once"


def test_the_head_of_a_streamed_model_is(monkeypatch):
    seen = list[int]()
    monkeypatch.setattr(blocks, "read_by_rows", lambda layer, _: seen.append(layer.out_features))
    build_host(untrained(saved("llama", torch.float32), stream="on"))
    assert seen == [98]


def test_masks_that_were_asked_with_lie_where_they_are_coded():
    mask = torch.rand(64, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = packed_masks({"w": mask})
    packet = encode_question(Question("describe", 1, {}, packed), "fp32")
    flags = packed.bits("w")
    assert flags is not None
    assert np.shares_memory(flags, np.frombuffer(packet["bits"], np.uint8))
    assert np.array_equal(flags, np.packbits(mask.numpy()))
    assert torch.equal(packed["w"], mask)
    again = encode_question(Question("describe", 1, {}, packed), "fp32")
    assert again.buffers == packet.buffers


def test_of_weights_that_are_set_the_kept_ones_are_held():
    gen = torch.Generator().manual_seed(0)
    masks = {"b": torch.rand(6, 5, generator=gen) < 0.4, "a": torch.ones(4, dtype=torch.bool)}
    weights = {n: torch.randn(m.shape, generator=gen).bfloat16() for n, m in masks.items()}
    weights["b"][~masks["b"]] = math.nan
    wanted, place = masked(weights, masks), StorageWeakRef(weights["b"].untyped_storage())
    held, now = under_masks(weights, packed_masks(masks)), under_masks(weights, masks)
    for found in (held, now):
        assert list(found) == ["b", "a"]
        assert same(found, wanted)
    del weights
    assert place.expired(), "what is removed is not kept"

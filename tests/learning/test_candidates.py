"""Many models near one: what lies on the way to them, and that all of it survives the wire."""

from dataclasses import replace

import pytest
import torch

from fedprune.learning.candidates import (
    HERE,
    Candidate,
    as_table,
    blended,
    climbed,
    from_table,
    way_back,
    without,
)
from fedprune.protocol.broadcast import decode_question, encode_question
from fedprune.structure.layout import Layout
from fedprune.tensors.named import masked
from tests.runs import same

NORM = Layout(
    {n: torch.Size([4]) for n in ("w", "bn.mean", "bn.var")}, ("w",), (), {"bn.var": "bn.mean"}
)
AFTER = {
    "w": torch.tensor([1.0, -2.0, 0.5, 3.0]),
    "bn.mean": torch.tensor([0.0, 1.0, -1.0, 5.0]),
    "bn.var": torch.tensor([1.0, 0.25, 4.0, 1e-3]),
}
BEFORE = {
    "w": torch.tensor([2.0, 2.0, 0.25, 3.0]),
    "bn.mean": torch.tensor([0.5, 1.0, 3.0, 5.0]),
    "bn.var": torch.tensor([2.0, 0.5, 1.0, 2e-3]),
}


def test_the_whole_change_is_the_same_bits_and_none_of_it_what_was_before():
    back = way_back(BEFORE, AFTER, NORM)
    out = blended(AFTER, back, HERE, NORM)
    assert all(out[n] is AFTER[n] for n in AFTER)
    out = blended(AFTER, back, Candidate(1.0), NORM)
    for name in BEFORE:
        torch.testing.assert_close(out[name], BEFORE[name], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.25])
def test_weights_and_moments_are_blended_in_proportion(share):
    out = blended(AFTER, way_back(BEFORE, AFTER, NORM), Candidate(1.0 - share), NORM)
    whole = dict.fromkeys(("bn.mean", "bn.var"), min(share, 1.0))  # no statistic is extrapolated
    for name in ("w", "bn.mean"):
        part = whole.get(name, share)
        torch.testing.assert_close(out[name], part * AFTER[name] + (1 - part) * BEFORE[name])
    share = whole["bn.var"]
    second = [t["bn.var"].double() + t["bn.mean"].double() ** 2 for t in (AFTER, BEFORE)]
    moment = share * second[0] + (1 - share) * second[1]
    variance = (moment - out["bn.mean"].double() ** 2).clamp(min=0.0)
    torch.testing.assert_close(out["bn.var"].double(), variance, rtol=1e-5, atol=1e-5)


def test_a_tensor_can_go_its_own_way():
    back = way_back(BEFORE, AFTER, NORM)
    out = blended(AFTER, back, Candidate(apart={"w": 1.0}), NORM)
    assert torch.equal(out["w"], BEFORE["w"])
    assert out["bn.var"] is AFTER["bn.var"]


def test_what_was_removed_stays_zero_on_the_way():
    masks = {"w": torch.tensor([True, False, True, False])}
    before, after = masked(BEFORE, masks), masked(AFTER, masks)
    out = blended(after, way_back(before, after, NORM), Candidate(-0.25), NORM)
    assert not out["w"][~masks["w"]].any()
    assert out["w"][masks["w"]].all()


RUNGS = {"w": torch.tensor([0, 2, 1, 3], dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("rung", "kept"),
    [(0, [1, -2, 0.5, 3]), (1, [1, -2, 0, 3]), (2, [1, 0, 0, 3]), (3, [1, 0, 0, 0])],
)
def test_a_rung_lacks_what_the_rungs_before_it_lack(rung, kept):
    out = without(AFTER, RUNGS, Candidate(float(rung)))
    assert out["w"].tolist() == kept
    assert out["bn.var"] is AFTER["bn.var"]
    assert climbed(RUNGS["w"], rung).tolist() == [k == 0 for k in kept]


def test_candidates_as_a_table_come_back():
    names = ["bn.mean", "bn.var", "w"]
    given = (HERE, Candidate(2.0), Candidate(0.1, {"w": 0.3, "bn.var": -0.25}))
    assert from_table(as_table(given, names), names) == given


@pytest.mark.parametrize("table", [[[1.0, [[3, 1.0]]]], [[1.0]], [["x", []]], 5])
def test_a_malformed_table_is_refused(table):
    with pytest.raises(ValueError):  # noqa: PT011 (which one does not matter: all are refusals)
        from_table(table, ["a", "b"])


def test_a_comparison_survives_the_wire(cnn):
    host, about = cnn
    gen, candidates = torch.Generator().manual_seed(0), (HERE, Candidate(1.0))
    candidates += (Candidate(apart={"hidden.weight": 2.0}),)
    drawn = {n: torch.randint(0, 4, m.shape, generator=gen) for n, m in about.masks.items()}
    rungs = {n: (r * about.masks[n]).to(torch.uint8) for n, r in drawn.items()}
    plain = replace(about, kind="compare", part="validation", candidates=candidates)
    packet = encode_question(replace(plain, rungs=rungs), "fp32")
    assert packet.size() > encode_question(plain, "fp32").size()
    seen = decode_question(packet, host.layout)
    assert seen.candidates == candidates
    assert same(seen.rungs, rungs)
    back = way_back(BEFORE, AFTER, NORM)
    packet = encode_question(replace(plain, given=back), "fp32")
    assert same(decode_question(packet, host.layout).given, back)

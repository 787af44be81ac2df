from typing import Any

import pytest
import torch

from fedprune.learning.moving_average import moved
from fedprune.structure.layout import Layout
from fedprune.tensors.named import full_masks

PLAIN = Layout({"w": torch.Size([3])}, ("w",), (), {})
ROUNDS = [{"w": torch.tensor(v)} for v in ([1.0, -2.0, 0.5], [3.0, 0.0, 0.25], [2.0, 8.0, 0.0])]
ALL = full_masks(ROUNDS[0], ["w"])


def after(decay: float | None) -> Any:
    moving = None
    for weights in ROUNDS:
        moving = moved(moving, weights, ALL, PLAIN, decay)
    return moving


def test_without_a_decay_all_rounds_count_alike():
    expected = torch.stack([r["w"] for r in ROUNDS]).double().mean(0)
    assert after(None).rounds == 3
    torch.testing.assert_close(after(None).weights["w"].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_a_decay_forgets_exponentially(decay):
    expected = ROUNDS[0]["w"].double()
    for weights in ROUNDS[1:]:
        expected = decay * expected + (1 - decay) * weights["w"].double()
    torch.testing.assert_close(after(decay).weights["w"].double(), expected, rtol=1e-6, atol=1e-7)
    if not decay:
        assert torch.equal(after(0.0).weights["w"], ROUNDS[-1]["w"])


def test_the_average_is_zero_where_something_was_removed_and_is_no_part_of_what_it_is_of():
    masks = {"w": torch.tensor([True, False, True])}
    weights = {"w": ROUNDS[0]["w"].clone()}
    first = moved(None, weights, ALL, PLAIN, 0.5)
    weights["w"].zero_()
    assert first.weights["w"].tolist() == [1.0, -2.0, 0.5]
    pruned = {"w": ROUNDS[1]["w"] * masks["w"]}
    assert moved(first, pruned, masks, PLAIN, 0.5).weights["w"].tolist() == [2.0, 0.0, 0.375]


def test_variances_are_averaged_as_second_moments():
    layout = Layout({n: torch.Size([1]) for n in ("m", "v")}, (), (), {"v": "m"})
    low = {"m": torch.tensor([-1.0]), "v": torch.tensor([0.5])}
    high = {"m": torch.tensor([3.0]), "v": torch.tensor([1.5])}
    both = moved(moved(None, low, {}, layout, None), high, {}, layout, None).weights
    # Of a mixture of two: the mean of the variances and the variance of the means.
    assert both["m"].item() == pytest.approx(1.0)
    assert both["v"].item() == pytest.approx(1.0 + 4.0)

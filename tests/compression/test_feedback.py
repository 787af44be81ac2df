from pathlib import Path

import pytest
import torch

from fedprune.compression.feedback import Residuals, keep, recalled
from fedprune.compression.rounding import decode_rounded, encode_rounded

WEIGHTS = {"w": torch.zeros(2, 3), "free": torch.zeros(2)}
MASKS = {"w": torch.tensor([[True, False, True], [True, True, True]])}


@pytest.fixture(params=["memory", "folder"])
def residuals(request, tmp_path: Path) -> Residuals:
    return Residuals(tmp_path / "residuals" if request.param == "folder" else None)


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_what_was_kept_is_recalled_by_the_same_partition_in_a_later_round(residuals: Residuals):
    kept_back = flat(1, 2, 3, 4, 5, 6, 7)  # two that are free, five that the mask keeps
    keep(residuals, 4, 2, kept_back, WEIGHTS, MASKS)
    assert torch.equal(recalled(residuals, 4, 3, WEIGHTS, MASKS), kept_back)
    assert torch.equal(recalled(residuals, 4, 9, WEIGHTS, MASKS), kept_back)
    for partition, before in ((4, 2), (4, 1), (40, 9), (0, 9)):
        assert torch.equal(recalled(residuals, partition, before, WEIGHTS, MASKS), torch.zeros(7))


def test_what_was_removed_since_is_left_out(residuals: Residuals):
    keep(residuals, 0, 1, flat(1, 2, 3, 4, 5, 6, 7), WEIGHTS, MASKS)
    fewer = {"w": torch.tensor([[False, False, True], [True, False, True]])}
    assert recalled(residuals, 0, 2, WEIGHTS, fewer).tolist() == [1, 2, 4, 5, 7]


def test_a_round_that_is_played_again_recalls_the_same(residuals: Residuals):
    for at in (1, 3, 4):
        keep(residuals, 0, at, torch.full((7,), float(at)), WEIGHTS, MASKS)
    # Round 4 was cut short: its checkpoint is that of round 3 at the latest.
    assert recalled(residuals, 0, 4, WEIGHTS, MASKS)[0] == 3
    assert recalled(residuals, 0, 5, WEIGHTS, MASKS)[0] == 4


def test_only_what_a_resume_may_ask_for_is_kept(tmp_path: Path):
    residuals = Residuals(tmp_path)
    for at in range(1, 7):
        keep(residuals, 12, at, torch.ones(7), WEIGHTS, MASKS)
        keep(residuals, 1, at, torch.ones(7), WEIGHTS, MASKS)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{p}-{r}.safetensors" for p in (1, 12) for r in (5, 6)]


@pytest.mark.parametrize("bits", [4, 8])
def test_all_that_was_sent_and_what_is_left_is_all_that_was_meant(residuals, bits: int):
    gen = torch.Generator().manual_seed(3)
    meant = sent = torch.zeros(7, dtype=torch.float64)
    for at in range(1, 30):
        change = torch.randn(7, generator=gen)
        meant = meant + change.double()
        whole = change + recalled(residuals, 0, at, WEIGHTS, MASKS)
        arrives = decode_rounded(encode_rounded(whole, bits, gen), bits, 7)
        keep(residuals, 0, at, whole - arrives, WEIGHTS, MASKS)
        sent = sent + arrives.double()
    left = recalled(residuals, 0, 30, WEIGHTS, MASKS)
    assert torch.allclose(sent + left, meant, atol=1e-5)
    assert left.any()

import pytest
import torch

from fedprune.client.memory import Residuals, keep, recalled
from fedprune.codec.stochastic_rounding import decode_rounded, encode_rounded

WEIGHTS = {"w": torch.zeros(2, 3), "free": torch.zeros(2)}
MASKS = {"w": torch.tensor([[True, False, True], [True, True, True]])}


@pytest.fixture(params=["memory", "folder"])
def residuals(request, tmp_path) -> Residuals:
    return Residuals(tmp_path / "residuals" if request.param == "folder" else None)


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_what_was_kept_is_recalled_by_the_same_partition(residuals):
    kept_back = flat(1, 2, 3, 4, 5, 6, 7)  # two that are free, five that the mask keeps
    keep(residuals, 4, 2, 0, kept_back, WEIGHTS, MASKS)
    assert torch.equal(recalled(residuals, 4, 2, WEIGHTS, MASKS), kept_back)
    assert torch.equal(recalled(residuals, 4, 0, WEIGHTS, MASKS), torch.zeros(7))
    for partition, at in ((4, 1), (4, 3), (40, 2), (0, 2)):
        with pytest.raises(ValueError, match=f"kept back in round {at} is not in"):
            recalled(residuals, partition, at, WEIGHTS, MASKS)


def test_what_was_removed_since_is_left_out(residuals):
    keep(residuals, 0, 1, 0, flat(1, 2, 3, 4, 5, 6, 7), WEIGHTS, MASKS)
    fewer = {"w": torch.tensor([[False, False, True], [True, False, True]])}
    assert recalled(residuals, 0, 1, WEIGHTS, fewer).tolist() == [1, 2, 4, 5, 7]


def test_what_counted_last_stays_whatever_is_lost_after_it(tmp_path):
    residuals = Residuals(tmp_path)
    for partition in (1, 12):
        for at, since in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 2)):  # 3, 4 and 5 were lost
            keep(residuals, partition, at, since, torch.full((7,), float(at)), WEIGHTS, MASKS)
        assert recalled(residuals, partition, 2, WEIGHTS, MASKS)[0] == 2
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{p}-{r}.safetensors" for p in (1, 12) for r in (2, 5)]


@pytest.mark.parametrize("bits", [4, 8])
def test_all_that_was_sent_and_what_is_left_is_all_that_was_meant(residuals, bits):
    gen = torch.Generator().manual_seed(3)
    meant = sent = torch.zeros(7, dtype=torch.float64)
    for at in range(1, 30):
        change = torch.randn(7, generator=gen)
        meant = meant + change.double()
        whole = change + recalled(residuals, 0, at - 1, WEIGHTS, MASKS)
        arrives = decode_rounded(encode_rounded(whole, bits, gen), bits, 7)
        keep(residuals, 0, at, at - 1, whole - arrives, WEIGHTS, MASKS)
        sent = sent + arrives.double()
    left = recalled(residuals, 0, 29, WEIGHTS, MASKS)
    assert torch.allclose(sent + left, meant, atol=1e-5)
    assert left.any()

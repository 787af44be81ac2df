import numpy as np
import pytest

from fedprune.attacks.membership_report import SPARSITIES, membership_findings, membership_study
from fedprune.attacks.shadows import Attacked, halves


def attacked(sparsity: float, gain: float) -> Attacked:
    inside = halves(8, 1500, 0)
    noise = np.random.default_rng(1).normal(size=inside.shape)
    return Attacked(sparsity, noise + gain * inside, inside, (0.99, 0.9))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((1.5, 0.5), "finds fewer members than of the dense model"),
        ((0.5, 1.5), "finds more members than of the dense model"),
        ((1.0, 1.0), "as many members, as far as these intervals tell"),
    ],
)
def test_both_directions_are_told(gains, words):
    section, figures = membership_findings(
        [attacked(0.0, gains[0]), attacked(0.8, gains[1])], "Of arrays."
    )
    assert words in section.text[3]
    assert "80 % sparse" in section.text[3]
    assert figures.keys() == {"0", "0.8"}
    assert not any("protects" in paragraph for paragraph in section.text)


def test_the_table_has_every_attack_on_every_model_with_intervals():
    section, figures = membership_findings([attacked(0.0, 1.0), attacked(0.5, 1.0)], "Of arrays.")
    assert [row[0] for row in section.table.rows] == ["dense", "dense", *["50 % sparse"] * 2]
    assert [row[3] for row in section.table.rows] == ["LiRA", "threshold"] * 2
    found = figures["0"]["lira"]["tpr_at_0.01"]
    assert found["low"] < found["share"] < found["high"]
    share = f"{100 * found['share']:.2f} % [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
    assert section.table.rows[0][5] == share
    assert all(len(row) == len(section.table.columns) for row in section.table.rows)
    (picture,) = section.pictures
    lines = picture.figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["dense", "50 % sparse", "chance"]


@pytest.mark.slow
def test_the_study_of_digits_finds_members_of_every_model():
    told: list[int] = []
    _, figures = membership_study(0, 6, lambda: told.append(1))
    assert len(told) == 6
    assert list(figures) == [f"{s:g}" for s in SPARSITIES]
    for one in figures.values():
        assert one["lira"]["tpr_at_0.01"]["low"] > 0.01  # chance
        assert one["lira"]["auc"] > one["threshold"]["auc"] > 0.5

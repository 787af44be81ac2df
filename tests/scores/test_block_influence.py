import math

import pytest
import torch
from specimens import BLOCKS, Specimen, built, evidence_of, probe_of
from torch import Tensor, nn

from fedprune.scores.block_influence import INFLUENCE, block_influence
from fedprune.scores.catalog import SCORES
from fedprune.structure.groups import Block, Structure
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks

ASK = SCORES["block_influence"].asks[0]


class Turn(nn.Module):
    """A block that turns vectors of two by an angle; called and answering in several ways."""

    def __init__(self, angle: float, as_tuple: bool) -> None:
        super().__init__()
        c, s = math.cos(angle), math.sin(angle)
        self.layer = nn.Linear(2, 2, bias=False)
        self.layer.weight.data = torch.tensor([[c, -s], [s, c]]).double() * 3.0
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, int]:
        y = self.layer(hidden_states)
        return (y, 1) if self.as_tuple else y


class Turns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Turn(math.pi / 3, False), Turn(math.pi / 2, True)
        self.head = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(hidden_states=self.first(x))[0])


def summed(model: nn.Module, batch: Part) -> Loss:
    return Loss(model(batch["x"]).sum(), len(batch["x"]), 0)


def test_a_block_scores_the_angle_it_turns_by():
    model = Turns()
    plain = layout_of(model)
    blocks = tuple(Block(p, (f"{p}.layer.weight",)) for p in ("first", "second"))
    layout = Layout(plain.shapes, plain.prunable, (), {}, plain.kinds, Structure((), blocks))
    part = {"x": torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)).double()}
    masks = full_masks(state_of(model), plain.prunable)
    s = Specimen(model, layout, summed, (part,), masks, 1)
    sums = ASK.collect(probe_of(s, list(batches(part, 2))))
    assert sums[INFLUENCE][:, 1].tolist() == [15, 15]
    scores = block_influence(evidence_of(s, sums, 5.0))
    for name, angle in (("first.layer", 0.5), ("second.layer", 1.0), ("head", 0.0)):
        assert scores[f"{name}.weight"].flatten().tolist() == pytest.approx([angle] * 4)


def test_every_family_has_blocks_that_turn_what_flows_through_and_others_are_refused():
    for family in BLOCKS:
        s = built(family)
        sums = ASK.collect(probe_of(s, [s.shards[0]]))[INFLUENCE]
        assert len(sums) == {"t5": 4}.get(family, 2)
        assert sums[:, 1].tolist() == [4 * 6] * len(sums), "tokens"
        assert bool(((sums[:, 0] > 0) & (sums[:, 0] < 2 * sums[:, 1])).all())
    s = built("cnn")
    with pytest.raises(ValueError, match=r"^score='block_influence': no blocks .*; allowed: .*$"):
        ASK.shapes(s.layout, s.layout.prunable, "layer", 0)

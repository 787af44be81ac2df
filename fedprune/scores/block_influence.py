"""Block Influence: how far a block turns what flows through it (ShortGPT).

Men et al. 2024, arXiv 2403.03853, eq. 1: BI = 1 - mean over tokens of cos(x_in, x_out). The
paper's mean is over tokens of one calibration set; here the clients' tokens are added up, padding
included. A block that hardly turns its input scores low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedprune.scores.score import Evidence, Probe, Shapes, Statistic, unrecognised
from fedprune.streaming.blocks import send_through
from fedprune.structure.layout import Layout
from fedprune.tensors.hooks import removed_after
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors

INFLUENCE = "block_influence"  # The summand: a row (Σ 1 - cos, tokens) for every block


def _shapes(layout: Layout, _names: Sequence[str], _unit: str, _probes: int) -> Shapes:
    blocks = len(layout.structure.blocks)
    if not blocks:
        raise unrecognised(INFLUENCE, "blocks")
    return {INFLUENCE: torch.Size([blocks, 2])}


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    blocks = probe.layout.structure.blocks
    sums = torch.zeros(len(blocks), 2, dtype=torch.float64)

    def hook_of(i: int) -> Callable[..., None]:
        def hook(
            _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: object
        ) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            turned = _turned(x, y[0] if isinstance(y, tuple | list) else y)
            sums[i, 0] += float(turned.sum())
            sums[i, 1] += turned.numel()

        return hook

    hooks = [
        probe.model.get_submodule(block.path).register_forward_hook(hook_of(i), with_kwargs=True)
        for i, block in enumerate(blocks)
    ]
    with removed_after(hooks):
        send_through(probe.model, probe.batches, probe.loss)
    return {INFLUENCE: sums}


def _turned(x: Tensor, y: object) -> Tensor:
    """1 - cos of every token, float64."""
    assert isinstance(y, Tensor)  # a block gives its hidden states, alone or first
    return 1.0 - nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)


ASK_BLOCK_INFLUENCE = Statistic(_collect, _shapes, passes="1 forward", signed=False)


def block_influence(evidence: Evidence) -> Tensors:
    """Every weight's score is the influence of its block; 0 of what is in none and always stays."""
    turned, tokens = evidence.sums[INFLUENCE].unbind(-1)
    mean = (turned / tokens.clamp(min=1.0)).tolist()
    blocks = enumerate(evidence.layout.structure.blocks)
    return by_name(evidence, {name: mean[i] for i, block in blocks for name in block.tensors})


def by_name(evidence: Evidence, scores: Mapping[str, float]) -> Tensors:
    """Tensors of one score each, float64; 0 of those without one."""
    return {
        name: torch.full(shape, scores.get(name, 0.0), dtype=torch.float64)
        for name, shape in shapes_of(evidence.weights).items()
    }

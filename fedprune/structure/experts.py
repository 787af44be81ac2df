"""Mixtures of experts: a router sends every token to a few of many small feed-forward layers.

`transformers` keeps all experts of a block as two stacks of matrices, which no layer multiplies by.
Here each expert is a module of linear layers, under the names that its files have on disk, so that
rows, columns, patterns, neurons and sums of inputs (of the tokens that were sent to it) are those
of any other layer. The dense model says what it said.

An expert without any weight is not there: the router passes it over, and its tokens go to others.
So a masked model says what one says that lost the expert and its row of the router.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedprune.structure.edits import Edit
from fedprune.structure.families.catalog import MIXTURES
from fedprune.structure.layer_kinds import family_name
from fedprune.structure.removal import Gone, replace

EXPERTS, ROUTER = "experts", "gate"
"""Where a mixture has them."""


class Expert(nn.Module):
    """A gated feed-forward layer, one of many."""

    def __init__(self, made: Tensor, reads: Tensor, activation: nn.Module, trains: bool) -> None:
        """Of gate and up (2 · neurons, width) and down (width, neurons), which are copied."""
        super().__init__()
        gate, up = made.chunk(2)
        self.gate_proj, self.up_proj = _linear(gate, trains), _linear(up, trains)
        self.down_proj = _linear(reads, trains)
        self.act_fn = activation

    def forward(self, states: Tensor) -> Tensor:
        """(tokens, width) to (tokens, width)."""
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))
        return out


def _linear(weight: Tensor, trains: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trains)
    return layer


class Experts(nn.Module):
    """The experts of a mixture that are left, by their number in the dense model."""

    def forward(self, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The weighted sum of what each token's experts say.

        Args:
            states: (tokens, width).
            chosen: (tokens, k), places among those that are left.
            shares: (tokens, k).
        """
        out = torch.zeros_like(states)
        for place, expert in enumerate(self.children()):
            tokens, slots = torch.where(chosen == place)
            said = expert(states[tokens]) * shares[tokens, slots, None]
            out.index_add_(0, tokens, said.expand(len(tokens), out.shape[1]).to(out.dtype))
        return out

    def living(self) -> Tensor:
        """Which of those that are left have a weight that is not 0, (experts,) bool.

        A bias, as FLAP gives one, is none: an expert without weights is cut out with its bias.
        """
        each = ([p for p in e.parameters() if p.dim() > 1] for e in self.children())
        return torch.tensor([any(map(_holds, weights)) for weights in each])


def _holds(weight: Tensor) -> bool:
    # It stops at the first number that is not 0, and gives no tensor, so is no use of the weight.
    zeros = torch.zeros((), dtype=weight.dtype, device=weight.device)
    return weight.numel() > 0 and not torch.equal(weight, zeros.expand(weight.shape))


def _passing_over(experts: Experts, router: Any, _args: object, routed: Any) -> Any:
    """What a router says without experts that are not there; None: as it said.

    Computed of the others' logits alone, as transformers does it: the same bits as without them.
    """
    living = experts.living()
    if bool(living.all()):
        return None
    places = living.nonzero()[:, 0].to(routed[0].device)
    chances = routed[0][:, places].float().softmax(-1)
    shares, chosen = chances.topk(min(router.top_k, len(places)), dim=-1)
    if getattr(router, "norm_topk_prob", True):
        shares = shares / shares.sum(-1, keepdim=True)
    return routed[0], shares.to(routed[1].dtype), places[chosen]


class NoRouter(nn.Module):
    """In place of the router of a mixture without experts, beside an expert that all share."""

    def forward(self, _states: Tensor) -> tuple[None, None, None]:
        """Nothing: there is nobody to send tokens to."""
        return None, None, None


class NoExperts(nn.Module):
    """In place of the experts of such a mixture."""

    def forward(self, states: Tensor, _chosen: None, _shares: None) -> Tensor:
        """Zeros."""
        return torch.zeros_like(states)


@torch.no_grad()
def with_experts(model: nn.Module) -> nn.Module:
    """The model with modules in the place of stacks of experts, changed in place and returned.

    Models of families that this library does not know (`fedprune.structure.families.catalog`), and
    those that are so already, stay as they are.
    """
    for block in mixtures_in(model).values():
        stacks: Any = block.get_submodule(EXPERTS)
        if isinstance(stacks, Experts):
            continue
        trains, experts = stacks.gate_up_proj.requires_grad, Experts()
        pairs = zip(stacks.gate_up_proj, stacks.down_proj, strict=True)
        for i, (made, reads) in enumerate(pairs):
            experts.add_module(str(i), Expert(made, reads, stacks.act_fn, trains))
        setattr(block, EXPERTS, experts.train(stacks.training))
        block.get_submodule(ROUTER).register_forward_hook(partial(_passing_over, experts))
    return model


def mixtures_in(model: nn.Module) -> dict[str, nn.Module]:
    """The mixtures of experts of a model, by path."""
    return {p: m for p, m in model.named_modules() if family_name(m) in MIXTURES}


_ON_DISK = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Mixtral's names in files."""

_Held = TypeVar("_Held")


def named_as_modules(held: Mapping[str, _Held], model: nn.Module) -> dict[str, _Held]:
    """What files hold by name, under the names in the model.

    Mixtral, GPT-NeoX and ViT have others on disk, as `transformers` says, which renames them when
    it reads and writes.
    """
    own = model.state_dict(keep_vars=True).keys()
    renamings = [] if held.keys() <= own else _renamings(model)

    def named(name: str) -> str:
        there = name
        for renaming in renamings:
            there = renaming.rename_source_key(there)[0]
        if name not in own and there in own:
            return there
        mixed = name.replace(".block_sparse_moe.", ".mlp.")
        found = re.fullmatch(r"(.*\.experts\.\d+)\.(w[123])\.weight", mixed)
        return mixed if found is None else f"{found[1]}.{_ON_DISK[found[2]]}.weight"

    return {named(name): value for name, value in held.items()}


def _renamings(model: nn.Module) -> list[Any]:
    """How `transformers` renames what a file of this model holds, one after the other."""
    if not hasattr(model, "save_pretrained"):
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    known: Any = model
    found = get_model_conversion_mapping(known, add_legacy=False)
    return [renaming for renaming in found if isinstance(renaming, WeightRenaming)]


_PART = re.compile(rf"(.*\.{EXPERTS})\.\d+\.(gate|up|down)_proj\.weight")


def stacked_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with experts stacked as `transformers` has them; other tensors as they are.

    Raises:
        ValueError: an expert has nothing but zeros, or two of one mixture are not of one shape.
    """
    parts: dict[tuple[str, str], list[Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, value in state.items():
        found = _PART.fullmatch(name)
        if found is None:
            rest[name] = value
        else:
            parts.setdefault((found[1], found[2]), []).append(value)
    for path in dict.fromkeys(path for path, _ in parts):
        gate, up, down = (parts[path, part] for part in ("gate", "up", "down"))
        if any(len({t.shape for t in part}) > 1 for part in (gate, up, down)):
            raise ValueError(f"{path}: its experts keep unequal numbers of neurons")
        if not all(any(map(_holds, each)) for each in zip(gate, up, down, strict=True)):
            raise ValueError(
                f"{path}: an expert has no weight left and is in the model, where transformers "
                "would send tokens to it"
            )
        pairs = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
        rest[f"{path}.gate_up_proj"] = torch.stack(pairs)
        rest[f"{path}.down_proj"] = torch.stack(down)
    return rest


def cut_experts(model: nn.Module, edit: Edit) -> None:
    """Take experts out of a mixture, with their rows of the router, in place.

    Raises:
        ValueError: no mixture there, or numbers that are not ascending numbers of its experts.
    """
    block: Any = mixtures_in(model).get(edit.path)
    held = None if block is None else getattr(block, EXPERTS)
    if not isinstance(held, Experts):
        known = ", ".join(MIXTURES)
        raise ValueError(f"edit 'expert' of {edit.path!r}: no experts; allowed: {known}")
    numbers = [int(name) for name, _ in held.named_children()]
    if list(edit.kept) != sorted(set(edit.kept) & set(numbers)):
        raise ValueError(
            f"edit 'expert' of {edit.path!r}: keeps {list(edit.kept)[:8]}; "
            f"allowed: ascending numbers among {numbers[:8]}"
        )
    for number in set(numbers) - set(edit.kept):
        delattr(held, str(number))
    router = getattr(block, ROUTER)
    places = torch.tensor([numbers.index(n) for n in edit.kept], dtype=torch.long)
    rows = router.weight.detach().index_select(0, places.to(router.weight.device))
    router.weight = nn.Parameter(rows, requires_grad=router.weight.requires_grad)
    router.num_experts, router.top_k = len(places), min(router.top_k, len(places))


def tidy_mixtures(model: nn.Module) -> None:
    """Take out what is left of mixtures without experts, and gates of what is gone."""
    for block in mixtures_in(model).values():
        shared = getattr(block, "shared_expert", None)
        alone = shared is None or isinstance(shared, Gone)
        empty = not list(getattr(block, EXPERTS).parameters())
        if empty and alone:
            gone = Gone("reader", None, nn.Identity(), ())
            for parent, _ in replace(model, block, gone):
                parent.post_attention_layernorm = nn.Identity()
        elif empty:
            setattr(block, ROUTER, NoRouter())
            setattr(block, EXPERTS, NoExperts())
        elif isinstance(shared, Gone):
            block.shared_expert_gate = Gone("reader", None, nn.Identity(), ())

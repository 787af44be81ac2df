"""T5's position bias: made in the first block for all heads, read by blocks with fewer heads.

Every self-attention of a stack adds one bias (1, heads, queries, keys), a table's lookup that the
first one makes and hands on (Raffel et al. 2020, arXiv 1910.10683, section 2.1). So the table
keeps all heads, and an attention that lost some takes its own from what it is handed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedprune.structure.layer_kinds import family_name
from fedprune.structure.removal import Gone, replace


def attend_with(attention: nn.Module, kept: Tensor) -> None:
    """Let a T5 attention, cut to those heads, take their part of the bias and hand on all of it.

    Its layers have been cut already; `kept` are original indices of heads, ascending.
    """
    device = next(attention.parameters()).device
    attention.register_buffer("kept_heads", kept.to(device), persistent=False)
    attention.register_forward_pre_hook(_take, with_kwargs=True)
    attention.register_forward_hook(_hand_on, with_kwargs=True)


def _take(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    attention: Any = module
    whole = given.get("position_bias")
    if given.get("key_value_states") is not None:
        whole = None  # across stacks it is 0, and the attention makes its own
    elif whole is None and attention.has_relative_attention_bias:
        whole = _bias(attention, args[0], given.get("past_key_values"), attention.layer_idx)
    part = None if whole is None else whole[:, attention.kept_heads]
    # The attention ignores what it does not know: so the whole bias comes to `_hand_on`.
    return args, {**given, "position_bias": part, "whole_bias": whole}


def _hand_on(
    _module: nn.Module, _args: tuple[Any, ...], given: dict[str, Any], output: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (output[0], given["whole_bias"], *output[2:])


def _bias(attention: Any, states: Tensor, cache: Any, layer: int) -> Tensor:
    """The bias of all heads, (1, heads, queries, keys)."""
    queries = states.shape[1]
    seen, keys = 0, queries
    if cache is not None:
        seen, keys = cache.get_seq_length(layer), cache.get_mask_sizes(queries, layer)[0]
    bias: Tensor = attention.compute_bias(
        queries, keys, device=states.device, past_seen_tokens=seen
    )
    return bias


class Positions(nn.Module):
    """In place of a first block's self-attention without heads: it makes the bias and adds nothing.

    Args:
        attention: the `T5Attention` that was there; its table stays under its name.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.relative_attention_bias = attention.relative_attention_bias
        self.is_decoder = attention.is_decoder
        self.relative_attention_num_buckets = attention.relative_attention_num_buckets
        self.relative_attention_max_distance = attention.relative_attention_max_distance
        self._relative_position_bucket = attention._relative_position_bucket

    def compute_bias(self, *args: Any, **given: Any) -> Tensor:
        """As of `T5Attention`, which reads only what is copied here."""
        from transformers.models.t5.modeling_t5 import T5Attention

        bias: Tensor = T5Attention.compute_bias(self, *args, **given)  # type: ignore[arg-type]
        return bias

    def forward(
        self, hidden_states: Tensor, *_args: object, **given: Any
    ) -> tuple[Tensor, Tensor, None]:
        """No change of the states, the bias of all heads, no attention."""
        # The first attention that is left has the number 0 and has not yet seen these tokens.
        bias = _bias(self, hidden_states, given.get("past_key_values"), 0)
        return hidden_states.new_zeros(()), bias, None


def positions_in_place_of(attention: nn.Module) -> Positions | None:
    """What makes the bias in the place of an attention without heads, if it was that one."""
    makes = getattr(attention, "has_relative_attention_bias", False)
    return Positions(attention) if makes else None


def drop_unread(model: nn.Module) -> None:
    """Take out what makes a bias in stacks where no self-attention is left to read it."""
    for stack in _stacks(model).values():
        for positions in [m for m in stack.modules() if isinstance(m, Positions)]:
            if not _selves(stack):
                replace(model, positions, Gone("o", None, nn.Identity(), ("position_bias", "")))


def kept_tables(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """The tables of positions of a cut model: their names in a plain one, and their values there.

    By their names in the cut model; of the values those of the heads that stayed.

    Raises:
        ValueError: blocks of a stack keep different heads.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for path, stack in _stacks(model).items():
        kept = {tuple(m.kept_heads.tolist()) for m in _selves(stack) if hasattr(m, "kept_heads")}
        if len(kept) > 1:
            raise ValueError("its blocks keep different heads of one shared table of positions")
        for name, table in stack.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                values = table.detach()[:, list(next(iter(kept)))] if kept else table.detach()
                # The first block that stays makes the positions.
                _, _, inner = name.partition("block.0.")
                found[f"{path}.{name}"] = f"{path}.block.0.{inner}", values
    return found


def _stacks(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if family_name(m) == "T5Stack"}


def _selves(stack: nn.Module) -> list[Any]:
    """The self-attentions that are left, in order."""
    selves: list[Any] = [m.SelfAttention for m in stack.modules() if hasattr(m, "SelfAttention")]
    return [m for m in selves if family_name(m) == "T5Attention"]

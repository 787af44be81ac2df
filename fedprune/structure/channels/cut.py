"""Channels cut out of a plain network: smaller tensors under the same names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.channels.groups import TRACED, Role, Roles, bundles_of, roles_of
from fedprune.structure.edits import Edit
from fedprune.structure.low_rank_layers import Factored, makes, reads

_OF_ROWS = ("weight", "bias", "running_mean", "running_var")


def cut_channels(model: nn.Module, edit: Edit) -> None:
    """Keep only some channels of a group, in place, in every layer that they run through.

    Values are sliced along: weights and biases of what makes a channel, columns of what reads it,
    parameters and running statistics of normalisations. Parameters are new objects under the same
    names; frozen ones stay frozen.

    Args:
        model: with the group as it was traced: no channel edit of the same path before.
        edit: of kind "channel"; `path` as in `fedprune.structure.channels.groups.bundles_of`.

    Raises:
        ValueError: no such group, none kept, or a channel that it does not have.
    """
    roles = roles_of(model)
    gone = _gone(roles, edit)
    for path, role in roles.items():
        layer: Any = model.get_submodule(path)
        rows, columns = _staying(role.rows, gone), _staying(role.columns, gone)
        if len(rows) < len(role.rows):
            _cut_rows(layer, rows)
        if len(columns) < len(role.columns):
            layer = reads(layer)
            _slice(layer, ("weight",), columns, 1)
            size = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
            setattr(layer, size, len(columns))
    # The next group is cut without tracing again, which takes longer than the cut.
    setattr(model, TRACED, {path: _without(role, gone) for path, role in roles.items()})


def _gone(roles: Roles, edit: Edit) -> set[int]:
    """The numbers of the channels that go."""
    bundles = {bundle.path: bundle.channels for bundle in bundles_of(roles)}
    if edit.path not in bundles:
        raise ValueError(
            f"channel edit of {edit.path!r}: no such channels; allowed: {', '.join(bundles)}"
        )
    channels = bundles[edit.path]
    if not edit.kept or not set(edit.kept) <= set(range(len(channels))):
        raise ValueError(
            f"channel edit of {edit.path!r}: kept {list(edit.kept)[:9]}; "
            f"allowed: some of 0 to {len(channels) - 1}"
        )
    return set(channels) - {channels[i] for i in edit.kept}


def _staying(numbers: Sequence[int], gone: set[int]) -> list[int]:
    return [place for place, number in enumerate(numbers) if number not in gone]


def _without(role: Role, gone: set[int]) -> Role:
    rows = tuple(n for n in role.rows if n not in gone)
    return Role(rows, tuple(n for n in role.columns if n not in gone), role.makes)


def _cut_rows(layer: Any, places: Sequence[int]) -> None:
    if isinstance(layer, Factored):
        _slice(layer, ("bias",), places, 0)
        layer = makes(layer)
    before = int(getattr(layer, "num_channels", 1))
    _slice(layer, _OF_ROWS, places, 0)
    for name in ("out_channels", "out_features", "num_features", "num_channels", "num_parameters"):
        if hasattr(layer, name):
            setattr(layer, name, len(places))
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * len(places) // before
    elif getattr(layer, "groups", 1) > 1:  # depthwise: as many of everything
        layer.groups = layer.in_channels = len(places)


def _slice(layer: nn.Module, names: Iterable[str], places: Sequence[int], dim: int) -> None:
    for name in names:
        value: Tensor | None = getattr(layer, name, None)
        if value is None:
            continue
        index = torch.tensor(places, dtype=torch.long, device=value.device)
        cut = value.detach().index_select(dim, index)
        if isinstance(value, nn.Parameter):
            layer.register_parameter(name, nn.Parameter(cut, requires_grad=value.requires_grad))
        else:
            layer.register_buffer(name, cut)

"""Channels of plain networks: which layers make each of them, carry it along, and read it.

The model is traced once by `torch.fx`, with no data. Every output of a convolution or a linear
layer starts as a channel of its own; what adds or multiplies channels makes them one, so that a
residual stage is cut in all of its layers at once (DepGraph, Fang et al. 2023, arXiv 2301.12900,
section 3, finds the same sets from an autograd graph). Whatever meets an operation that is not in
the tables here, the network's inputs or its outputs, is never cut.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fedprune.structure.channels.flow import Flow, Trace
from fedprune.structure.channels.functions import follow
from fedprune.structure.channels.layers import MODULES
from fedprune.structure.groups import Group, UnitSlice
from fedprune.structure.layer_kinds import plain_kind
from fedprune.structure.low_rank_layers import makes, reads
from fedprune.tensors.hooks import in_mode

STRUCTURES = {
    "auto": "by torch.fx, without data: networks whose control flow does not depend on it",
    "depgraph": "by torch-pruning (extra depgraph), on random examples; checked by cutting them",
}
"""How the channels of a plain network are found."""

TRACED = "traced_roles"
"""Attribute of a model whose channels need not be traced: its roles, found before or otherwise."""


@dataclass(frozen=True)
class Role:
    """What a layer does with channels; -1 stands for one that is never cut.

    Attributes:
        rows: the channel of each output row, for a layer that makes channels or carries them.
        columns: the channel of each input it reads (of a convolution: of each input channel).
        makes: whether the rows are its own; False of normalisations and depthwise convolutions.
    """

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    makes: bool = False


Roles = Mapping[str, Role]
"""What a model's layers do with channels, by path, in model order."""


def roles_of(model: nn.Module) -> Roles:
    """The channels of a model: those kept on it, or found by tracing it.

    A model that `torch.fx` cannot trace (control flow that depends on data) or would trace wrongly
    (hooks) has none, and neither have the transformers of `transformers`, whose units are in
    `fedprune.structure.groups`. Both modes, train and eval, are traced. The model and its mode are
    left as they were.
    """
    given: Roles | None = getattr(model, TRACED, None)
    if given is not None:
        return given
    if not all(map(_as_written, model.modules())):
        return {}
    book = Trace(dict(model.named_modules()))
    try:
        for mode in (True, False):
            with in_mode(model, mode):
                follow(_Tracer().trace(model), book)
    except Exception:  # tracing runs the user's code on stand-ins: whatever it raises, it cannot be
        return {}
    return _roles(model, book)


def _as_written(module: nn.Module) -> bool:
    """Whether tracing sees all that a module does: no transformer, no hooks, no swapped forward."""
    known = type(module).__module__.startswith("transformers.")
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return not known and not hooked


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        inherits = plain_kind(module, MODULES) is not None
        return inherits or super().is_leaf_module(module, path)


def _roles(model: nn.Module, book: Trace) -> Roles:
    book.fix_all(_shared(model, book))
    book.fix_doubtful()
    return {
        path: Role(
            book.numbers(book.rows.get(path, ())),
            book.numbers(book.columns.get(path, ())),
            path in book.makers,
        )
        for path, _ in model.named_modules()
        if path in book.rows or path in book.columns
    }


def _shared(model: nn.Module, book: Trace) -> Flow:
    """The channels of layers that share a parameter with another module: they are not cut."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    several = [path for paths in owners.values() if len(paths) > 1 for path in paths]
    return [i for p in several for i in (*book.rows.get(p, ()), *book.columns.get(p, ()))]


@dataclass(frozen=True)
class Bundle:
    """Channels that are alike: made, carried and read by the same layers.

    Attributes:
        path: of the first layer that makes them and stands for no earlier bundle.
        channels: their numbers, in the order of that layer's rows.
    """

    path: str
    channels: tuple[int, ...]


def bundles_of(roles: Roles) -> tuple[Bundle, ...]:
    """The channels that can be cut, those with the same layers together; never a lone one."""
    met: dict[int, list[tuple[str, str, int]]] = {}
    for path, role in roles.items():
        for axis, numbers in (("row", role.rows), ("column", role.columns)):
            for number, count in Counter(n for n in numbers if n >= 0).items():
                met.setdefault(number, []).append((path, axis, count))
    alike: dict[tuple[tuple[str, str, int], ...], list[int]] = {}
    for number in dict.fromkeys(n for role in roles.values() if role.makes for n in role.rows):
        if number >= 0:
            alike.setdefault(tuple(met[number]), []).append(number)
    found: list[Bundle] = []
    for places in alike:
        made = [p for p, axis, _ in places if axis == "row" and roles[p].makes]
        free = [p for p in made if p not in {bundle.path for bundle in found}]
        if free and any(axis == "column" for _, axis, _ in places):
            found.append(Bundle(free[0], tuple(alike[places])))
    # Lone channels keep their path, so that the others' do not depend on what was cut before.
    return tuple(bundle for bundle in found if len(bundle.channels) > 1)


def channel_groups(model: nn.Module, prunable: Sequence[str]) -> tuple[Group, ...]:
    """The groups of kind "channel": rows of what makes and carries, columns of what reads.

    A group of which a reader is not prunable is left out: its channels could not be silenced. So
    the channels that only a head of output reads stay.
    """
    roles = roles_of(model)
    if not roles:
        return ()
    wanted = set(prunable)
    names = {id(p): name for name, p in model.named_parameters() if name in wanted}
    modules = dict(model.named_modules())
    groups = (_group(bundle, roles, modules, names) for bundle in bundles_of(roles))
    return tuple(group for group in groups if group is not None)


def _group(
    bundle: Bundle, roles: Roles, modules: dict[str, nn.Module], names: dict[int, str]
) -> Group | None:
    rows, columns = [], []
    for path, role in roles.items():
        made, read = _places(role.rows, bundle), _places(role.columns, bundle)
        maker, reader = makes(modules[path]), reads(modules[path])
        if made is not None and _key(maker) in names:
            rows.append(UnitSlice(names[_key(maker)], "row", made))
        if read is not None:
            if _key(reader) not in names:
                return None
            columns.append(UnitSlice(names[_key(reader)], "column", _widened(read, reader)))
    return Group(bundle.path, "channel", (*rows, *columns))


def _key(layer: nn.Module) -> int:
    return id(getattr(layer, "weight", None))


def _places(numbers: Sequence[int], bundle: Bundle) -> Tensor | None:
    """Where each channel of the bundle stands, (channels, times); None, where none does."""
    of = {number: i for i, number in enumerate(bundle.channels)}
    found: list[list[int]] = [[] for _ in bundle.channels]
    for place, number in enumerate(numbers):
        if number in of:
            found[of[number]].append(place)
    return torch.tensor(found) if found[0] else None


def _widened(places: Tensor, layer: nn.Module) -> Tensor:
    """Columns of the (out, in) view: a convolution has a kernel's worth for every channel."""
    width = math.prod(getattr(layer, "kernel_size", ()))
    return (places[..., None] * width + torch.arange(width)).flatten(1)

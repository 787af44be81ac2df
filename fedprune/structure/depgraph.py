"""Channels of networks that `torch.fx` cannot trace, by way of torch-pruning (extra `depgraph`).

Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) follows autograd's graph of examples, so control
flow may depend on data. It is known to map some operations wrongly, and to run for ever on others
(issue 527 there): here it only says which channels belong together. The cut is this library's own,
and channels are believed only as far as a cut model gives what the masked one gives.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.randomness import generator
from fedprune.structure.channels.cut import cut_channels
from fedprune.structure.channels.flow import Trace
from fedprune.structure.channels.groups import TRACED, Bundle, Role, Roles, bundles_of
from fedprune.structure.edits import Edit
from fedprune.structure.families.catalog import SUBLAYERS
from fedprune.structure.layer_kinds import family_name
from fedprune.tensors.named import Tensors

_EXAMPLES = 4
"""Examples that are followed; as many others are the proof."""

SECONDS = 60.0
"""How long torch-pruning may take for all examples."""

CUTTABLE = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.PReLU,
)  # fmt: skip

_Loss = Callable[[nn.Module, Tensors], Tensor]
"""The loss of examples under a model, summed."""


def recognise(model: nn.Module, run: _Loss, dummy: Tensors) -> nn.Module:
    """The model with its channels kept on it, where `channels.groups.roles_of` finds them.

    Only channels that can be cut without a difference are kept: with half of a group gone, cut and
    masked copies gave the same losses on random examples, in float64. What happens on branches that
    no example took is not known; a layer that none of them reached is an error.

    Args:
        model: no transformer; changed in nothing else.
        run: the task's loss, summed.
        dummy: one example; where it holds numbers, random ones are put in their place.

    Raises:
        ValueError: torch-pruning is missing, fails or does not end; a family that this library
            knows; layers that no example reached.
    """
    known = [name for name in map(family_name, model.modules()) if name in SUBLAYERS]
    if known:
        raise ValueError(f"structure='depgraph': {known[0]} is known by itself; allowed: auto")
    examples = [_drawn(dummy, i) for i in range(2 * _EXAMPLES)]
    roles = _within(SECONDS, lambda: traced(model, run, examples[:_EXAMPLES]))
    setattr(model, TRACED, _proven(model, roles, run, examples))
    return model


def _drawn(dummy: Tensors, index: int) -> Tensors:
    """A random example like this one, float64; integers stay."""
    gen = generator(index, "depgraph")
    return {
        name: torch.randn(t.shape, generator=gen, dtype=torch.float64)
        if t.is_floating_point()
        else t
        for name, t in dummy.items()
    }


def _within(seconds: float, work: Callable[[], Roles]) -> Roles:
    """What the work gives back, or an error when it takes too long or fails.

    A thread cannot be stopped: one that runs for ever ends with the process.
    """
    done: list[Roles | Exception] = []

    def target() -> None:
        try:
            done.append(work())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise ValueError(
            f"structure='depgraph': torch-pruning did not end in {seconds:g} s; allowed: auto"
        )
    if isinstance(done[0], Exception):
        what = f"{type(done[0]).__name__}: {done[0]}"
        raise ValueError(f"structure='depgraph': {what}; allowed: auto") from done[0]
    return done[0]


def traced(model: nn.Module, run: _Loss, examples: Sequence[Tensors]) -> Roles:
    """The roles of layers as torch-pruning sees them, not proven yet.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: no example reached a layer.
    """
    try:
        import torch_pruning
    except ImportError:
        raise ImportError("pip install torch-pruning==1.6.1, or fedprune[depgraph]") from None
    # What is frozen is in no graph of autograd, and tracing sets the mode.
    model = copy.deepcopy(model).double().requires_grad_(True).eval()
    layers: dict[nn.Module, str] = {
        m: p for p, m in model.named_modules() if isinstance(m, CUTTABLE)
    }
    book = Trace({})
    for layer, path in layers.items():
        _enter(book, path, layer)
    reached: set[str] = set()
    for example in examples:
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, example, run, verbose=False)
        found = [m for m in graph.module2node if m in layers and _makes(m)]
        reached |= {layers[m] for m in found}
        for layer in found:
            _follow(book, graph, layer, layers)
    missed = [p for m, p in layers.items() if _makes(m) and p not in reached]
    if missed:
        raise ValueError(f"no random example reached {', '.join(missed[:3])}")
    return {
        path: Role(
            book.numbers(book.rows[path]), book.numbers(book.columns.get(path, ())), _makes(layer)
        )
        for layer, path in layers.items()
    }


def _makes(layer: Any) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return not layer.groups == layer.in_channels == layer.out_channels > 1  # depthwise
    return isinstance(layer, nn.Linear)


def _enter(book: Trace, path: str, layer: Any) -> None:
    """New variables for a layer's rows and, if it makes channels, for its columns."""
    if _makes(layer):
        linear = isinstance(layer, nn.Linear)
        flow = book.make(path, layer.out_features if linear else layer.out_channels)
        book.read(path, book.fresh(layer.in_features if linear else layer.in_channels))
        if getattr(layer, "groups", 1) > 1:
            book.fix_all([*flow, *book.columns[path]])
        return
    sizes = ("out_channels", "num_features", "num_channels", "num_parameters")
    size = next(int(getattr(layer, name)) for name in sizes if hasattr(layer, name))
    book.carry(path, book.fresh(size))
    if isinstance(layer, nn.GroupNorm):
        width = size // layer.num_groups
        flow = book.rows[path]
        book.unite([flow[i // width * width] for i in range(size)], flow)


def _follow(book: Trace, graph: Any, layer: nn.Module, layers: dict[nn.Module, str]) -> None:
    """Make one what torch-pruning says goes together with the rows of a layer."""
    made = book.rows[layers[layer]]
    pruner = graph.get_pruner_of_module(layer)
    for item in graph.get_pruning_group(layer, pruner.prune_out_channels, range(len(made))):
        target, fn = item.dep.target.module, item.dep.handler
        roots = [made[i] for i in item.root_idxs]
        if target in layers:
            path = layers[target]
            out = graph.is_out_channel_pruning_fn(fn) or not _makes(target)
            flow = book.rows[path] if out else book.columns[path]
            if len(flow) > 1:  # else PReLU's one slope for all channels
                book.unite(roots, [flow[i] for i in item.idxs])
        elif isinstance(target, nn.Parameter) or list(target.parameters()):
            book.fix_all(roots)  # a layer that is not cut here


def _proven(model: nn.Module, roles: Roles, run: _Loss, examples: Sequence[Tensors]) -> Roles:
    """The roles with what cannot be cut without a difference fixed."""
    wrong = {
        number
        for bundle in bundles_of(roles)
        if not _equivalent(model, roles, bundle, run, examples)
        for number in bundle.channels
    }
    return {
        path: Role(_fixed(role.rows, wrong), _fixed(role.columns, wrong), role.makes)
        for path, role in roles.items()
    }


def _fixed(numbers: Sequence[int], wrong: set[int]) -> tuple[int, ...]:
    return tuple(-1 if n in wrong else n for n in numbers)


@torch.no_grad()
def _equivalent(
    model: nn.Module, roles: Roles, bundle: Bundle, run: _Loss, examples: Sequence[Tensors]
) -> bool:
    """Whether the model without every other channel of a bundle is the one with them masked."""
    masked = copy.deepcopy(model).double().eval()
    setattr(masked, TRACED, roles)
    cut = copy.deepcopy(masked)
    gone = set(bundle.channels[1::2])
    for path, role in roles.items():
        columns = [i for i, n in enumerate(role.columns) if n in gone]
        if columns:
            masked.get_submodule(path).weight[:, columns] = 0.0  # type: ignore[operator]
    kept = tuple(range(0, len(bundle.channels), 2))
    try:
        cut_channels(cut, Edit("channel", bundle.path, kept))
        pairs = [(run(masked, e), run(cut, e)) for e in examples]
        return all(bool(torch.isclose(a, b, rtol=1e-9, atol=1e-9)) for a, b in pairs)
    except (RuntimeError, IndexError, ValueError):  # shapes that do not fit any more
        return False

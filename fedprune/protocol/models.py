"""The model that a configuration and a list of edits describe, and its layout.

Any side of a run rebuilds it: the dense model is the same bits everywhere, the edits are replayed
on it, and its values come with the question.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from fedprune.adapters.targets import check_adaptable
from fedprune.config import RunConfig, to_toml, with_values
from fedprune.protocol.model_checks import check_model
from fedprune.protocol.origin import with_channels
from fedprune.randomness import seeded
from fedprune.selection.options import Pruning
from fedprune.streaming.blocks import follow_parameters
from fedprune.structure.cuts import places
from fedprune.structure.edits import CUTS, Edits
from fedprune.structure.layout import Layout, Origin, layout_of
from fedprune.structure.slicing import residual_path
from fedprune.structure.surgery import reshaped
from fedprune.structure.tables import embedding_path
from fedprune.tasks.building import built
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import output_of
from fedprune.tensors.models import state_of


def dense_model(config: RunConfig) -> nn.Module:
    """The task's model before round one; the same bits in every process.

    Raises:
        ValueError: as `built`, and as `fedprune.structure.depgraph.recognise` where the
            configuration asks for it.
    """
    task = tasks_of(config.plugin)[config.task]
    with seeded(config.seed, "init"):
        model = built(task, config)
    return with_channels(model, config, task)


def shaped(config: RunConfig, edits: Edits) -> tuple[nn.Module, Layout]:
    """The model with these edits and its layout; its values are not those of any state yet.

    Raises:
        ValueError: an edit does not fit the model.
    """
    model = dense_model(config)
    if not edits:
        return model, layout_for(config, model)
    return model, layout_after(config, model, edits)


def layout_after(config: RunConfig, model: nn.Module, edits: Edits) -> Layout:
    """Replay the edits on the dense model, in place, and give the layout of what it has become.

    The layout knows the one before anything was cut (after layers became factors, which cuts go
    through), so that choices count its weights; unless matrices are shared, which ends cutting.
    Of the newest few models it is kept.
    """
    key = _key_of(config, edits)
    if key not in _LAYOUTS:
        _keep_layout(key, _replayed(config, model, edits))
    elif any(edit.kind == "share" for edit in edits):
        reshaped(model, edits)
    else:
        reshaped(model, [edit for edit in edits if edit.kind not in CUTS])
        follow_parameters(model)
        reshaped(model, [edit for edit in edits if edit.kind in CUTS])
    return _LAYOUTS[key]


def _replayed(config: RunConfig, model: nn.Module, edits: Edits) -> Layout:
    output = output_of(tasks_of(config.plugin)[config.task], model)
    whole = layout_of(model, output=output, exclude=config.exclude, include=config.include).whole
    cuts = tuple(edit for edit in edits if edit.kind in CUTS)
    if any(edit.kind == "share" for edit in edits):
        return replace(_layout_now(config, reshaped(model, edits), output), dense=whole)
    reshaped(model, [edit for edit in edits if edit.kind not in CUTS])
    follow_parameters(model)
    before = _layout_now(config, model, output)
    # Without factors it is the dense one, of whose weights a sparsity is a fraction as it is.
    before = before if before.whole == whole else replace(before, dense=whole)
    if not cuts:
        return before
    spots = places(model, cuts)
    layout = _layout_now(config, reshaped(model, cuts), output)
    return replace(layout, origin=Origin(before, spots), dense=whole)


def _layout_now(config: Pruning, model: nn.Module, output: tuple[str, ...]) -> Layout:
    """The layout of an edited model: patterns may match what is no longer there."""
    names = [name for name, _ in model.named_parameters()]
    exclude, include = (
        [p for p in patterns if any(fnmatchcase(name, p) for name in names)]
        for patterns in (config.exclude, config.include)
    )
    return layout_of(model, output=output, exclude=exclude, include=include)


_LAYOUTS: dict[tuple[object, ...], Layout] = {}
"""The newest layouts, by what they are of."""
_KEPT = 4


def layout_at(config: RunConfig, edits: Edits) -> Layout:
    """The layout of the model with these edits; of the newest few it is kept."""
    key = _key_of(config, edits)
    if key not in _LAYOUTS:
        shaped(config, edits)
    return _LAYOUTS[key]


def _key_of(config: RunConfig, edits: Edits) -> tuple[object, ...]:
    # A notebook may have another task of that name by now.
    task = tasks_of(config.plugin)[config.task]
    return _text_of(config), edits, task.model, task.output


def _text_of(config: RunConfig) -> str:
    """A configuration as it is written; kept of the newest one, for which every question asks."""
    if not _NEWEST or _NEWEST[0][0] is not config:
        _NEWEST[:] = [(config, to_toml(with_values(config, {"engine": "inline"})))]
    return _NEWEST[0][1]


_NEWEST: list[tuple[RunConfig, str]] = []


def _keep_layout(key: tuple[object, ...], layout: Layout) -> None:
    _LAYOUTS.pop(key, None)
    while len(_LAYOUTS) >= _KEPT:
        del _LAYOUTS[next(iter(_LAYOUTS))]
    _LAYOUTS[key] = layout


def layout_for(config: RunConfig, model: nn.Module) -> Layout:
    """The layout of `dense_model(config)`; of the newest few models it is kept.

    Raises:
        ValueError: a pattern matches nothing, nothing is left to prune, or the floors keep more
            weights than the sparsity leaves.
    """
    key = _key_of(config, ())
    kept = _LAYOUTS.get(key)
    # A file that it is built from, rows with their symbols say, may have changed meanwhile.
    if kept is None or kept.shapes != {name: t.shape for name, t in state_of(model).items()}:
        _keep_layout(key, kept := _checked_layout(config, model))
    return kept


def _checked_layout(config: RunConfig, model: nn.Module) -> Layout:
    output = output_of(tasks_of(config.plugin)[config.task], model)
    layout = layout_of(model, output=output, exclude=config.exclude, include=config.include)
    check_model(config, model, layout)
    if "slice" in config.reduce:
        residual_path(model)  # as is this
    if config.vocabulary == "used":
        embedding_path(model)  # refused here, before anything starts
    if config.adapters != "none":
        check_adaptable(model, layout, config.targets, config.rank or 1)
    return layout

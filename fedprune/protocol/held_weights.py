"""A base model: pretrained weights that server and clients have from the same files.

Of tensors whose kept values are those of the base model a question says so, and sends none. Hu et
al. 2022 (LoRA, arXiv 2106.09685) send changes of a model that all have; here it holds of every
tensor by itself, so that a pruning without training sends masks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import nn

from fedprune.adapters.beginning import frozen_for
from fedprune.config import RunConfig
from fedprune.config.streamed import only_reads
from fedprune.protocol.models import layout_for
from fedprune.streaming.blocks import tensors_over
from fedprune.streaming.files import MappedFolder, tensors_in
from fedprune.structure.experts import named_as_modules
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.pretrained import from_files, place_of
from fedprune.tensors.lazy import LazyTensors, bare_of, holding_of, in_memory, shapes_of
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors, all_true, digest, laid_out_copies, masked


@dataclass(frozen=True)
class BaseModel:
    """Float32 weights under a name: the digest of their names, shapes, types and values.

    Where they are in the shapes of a model that was edited, `dense` is the base model itself.
    """

    digest: str
    weights: Tensors
    dense: BaseModel | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether the weights are read from their files when they are asked for."""
        return isinstance(holding_of(self.weights).origin, MappedFolder)

    def like(self, weights: Mapping[str, torch.Tensor], masks: Masks) -> tuple[str, ...]:
        """Names of the tensors that are those of the base model under the masks, bit for bit."""
        held, origin = holding_of(weights), holding_of(self.weights).origin
        if origin is not None and held.origin is origin:
            return tuple(sorted(weights.keys() - held.changed))
        return tuple(
            sorted(
                name
                for name, w in weights.items()
                if name in self.weights and torch.equal(w, self.under(name, masks))
            )
        )

    def under(self, name: str, masks: Masks) -> torch.Tensor:
        """A tensor of it, 0.0 where the mask is False; do not write to it."""
        w = self.weights[name]
        whole = name not in masks or all_true(masks[name])
        return w if whole else masked({name: w}, {name: masks[name]})[name]


def base_at(base: BaseModel | None, layout: Layout) -> BaseModel | None:
    """The base model in the shapes of a layout, without the tensors that it has no shape for.

    What was cut out of the model is cut out of it: no values are sent for that. Each tensor is made
    when it is asked for. None where there is no base model.
    """
    dense = base if base is None or base.dense is None else base.dense
    if dense is None:
        return None
    held, bare, origin = shapes_of(dense.weights), bare_of(dense.weights), layout.origin
    if all(layout.shapes.get(n) == shape for n, shape in held.items()):
        return dense  # at most biases were put beside its tensors
    before = layout.shapes if origin is None else origin.layout.shapes
    shapes = {n: s for n, s in layout.shapes.items() if n in held and before.get(n) == held[n]}

    def made(name: str) -> torch.Tensor:
        w = dense.weights[name]
        return w if origin is None else origin.places.restrict({name: w})[name]

    like = {n: torch.empty(s, dtype=bare[n].dtype, device="meta") for n, s in shapes.items()}
    return BaseModel(dense.digest, LazyTensors(like, made), dense)


def read_by(base: BaseModel | None) -> Tensors | None:
    """The weights of a base model that are read from files; None where they are not."""
    return base.weights if base is not None and base.is_lazy else None


BASE = "base"
"""What a device says that it is missing, if it is this."""


class Lacking(ValueError):
    """A question about a base model that is not here."""


def brings_weights(config: RunConfig) -> bool:
    """Whether the model's weights come from files, not from a start by chance."""
    task = tasks_of(config.plugin)[config.task]
    return task.paths and from_files(config.model, task.models)


def has_base(config: RunConfig) -> bool:
    """Whether clients have the model's weights already: from files, or as the seed makes them.

    These are of no use but where they stay as they are: beside adapters, and where it is asked for.
    """
    stays = brings_weights(config) or config.adapters != "none" or config.base == "held"
    return bool(stays and config.base != "sent")


def base_of(config: RunConfig, model: nn.Module) -> BaseModel | None:
    """The base model of a configuration, not to be written to; None where its weights are sent.

    The dense `model` is given as it was built.
    """
    if not has_base(config):
        return None
    state = state_of(model)
    if not in_memory(state):
        files = holding_of(state).origin
        assert isinstance(files, MappedFolder)  # where a model's tensors are read from
        files.digest = files.digest or digest(state)
        return BaseModel(files.digest, state)
    if config.adapters != "none":
        state = frozen_for(config, model, layout_for(config, model), state)
    name = digest(state)
    found = _HERE.get(name)
    if found is None:
        coded = None if in_memory(state) else state
        found = _HERE[name] = BaseModel(
            name, coded or _in_files(config, model, name) or laid_out_copies(state)
        )
    return found


def _in_files(config: RunConfig, model: nn.Module, name: str) -> Tensors | None:
    """The weights read from the model's files whenever one is asked for, where that can be.

    That is where nobody writes to them, and where they are what the files hold, bit for bit.
    """
    if not only_reads(config):
        return None
    try:
        there = tensors_in(Path(place_of(config.model)))
        files = MappedFolder(named_as_modules(there, model), name)
        lazy, state = tensors_over(model, files), state_of(model)
    except (OSError, ValueError):  # such as weights in another format
        return None
    same = state.keys() == lazy.keys() and all(torch.equal(lazy[n], t) for n, t in state.items())
    files.forget()
    return lazy if same else None


_HERE: WeakValueDictionary[str, BaseModel] = WeakValueDictionary()
"""Those in use in this process, by their digest: host and server share one, which nobody writes to.
"""

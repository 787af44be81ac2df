"""Which models are for which purpose, and where their head of output is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedprune.structure.families.catalog import SMALL_MODELS


def families_for(purpose: str, first: str) -> dict[str, str]:
    """`Task.models` of a purpose: names and a line about each, the default first."""
    fit = {name: f.summary for name, f in SMALL_MODELS.items() if purpose in f.purposes}
    return {first: fit[first], **fit}


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are a model's head of output, found by kind.

    A language model's is what it says are its output embeddings; a classifier's the last linear
    layer with one output a class. What is tied to a head shares its parameters.
    """
    names: Mapping[int, str] = {id(m): name for name, m in model.named_modules()}
    ask: Any = model
    head = ask.get_output_embeddings()
    if head is not None:
        return (names[id(head)],)
    classes = ask.config.num_labels
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    return (names[id(linear[-1])],) if linear else ()

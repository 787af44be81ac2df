"""Randomised response on the votes that a configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedprune.config import RunConfig
from fedprune.privacy.mechanisms import RANDOMISED_RESPONSE
from fedprune.privacy.randomised_response import (
    COIN,
    VoteUnits,
    epsilon_of_a_bit,
    expected_overlap,
    flip_probability,
)
from fedprune.privacy.release import Release
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.selection.options import Pruning
from fedprune.selection.units import unit_labels
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, full_masks, gathered


def vote_units_of(config: Pruning, layout: Layout, masks: Masks) -> VoteUnits:
    """The units of `--unit` that are alive under the masks of the tensors asked about."""
    labels = unit_labels(layout, config.unit, config.unit_shape)
    flat = gathered({n: labels[n] for n in masks}, masks).long()
    inside = flat >= 0
    numbers, where = torch.unique(flat[inside], return_inverse=True)
    places = torch.full_like(flat, -1)
    places[inside] = where
    return VoteUnits(places, len(numbers))


def vote_words(config: RunConfig, layout: Layout) -> tuple[str, ...]:
    """What to expect of the configuration's randomised response, in lines; none without it.

    A second line is a warning that bits are close to coins.
    """
    if config.response is None:
        return ()
    shapes = {n: torch.empty(layout.shapes[n], device="meta") for n in layout.prunable}
    units = vote_units_of(config, layout, full_masks(shapes, layout.prunable)).units
    p = flip_probability(config.response, units)
    lines = (
        f"epsilon {config.response:g} over {units:,} {config.unit}s: {_expected(config, units)}",
    )
    if p <= COIN:
        return lines
    return (*lines, f"votes are close to coins (p > {COIN}): fewer units or a larger --response")


def _expected(config: RunConfig, units: int) -> str:
    p = flip_probability(config.response or 0.0, units)
    left = units - math.floor((config.sparsity or 0.0) * units + 0.5)
    overlap = expected_overlap(p, config.cohort, units, left)
    return (
        f"each bit of a vote is flipped with probability {p:.4f}; of the units that "
        f"{config.cohort} clients would keep, at most {overlap:.0%} are expected to stay "
        f"(chance {left / units:.0%})"
    )


def response_release(fields: Sequence[str], question: Question, config: RunConfig) -> Release:
    """The release of a client's votes: local, so that it hides the client from the server too."""
    layout = layout_at(config, question.edits)
    names = question.names or tuple(question.masks)
    units = vote_units_of(config, layout, {n: question.masks[n] for n in names}).units
    assert config.response is not None  # else nobody responds
    return Release(
        "votes",
        tuple(fields),
        unit="client",
        mechanism=RANDOMISED_RESPONSE.name,
        pure=epsilon_of_a_bit(config.response, units),
        coordinates=units,
        covered=True,
        reason=_expected(config, units),
    )

"""Everything that is known of a model's redundancy, as one table of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fedprune.redundancy.dead import UnitsOfLayers, never_active, never_read
from fedprune.redundancy.duplicates import equal_matrices, similar_layers, similar_units
from fedprune.redundancy.lowrank import Matrix
from fedprune.redundancy.mergeable import ForwardPass, chains, foldable_norms
from fedprune.redundancy.merging import mergeable_heads
from fedprune.redundancy.moments import Inputs
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.named import Masks

Finding = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A model to analyse.

    It is in eval mode and left as it is; its weights are 0.0 where a mask is False. Without inputs
    (second moments) only weights are looked at, without a run not at what feeds what.
    """

    model: nn.Module
    layout: Layout
    weights: Mapping[str, Tensor]
    masks: Masks
    inputs: Inputs | None = None
    run: ForwardPass | None = None


def analysed(known: Known, energy: float, least: float) -> dict[str, list[Finding]]:
    """What could go, by kind of redundancy, in plain numbers and names.

    `energy` is the part of a matrix's sum of squares that a rank is given for; `least` the cosine
    from which units and layers are called similar.

    Returns:
        ``matrices`` (spectra), ``similar`` (units), ``layers`` (similar ones), ``equal`` (matrices
        that can be shared), ``dead`` (units), ``heads`` (that merge exactly), ``chains`` and
        ``norms``.
    """
    layout, weights, inputs = known.layout, known.weights, known.inputs
    heads = {
        g.path: mergeable_heads(g, layout, weights)
        for g in layout.structure.groups
        if g.kind == "head"
    }
    asleep = never_active(layout, inputs) if inputs is not None else {}
    found = {
        "matrices": [spectra(known, name, energy) for name in layout.prunable],
        "similar": [asdict(p) for p in similar_units(layout, weights, inputs, least)],
        "layers": [asdict(p) for p in similar_layers(layout, weights, inputs, least)],
        "equal": [
            {"name": name, "like": like, "distance": apart}
            for name, like, apart in equal_matrices(layout, weights)
        ],
        "dead": _dead("never active", asleep) + _dead("never read", never_read(layout, weights)),
        "heads": [{"path": path, "pairs": pairs} for path, pairs in heads.items() if pairs],
    }
    if known.run is not None:
        found["chains"] = [asdict(c) for c in chains(known.model, known.run)]
        found["norms"] = [asdict(n) for n in foldable_norms(known.model, known.run)]
    return found


def spectra(known: Known, name: str, energy: float) -> Finding:
    """One matrix: its size, its effective rank, and the rank that holds so much of its energy.

    ``rank_inputs`` is the rank of W X, with the inputs as the clients saw them.
    """
    rows = as_rows(known.layout, name, known.weights[name])
    kept = int(known.masks[name].sum()) if name in known.masks else rows.numel()
    shape = (rows.shape[0], rows.shape[1])
    spectrum = spectrum_of(rows)
    found = {
        "name": name,
        "shape": list(shape),
        "kept": kept,
        "effective_rank": spectrum.effective_rank,
        "rank": spectrum.rank_of_energy(energy),
        "most": Matrix(spectrum, shape, kept).most,
        "values": spectrum.values.tolist(),
    }
    if known.inputs is not None and known.inputs.rows.get(name):
        seen = spectrum_of(rows, known.inputs.moments(name))
        found["effective_rank_inputs"] = seen.effective_rank
        found["rank_inputs"] = seen.rank_of_energy(energy)
        found["values_inputs"] = seen.values.tolist()
    return found


def _dead(why: str, units: UnitsOfLayers) -> list[Finding]:
    return [{"path": path, "why": why, "units": list(gone)} for path, gone in units.items()]

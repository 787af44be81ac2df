"""What a run leaves when it has ended: the model in two forms, figures, the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.codec.coded_file import CODED_NAME, coded_length, coded_parts
from fedprune.codec.masks import encode_mask, mask_digest
from fedprune.config import RunConfig
from fedprune.export.card import card
from fedprune.export.manifest import MANIFEST_NAME
from fedprune.export.saved import save_folder
from fedprune.privacy.ledger_file import END_NAME, LEDGER_NAME
from fedprune.protocol.origin import origin_of
from fedprune.records.figures import figures_of_run
from fedprune.records.folder import CONFIG_NAME, ROWS_NAME, TIMINGS_NAME
from fedprune.runtime.files import write_atomically
from fedprune.runtime.sums import SUMMARY_NAME, write_sums
from fedprune.server.state import State
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import bare_of, joined_to
from fedprune.tensors.models import frozen_of
from fedprune.tensors.named import copied

FIGURES_NAME = "figures.json"
"""Apart from the summary, because it may hold times, which differ from run to run."""


def write_results(
    folder: Path,
    state: State,
    model: nn.Module,
    config: RunConfig,
    layouts: tuple[Layout, Layout],
    command: str = "",
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, int]]:
    """Write the model in both forms, the mask, and what there is to say about size and speed.

    `layouts`: of the dense model, and of this one.

    Returns:
        ``bytes_on_disk``: sizes of the coded file and of the same model's coded file, kept whole.
    """
    origin, (dense, now) = origin_of(config, state.edits), layouts
    weights = joined_to(state.weights, copied(frozen_of(model)))
    types = {n: w.dtype for n, w in bare_of(weights).items()}
    full = {
        n: torch.empty(s, dtype=types.get(n, torch.float32), device="meta")
        for n, s in {**dense.shapes, **dense.frozen}.items()
    }
    whole = {n: torch.ones((), dtype=torch.bool).expand(full[n].shape) for n in dense.prunable}
    masks = now.in_origin(state.masks)
    write_atomically(folder / CODED_NAME, coded_parts(origin, weights, state.masks))
    write_atomically(folder / "mask", encode_mask(masks))
    write_atomically(folder / "mask.sha256", f"{mask_digest(masks)}\n".encode())
    removed = sum(int((~mask).sum()) for mask in masks.values())
    plain = hasattr(model, "save_pretrained") and not state.edits
    library = "transformers" if plain else "fedprune"
    text = card(config, type(model).__name__, removed / dense.whole, command, library=library)
    save_folder(model, folder / "model", origin, text)
    figures = figures_of_run(model, config, state.masks, state.edits, held)
    write_atomically(folder / FIGURES_NAME, json.dumps(figures, indent=1).encode())
    sizes = {
        "dense": coded_length(origin_of(config), full, whole),
        "pruned": (folder / CODED_NAME).stat().st_size,
    }
    return {"bytes_on_disk": sizes}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, and the digests of all files that are read again: the run has ended."""
    write_atomically(folder / SUMMARY_NAME, json.dumps(summary, indent=1).encode())
    write_sums(folder, READ_AGAIN)


READ_AGAIN = (
    *(CONFIG_NAME, ROWS_NAME, TIMINGS_NAME, LEDGER_NAME, END_NAME, SUMMARY_NAME, FIGURES_NAME),
    *(CODED_NAME, "mask", "mask.sha256", f"model/{MANIFEST_NAME}"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
)
"""Files of a finished run; the manifest of its model names the rest."""

"""FedMap: the server prunes by size, round after round, and masks are nested in one another.

Herzog et al. 2024, arXiv 2406.19050 (read in its abstract alone). Training begins dense and from
scratch; in every pruning the smallest of the weights that are left go, for all clients alike, so
that no weight comes back and clients need not agree on masks. Changes are averaged by labels.

It is the plain composition (`fedprune.methods.global_mask`) with these choices, so that it goes
with secure sums and noise as that does. The amounts (the same part of what is left each time), when
it prunes and which weights compete are options of their own.
"""

from __future__ import annotations

from dataclasses import replace

from fedprune.methods import global_mask

METHOD = replace(
    global_mask.METHOD,
    summary="the server removes the smallest weights in steps, from nested masks",
    source="FedMap, Herzog et al. 2024, arXiv 2406.19050, read in its abstract",
    sets={"score": "magnitude"},
    usual={"schedule": "exponential"},
    untrained=True,
)

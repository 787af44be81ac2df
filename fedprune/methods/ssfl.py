"""SSFL: one mask for all, found at initialisation by the clients' saliency on a mini-batch.

Ohib et al. 2024, arXiv 2405.09037, and Flower's baseline of that name. Every client k computes
s_k = |w * dL/dw| of one mini-batch at the weights that all begin with; the server averages,
s = Σ_k s_k / K, and keeps the so many largest of all weights. The mask stays. Clients train under
it, and changes are averaged by their labels.

It is the plain composition (`fedprune.methods.global_mask`) with these choices, so that it goes
with secure sums and, with ``--weighting equal``, with noise as that does.

Where it departs from the paper: the scores are taken in eval mode; exactly so many weights go,
where the paper's threshold keeps all that tie with it; the output layer is not pruned. The paper
writes Σ p_k s_k with p_k the part of the examples; its partitions are balanced, and its code takes
the plain mean, as here.
"""

from __future__ import annotations

from dataclasses import replace

from fedprune.methods import global_mask

METHOD = replace(
    global_mask.METHOD,
    summary="one mask at initialisation: the mean over all clients of |w·g| on one mini-batch",
    source="SSFL, Ohib et al. 2024, arXiv 2405.09037; in eval mode, exactly so many weights go",
    sets={
        **{"score": "taylor", "combine": "mean-absolute", "score_cohort": "all"},
        **{"schedule": "one-shot", "warmup": 0, "scope": "global"},
    },
    usual={"score_examples": 16, "sparsity": 0.5, "score_weighting": "equal"},
    untrained=True,
)

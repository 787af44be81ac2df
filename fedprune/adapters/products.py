"""Clients' factors made one where the mean of factors will not do: by their products.

The mean of A and the mean of B make another product than the mean of BA (FedIT, which averages
factors, takes the one for the other), and factors of several ranks have no mean at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprune.adapters.factors import DOWN, UP, paths_in
from fedprune.tensors.named import Tensors

Came = Sequence[tuple[float, Mapping[str, Tensor]]]
"""Clients' weights in a mean, and their adapters after training."""


def of_rank(adapters: Mapping[str, Tensor], rank: int) -> Tensors:
    """Adapters with the first so many columns of B and rows of A."""
    out: Tensors = {}
    for name, t in adapters.items():
        out[name] = t[:rank] if name.endswith(DOWN) else t[:, :rank] if name.endswith(UP) else t
    return {name: t.contiguous() for name, t in out.items()}


def mean_of_products(
    old: Mapping[str, Tensor], came: Came, rank: int, server_lr: float = 1.0
) -> Tensors:
    """Factors of the clients' mean product, as near to it as a rank allows.

    FlexLoRA, Bai et al. 2024, arXiv 2402.11505: Σ p_k B_k A_k = U Σ Vᵀ, of which a client of rank r
    is sent the r largest singular values: B = U Σ, A = Vᵀ, sorted, so that it is `of_rank`. In
    float64 and through the factors, never the whole product. The paper's server keeps the product
    whole; here the global model is what a client of the largest rank is sent. Clients' adapters may
    be of any ranks; `server_lr` is a factor on the mean change.
    """
    shares = _shares(came)
    out = _moved_whole(old, came, shares, server_lr)
    rests = [(1.0 - server_lr, old)] if server_lr != 1.0 else []
    parts = [*rests, *((server_lr * p, a) for p, (_, a) in zip(shares, came, strict=True))]
    for path in paths_in(old):
        up = torch.cat([p * a[f"{path}{UP}"].double() for p, a in parts], dim=1)
        down = torch.cat([a[f"{path}{DOWN}"].double() for _, a in parts])
        out[f"{path}{UP}"], out[f"{path}{DOWN}"] = _nearest(up, down, rank)
    return dict(sorted(out.items()))


def _nearest(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of a rank of the product of others, by its largest singular values, float32."""
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.t())
    u, s, vt = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
    made_up, made_down = (left.Q @ u * s)[:, :rank], (vt @ right.Q.t())[:rank]
    lack = rank - len(made_down)
    if lack > 0:  # fewer singular values than that: what is added says nothing, and cannot learn
        made_up = torch.nn.functional.pad(made_up, (0, lack))
        made_down = torch.nn.functional.pad(made_down, (0, 0, 0, lack))
    return made_up.float().contiguous(), made_down.float().contiguous()


def stacked(old: Mapping[str, Tensor], came: Came, server_lr: float = 1.0) -> Tensors:
    """The factors so far with those of the clients beside them: their product is the exact sum.

    FLoRA, Wang et al. 2024, arXiv 2409.05976: B = [B_1 ... B_K] and A = [p_1 A_1; ...; p_K A_K],
    whose product Σ p_k B_k A_k is added to the frozen weights, after which every client begins with
    new factors. There clients add it once and forget it; here they remember nothing, and are sent
    all that was stacked so far. Where that is more than the product itself, it is written as B of
    the layer's smaller side times A: the same product to float32. They may be of any ranks, what is
    trained whole moved; `server_lr` is a factor on the mean change.
    """
    shares = _shares(came)
    out = _moved_whole(old, came, shares, server_lr)
    for path in paths_in(old):
        ups, downs = [old[f"{path}{UP}"]], [old[f"{path}{DOWN}"]]
        for share, (_, adapters) in zip(shares, came, strict=True):
            ups.append(adapters[f"{path}{UP}"])
            downs.append(adapters[f"{path}{DOWN}"] * (server_lr * share))
        up, down = torch.cat(ups, dim=1), torch.cat(downs)
        most = min(len(up), down.shape[1])
        if len(down) > most:
            up, down = _nearest(up.double(), down.double(), most)
        out[f"{path}{UP}"], out[f"{path}{DOWN}"] = up, down
    return dict(sorted(out.items()))


def _shares(came: Came) -> list[float]:
    whole = sum(weight for weight, _ in came)
    return [weight / whole for weight, _ in came]


def _moved_whole(
    old: Mapping[str, Tensor], came: Came, shares: Sequence[float], server_lr: float
) -> Tensors:
    """Parameters that are trained whole, with their mean change."""
    out: Tensors = {}
    for name, t in old.items():
        if not name.endswith((DOWN, UP)):
            moves = [
                p * (a[name].double() - t.double()) for p, (_, a) in zip(shares, came, strict=True)
            ]
            out[name] = (t.double() + server_lr * torch.stack(moves).sum(0)).float()
    return out

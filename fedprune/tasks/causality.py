"""Whether the logits of a language model depend on what they are to predict.

Found by trying: other tokens from one position on must leave the logits before it as they are, and
so must other labels. A model that reads its own labels has a low loss, and has learned nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.randomness import seeded
from fedprune.tasks.task import Loss, Part

LossOf = Callable[[nn.Module, Part], Loss]

MOVED = 1e-4
"""Part of the largest logit by which one may move: what is masked has weight 0.0 in a softmax."""


def leak(model: nn.Module, loss: LossOf, batch: Part) -> str:
    """What moved the logits of some position although it comes later; "" where nothing did.

    The model is in eval mode; the examples are real: constant ones do not tell which tokens follow
    which.

    Returns:
        "a later token" where the task is to predict the next token: its labels are its tokens
        moved by one, or its loss is the cross-entropy of logits and the tokens after them. "a
        later label" where there are labels of the shape of the logits. Other tasks, and losses
        from which no logits (B, T, classes) can be had, are not judged.
    """
    logits, total = logits_of(model, loss, batch)
    if logits is None:
        return ""
    # How many bytes a label stands for is no id, whatever its shape (`token_loss`).
    ids = {n: t for n, t in batch.items() if n != "bytes" and t.shape == logits.shape[:2]}
    whole = (n for n, t in ids.items() if not t.is_floating_point() and t.dtype != torch.bool)
    rows = {n: ids[n] for n in whole}
    for name, tokens in rows.items():
        counted = _predicted(name, rows, logits, total)
        if counted is not None and counted.any():
            at = max(1, (int(counted.any(0).nonzero().max()) + 1) // 2)
            if _moves(model, loss, {**batch, name: _others(tokens, at)}, logits[:, :at]):
                return "a later token"
    labels = rows.get("labels")
    if labels is not None and (labels >= 0).any():
        at = labels.shape[1] // 2
        if _moves(model, loss, {**batch, "labels": _others(labels, at)}, logits[:, : at + 1]):
            return "a later label"
    return ""


@torch.no_grad()
def logits_of(model: nn.Module, loss: LossOf, batch: Part) -> tuple[Tensor | None, float]:
    """The logits (B, T, classes) that the model gave or the loss names, and the loss."""
    made: list[Any] = []
    with _outputs_in(made, model), seeded(0, "rehearsal"):
        found = loss(model, batch)
    able = [getattr(out, "logits", out) for out in made[-1:]] + [found.logits]
    fit = [t for t in able if isinstance(t, Tensor) and t.dim() == 3 and t.shape[1] > 1]
    return (fit[0] if fit else None), float(found.total)


def _predicted(name: str, rows: Part, logits: Tensor, total: float) -> Tensor | None:
    """Where (B, T - 1) logits are to predict the token after theirs; None: that is not the task.

    `rows` are all that could be tokens or labels, theirs included.
    """
    following = rows[name][:, 1:]
    for labels in (t for other, t in rows.items() if other != name):
        counted = labels[:, :-1] >= 0
        same = bool((labels == rows[name])[labels >= 0].all())
        if not same and bool((labels[:, :-1] == following)[counted].all()):
            return counted
    for counted in _countable(name, rows):
        if _is_loss(total, logits[:, :-1][counted], following[counted]):
            return counted
    return None


def _countable(name: str, rows: Part) -> Iterator[Tensor]:
    """Which next tokens a loss may count: all, or those that are labels as well."""
    following = rows[name][:, 1:]
    yield following >= 0
    for other, labels in rows.items():
        if other != name:
            yield (labels[:, 1:] == following) & (following >= 0)


def _is_loss(total: float, logits: Tensor, tokens: Tensor) -> bool:
    if not tokens.numel() or int(tokens.max()) >= logits.shape[-1]:
        return False
    whole = float(nn.functional.cross_entropy(logits.float(), tokens.long(), reduction="sum"))
    return any(abs(total - size) <= 1e-3 * abs(size) for size in (whole, whole / tokens.numel()))


def _others(ids: Tensor, at: int) -> Tensor:
    """Other ids of the same batch from a position on; those below 0 stay."""
    able = ids >= 0
    names, which = ids[able].unique(return_inverse=True)
    if len(names) < 2:
        names, which = torch.stack([names[0], (names[0] + 1)]), torch.zeros_like(which)
    out = ids.clone()
    out[able] = names[(which + 1) % len(names)]
    out[:, :at] = ids[:, :at]
    return out


def _moves(model: nn.Module, loss: LossOf, batch: Part, before: Tensor) -> bool:
    """Whether another batch gives the first positions other logits."""
    after, _ = logits_of(model, loss, batch)
    if after is None or after.shape[1] < before.shape[1]:
        return False
    moved = (after[:, : before.shape[1]] - before).abs().max()
    return bool(moved > MOVED * before.abs().max())


@torch.no_grad()
def reads_padding(model: nn.Module, loss: LossOf, batch: Part) -> bool:
    """Whether a text classifier says another thing of a text alone than of it with its padding.

    Of models that pool the last place whatever the attention mask says (XLNet), padded on the
    right. The shortest text of the batch is compared; batches without ``attention`` or without
    padding, and outputs that are not (B, values), are not judged. The model is in eval mode, the
    examples are real.
    """
    attention = batch.get("attention")
    if attention is None or attention.dim() != 2:
        return False
    size, row = (int(x) for x in attention.sum(1).min(0))
    padded = size < attention.shape[1] and bool(attention[row, :size].all())
    whole = {name: t[row : row + 1] for name, t in batch.items()}
    alone = {n: t[:, :size] if t.shape == whole["attention"].shape else t for n, t in whole.items()}
    both = [_pooled(model, loss, one) for one in (whole, alone)] if padded and size else []
    if not both or both[0] is None or both[1] is None:
        return False
    return bool((both[0] - both[1]).abs().max() > MOVED * both[0].abs().max())


def _outputs_in(made: list[Any], model: nn.Module) -> RemovableHandle:
    """Within the block `made` gets what the model gives."""
    return model.register_forward_hook(lambda _module, _args, out: made.append(out))


def _pooled(model: nn.Module, loss: LossOf, batch: Part) -> Tensor | None:
    """The outputs (B, values) that the model gave."""
    made: list[Any] = []
    with _outputs_in(made, model), seeded(0, "rehearsal"):
        loss(model, batch)
    out = getattr(made[-1], "logits", made[-1]) if made else None
    return out if isinstance(out, Tensor) and out.dim() == 2 else None

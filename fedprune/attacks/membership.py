"""Was this example trained on? The likelihood ratio attack with shadow models, and a plain one.

An attacker who holds a model, and may train some of their own, looks at how sure the model is of
an example. Some examples are easy for any model: LiRA compares with models that were *not* trained
on it. That an attack finds little shows no more than that this attack does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedprune.privacy.noise import Floats
from fedprune.tasks.task import Loss, Part, Task, batches, examples

Flags = npt.NDArray[np.bool_]

FEW_SHADOWS = 64  # With fewer shadow models than this one spread is taken for all examples


@torch.no_grad()
def confidences(model: nn.Module, task: Task, part: Part, size: int = 256) -> Floats:
    """How sure a model is of every example, float64, higher = surer.

    Of a classifier log(p/(1 - p)), p the probability of the right class (Carlini et al. 2022,
    arXiv 2112.03570): over models it is nearly normal, which a loss is not. Of a task whose
    examples have many labels, the mean log-probability of a label. The model is put in eval mode.
    """
    model.eval()
    return np.concatenate([_of_batch(model, task, batch) for batch in batches(part, size)])


def _of_batch(model: nn.Module, task: Task, batch: Part) -> Floats:
    found = task.loss(model, batch)
    labels = batch.get("labels")
    if found.logits is not None and labels is not None and found.logits.dim() == 2:
        return _margins(found.logits.double(), labels).numpy()
    each = _each(found, model, task, batch).double().cpu().numpy()
    counts = [task.labels({n: t[i : i + 1] for n, t in batch.items()}) for i in range(len(each))]
    out: Floats = -each / np.maximum(counts, 1)
    return out


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p/(1 - p)) of the right class: its logit less the log-sum-exp of the others'.

    Both logarithms are taken of sums, so that p may be as near to 1 as it likes.
    """
    right = nn.functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(right, -torch.inf).logsumexp(1)
    return (logits[right] - others).cpu()


def _each(found: Loss, model: nn.Module, task: Task, batch: Part) -> Tensor:
    if found.each is not None:
        return found.each
    single = ({n: t[i : i + 1] for n, t in batch.items()} for i in range(examples(batch)))
    return torch.stack([task.loss(model, one).total for one in single])


def lira(observed: Floats, shadows: Floats, inside: Flags) -> Floats:
    """The statistic of the offline attack for every example; NaN where no two shadows are outside.

    Carlini et al. 2022, arXiv 2112.03570: 1 - Pr[Z > observed] for Z normal with the mean and the
    variance of the confidences of models trained without the example. Given here is the
    standard score (observed - mean)/sd, which orders examples the same way and does not saturate.
    With fewer than `FEW_SHADOWS` the variance is one for all examples (as they find better).

    Args:
        observed: confidences of the attacked model, (examples,).
        shadows: those of the shadow models, (models, examples).
        inside: whether a shadow model was trained on an example, (models, examples); those that
            were are not looked at.
    """
    outside = ~inside
    count = outside.sum(0)
    enough = np.maximum(count, 1)
    mean = np.where(outside, shadows, 0.0).sum(0) / enough
    square = np.where(outside, (shadows - mean) ** 2, 0.0).sum(0)
    known = count >= 2
    if len(shadows) < FEW_SHADOWS:
        freedom = (count - 1)[known].sum()
        variance = np.full(len(observed), square[known].sum() / max(1, freedom))
    else:
        variance = square / np.maximum(count - 1, 1)
    score: Floats = (observed - mean) / np.sqrt(np.maximum(variance, 1e-12))
    return np.where(known, score, np.nan)


def each_in_turn(observed: Floats, inside: Flags) -> tuple[Floats, Floats]:
    """LiRA against each of several models, all others its shadows: of members, and of others."""
    members, others = [], []
    for i in range(len(observed)):
        rest = np.arange(len(observed)) != i
        scores = lira(observed[i], observed[rest], inside[rest])
        known = ~np.isnan(scores)
        members.append(scores[known & inside[i]])
        others.append(scores[known & ~inside[i]])
    return np.concatenate(members), np.concatenate(others)

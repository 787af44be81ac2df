"""The client's side of the one seam: what an answer looks like when it leaves its client.

Every answer goes through `leaving`, whatever it is a summand of: a client's change is clipped, its
statistics are scaled, what would give its number of examples away is left out. The server's side,
which adds noise and keeps the ledger, is `fedprune.protocol.server_privacy`; which fields that
leaves is what `fedprune.protocol.releases` books.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.options.refusal import Refused
from fedprune.privacy.clipping import clipped, scaled, sensitivity
from fedprune.privacy.noise import Source, gaussian
from fedprune.privacy.options import Privacy
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Answer, Question
from fedprune.scores.catalog import scores_of
from fedprune.tasks.client_spread import PREFIX
from fedprune.tasks.options import Data


def hides(config: RunConfig) -> bool:
    """Whether a client keeps to itself what no sum needs: its size, why it failed."""
    return config.dp != "none" or config.secure != "none"


def spared_totals(kind: str, config: Data) -> bool:
    """Whether the totals of such an answer stay with the client, because nothing protects them."""
    return config.dp != "none" and KINDS[kind].asks == "cohort"


def noised_metrics(kind: str, config: Data) -> bool:
    """Whether what measures comes as clipped means, to be noised."""
    return config.dp != "none" and config.metrics == "noised" and KINDS[kind].totals_only


def asks_signed(question: Question, config: RunConfig) -> bool:
    """Whether the sums of this question may be below zero."""
    if question.kind == "score" and not question.dense:
        ask = scores_of(config.plugin)[question.score].asks[question.ask]
        return config.combine != "sum" or ask.signed
    return True


def leaving(answer: Answer, question: Question, config: RunConfig, most: int = 0) -> Answer:
    """What a client releases of its answer.

    As it is, unless the configuration protects something: then bounded, so that noise can.

    What is not finite counts as 0.0 where noise hides the client, and in means that are noised as
    the largest that there may be: to refuse it would tell that it is there. What an ask says is
    never negative is not, before it is clipped: its noise is sized for that. `most` is the largest
    number of votes that an honest client has; 0: no limit.

    Raises:
        Refused: more votes than there may be.
    """
    if KINDS[question.kind].changes:
        weight = 1.0 if config.weighting == "equal" else answer.weight
        answer = replace(answer, weight=weight, values=defended(answer.values, config.defence))
    if question.kind == "score" and config.score_weighting != "labels":
        answer = replace(answer, weight=1.0)
    if config.dp == "none":
        return answer
    if KINDS[question.kind].totals_only:
        totals = answer.totals
        return replace(
            answer, totals=means(totals, config) if config.metrics == "noised" else totals
        )
    answer = replace(answer, totals={}, weight=1.0)
    return answer if config.dp == "example" else _bounded(answer, question, config, most)


def _bounded(answer: Answer, question: Question, config: RunConfig, most: int) -> Answer:
    values = finite(answer.values)
    if KINDS[question.kind].changes:
        values = clipped(values, config.dp_clip or 1.0)
    else:
        values = values if asks_signed(question, config) else values.clamp(min=0.0)
        values = bounded_statistics(values, config)
    beside = answer.statistics
    if answer.votes is not None and most and int(answer.votes.sum()) > most:
        raise Refused("votes", f"{int(answer.votes.sum())} kept, {most} may be")
    return replace(
        answer,
        values=values,
        statistics=None if beside is None else bounded_statistics(finite(beside), config),
    )


def finite(values: Tensor) -> Tensor:
    """The values, 0.0 where they are NaN or infinite."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def bounded_statistics(values: Tensor, config: Privacy) -> Tensor:
    """Statistics with the L2 norm that the configuration allows them: by default exactly 1.

    The scale of a statistic is nobody's choice and differs by orders from score to score and round
    to round; a mask only looks at their order. Scaled to one norm, every client has the same say,
    and no clip norm is learnt from private data.
    """
    if config.dp_score_clip is None:
        return scaled(values, 1.0)
    return clipped(values, config.dp_score_clip)


def means(totals: Mapping[str, float], config: Privacy) -> dict[str, float]:
    """A client's totals as means over its own labels, together of bounded norm, without the count.

    So every client has the same say, whatever the size of its shard. A mean that is NaN or infinite
    is the norm itself: an example that spoils it is not told from one that is predicted badly. The
    client's place in a histogram is no sum over labels: it stays 1, and the means have the norm
    that it leaves, so that a client that is predicted badly counts as much as others.
    """
    count, norm = totals["count"], config.dp_metric_clip or 10.0
    names = sorted(name for name in totals if name != "count")
    if not count:
        return dict.fromkeys(names, 0.0)
    placed = {n: totals[n] for n in names if n.startswith(PREFIX)}
    summed = [n for n in names if n not in placed]
    norm = math.sqrt(norm**2 - math.hypot(*placed.values()) ** 2) if placed else norm
    flat = torch.tensor([totals[n] / count for n in summed], dtype=torch.float64)
    flat = torch.nan_to_num(flat, nan=norm, posinf=norm, neginf=-norm)
    return dict(zip(summed, clipped(flat, norm).tolist(), strict=True)) | placed


def noises_itself(kind: str, config: RunConfig) -> bool:
    """Whether a client adds noise to what it measured before it leaves: there no server does."""
    alone = config.dp == "example" and config.secure == "none"
    return alone and noised_metrics(kind, config)


def noised_means(totals: Mapping[str, float], config: Privacy, source: Source) -> dict[str, float]:
    """A client's clipped means with its own noise, for two clips as the distance of neighbours.

    An example can change all of its client's means at once, by as much as replacing the client.
    """
    norm = sensitivity(config.dp_metric_clip or 10.0, signed=True, sampling="fixed")
    extra = gaussian(len(totals), (config.dp_metric_noise or 0.0) * norm, source).tolist()
    return {n: totals[n] + noise for n, noise in zip(sorted(totals), extra, strict=True)}


def defended(values: Tensor, part: float) -> Tensor:
    """A change without its largest coordinates, which the client keeps to itself.

    Chu et al. 2024 (PriPrune, arXiv 2310.19958, sect. V) withhold what their defence mask finds
    most telling, and go on training it locally. Here the mask is by magnitude, made anew for every
    answer, and what is kept back is not carried over: a client has no memory between rounds.
    """
    out = math.ceil(part * values.numel())
    if not out:
        return values
    kept = values.clone()
    kept[values.abs().topk(out).indices] = 0.0
    return kept


def silenced(failure: Failure, config: RunConfig, error: Exception | None = None) -> Failure:
    """A failure without its reason, which may quote private data; the client's log has it.

    Of an error that has words for everyone (`Refused.told`) these are left.
    """
    if not hides(config):
        return failure
    told = error.told if isinstance(error, Refused) else ""
    return replace(failure, field="", reason=told or "failed")

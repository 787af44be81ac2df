"""What bounds a client's part of a sum, how much noise the sum gets, and where that comes from."""

from __future__ import annotations

import math

from fedprune.codec.model_digest import model_digest
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.privacy.noise import Source, secret_source, seeded_source
from fedprune.privacy.options import Privacy
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Question
from fedprune.selection.options import Pruning
from fedprune.structure.layout import Layout
from fedprune.tensors.named import digest


def most_votes(question: Question, config: Pruning, form: Form, layout: Layout) -> int:
    """The largest number of weights that a client's own mask may keep; 0 without votes.

    A selection of weights keeps so many exactly; one more a tensor is for scopes that round each by
    itself. Of larger units a client may keep more than was asked for: there the limit is all.
    """
    if not form.voters or question.sparsity is None or config.unit != "weight":
        return form.voters
    kept = math.ceil((1.0 - question.sparsity) * layout.whole)
    return min(form.voters, kept + len(question.masks))


def votes_norm(most: int, voters: int, sampling: str) -> float:
    """The L2 sensitivity of a sum of masks that keep at most so many of the weights voted on.

    Add or remove one: sqrt(most). Replace one: two masks differ in at most 2·most places, and in no
    more than there are.
    """
    return math.sqrt(most if sampling == "poisson" else min(2 * most, voters))


def clip_of(kind: str, config: Privacy) -> float:
    """The L2 norm that bounds what a client sends in answer to such a question."""
    clips = {
        "changes": config.dp_clip or 1.0,
        "metrics": config.dp_metric_clip or 10.0,
        "scores": config.dp_score_clip or 1.0,
    }
    return clips[KINDS[kind].own_options]


def noise_of(kind: str, config: RunConfig) -> float:
    """The noise multiplier of such a question's sums; 0.0: none."""
    noises = {
        "changes": config.dp_noise,
        "metrics": config.dp_metric_noise if config.metrics == "noised" else 0.0,
        "scores": config.dp_score_noise,
    }
    return noises[KINDS[kind].own_options] or 0.0


def noise_source_of(config: RunConfig, purpose: str, *where: int) -> Source:
    """The source that `noise_source` names, for one purpose at one place.

    Two sources for one purpose and place begin with the same words, if they are seeded.

    """
    if config.noise_source == "secret":
        return secret_source()
    return seeded_source(config.seed, purpose, *where)


def source_for(question: Question, config: RunConfig, partition: int, purpose: str) -> Source:
    """The source of a client's own noise in its answer to a question.

    Seeded, it is another one for every other question: had two of them the same noise, it would
    drop out of their difference. So has the same question when a resumed run puts it again.
    """
    q = question
    about = (q.kind, q.score, q.ask, q.names, q.dense, q.sparsity, q.lr)
    sent: tuple[str, ...] = (model_digest(q.masks, q.edits), digest(q.weights), digest(q.given))
    sent += (digest(q.adapters),) if q.adapters else ()
    again = f" {q.again}" if q.again else ""
    return noise_source_of(config, f"{purpose} {about} {sent}{again}", q.round, partition)

"""What bounds a client's part of a sum, and the noise of the sum: clip, votes, noise multiplier."""

from __future__ import annotations

import math

from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.privacy.options import Privacy
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Question
from fedprune.selection.options import Pruning
from fedprune.structure.layout import Layout


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

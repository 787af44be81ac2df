"""Where the noise of a run comes from."""

from __future__ import annotations

from fedprune.codec.model_digest import model_digest
from fedprune.config import RunConfig
from fedprune.privacy.noise import Source, secret_source, seeded_source
from fedprune.protocol.messages import Question
from fedprune.tensors.named import digest


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

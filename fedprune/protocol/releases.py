"""What a question makes leave its clients and its server, quantity by quantity, for the ledger.

The fields are those of the form that both sides know, so that nothing can travel that is not here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedprune.config import RunConfig
from fedprune.config.cohort import asked_of
from fedprune.config.kinds import KINDS
from fedprune.privacy.accounting import skellam_zcdp
from fedprune.privacy.clipping import sensitivity
from fedprune.privacy.discretise import noise_for
from fedprune.privacy.mechanisms import (
    GAUSSIAN,
    NONE,
    POST_PROCESSING,
    PUBLIC,
    SAMPLED_GAUSSIAN,
    SKELLAM,
)
from fedprune.privacy.options import Privacy
from fedprune.privacy.release import Release
from fedprune.protocol.client_privacy import asks_signed, hides
from fedprune.protocol.form import Form
from fedprune.protocol.limits import clip_of, noise_of, votes_norm
from fedprune.protocol.messages import Question
from fedprune.protocol.votes import response_release
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of

OPEN = "released without noise"
_SUMMED = "only sums over clients are seen, without noise: not differentially private"
_MASKED = "keys, encrypted shares and masked vectors: each looks random by itself"
_CONSTANT = "the same number for every client"
_PANEL = "of clients that are not protected (--panel)"
_DERIVED = {
    True: "weights and a mask from noised scores: made of what was released before",
    False: "weights, and a mask made of them alone: made of what was released before",
}
"""Whether the score asks clients."""


def releases_of(
    question: Question, form: Form, config: RunConfig, most: int = 0
) -> tuple[Release, ...]:
    """What leaves each client that is asked, and then what leaves the server.

    `most` is the largest number of votes that a client may have, see `most_votes`.
    """
    up = (*_arrays(question, form, config, most), *_numbers(question, form, config))
    up = tuple(_shared_out(release, config) for release in up)
    told = Release("failures", ("failures",), reason="the error message of a client that failed")
    masked = ("keys", "shares", "masked", "signatures")
    sealed = () if config.secure == "none" else (_public("protocol", masked, _MASKED),)
    failed = () if hides(config) else (told,)
    return (*up, *sealed, *failed, _there(config), _down(config))


def announced(config: RunConfig) -> tuple[Release, ...]:
    """What clients tell of themselves before they are asked anything: how many labels they have."""
    if hides(config):
        return ()
    return (Release("counts", ("labels",), reason=OPEN),)


def _arrays(question: Question, form: Form, config: RunConfig, most: int) -> list[Release]:
    kind, out = question.kind, list[Release]()
    if form.values:
        fields = ("values", *["singles"] * form.singly, *["norms"] * form.normed)
        signed = asks_signed(question, config)
        out.append(_array(KINDS[kind].quantity, fields, kind, config, form.values, signed))
    if form.statistics:
        out.append(_array("scores", ("statistics",), "score", config, form.statistics, True))
    if form.voters:
        out.append(_votes(form, question, config, most))
    return out


def _votes(form: Form, question: Question, config: RunConfig, most: int) -> Release:
    fields = ("votes", "held") if form.own else ("votes",)
    if config.response is not None:
        return response_release(fields, question, config)
    release = _array("votes", fields, "score", config, form.voters, False)
    if not release.covered:
        return release
    norm = votes_norm(most, form.voters, config.sampling)
    return replace(release, clip=math.sqrt(most), sensitivity=norm)


def _array(
    quantity: str, fields: tuple[str, ...], kind: str, config: RunConfig, size: int, signed: bool
) -> Release:
    z = noise_of(kind, config)
    if quantity == "counts" and config.panel:
        return _public(quantity, fields, _PANEL)
    if config.dp == "none" or not z or quantity == "counts":
        return Release(quantity, fields, coordinates=size, reason=_why(config))
    clip = clip_of(kind, config)
    if config.dp == "example":
        return _of_examples(quantity, fields, kind, config, size)
    return Release(
        quantity,
        fields,
        unit="client",
        mechanism=GAUSSIAN.name,
        clip=clip,
        sensitivity=sensitivity(clip, signed=signed, sampling=config.sampling),
        z=z,
        denominator=float(asked_of(kind, config)),
        coordinates=size,
        covered=True,
    )


def _shared_out(release: Release, config: Privacy) -> Release:
    """The release with the noise that clients add together, under a secure sum.

    What hides an example of a client is added by that client alone, but for metrics.
    """
    alone = release.unit == "example" and release.quantity != "metrics"
    if config.secure == "none" or release.mechanism != GAUSSIAN.name or alone:
        return release
    noise = noise_for(release)
    return replace(
        release, mechanism=SKELLAM.name, spread=skellam_zcdp(noise.mu, noise.l1, noise.l2)
    )


def _public(quantity: str, fields: tuple[str, ...], why: str) -> Release:
    """The release of what is nobody's data."""
    return Release(quantity, fields, mechanism=PUBLIC.name, covered=True, reason=why)


def _of_examples(
    quantity: str, fields: tuple[str, ...], kind: str, config: RunConfig, size: int
) -> Release:
    tuning = KINDS[kind].changes
    clip = clip_of(kind, config)
    return Release(
        quantity,
        fields,
        unit="example",
        mechanism=(SAMPLED_GAUSSIAN if tuning else GAUSSIAN).name,
        clip=clip,
        sensitivity=clip,
        z=noise_of(kind, config),
        denominator=float(config.batch_size) if tuning else None,
        steps=config.local_steps if tuning else 1,
        rate=(config.dp_rate or 1.0) if tuning else 1.0,
        coordinates=size,
        covered=True,
    )


def _numbers(question: Question, form: Form, config: RunConfig) -> list[Release]:
    kind, out = question.kind, list[Release]()
    named = {n: f"totals.{n}" for n in sorted(form.totals)}
    counts = tuple(f for n, f in named.items() if n == "count")
    rest = (*(f for n, f in named.items() if n != "count"), *["resampled"] * form.resampled)
    if _weighted(question, config):
        counts = ("weight", *counts)
    else:
        out.append(_public("counts", ("weight",), _CONSTANT))
    if KINDS[kind].totals_only and config.panel:
        return [*out, _public("metrics", (*rest, *counts), _PANEL)]
    if counts:
        out.append(Release("counts", counts, reason=_why(config)))
    if rest:
        out.append(_metrics(rest, kind, config))
    return out


def _weighted(question: Question, config: RunConfig) -> bool:
    """Whether the answer carries its number of labels as a weight."""
    if config.dp != "none":
        return False
    if KINDS[question.kind].changes:
        return config.weighting != "equal"
    valued = combines_of(config.plugin)[config.combine].valued
    return question.kind == "score" and valued and config.score_weighting == "labels"


def _metrics(fields: tuple[str, ...], kind: str, config: RunConfig) -> Release:
    z = noise_of(kind, config) if KINDS[kind].totals_only else 0.0
    if config.dp == "none" or not z:
        return Release("metrics", fields, reason=_why(config))
    clip = clip_of(kind, config)
    # What one example can do to its client's clipped means is less than what replacing it can.
    replacing = "fixed" if config.dp == "example" else config.sampling
    return Release(
        "metrics",
        fields,
        unit=config.dp,
        mechanism=GAUSSIAN.name,
        clip=clip,
        sensitivity=sensitivity(clip, signed=True, sampling=replacing),
        z=z,
        denominator=float(config.clients),
        coordinates=len(fields),
        covered=True,
    )


def _why(config: Privacy) -> str:
    return _SUMMED if config.secure != "none" else OPEN


def _there(config: RunConfig) -> Release:
    # Of a failure whose reason stays with the client it is only known that it was one.
    failed = ("failures",) if hides(config) else ()
    why = "who was asked and who answered: taken not to depend on anybody's data"
    return _public("participation", ("answered", "bytes_up", *failed), why)


def _down(config: RunConfig) -> Release:
    """What the server sends along: the model, its mask, what it made of earlier answers."""
    covered, asks = config.dp != "none", bool(scores_of(config.plugin)[config.score].asks)
    return Release(
        "model",
        ("head", "values", "bits", "more", "teacher", "rungs", "counted"),
        way="down",
        mechanism=(POST_PROCESSING if covered else NONE).name,
        covered=covered,
        reason=_DERIVED[asks] if covered else "made of what is not protected",
    )

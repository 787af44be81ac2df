"""What an answer to a question consists of: both sides know it before anything is sent.

A client fills the form in, a server checks what came against it, and either side can turn a flat
buffer into named tensors with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fedprune.adapters.factors import adapter_layout, trained_shapes
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.config.options import Federation
from fedprune.protocol.client_privacy import (
    asks_signed,
    noised_metrics,
    noises_itself,
    spared_totals,
)
from fedprune.protocol.form import LARGEST_NUMBER, MANY, Form
from fedprune.protocol.messages import Question
from fedprune.redundancy.calibration import MAGNITUDES
from fedprune.redundancy.moments import MOMENTS
from fedprune.redundancy.principal import SIGNALS
from fedprune.redundancy.reconstruction import OUTPUTS
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES, combines_of
from fedprune.scores.inputs import aliases
from fedprune.scores.options import Scoring
from fedprune.scores.score import Shapes
from fedprune.structure.layout import Layout, as_rows
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.client_spread import spread_names
from fedprune.tasks.measures import SPREAD
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import extra_names
from fedprune.tensors.lazy import some_of
from fedprune.tensors.named import count_kept

CHANGE = 1e15
"""Size beyond which no change of a weight counts: float32 still holds squares of twice as much."""


def form_of(question: Question, config: RunConfig, layout: Layout) -> Form:
    """The form of an answer to this question, without the totals that stay with the client."""
    if question.adapters and KINDS[question.kind].changes:
        layout = adapter_layout(trained_shapes(question.adapters, question.fresh, layout))
        question = replace(question, masks={}, adapters={})
    form = FORMS[question.kind](question, config, layout)
    names = question.names or layout.prunable
    alike = aliases({**form.shapes, **form.sums}, layout, names)
    form = replace(form, weighed=_weighed(question, config), alike=alike)
    if spared_totals(question.kind, config):
        return replace(form, totals=frozenset())
    if noised_metrics(question.kind, config):
        own = noises_itself(question.kind, config)
        return replace(form, totals=form.totals - {"count"}, noisy=own)
    return form


def _weighed(question: Question, config: RunConfig) -> bool:
    """Whether the answers are weighted by labels in the sum: changes, and clients' own scores."""
    if config.dp != "none":
        return False
    if KINDS[question.kind].changes:
        return config.weighting != "equal"
    combine = combines_of(config.plugin)[config.combine]
    own = combine.valued and not combine.pooled and not question.dense
    return question.kind == "score" and own and config.score_weighting == "labels"


def _score(question: Question, config: RunConfig, layout: Layout) -> Form:
    names = question.names or layout.prunable
    totals = frozenset({"count"})
    asks = scores_of(config.plugin)[question.score].asks
    if question.dense:
        whole = asks[question.ask].shapes(layout, names, config.unit, config.probes or 0)
        return Form(whole, {}, totals)
    last = question.ask == len(asks) - 1
    masks = some_of(question.masks, names)
    combine = combines_of(config.plugin)[config.combine] if last else COMBINES["sum"]
    shapes: Shapes = asks[question.ask].shapes(layout, names, config.unit, config.probes or 0)
    if not combine.pooled:
        shapes = {n: layout.shapes[n] for n in names} if combine.valued else {}
    votes = last and question.sparsity is not None
    if votes and config.score_wire != "fp32":
        totals |= {"overlap", "own"}
    voters = count_kept(masks) if votes else 0
    form = Form(shapes, masks, totals, voters=voters, singly=combine.merge is not None)
    if combine.pooled:
        # Clients that hide examples have added noise themselves, which makes any sum negative.
        if config.dp == "example":
            return replace(form, exact=False)
        positive = not asks_signed(question, config)
        return replace(form, within=(0.0, LARGEST_NUMBER)) if positive else form
    if config.dp != "none" or config.secure != "none":
        return form
    return replace(form, within=(0.0, 1.0) if config.normalise == "rank" else combine.within)


def _tune(question: Question, config: RunConfig, layout: Layout) -> Form:
    if question.regime.alone:
        bare = {n: torch.empty(layout.shapes[n], device="meta") for n in layout.prunable}
        rows = {n: torch.Size([as_rows(layout, n, t).shape[0]]) for n, t in bare.items()}
        totals = frozenset({"loss", "count", "kept"})
        return Form(rows, {}, totals, within=(-CHANGE, CHANGE))
    sums: Shapes = {}
    positive = False
    if collects(question, config):
        ask = scores_of(config.plugin)[question.score].asks[0]
        sums = ask.shapes(layout, layout.prunable, config.unit, config.probes or 0)
        positive = not ask.signed
    own = bool(question.grow) or question.regime.own
    own = own or (bool(question.score) and config.masks != "global")
    beside = {"divergence"} if question.teacher else set()
    masks = question.changed_on
    voters = count_kept(masks) if masks else sum(m.numel() for m in question.masks.values())
    return Form(
        layout.shapes,
        masks,
        frozenset({"loss", "count", *beside}),
        sums,
        voters if own else 0,
        own,
        config.robust != "none",
        normed=config.max_norm is not None,
        within=(-CHANGE, CHANGE),
        positive=positive,
        whole_sums=question.dense,
    )


def collects(question: Question, config: Scoring) -> bool:
    """Whether clients collect a score's statistics as they tune; ``dense``: of all weights."""
    return bool(question.score) and (config.score_during == "tune" or question.dense)


def _own(question: Question, _: RunConfig, layout: Layout) -> Form:
    masks = some_of(question.masks, question.names or layout.prunable)
    return Form({}, masks, voters=count_kept(masks))


def _evaluate(question: Question, config: RunConfig, _: Layout) -> Form:
    task = tasks_of(config.plugin)[config.task]
    more = task.test_sum_names if question.part == "test" else ()
    if config.client_percentiles and question.part == "test" and question.kind == "evaluate":
        more = (*more, *spread_names(task.metric))
    more = SPREAD if samples(question, config) and question.kind == "evaluate" else more
    names = ("loss", "correct", "count", *extra_names(task, config), *more)
    alone = config.secure == "none" and (config.dp == "none" or config.panel > 0)
    again = question.part == "test" and alone  # a panel is not protected
    return Form({}, {}, frozenset(names), resampled=again)


def samples(question: Question, config: Federation) -> bool:
    """Whether this measures on a sample of those who could, whose error is to be told."""
    return bool(config.measure_cohort) and question.part == "validation"


def _describe(_: Question, config: RunConfig, _layout: Layout) -> Form:
    task = tasks_of(config.plugin)[config.task]
    naive = naive_of(task)
    each = torch.Size([naive.size(config) if naive else 0])
    within = (-LARGEST_NUMBER, LARGEST_NUMBER) if task.naive else (0.0, float(MANY))
    return Form({"test": each, "train": each}, within=within)


def _inputs(question: Question, _: RunConfig, layout: Layout) -> Form:
    asks = {"inputs": MOMENTS, "outputs": OUTPUTS, "magnitudes": MAGNITUDES, "signals": SIGNALS}
    shapes = asks[question.kind].shapes(layout, question.names or layout.prunable, "weight", 0)
    return Form(shapes, {}, frozenset({"count"}))


def _compare(question: Question, _: RunConfig, _layout: Layout) -> Form:
    each = [f"{n}_{i}" for n in ("loss", "correct") for i in range(len(question.candidates))]
    return Form({}, {}, frozenset({"count", *each}))


def _tokens(question: Question, _: RunConfig, layout: Layout) -> Form:
    (table,) = question.names
    shape = {**layout.frozen, **layout.shapes}[table]
    return Form({table: shape[:1]}, within=(0.0, float(MANY)))


FORMS: dict[str, Callable[[Question, RunConfig, Layout], Form]] = {
    "score": _score,
    "tune": _tune,
    "own": _own,
    "evaluate": _evaluate,
    "compare": _compare,
    "describe": _describe,
    **dict.fromkeys(("inputs", "outputs", "magnitudes", "signals"), _inputs),
    "tokens": _tokens,
}

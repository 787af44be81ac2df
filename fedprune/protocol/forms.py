"""What an answer to a question consists of: both sides know it before anything is sent.

A client fills the form in, a server checks what came against it, and either side can turn a flat
buffer into named tensors with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedprune.adapters.factors import adapter_layout, trained_shapes
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.protocol.client_privacy import (
    asks_signed,
    noised_metrics,
    noises_itself,
    spared_totals,
)
from fedprune.protocol.failures import longest_about
from fedprune.protocol.messages import Question
from fedprune.redundancy.calibration import MAGNITUDES
from fedprune.redundancy.moments import MOMENTS
from fedprune.redundancy.reconstruction import OUTPUTS
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES, combines_of
from fedprune.scores.inputs import aliases, inputs_of
from fedprune.scores.score import Shapes
from fedprune.structure.layout import Layout, as_rows
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.client_spread import spread_names
from fedprune.tasks.measures import SPREAD
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import extra_names
from fedprune.tensors.lazy import shapes_of, some_of
from fedprune.tensors.named import Masks, Tensors, count_kept, scattered

LARGEST_NUMBER = 1e30
"""Size beyond which no number counts: what is added up becomes float32, which ends at 3.4e38."""


CHANGE = 1e15
"""Size beyond which no change of a weight counts: float32 still holds squares of twice as much."""


MANY = 2**53
"""More labels than this nobody has; up to here every count is a float64 of its own."""


@dataclass(frozen=True)
class Form:
    """What an answer consists of.

    Attributes:
        shapes: of the values, by name.
        masks: where they are kept; names without a mask come whole.
        totals: the named sums that come along.
        sums: shapes of the statistics that come beside the values.
        voters: how many flags the votes hold; 0: no votes are expected.
        own: the values come on the client's own mask, which its votes are.
        singly: the server needs the values of each client, not only their sum.
        noisy: the totals come with noise, and any of them may be negative.
        normed: the server needs the norm of each client's values.
        within: between which numbers every value lies.
        positive: no statistic beside the values is negative.
        alike: names of values that do not come, for they are those of another name.
        exact: the values are as they were computed; else the client has added noise, and nothing
            need hold between them.
        weighed: the values' factor in the sum is the client's number of labels; else it is 1.
    """

    shapes: Shapes
    masks: Masks = field(default_factory=dict)
    totals: frozenset[str] = frozenset()
    sums: Shapes = field(default_factory=dict)
    voters: int = 0
    own: bool = False
    singly: bool = False
    noisy: bool = False
    normed: bool = False
    within: tuple[float, float] = (-LARGEST_NUMBER, LARGEST_NUMBER)
    positive: bool = False
    weighed: bool = True
    exact: bool = True
    alike: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def values(self) -> int:
        """How many values an answer carries."""
        return _numbers(self.shapes, self.masks)

    @cached_property
    def statistics(self) -> int:
        """How many statistics come beside them."""
        return _numbers(self.sums, self.masks)

    @cached_property
    def of_inputs(self) -> bool:
        """Whether any of the values are sums of a weight's inputs."""
        return any(name.endswith(inputs_of("")) for name in self.shapes)

    @cached_property
    def sums_of_inputs(self) -> bool:
        """Whether any of the statistics are."""
        return any(name.endswith(inputs_of("")) for name in self.sums)

    @cached_property
    def longest_head(self) -> int:
        """Bytes that the head of an answer may take."""
        return longest_about(1, self.totals)

    def named(self, flat: Tensor, *, shared: bool = False) -> Tensors:
        """Values by name, 0.0 where a mask is False; `shared`: may be the flat one's memory."""
        masks = fitting(self.shapes, self.masks)
        found = scattered(flat, self.shapes, masks, shared=shared)
        return found | {name: found[of] for name, of in self.alike.items()}

    def named_sums(self, flat: Tensor) -> Tensors:
        """Statistics by name."""
        found = scattered(flat, self.sums, fitting(self.sums, self.masks))
        return found | {name: found[of] for name, of in self.alike.items()}


def fitting(shapes: Shapes, masks: Masks) -> Masks:
    """The masks that apply: those of the same name and shape."""
    own = shapes_of(masks)
    return some_of(masks, [n for n, s in shapes.items() if own.get(n) == s])


def _numbers(shapes: Shapes, masks: Masks) -> int:
    given = fitting(shapes, masks)
    return count_kept(given) + sum(s.numel() for n, s in shapes.items() if n not in given)


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
    if question.dense:
        return Form({n: layout.shapes[n] for n in names}, {}, totals)
    asks = scores_of(config.plugin)[question.score].asks
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
        return (
            form if asks_signed(question, config) else replace(form, within=(0.0, LARGEST_NUMBER))
        )
    if config.dp != "none" or config.secure != "none":
        return form
    return replace(form, within=(0.0, 1.0) if config.normalise == "rank" else combine.within)


def _tune(question: Question, config: RunConfig, layout: Layout) -> Form:
    if question.regime.alone:
        rows = {
            n: torch.Size([as_rows(layout, n, _like(n, layout)).shape[0]]) for n in layout.prunable
        }
        totals = frozenset({"loss", "count", "kept"})
        return Form(rows, {}, totals, within=(-CHANGE, CHANGE))
    sums: Shapes = {}
    positive = False
    if question.score and config.score_during == "tune":
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
    )


def _like(name: str, layout: Layout) -> Tensor:
    return torch.empty(layout.shapes[name], device="meta")


def _own(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config
    masks = some_of(question.masks, question.names or layout.prunable)
    return Form({}, masks, voters=count_kept(masks))


def _evaluate(question: Question, config: RunConfig, layout: Layout) -> Form:
    del layout
    task = tasks_of(config.plugin)[config.task]
    more = task.test_sum_names if question.part == "test" else ()
    if config.client_percentiles and question.part == "test" and question.kind == "evaluate":
        more = (*more, *spread_names(task.metric))
    more = SPREAD if samples(question, config) and question.kind == "evaluate" else more
    names = ("loss", "correct", "count", *extra_names(task, config), *more)
    return Form({}, {}, frozenset(names))


def samples(question: Question, config: RunConfig) -> bool:
    """Whether this measures on a sample of those who could, whose error is to be told."""
    return bool(config.measure_cohort) and question.part == "validation"


def _describe(question: Question, config: RunConfig, layout: Layout) -> Form:
    del question, layout
    task = tasks_of(config.plugin)[config.task]
    naive = naive_of(task)
    each = torch.Size([naive.size(config) if naive else 0])
    within = (-LARGEST_NUMBER, LARGEST_NUMBER) if task.naive else (0.0, float(MANY))
    return Form({"test": each, "train": each}, within=within)


def _inputs(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config
    ask = {"inputs": MOMENTS, "outputs": OUTPUTS, "magnitudes": MAGNITUDES}[question.kind]
    shapes = ask.shapes(layout, question.names or layout.prunable, "weight", 0)
    return Form(shapes, {}, frozenset({"count"}))


def _compare(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config, layout
    each = range(len(question.candidates))
    return Form(
        {}, {}, frozenset({"count", *(f"{n}_{i}" for n in ("loss", "correct") for i in each)})
    )


def _tokens(question: Question, config: RunConfig, layout: Layout) -> Form:
    del config
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
    "inputs": _inputs,
    "outputs": _inputs,
    "magnitudes": _inputs,
    "tokens": _tokens,
}

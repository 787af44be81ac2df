"""Noise that hides single examples, added by their own client: ``--dp example``.

Scores: each example's statistic, taken of it alone, is held to a norm; their sum gets Gaussian
noise before it leaves the client. Tuning: DP-SGD, Abadi et al. 2016, arXiv 1607.00133, algorithm 1.
An example is one row of a part (of text, one window). Neighbours differ in that one of them has an
example more, so that a sum's sensitivity is the norm of one.

Departures from the paper: sums are divided by the batch size of the configuration, not by the
expected number of examples, which would tell the size of the shard; models are tuned in eval mode,
without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedprune.client.context import ClientContext, warn_once
from fedprune.learning.local_training import Backward, Done
from fedprune.privacy.clipping import bounded_sum
from fedprune.privacy.noise import Source, gaussian, uniforms
from fedprune.privacy.options import Privacy
from fedprune.protocol.form import fitting
from fedprune.protocol.limits import source_for
from fedprune.protocol.messages import Question
from fedprune.scores.catalog import scores_of
from fedprune.scores.example_gradients import ExampleGradients, SumOverExamples, of_examples
from fedprune.scores.score import Probe, Statistic
from fedprune.tasks.task import Part, Task, batches, examples
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, scattered


def noised_statistics(question: Question, client: ClientContext, probe: Probe) -> Tensors:
    """The client's statistics for one ask as a noisy sum over its examples, float64.

    By the names and shapes of the ask, 0.0 where a mask is False. Each example's statistic, all
    its alive tensors as one vector, has the norm of `dp_score_clip` at most, or norm 1 exactly
    without one; the noise has `dp_score_noise` times that as its standard deviation. The number
    of examples, and which were not finite, is not released.
    """
    c = client.config
    ask = scores_of(c.plugin)[question.score].asks[question.ask]
    shapes = ask.shapes(client.layout, probe.prunable, c.unit, c.probes or 0)
    fits = {} if question.dense else fitting(shapes, question.masks)
    norm, size = c.dp_score_clip or 1.0, values_in(shapes, fits)
    total = torch.zeros(size, dtype=torch.float64)

    def of(batch: Part) -> tuple[Tensor]:
        total = torch.zeros(size, dtype=torch.float64)
        for rows in _rows(ask, replace(probe, batches=[batch])):
            flat = bounded_sum(flat_rows(rows, fits), norm, exactly=c.dp_score_clip is None)
            total += flat.cpu()
        return (total,)

    for batch in probe.batches:
        for (part,) in whatever_fails(of, batch, client.said):
            total += part
    source = source_for(question, c, client.partition, "noise")
    total += gaussian(size, (c.dp_score_noise or 0.0) * norm, source)
    return scattered(total, shapes, fits)


Sums = TypeVar("Sums", bound=tuple[Any, ...])

RAISED = (Exception, SystemExit, GeneratorExit)
"""What a client's code may raise on an example; Ctrl-C and the end of its time are others'."""


def whatever_fails(of: Callable[[Part], Sums], batch: Part, said: set[str]) -> Iterator[Sums]:
    """What is had of a batch, or, where that fails, of those of its examples that do not fail.

    An example on which a client's code raises counts as 0, as one that is not finite does: what
    the others are in the sum must not depend on it, and a failure would tell that it is there.
    """
    try:
        found = of(batch)
    except RAISED as error:
        if examples(batch) > 1:
            for example in batches(batch, 1):
                yield from whatever_fails(of, example, said)
        else:
            warn_once(error, "each example on which it does counts as 0", said)
        return
    yield found  # beyond the try: who closes this generator raises GeneratorExit here


def _rows(ask: Statistic, probe: Probe) -> Iterator[Tensors]:
    """Statistics of some examples at a time, (examples, *shape), by name."""
    if isinstance(ask.collect, SumOverExamples):
        return of_examples(ask.collect.each, probe)
    return _one_by_one(ask, probe)


def _one_by_one(ask: Statistic, probe: Probe) -> Iterator[Tensors]:
    for batch in probe.batches:
        for example in batches(batch, 1):
            found = ask.collect(replace(probe, batches=[example]))
            yield {n: t.detach()[None] for n, t in found.items()}


def values_in(shapes: Mapping[str, torch.Size], masks: Masks) -> int:
    """How many values tensors of these shapes have where the masks keep them."""
    return sum(int(masks[n].sum()) if n in masks else s.numel() for n, s in shapes.items())


def flat_rows(rows: Tensors, masks: Masks) -> Tensor:
    """Rows of tensors as rows of values, (examples, values), in the order of `tensors.kept`."""
    return torch.cat([_alive(rows[n].flatten(1), masks.get(n)) for n in sorted(rows)], dim=1)


def _alive(rows: Tensor, mask: Tensor | None) -> Tensor:
    # Indexing takes many times a copy, and in dense rounds there is nothing to leave out.
    if mask is None or bool(mask.all()):
        return rows
    return rows[:, mask.flatten().nonzero().squeeze(1).to(rows.device)]


def poisson_steps(part: Part, steps: int, rate: float, source: Source) -> Iterator[list[Part]]:
    """The steps of a round, in each of which every example is drawn by itself at a rate.

    A step is a list of one batch, or of none where nothing was drawn: it is noise then.

    Draws go to rows by their place, so that a row more shifts which of them the rows after it get.
    That moves no example in the sense of the bound: draws are independent of each other and of the
    data and, with a secret source, new in every answer, so that each example is in a step with
    probability `rate` whoever else is there, which is all that amplification asks for (Abadi et
    al. 2016, section 3.1). Seeded draws are of a simulation, as its noise is.
    """
    for _ in range(steps):
        drawn = uniforms(examples(part), source) < rate
        chosen = torch.from_numpy(drawn.nonzero()[0])
        yield [{name: t[chosen] for name, t in part.items()}] if len(chosen) else []


def noisy_steps(
    model: nn.Module,
    task: Task,
    masks: Mapping[str, Tensor],
    privacy: Privacy,
    batch_size: int,
    source: Source,
    said: set[str] | None = None,
) -> Backward:
    """What gives `fedprune.learning.local_training.tune` the gradients of DP-SGD.

    An example's gradient is that of its own mean loss over its labels, on all trainable tensors,
    where they are alive, as one vector of norm `dp_clip` at most. To the sum over a step's examples
    comes noise of `dp_noise` times that norm; the whole is divided by `batch_size`, whatever the
    number of examples.
    """
    told = set[str]() if said is None else said
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    shapes = shapes_of(named)
    alive = {n: m.cpu() for n, m in masks.items()}
    taken = ExampleGradients(model, task.loss, tuple(named))
    norm, size = privacy.dp_clip or 1.0, values_in(shapes, alive)

    def of(batch: Part) -> tuple[Tensor, float, int]:
        total, loss, count = torch.zeros(size, dtype=torch.float64), 0.0, 0
        for some in taken.of(batch):
            labels = torch.tensor([max(1, task.labels(row)) for row in batches(some.rows, 1)])
            rows = flat_rows(some.gradients, alive)
            total += bounded_sum(rows.div_(labels[:, None].to(rows)), norm).cpu()
            loss, count = loss + some.loss, count + some.labels
        return total, loss, count

    def backward(step: list[Part]) -> Done:
        model.eval()
        total, loss, count = torch.zeros(size, dtype=torch.float64), 0.0, 0
        for part, its_loss, its_count in (s for b in step for s in whatever_fails(of, b, told)):
            total += part
            loss, count = loss + its_loss, count + its_count
        total += gaussian(size, (privacy.dp_noise or 0.0) * norm, source)
        for name, g in scattered(total / batch_size, shapes, alive).items():
            named[name].grad = g.to(named[name])
        return Done(loss, count)

    return backward

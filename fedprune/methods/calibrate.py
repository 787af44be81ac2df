"""What an export quantises by: sums of the finished model's inputs, asked of the last cohort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedprune.methods.method import Rider
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.redundancy.calibration import CALIBRATIONS, linear_of
from fedprune.redundancy.moments import measurable, questions
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class Memory:
    """What was summed, by the names that the question's form gives it; nothing before the end."""

    sums: Tensors = field(default_factory=dict)


def summed_result(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The sums of all prunable linear layers, a few layers to a question; all of them or none."""
    plan, sums = r.plan, dict[str, Any]()
    assert plan.model is not None  # runs have one
    assert r.config.quantise_by is not None  # else nobody is here
    names = linear_of(plan.model, measurable(plan.model, plan.layout))
    for some in questions(plan.layout, names):
        question = r.question(model, CALIBRATIONS[r.config.quantise_by].kind, names=some)
        (aggregate,) = yield [Ask(question, r.cohort)]
        if aggregate.total is None or len(aggregate.answered) < r.config.min_clients:
            return Step(model, memory, undone="nothing to quantise by: too few answered")
        sums |= form_of(question, plan.config, plan.layout).named(aggregate.total)
    return Step(model, Memory({name: t.float() for name, t in sums.items()}))


RIDER = Rider(
    "sums of the final model's inputs that an export is quantised by (--quantise-by)",
    wanted=lambda c: c.quantise_by is not None,
    memory=Memory,
    last=summed_result,
)

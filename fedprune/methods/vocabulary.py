"""A vocabulary of the tokens that clients use: counted once, before the first round.

If nobody answers then, they are asked again in the next rounds, until somebody does or pruning has
begun.

Every client counts how often each token occurs in its training and validation parts, never in its
test part; counts add up. Tokens that nobody uses leave the model (`fedprune.structure.vocabulary`).
From then on every text is read with the smaller vocabulary: a token that is gone, in a test part or
with a client that was not there to count, is the unknown one, as an input and as a label.
"""

from __future__ import annotations

from typing import Any

from fedprune.client.tokens import special_tokens_of
from fedprune.methods.method import Rider
from fedprune.protocol.port import Ask
from fedprune.server.round import Round, Step, Talk
from fedprune.server.shrink import cut_to
from fedprune.server.state import Model
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import ordered
from fedprune.structure.tables import embedding_path
from fedprune.structure.vocabulary import used
from fedprune.tasks.catalog import tasks_of


def with_used_tokens(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The model without the tokens that nobody uses, where that is wanted.

    As it was, if nobody answers, once it is pruned, and where an earlier run has cut the vocabulary
    already, which a run that continues it keeps.
    """
    plan = r.plan
    if cut(model) or r.prunings:
        return Step(model, memory)
    assert plan.model is not None  # a plan has one
    path = embedding_path(plan.model)
    table: Any = plan.model.get_submodule(path)
    named = (name for name, p in plan.model.named_parameters() if p is table.weight)
    question = r.question(model, "tokens", names=(next(named),))
    (aggregate,) = yield [Ask(question, r.present())]
    if aggregate.total is None:
        return Step(model, memory)
    task = tasks_of(plan.config.plugin)[plan.config.task]
    marks, unknown = special_tokens_of(task, plan.config, plan.model)
    kept = used(aggregate.total, (i for i in marks if i < len(aggregate.total)))
    edit = Edit("vocab", path, kept, str(unknown))
    return Step(cut_to(model, plan, ordered((*model.edits, edit)))[0], memory)


def cut(model: Model) -> bool:
    """Whether the vocabulary is cut already."""
    return any(edit.kind == "vocab" for edit in model.edits)


RIDER = Rider(
    "tokens that no client uses are taken out before round one (--vocabulary used)",
    wanted=lambda c: c.vocabulary != "full",
    opening=with_used_tokens,
    lacks=lambda model, _: not cut(model),
)

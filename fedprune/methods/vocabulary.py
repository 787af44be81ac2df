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
from fedprune.protocol.port import Port
from fedprune.server.ask import put, question_about
from fedprune.server.shrink import cut_to, fitted
from fedprune.server.state import Plan, State
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import ordered
from fedprune.structure.tables import embedding_path
from fedprune.structure.vocabulary import used
from fedprune.tasks.catalog import tasks_of


def with_used_tokens(state: State, plan: Plan, port: Port) -> State:
    """The state of a model without the tokens that nobody uses, where that is wanted.

    As it was but for what asking changes, if nobody answers. As it was, once it is pruned, and
    where an earlier run has cut the vocabulary already, which a run that continues it keeps.
    """
    cut_before = any(edit.kind == "vocab" for edit in state.edits)
    if plan.config.vocabulary == "full" or cut_before or state.prunings:
        return state
    plan = fitted(plan, state.edits)
    model = plan.model
    assert model is not None  # a plan has one
    path = embedding_path(model)
    table: Any = model.get_submodule(path)
    named = (name for name, p in model.named_parameters() if p is table.weight)
    question = question_about(state, "tokens", names=(next(named),))
    state, aggregate = put(state, port, question, list(port.present()))
    if aggregate.total is None:
        return state
    task = tasks_of(plan.config.plugin)[plan.config.task]
    marks, unknown = special_tokens_of(task, plan.config, model)
    kept = used(aggregate.total, (i for i in marks if i < len(aggregate.total)))
    edit = Edit("vocab", path, kept, str(unknown))
    return cut_to(state, plan, ordered((*state.edits, edit)))[0]

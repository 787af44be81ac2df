"""A vocabulary of the tokens that clients use: counted once, before the first round.

Every client counts how often each token occurs in its training and validation parts, never in its
test part; counts add up. Tokens that nobody uses leave the model (`fedprune.pruning.vocabulary`).
From then on every text is read with the smaller vocabulary: a token that is gone, in a test part or
with a client that was not there to count, is the unknown one, as an input and as a label.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.plugins import tasks_of
from fedprune.pruning.edits import Edit
from fedprune.pruning.surgery import ordered
from fedprune.pruning.tables import embedding_path
from fedprune.pruning.vocabulary import used
from fedprune.rounds import census
from fedprune.shrinking import cut_to, fitted
from fedprune.state import Plan, Port, State
from fedprune.tokens import marks_of


def with_used_tokens(state: State, plan: Plan, port: Port) -> State:
    """The state of a model without the tokens that nobody uses, where that is wanted.

    As it was, if nobody answers; and where an earlier run has cut the vocabulary already, which a
    run that continues it keeps.
    """
    cut_before = any(edit.kind == "vocab" for edit in state.edits)
    if plan.config.vocabulary == "full" or cut_before:
        return state
    plan = fitted(plan, state.edits)
    model = plan.model
    assert model is not None  # a plan has one
    path = embedding_path(model)
    table: Any = model.get_submodule(path)
    named = (name for name, p in model.named_parameters() if p is table.weight)
    asked, folded = census(state, port, next(named))
    if folded.total is None:
        return state
    # A client that cannot answer now is asked again in every round, and counted there.
    state = replace(asked, failures=(), failed=0)
    task = tasks_of(plan.config.plugin)[plan.config.task]
    marks, unknown = marks_of(task, plan.config, model)
    kept = used(folded.total, (i for i in marks if i < len(folded.total)))
    edit = Edit("vocab", path, kept, str(unknown))
    return cut_to(state, plan, ordered((*state.edits, edit)))[0]

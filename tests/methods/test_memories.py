"""What methods and riders remember of a model follows it when it is cut."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from fedprune.methods.acting import begun, settled
from fedprune.methods.catalog import memories_of, riders_of
from fedprune.protocol.models import dense_model, layout_for
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step
from fedprune.server.shrink import Reshaped, carried, fitted, shrunk
from fedprune.server.state import Model, State, first_state
from fedprune.structure.edits import Edit
from fedprune.tensors.named import Tensors
from tests.filled import alike, filled
from tests.runs import tiny

Cut = tuple[State, Plan, Model, Plan]


@dataclass(frozen=True)
class Deep:
    """A memory of a user's own: of the model in places, and of other things."""

    by_client: dict[int, Tensors] = field(default_factory=dict)
    pairs: tuple[Tensors, ...] = ()
    other: Tensors = field(default_factory=dict)
    number: float = 0.5


KINDS: dict[str, type] = {**memories_of(""), "deep": Deep}


@pytest.fixture(scope="module")
def cut() -> Cut:
    """A model three of whose hidden units are masked, and the same without them."""
    config = tiny(model="mlp", moving="ema", rewind=0, reduce=("low-rank",))
    dense = dense_model(config)
    layout = layout_for(config, dense)
    plan = Plan(config, layout, (0, 0), dense)
    state = first_state(dense, layout)
    group = layout.structure.groups[0]
    masks = {n: m.clone() for n, m in state.masks.items()}
    for part in group.parts:
        lines = part.index[[0, 2, 5]].flatten()
        if part.tensor in masks:
            masks[part.tensor].index_fill_(0 if part.axis == "row" else 1, lines, value=False)
    model = state.model.under(masks)
    smaller, its = shrunk(model, plan)
    assert smaller.edits
    return replace(state, model=model), plan, smaller, its


def in_factors(plan: Plan) -> Plan:
    path = plan.layout.prunable[0].removesuffix(".weight")
    return fitted(plan, (Edit("rank", path, (2,)),))


def weights_in(memory: object) -> bool:
    """Whether a memory holds tensors under the names of a model."""
    return not alike(memory, filled(type(memory), {}))


def test_every_memory_is_cut_as_the_model_is(cut):
    state, plan, small, smaller = cut
    for name, kind in KINDS.items():
        before, after = (filled(kind, m.weights) for m in (state.model, small))
        assert alike(carried(before, plan, smaller), after), name
        assert carried(before, plan, plan) is before, name


def test_what_is_not_of_the_model_stays(cut):
    state, plan, small, smaller = cut
    other = {"a": torch.ones(2)} | {n: w[None] for n, w in state.weights.items()}
    memory = Deep({3: dict(state.weights)}, (), other, 2.5)
    after = carried(memory, plan, smaller)
    assert alike(after, Deep({3: dict(small.weights)}, (), other, 2.5))


def test_every_memory_of_matrices_that_factors_replaced_is_refused(cut):
    state, plan, _, _ = cut
    for memory in (filled(kind, state.weights) for kind in KINDS.values()):
        if weights_in(memory):
            with pytest.raises(Reshaped):
                carried(memory, plan, in_factors(plan))
        else:
            assert alike(carried(memory, plan, in_factors(plan)), memory)


def test_a_memory_of_what_is_no_more_begins_anew(cut):
    state, plan, _, _ = cut
    r = Round(3, plan)
    state = begun(state, r)
    held = {n: filled(KINDS[n], state.weights) for n in state.memories}
    factored = in_factors(plan)
    weights = {n: torch.zeros(s) for n, s in factored.layout.shapes.items()}
    model = Model(weights, {}, factored.edits)
    done = filled(KINDS["reduce"])
    after, its = settled(replace(state, memories=held), r, "reduce", Step(model, done))
    assert its.plan.edits == factored.edits
    assert after.model is model
    fresh = {
        n: v.init(model, its) if v.init else v.memory()
        for n, v in riders_of(plan.config).items()
        if weights_in(held[n])
    }
    assert {"moving", "rewind"} == fresh.keys()
    wanted = {**held, **fresh, "reduce": done}
    assert after.memories.keys() == wanted.keys()
    assert all(alike(after.memories[n], memory) for n, memory in wanted.items())

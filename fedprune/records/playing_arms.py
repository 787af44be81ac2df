"""Every arm of a run, one after the other, each to its end and measured on test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedprune.config import RunConfig
from fedprune.config.cohort import newcomers_of
from fedprune.config.options import CENTRAL, LOCAL, SMALL
from fedprune.methods.acting import cut_memories
from fedprune.methods.best import resulting
from fedprune.methods.measuring import measure, measured, own_measured, with_intervals
from fedprune.privacy.ledger import Ledger, Spent
from fedprune.protocol.port import Port
from fedprune.protocol.server_privacy import private_port
from fedprune.protocol.stored import Stored
from fedprune.records.alone import played_alone, totals_of
from fedprune.records.arms import PRUNED
from fedprune.records.book import RunBook
from fedprune.records.pooled import pooled_arm
from fedprune.records.sizes import Summary
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Model, State, Totals
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class ArmsWorld:
    """Where arms are played: the clients, the book of rows, and that of releases."""

    port: Port
    config: RunConfig
    book: RunBook
    ledger: Ledger
    shelf: Stored

    def shown(self, arm: str, port: Port | None = None) -> Port:
        """The port as an arm sees it: what it asks is announced, and booked before it is put."""
        shown = self.book.shown(arm, port or self.port)
        return private_port(shown, self.config, self.ledger, arm, self.shelf)


@dataclass
class ArmsPlayed:
    """What the arms of a run came to."""

    # last states and their plans, by arm
    ends: dict[str, tuple[State, Plan]] = field(default_factory=dict)
    # test totals by arm, the pruned one first
    tests: dict[str, Totals] = field(default_factory=dict)
    adapters: Tensors = field(default_factory=dict)  # of the pruned arm, before they were merged
    # of clients that are each played by themselves, where there are some
    alone: State | None = None
    said: Summary = field(default_factory=dict)  # what a summary says of arms beside their quality


def play_arms(
    world: ArmsWorld, starts: dict[str, State], blank: Plan, arms: Mapping[str, RunConfig]
) -> ArmsPlayed:
    """Play every arm to its end; if the first comes to nothing, no other.

    `starts`: what each begins with; emptied on the way, so that it is let go of.
    """
    out, book = ArmsPlayed(), world.book
    for arm, its_config in arms.items():
        plan = replace(blank, config=its_config)
        if its_config.method != world.config.method:  # it has no such parts of the model
            plan = replace(plan, tiers=(), parts=())
        if arm == LOCAL:
            out.alone = _alone_played(world, starts.pop(arm), replace(plan, fleet=(), steps=()))
            out.tests[arm] = totals_of(out.alone)
            continue
        shown = world.shown(arm)
        if arm == CENTRAL:
            its_config, one, seen = pooled_arm(
                world.config, its_config, world.port, book.rows, blank.steps
            )
            plan, shown = replace(blank, config=its_config, fleet=()), book.shown(arm, one)
            out.said["examples_of_a_round"] = seen
        # No name here for what it begins with: that is let go of when it goes on.
        played = book.play(arm, book.start(arm, starts.pop(arm)), plan, shown)
        if arm == PRUNED:
            out.adapters = resulting(played, its_config).model.adapters
        end, plan = _finished(played, plan)
        end = _tested(end, plan, shown)
        book.tested(arm, played, end)
        out.tests[arm], out.ends[arm] = end.tested or {}, (end, plan)
        if arm == SMALL:
            out.said["dense_small"] = {"parameters": plan.layout.parameters}
        if not end.completed:
            break  # what kept every client from answering would keep it in the other arms too
    return out


def _alone_played(world: ArmsWorld, fresh: State, plan: Plan) -> State:
    state = world.book.states.get(LOCAL) or State(0, Model({}, {}), tested={}, tested_own={})
    for state in played_alone(  # noqa: B020 (the last state is the result)
        state, fresh, plan, world.shown(LOCAL), _finished
    ):
        world.book.keep(LOCAL, state)
    return state


def _tested(end: State, plan: Plan, port: Port) -> State:
    """The state with the test totals at the end of an arm, if the privacy budget allows for them.

    Of a run that had them already they are not asked for again.
    """
    if end.tested is not None:
        return end
    r = Round(end.round, plan)
    try:
        end, tested = measure(end, r, port, "test")
        end, own = own_measured(end, r, port)
        end, new = _on_newcomers(end, r, port)
    except Spent:
        return end
    return replace(end, tested=tested, tested_own=own or None, tested_new=new or None)


def _on_newcomers(end: State, r: Round, port: Port) -> tuple[State, Totals]:
    new = [p for p in port.measuring() if p in newcomers_of(r.config)]
    if not new:
        return end, {}
    end, aggregate = measured(end, r, port, "test", new)
    return end, with_intervals(aggregate, r.config)


def _finished(end: State, plan: Plan) -> tuple[State, Plan]:
    """The last state with what its mask emptied taken out, where that is wanted, and its plan."""
    end = resulting(end, plan.config)
    plan = fitted(plan, end.edits)
    if plan.config.shrink == "never":
        return end, plan
    model, smaller = shrunk(end.model, plan)
    memories = cut_memories(end, plan, smaller)
    return replace(end, model=model, memories=memories), smaller

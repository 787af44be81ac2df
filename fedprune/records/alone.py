"""The arm in which every client prunes and tunes alone: a run of one client for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fedprune.methods.measuring import measured
from fedprune.protocol.port import Port
from fedprune.protocol.running_sum import totals_added
from fedprune.rounds import loop
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import State, Totals

_ONE = "loss_of_"
"""Before a partition in the totals of the arm: the mean loss that its model ends with."""


Finish = Callable[[State, Plan], tuple[State, Plan]]


def played_alone(
    state: State, fresh: State, plan: Plan, port: Port, finish: Finish
) -> Iterator[State]:
    """One client after the other, each to its end by itself; a state after every one of them.

    A client does in every round what it would do in a round of the run that it takes part in. Its
    model is measured on everyone's test parts, as that of the run is, and on its own.

    `state`: the last of these states, or one of no round. `finish`: from the last state of a
    client, its plan and the port to it, the state that is measured, and the plan that fits it.

    Returns:
        States without a model. `round` says how many clients have ended; `tested` holds the sums
        over their models of what everyone measured, and the mean loss of each by its partition;
        `tested_own` what each measured on its own part, summed.
    """
    for p in sorted(port.training())[state.round :]:
        found, own = _ended(p, fresh, plan, port, finish)
        if found.get("count"):
            found = {**found, f"{_ONE}{p}": found["loss"] / found["count"]}
        state = replace(
            state,
            round=state.round + 1,
            tested=totals_added(state.tested or {}, found),
            tested_own=totals_added(state.tested_own or {}, own),
        )
        yield state


def _ended(p: int, fresh: State, plan: Plan, port: Port, finish: Finish) -> tuple[Totals, Totals]:
    """What everyone measures of a client's model, and what it measures itself."""
    own = replace(
        port,
        present=lambda: {q: n for q, n in port.present().items() if q == p},
        panel=frozenset(),
        away=frozenset(),
    )
    state = fresh
    for after, _ in loop(fresh, plan, own):
        state = after
    if not state.completed:
        return {}, {}
    state, its_plan = finish(state, plan)
    r = Round(state.round, its_plan)
    state, everyone = measured(state, r, port, "test", port.measuring())
    _, alone = measured(state, r, port, "test", [p])
    return everyone.totals, alone.totals


def losses_alone(state: State) -> list[float]:
    """The mean losses that the clients' models end with, in the order of the partitions."""
    found = {k: v for k, v in (state.tested or {}).items() if k.startswith(_ONE)}
    return [found[k] for k in sorted(found, key=lambda k: int(k.removeprefix(_ONE)))]


def totals_of(state: State) -> Totals:
    """The sums of all that everyone measured, over the clients' models."""
    return {k: v for k, v in (state.tested or {}).items() if not k.startswith(_ONE)}

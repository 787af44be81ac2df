"""A run in this process, and the laws that it has to keep whatever was chosen."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

from fedprune import Result, RunConfig, federate
from fedprune.config import configure, from_toml, to_toml
from fedprune.config.planned import planned as releases
from fedprune.privacy.ledger import Ledger, open_ledger
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.port import Port
from fedprune.selection.units import unit_labels
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.tensors.named import count_kept
from tests.by_hand import removed_count


@dataclass(frozen=True)
class Played:
    """A run in this process, with what went by.

    Attributes:
        config: what was run.
        result: as `federate` gives it back.
        states: after every round, arm after arm.
        lines: of the ledger.
    """

    config: RunConfig
    result: Result
    states: list[State]
    lines: list[dict[str, Any]]


def watched(config: RunConfig, port: Port | None = None, **more: Any) -> Played:
    """Run a configuration to its end, without its page where it has a folder."""
    states, ledgers = list[State](), list[Ledger]()

    def opened(*args: Any, **more: Any) -> Ledger:
        ledgers.append(open_ledger(*args, **more))
        return ledgers[-1]

    watch = Watch(row=lambda _row, _s, state: states.append(state))
    with (
        patch("fedprune.run.open_ledger", opened),
        patch("fedprune.report.page.write_report", lambda _folder: None),
    ):
        result = federate(config, port, watch=watch, **more)
    return Played(config, result, states, ledgers[0].lines)


def play(config: RunConfig) -> None:
    """Run a configuration to its end and hold it to the laws.

    Raises:
        AssertionError: it broke one.
    """
    run = watched(config)
    told = [f for row in run.result.rows for f in row["failures"]]
    assert not told, told
    assert run.result.summary["failures"] == 0
    assert run.result.summary["reached"]
    check(run)


def check(run: Played) -> None:
    """Hold a run to the laws that go for all of them, whatever failed in it.

    Raises:
        AssertionError: it broke one.
    """
    config, result = run.config, run.result
    assert configure(from_toml(to_toml(config))) == config
    for row in result.rows:
        assert all(math.isfinite(x) for x in _numbers(row)), row
    own = run.states[: config.rounds]  # the other arms come after
    assert len(own) == config.rounds or "stopped" in result.summary["privacy"]
    _removed_is_zero(run.states)
    _only_shrinks(own, config)
    if result.summary["reached"]:
        _reached(result, config)
    _as_planned(run.lines, config)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _removed_is_zero(states: list[State]) -> None:
    for state in states:
        assert all(torch.isfinite(w).all() for w in state.weights.values())
        assert not any(state.weights[n][~m].any() for n, m in state.masks.items())


REGROWING = {"fedrts", "zerofl", "sparsyfed", "complement-sparsification"}
"""Methods whose removed weights may come back."""


def _only_shrinks(states: list[State], c: RunConfig) -> None:
    kept = [count_kept(state.masks) for state in states]
    if not c.reduce and c.method != "prunefl":  # factors are other weights; more may pay
        assert kept == sorted(kept, reverse=True), kept
    if c.schedule == "regrow" or c.method in REGROWING:
        return
    for a, b in pairwise(states):
        if a.edits == b.edits:
            assert not any((b.masks[n] & ~m).any() for n, m in a.masks.items())


def _reached(result: Result, c: RunConfig) -> None:
    """Exactly the sparsity asked for; of larger units the last one may be too large to go."""
    summary = result.summary
    chosen = c.sparsity is None or c.schedule == "adaptive" or c.method == "prunefl"
    if chosen or c.reduce or "own_sparsity" in summary:
        return
    layout = layout_for(c, dense_model(c))
    shape = {"unit": c.unit, "unit_shape": c.unit_shape}
    wanted = removed_count(layout, c.sparsity, scope=c.scope, densities=c.layers, **shape)
    gone = summary["prunable_parameters"] - summary["kept_parameters"]
    if c.unit in {"weight", "n:m"}:
        assert gone == wanted, (gone, wanted)
        return
    labels = unit_labels(layout, **shape)
    flat = torch.cat([t.flatten() for t in labels.values()])
    largest = int(torch.bincount(flat[flat >= 0]).max())
    pools = len(layout.prunable) if c.scope != "global" else 1
    assert wanted - largest * pools < gone <= wanted, (gone, wanted, largest)


def _as_planned(lines: list[dict[str, Any]], c: RunConfig) -> None:
    """What was booked with noise is what was planned with it."""
    if c.dp == "none" or c.schedule == "adaptive" or c.calibration != "dense":
        return
    booked = Counter(
        (line["round"], line["quantity"])
        for line in lines
        if line["arm"] == "pruned" and (line["z"] is not None or line["spread"] is not None)
    )
    votes = {"votes": "scores"}
    booked = Counter({(r, votes.get(q, q)): n for (r, q), n in booked.items()})
    plan = Counter((o.round, r.quantity) for o, (r,) in releases(c))
    if c.blend == "none":
        assert booked == plan, (booked - plan, plan - booked)
    assert not booked - plan, booked - plan

"""Faults put into the code, one at a time: what the tests have to notice.

``FAULT='a name' python -m pytest ...`` runs any tests with one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from types import FunctionType
from typing import Any

import torch

from fedprune.selection.densities import er


@dataclass(frozen=True)
class Fault:
    """A function that does something else.

    Attributes:
        where: its dotted name: a plain function, or a method.
        instead: called with the function as it is and then with what that is called with.
        run: the run of the gallery that shows it.
    """

    where: str
    instead: Callable[..., Any]
    run: str


def _less_privacy(kept: Callable[..., Any], ledger: Any, occasion: Any, releases: Any) -> Any:
    return kept(ledger, occasion, releases[1:])


def _unpruned(kept: Callable[..., Any], named: Any, _removed: Any, *rest: Any) -> Any:
    return kept(named, [], *rest)


def _negative(scores: Any) -> Any:
    return {name: -score for name, score in scores.items()}


def _mean_for_max(kept: Callable[..., Any], pooling: Any, pool: str, units: int) -> None:
    kept(pooling, "mean" if pool == "max" else pool, units)


def _not_counted(state: Any) -> Any:
    return replace(state, book=replace(state.book, counted={}))


def _nothing_pending(kept: Callable[..., Any], state: Any, r: Any, name: str, step: Any) -> Any:
    return kept(state, replace(r, pending=r.pending and name != "reduce"), name, step)


FAULTS: dict[str, Fault] = {
    # scores
    "sign of a score": Fault(
        "fedprune.scores.columns.negative_mean", lambda f, e: _negative(f(e)), "target-flops"
    ),
    "factor of a score dropped": Fault(
        "fedprune.scores.columns.fisher",
        lambda f, e: f(replace(e, weights={n: torch.ones_like(w) for n, w in e.weights.items()})),
        "fisher-votes",
    ),
    "root of a mean dropped": Fault(
        "fedprune.scores.columns.wanda",
        lambda f, e: {n: s.square() / (e.weights[n].abs() + 1e-30) for n, s in f(e).items()},
        "wanda-rows",
    ),
    "squares of gradients not squared": Fault(
        "fedprune.scores.gradients.square", lambda _f, _w, g, _n: g.abs(), "multi-label"
    ),
    "scores not normalised": Fault(
        "fedprune.scores.combine.l1_normalised", lambda _f, flat: flat.double(), "second-moment"
    ),
    "ranks the wrong way round": Fault(
        "fedprune.scores.combine.ranks", lambda f, flat: 1 - f(flat), "rank-mean"
    ),
    "mean in place of the median": Fault(
        "fedprune.scores.combine._median",
        lambda _f, x, _trim: x.double().mean(0),
        "grasp-median",
    ),
    "nothing trimmed": Fault(
        "fedprune.scores.combine._trimmed_mean",
        lambda _f, x, _trim: x.double().mean(0),
        "trimmed-mean",
    ),
    "blocks not behind pruned ones": Fault(
        "fedprune.methods.global_mask._stages", lambda _f, _r: [()], "sequential"
    ),
    # which weights go, and when
    "ties by the larger magnitude": Fault(
        "fedprune.selection.select.ranking_layers",
        lambda f, s, alive, size, *rest: f(
            s, alive, size and {n: 1 / (w.abs() + 1e-30) for n, w in size.items()}, *rest
        ),
        "fisher-votes",
    ),
    "ties by the later place": Fault(
        "fedprune.selection.ranking._without_first",
        lambda f, tied, out: [t[::-1] for t in f([t[::-1] for t in tied[::-1]], out)[::-1]],
        "zeros",
    ),
    "floors not held": Fault(
        "fedprune.selection.select.ranking_layers",
        lambda f, s, alive, size, _floor, *_part: f(s, alive, size, 0),
        "magnitude",
    ),
    "one weight too many": Fault(
        "fedprune.selection.scopes.total_of", lambda f, *args: f(*args) + 1, "int8"
    ),
    "kernels left out of densities": Fault(
        "fedprune.selection.densities.erk", lambda _f, ground: er(ground), "raises"
    ),
    "mean in place of the largest": Fault(
        "fedprune.selection.pools.Pooling.__init__", _mean_for_max, "blocks"
    ),
    "one too few of a pattern": Fault(
        "fedprune.selection.patterns.pattern_counts",
        lambda f, columns, n, m, s: f(columns, n, m, s * 0.5),
        "sparsegpt",
    ),
    "a schedule one step behind": Fault(
        "fedprune.selection.schedules._cubic",
        lambda f, i, n, final: f(i, n, final) if i == n else f(i - 1, n, final),
        "int8",
    ),
    "the first pruning a round late": Fault(
        "fedprune.selection.schedules._rounds",
        lambda f, steps: f(replace(steps, start=min(steps.start + 1, steps.end))),
        "int8",
    ),
    "as much exchanged to the end": Fault(
        "fedprune.selection.schedules.exchange_fraction",
        lambda _f, initial, _step, _steps: initial,
        "regrow",
    ),
    "survivors not put back": Fault(
        "fedprune.methods.rewind._rewound", lambda _f, model, _memory: model, "rewind"
    ),
    "nothing leaves the model": Fault(
        "fedprune.server.shrink.shrunk", lambda _f, model, plan: (model, plan), "channels-every"
    ),
    # how weights move
    "mask not applied while tuning": Fault(
        "fedprune.learning.local_training._shape_gradients", _unpruned, "movement"
    ),
    "learning rate of the next round": Fault(
        "fedprune.config.rates.learning_rate", lambda f, c, r: f(c, r + 1), "int8"
    ),
    "one local step too few": Fault(
        "fedprune.learning.steps.step_batches",
        lambda f, *args, **more: iter(list(f(*args, **more))[:-1]),
        "int8",
    ),
    "proximal term dropped": Fault(
        "fedprune.learning.objectives.proximity", lambda f, sent, _w: f(sent, 0.0), "proximal"
    ),
    "temperature of one": Fault(
        "fedprune.learning.distillation.divergence",
        lambda f, a, b, batch, _t: f(a, b, batch, 1.0),
        "distil",
    ),
    "clients not weighed": Fault(
        "fedprune.protocol.running_sum.as_sum",
        lambda f, answer, *args, **more: f(replace(answer, weight=1.0), *args, **more),
        "int8",
    ),
    "server's rate ignored": Fault(
        "fedprune.learning.averaging.averaged",
        lambda f, *args, **more: f(*args[:5], 1.0, **more),
        "proximal",
    ),
    "divided by all, not by holders": Fault(
        "fedprune.learning.averaging._over_those_who_kept",
        lambda _f, sums, _held, weight: sums / weight,
        "union",
    ),
    "what stays and what comes exchanged": Fault(
        "fedprune.learning.moving_average.moved",
        lambda f, *args: f(*args[:4], None if args[4] is None else 1 - args[4]),
        "distil",
    ),
    "nobody taken for a liar": Fault(
        "fedprune.learning.robust_rules._multi_krum", lambda f, blocks, _b: f(blocks, 0), "krum"
    ),
    "the first candidate, not the best": Fault(
        "fedprune.learning.blending.lowest", lambda _f, _losses: 0, "blend"
    ),
    # bytes
    "scale of a codec": Fault(
        "fedprune.codec.stochastic_rounding.decode_rounded",
        lambda f, *args: f(*args) * (127 / 128),
        "int8",
    ),
    "what was kept back is lost": Fault(
        "fedprune.client.memory.Recollection.recall",
        lambda f, own, name: {n: torch.zeros_like(t) for n, t in f(own, name).items()},
        "int8",
    ),
    "masks sent free of charge": Fault(
        "fedprune.protocol.broadcast.Broadcast.size",
        lambda f, sent, asked: f(replace(sent, held={n: set(asked) for n in sent.held}), asked),
        "int8",
    ),
    # noise and the ledger
    "noise skipped": Fault(
        "fedprune.privacy.noise.gaussian",
        lambda _f, size, _sd, _source: torch.zeros(size, dtype=torch.float64),
        "dp-client",
    ),
    "the same noise every round": Fault(
        "fedprune.protocol.limits.noise_source_of",
        lambda f, c, purpose, *_at: f(c, purpose),
        "dp-client",
    ),
    "norms not bounded": Fault(
        "fedprune.privacy.clipping.clipped", lambda _f, values, _norm: values.float(), "dp-client"
    ),
    "half the sensitivity": Fault(
        "fedprune.privacy.clipping.sensitivity",
        lambda f, *args, **more: f(*args, **more) / 2,
        "dp-client",
    ),
    "a line of the ledger missing": Fault(
        "fedprune.privacy.ledger.Ledger.book", _less_privacy, "dp-client"
    ),
    "votes not flipped": Fault(
        "fedprune.privacy.randomised_response.flip_probability", lambda _f, *_args: 0.0, "response"
    ),
    "shares of noise skipped": Fault(
        "fedprune.secagg.shared_noise.with_share", lambda _f, *_args: None, "secagg-noise"
    ),
    "scale of a secure sum": Fault(
        "fedprune.secagg.fixed_point.from_ring", lambda f, *args: f(*args) / 2, "secagg"
    ),
    "masks that do not cancel": Fault(
        "fedprune.secagg.keys.pair_mask",
        lambda f, private, public, one, _other, context: f(private, public, one, one, context),
        "secagg",
    ),
    # rounds
    "the cohort of the next round": Fault(
        "fedprune.config.cohort.drawn", lambda f, c, there, r: f(c, there, r + 1), "int8"
    ),
    "no round is void": Fault(
        "fedprune.server.standing.too_few", lambda _f, *_args: False, "silent"
    ),
    "measured on test": Fault(
        "fedprune.methods.measuring.measured",
        lambda f, state, r, port, _part, whom: f(state, r, port, "test", whom),
        "int8",
    ),
    "forgotten in a checkpoint": Fault(
        "fedprune.records.checkpoint.load_state",
        lambda f, *args: _not_counted(f(*args)),
        "killed",
    ),
    "a memory forgotten in a checkpoint": Fault(
        "fedprune.records.checkpoint.load_state",
        lambda f, *args: replace(f(*args), memories={}),
        "killed-moving",
    ),
    "what clients remember forgotten": Fault(
        "fedprune.client.memory.recall", lambda _f, *_args: {}, "remembering killed"
    ),
    "a control variate the wrong way round": Fault(
        "fedprune.learning.variates.correction", lambda f, *args: _negative(f(*args)), "scaffold"
    ),
    "a common variate of the cohort alone": Fault(
        "fedprune.learning.variates.common_variate",
        lambda f, *args: f(*args[:-1], 1.0),
        "scaffold",
    ),
    "a memory not cut with the model": Fault(
        "fedprune.server.shrink.carried", lambda _f, memory, _old, _new: memory, "killed-moving"
    ),
    "a pruning forgotten where the round reduces": Fault(
        "fedprune.methods.acting.settled", _nothing_pending, "reduced-not-pruned"
    ),
}


@contextmanager
def put_in(fault: Fault) -> Iterator[None]:
    """The fault in place, wherever the function was imported to: its code is exchanged.

    Raises:
        ValueError: what is named has variables of an enclosing function, so that it cannot be.
    """
    function = resolve_name(fault.where)
    code, names = function.__code__, function.__globals__
    if code.co_freevars:
        raise ValueError(f"{fault.where} is a closure")
    kept = FunctionType(code, names, function.__name__, function.__defaults__)
    kept.__kwdefaults__ = function.__kwdefaults__
    names["_faulty"] = lambda *args, **more: fault.instead(kept, *args, **more)
    function.__code__ = _stand_in.__code__
    try:
        yield
    finally:
        function.__code__ = code
        del names["_faulty"]


def _stand_in(*args: Any, **more: Any) -> Any:
    return _faulty(*args, **more)  # noqa: F821 (found where the function is that it stands in for)

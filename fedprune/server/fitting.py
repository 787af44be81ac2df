"""What a client's work takes it of memory, and whether enough simulated devices have that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedprune.config.profiles import DeviceClass
from fedprune.learning.options import trains
from fedprune.options.refusal import ConfigError, counted
from fedprune.scores.catalog import scores_of
from fedprune.server.plan import Plan
from fedprune.server.state import Model
from fedprune.structure.groups import stages_of


def bytes_needed(model: Model, plan: Plan, client: int | None = None) -> float:
    """What a client's work takes it: weights, mask, gradients and the optimizer's state.

    Gradients where it trains or goes backward for a score, the optimizer's state where it trains.
    Of a streamed model one block is held at a time, the largest counts, with what is outside of
    blocks. Activations are not in it: they depend on the batch and on the machine's libraries. Nor
    are the sums of a score. Of a `client` its part or rank counts, as if it had cut out the rest;
    None: the whole.
    """
    part, rank = 1.0, 1.0
    if client is not None and plan.tiers:
        part = plan.parts[client] if plan.parts else 1.0
        ranks = plan.config.ranks
        rank = 1.0 if plan.parts else ranks[plan.tiers[client]] / max(ranks)
    return _bytes(model, plan, part, rank)


def _bytes(model: Model, plan: Plan, part: float, rank: float) -> float:
    c, parameters = plan.config, float(plan.layout.parameters)
    sizes = {n: plan.layout.shapes[n].numel() for n in plan.layout.prunable}
    held = parameters - (1.0 - part) * sum(sizes.values())
    if c.streamed:
        stages = [sum(sizes[n] for n in names) for names in stages_of(plan.layout)]
        held += max(stages, default=0) - sum(sizes.values())
    if not trains(c):
        asks = scores_of(c.plugin)[c.score].asks
        backward = c.sparsity != 0.0 and any("backward" in ask.passes for ask in asks)
        return held * (9.0 if backward else 5.0)
    factors = rank * sum(t.numel() for t in model.adapters.values())
    moments = 8 if c.optimizer in ("adam", "adamw") else 4 if c.momentum else 0
    return held * 5.0 + (factors or held) * (4.0 + moments)


def fitted_tiers(
    model: Model, plan: Plan, densities: Sequence[float], *, whole: bool = False
) -> Plan:
    """The plan with what part of the model each client has, by ``--budget``.

    The largest that it has the memory for; or whose share of the whole is at most that of its
    FLOP/s, or of its bytes a second up, in those of the class that has most. If none is, the
    smallest: who has no memory for that is not asked. `densities` are of the method's parts; fewer
    than two: the parts are ``--ranks``, or all have the same and take the part of their steps that
    their FLOP/s are of those of the fastest. With `whole` clients have the whole model, of which
    these are parts to work on.
    """
    c = plan.config
    densities = densities if len(densities) > 1 else ()  # one part is everybody's
    if not densities and len(c.ranks) < 2:
        fastest = max(device.flops for device in plan.fleet)
        return replace(plan, steps=tuple(device.flops / fastest for device in plan.fleet))
    shares = tuple(densities) or tuple(r / max(c.ranks) for r in c.ranks)
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    most = {"flops": max(p.flops for p in plan.fleet), "bytes": max(p.up for p in plan.fleet)}

    def fits(device: DeviceClass, share: float) -> bool:
        if c.budget == "memory":
            part, rank = (share, 1.0) if densities else (1.0, share)
            return _bytes(model, plan, part, rank) <= device.memory
        own = device.flops if c.budget == "flops" else device.up
        return share <= own / most[c.budget]

    found = {d: next((i for i in order if fits(d, shares[i])), order[-1]) for d in set(plan.fleet)}
    tiers = tuple(found[device] for device in plan.fleet)
    parts = tuple(1.0 if whole else shares[i] for i in tiers)
    return replace(plan, tiers=tiers, parts=parts if densities else ())


def check_fleet(model: Model, plan: Plan) -> None:
    """Refuse a model that too few clients have the memory for.

    Raises:
        ConfigError: fewer than a round needs.
    """
    if not plan.fleet:
        return
    c, needs = plan.config, [bytes_needed(model, plan, p) for p in range(len(plan.fleet))]
    fitting = sum(p.memory >= n for p, n in zip(plan.fleet, needs, strict=True))
    need = min(needs)
    if fitting < c.min_clients:
        fewer = f", or --min-clients up to {fitting}" if fitting else ""
        raise ConfigError(
            f"profiles={c.profiles!r}: a client's work takes {need:.3g} bytes without "
            f"activations, which {counted(fitting, 'client')} of {c.clients} have; allowed: more "
            f"memory or a smaller model{fewer}"
        )

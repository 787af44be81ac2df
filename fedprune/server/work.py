"""What a client's work takes it: operations and seconds by the simulated clock, and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from fedprune.config import RunConfig, with_values
from fedprune.config.profiles import DeviceClass
from fedprune.learning.options import trains
from fedprune.learning.preparation import recomputing
from fedprune.learning.steps import examples_trained_on, steps_taken
from fedprune.options.refusal import ConfigError, counted
from fedprune.protocol.messages import Question
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import FORWARDS_OF_A_STEP, Statistic, forwards_of
from fedprune.server.plan import Plan
from fedprune.server.state import Model
from fedprune.structure.flops import Passes, passes_of
from fedprune.structure.groups import stages_of
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Part
from fedprune.tensors.named import kept_in


def work_for(question: Question, labels: float, plan: Plan, steps: float = 1.0) -> float:
    """Floating-point operations of a client with so many labels for a question.

    Of all matrix products and convolutions of the model as it is now, zeros included: only what is
    cut out is saved (`fedprune.structure.flops.Passes`). 0 where no devices are simulated, or the
    task has no example to count on. What a teacher, an optimizer or a mask takes is not in it.
    Labels are of the client's training part; to compare models, of its validation part. `steps` is
    the part of its steps that the client takes.
    """
    task = tasks_of(plan.config.plugin)[plan.config.task]
    if plan.dummy is None or plan.passes is None:
        return 0.0
    examples = labels / max(1, task.labels(plan.dummy))
    return _operations(question, examples, plan, plan.passes, steps)


def passes_for(
    config: RunConfig, model: nn.Module, dummy: Part | None, positions: Mapping[str, float]
) -> Passes | None:
    """Operations of one example, where devices are simulated and there is one.

    Of what torch cannot count, as a model that is read a block at a time, those of its prunable
    layers, and twice as many back (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    """
    if not config.profiles or dummy is None or not positions:
        return None
    task = tasks_of(config.plugin)[config.task]
    try:
        if config.checkpointing:
            recomputing(model)
        return passes_of(model, dummy, lambda m: task.loss(m, dummy).total)
    except Exception:
        sizes = {n: p.numel() for n, p in model.named_parameters()}
        forward = sum(2.0 * sizes[n] * rows for n, rows in positions.items())
        return Passes(forward, 2.0 * forward)


def _operations(question: Question, examples: float, plan: Plan, of: Passes, part: float) -> float:
    c, kind = plan.config, question.kind
    scored = min(examples, float(c.score_examples or examples))
    asks = scores_of(c.plugin)[question.score or c.score].asks
    if kind == "tune":
        fewer = {} if part == 1.0 else {"local_steps": steps_taken(c.local_steps, part)}
        steps = of.both * examples_trained_on(round(examples), with_values(c, fewer))
        grown = of.both * scored if question.grow == "gradient" else 0.0
        asks = asks if question.score and c.masks != "global" else ()
        return steps + grown + scored * sum(_of_statistic(a, question, plan, of) for a in asks)
    if kind == "score":
        return scored * _of_statistic(asks[question.ask], question, plan, of)
    if kind == "own":
        return scored * sum(_of_statistic(a, question, plan, of) for a in asks)
    if kind == "compare":
        return of.forward * examples * max(1, len(question.candidates))
    return of.forward * examples * _PASSES_OF.get(kind, 0.0)


_PASSES_OF = {"inputs": 1.0, "magnitudes": 1.0, "signals": 1.0, "outputs": 2.0}
"""Of questions about inputs of layers; who counts labels or tokens computes nothing."""


def _of_statistic(ask: Statistic, question: Question, plan: Plan, of: Passes) -> float:
    """Operations of a statistic for one example; of single weights, for those that are left."""
    c, names = plan.config, question.names or plan.layout.prunable
    shapes, masks = ask.shapes(plan.layout, names, c.unit, c.probes or 0), question.masks
    own = {n: s for n, s in shapes.items() if n in masks and masks[n].shape == s}
    numbers = sum(s.numel() for n, s in shapes.items() if n not in own)
    passes = forwards_of(ask, numbers + sum(kept_in(masks[n], masks[n]) for n in own))
    beside = ask.products(plan.positions, shapes) if ask.products else 0.0
    if passes == FORWARDS_OF_A_STEP:
        back = min(of.backward, 2.0 * of.forward)  # who only scores computes nothing again
        return of.forward + _back_to(names, plan) * back + beside
    return passes * of.forward + beside


def _back_to(names: Sequence[str], plan: Plan) -> float:
    """The part of a backward pass that the gradients of some tensors take.

    It ends at the first of them, and takes no gradient of the other weights.
    """
    of = {n: plan.layout.shapes[n].numel() * rows for n, rows in plan.positions.items()}
    order = plan.layout.prunable
    passed = order[min(order.index(n) for n in names) :]
    return sum(of[n] for n in (*names, *passed)) / max(1.0, 2.0 * sum(of.values()))


def client_seconds(
    p: int, question: Question, sizes: tuple[float, float], plan: Plan, labels: float
) -> float:
    """Seconds of a client: to receive, compute, and send."""
    its = plan.fleet[p]
    part = plan.parts[p] if plan.parts and question.kind == "tune" else 1.0
    work = part * work_for(question, labels, plan, plan.steps[p] if plan.steps else 1.0)
    return sizes[0] / its.down + work / its.flops + sizes[1] / its.up


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
    """Refuse a model that fewer clients than a round needs have the memory for: ConfigError."""
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

"""What a client's work takes it of memory, and whether enough simulated devices have that."""

from __future__ import annotations

from fedprune.learning.options import trains
from fedprune.options.refusal import ConfigError, counted
from fedprune.scores.catalog import scores_of
from fedprune.server.plan import Plan
from fedprune.server.state import Model
from fedprune.structure.groups import stages_of


def bytes_needed(model: Model, plan: Plan) -> float:
    """What a client's work takes it: weights, mask, gradients and the optimizer's state.

    Gradients where it trains or goes backward for a score, the optimizer's state where it trains.
    Of a streamed model one block is held at a time, the largest counts, with what is outside of
    blocks. Activations are not in it: they depend on the batch and on the machine's libraries.
    Nor are the sums of a score.
    """
    c = plan.config
    held = plan.layout.parameters
    if c.streamed:
        sizes = {n: plan.layout.shapes[n].numel() for n in plan.layout.prunable}
        stages = [sum(sizes[n] for n in names) for names in stages_of(plan.layout)]
        held += max(stages, default=0) - sum(sizes.values())
    if not trains(c):
        return held * (9.0 if _goes_backward(plan) else 5.0)
    factors = sum(t.numel() for t in model.adapters.values())
    moments = 8 if c.optimizer in ("adam", "adamw") else 4 if c.momentum else 0
    return held * 5.0 + (factors or plan.layout.parameters) * (4.0 + moments)


def _goes_backward(plan: Plan) -> bool:
    """Whether a client that does not train computes gradients all the same, for a score."""
    c = plan.config
    asks = scores_of(c.plugin)[c.score].asks
    return c.sparsity != 0.0 and any("backward" in ask.passes for ask in asks)


def check_fleet(model: Model, plan: Plan) -> None:
    """Refuse a model that too few clients have the memory for.

    Raises:
        ConfigError: fewer than a round needs.
    """
    if not plan.fleet:
        return
    c, need = plan.config, bytes_needed(model, plan)
    fitting = sum(p.memory >= need for p in plan.fleet)
    if fitting < c.min_clients:
        fewer = f", or --min-clients up to {fitting}" if fitting else ""
        raise ConfigError(
            f"profiles={c.profiles!r}: a client's work takes {need:.3g} bytes without "
            f"activations, which {counted(fitting, 'client')} of {c.clients} have; allowed: more "
            f"memory or a smaller model{fewer}"
        )

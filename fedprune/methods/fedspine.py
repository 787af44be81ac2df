"""FedSpine: clients prune and train adapters by turns; a bandit finds each one's density and rank.

Yao et al. 2025, arXiv 2501.02438, "Efficient deployment of large language models on
resource-constrained devices". In every round the server chooses for each client k of the cohort an
arm a = (density d, rank r) of the `densities` and of ``--ranks``, by `fedprune.methods.bandit`.
Client k trains the first r columns of B and rows of A under a mask of its own, which keeps d of the
weights that the global model keeps.
The products B_k A_k are averaged, weighted as ``--weighting`` says (`mean_of_products`). What a
weight is worth is read off the factors, as in LoRAPrune (Zhang et al. 2024, arXiv 2305.18403): the
change of their product, s(B_k' A_k' - B_k A_k), stands for the gradient of the weight, so that
nothing else is asked or sent,

    I_k = (s(B_k' A_k' - B_k A_k) ∘ W)²,  I = 0.5 I + 0.5 Σ p_k I_k,  W: with its product.

Global and clients' masks keep the largest of I, by ``--scope`` and ``--unit``. The global model is
pruned by ``--schedule``, after the warm-up: I is 0 before anybody trained.

The reward of an arm is how much the client's training loss fell for each second,

    v_k = (l_k before - l_k) / T_k,  u_k(a): mean of v_k / max |v| of the cohort, -1 to 1,

l_k before: when it last trained, of a new client the mean of the cohort. T_k is of its simulated
device (``--profiles``; without, all devices are alike): 6 operations for each weight kept and
label trained on, 4 bytes a factor each way, and the mask down.

Where it departs from the paper, which was read in its abstract and its beginning: the formulas of
its bandit, of its reward and of its importance were not read, and are as above; importance is
that of all clients, so that masks of clients are nested; their products are averaged as in
FlexLoRA; a mask saves bytes and no time here, which ``--profiles``' clock counts so, while T_k
counts a device that cuts out what is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product as pairs
from statistics import mean

from torch import Tensor

from fedprune.adapters.factors import paths_in, product
from fedprune.adapters.options import adapter_scale
from fedprune.config import RunConfig
from fedprune.methods.apart import NO_STATISTICS, apart_conflicts, not_read, part_conflicts
from fedprune.methods.bandit import Tried, rewarded_arm, with_arm
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.scored import best
from fedprune.methods.tuning import TrainedFactors, trained_by_rank
from fedprune.options.option import option
from fedprune.options.refusal import ConfigError
from fedprune.options.section import Section
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Masks, Tensors, count_kept


class Options(Section):
    """What ``--method-options`` takes."""

    densities: tuple[float, ...] = option(
        "method", "parts of the kept weights that a client may have, above 0 to 1", (1.0, 0.5)
    )
    explore: float = option("method", "weight of exploration in the bandit", 0.5, ge=0)


@dataclass(frozen=True)
class Memory:
    """Importance, none before anybody trained; masks by density; what is known of clients."""

    importance: Tensors = field(default_factory=dict)
    parts: tuple[Masks, ...] = ()
    tried: dict[int, Tried] = field(default_factory=dict)


def _init(model: Model, r: Round) -> Memory:
    """The memory before round one.

    Raises:
        ConfigError: a layer that can be pruned has no factors, by which its importance is known.
    """
    having = {f"{path}.weight" for path in paths_in(model.adapters)}
    lacking = [n for n in r.layout.prunable if n not in having]
    if lacking:
        why = f"{lacking[0]} can be pruned and has no factors, which say what is important"
        raise ConfigError(f"method={r.config.method!r}: {why}; allowed: --exclude it, or --targets")
    return Memory()


def _arms(r: Round) -> list[tuple[int, int]]:
    """Every pair of a place in `densities` and a rank, the widest first."""
    order = sorted(range(len(r.options.densities)), key=lambda i: -r.options.densities[i])
    return list(pairs(order, sorted(set(r.config.ranks), reverse=True)))


def _with_parts(model: Model, memory: Memory, r: Round) -> Memory:
    """The memory with the masks of all densities, of this model."""
    kept = 1.0 - sparsity_of(model.masks, r.layout)
    parts = [best(memory.importance, 1.0 - d * kept, model, r) for d in r.options.densities]
    return replace(memory, parts=tuple(parts))


def _thinned(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The global model pruned by what is important."""
    yield from ()
    target = r.plan.sparsity(r.number)
    if not memory.importance or target is None:
        return Step(model, memory, undone="not pruned: nobody has trained yet")
    model = model.under(best(memory.importance, target, model, r))
    return Step(model, _with_parts(model, memory, r))


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains factors of its rank under its mask."""
    arms = _arms(r)
    none = Tried((0,) * len(arms), (0.0,) * len(arms))
    has = {p: with_arm(memory.tried.get(p, none), p, r.options.explore) for p in r.cohort}
    has = {p: replace(its, part=arms[its.arm][0]) for p, its in has.items()}
    ranks = {p: arms[its.arm][1] for p, its in has.items()}
    parts = {p: memory.parts[its.part] for p, its in has.items()} if memory.parts else {}
    trained, came = yield from trained_by_rank(model, r, ranks, parts)
    if trained.model is None:
        return trained
    known = rewarded(has, came, {p: parts.get(p, model.masks) for p in came}, r)
    worth = important(model, memory.importance, came, r)
    memory = replace(memory, importance=worth, tried={**memory.tried, **known})
    return replace(trained, memory=memory)


def important(
    model: Model, before: Tensors, came: Mapping[int, TrainedFactors], r: Round
) -> dict[str, Tensor]:
    """Importance after a round: half of it what it was before, where it was known; float32."""
    whole, out = sum(f.changes.weight for f in came.values()), {}
    for path in paths_in(model.adapters):
        name = f"{path}.weight"
        now = sum(f.changes.weight / whole * _worth(model, f, path, r) for f in came.values())
        assert isinstance(now, Tensor)  # somebody came
        if name in model.masks:
            out[name] = 0.5 * before[name] + 0.5 * now if before else now
    return out


def _worth(model: Model, factors: TrainedFactors, path: str, r: Round) -> Tensor:
    """I_k of a layer's weight, by what a client changed of the product of its factors."""
    change = product(factors.after, path, r.layout) - product(factors.start, path, r.layout)
    return (adapter_scale(r.config) * change * model.weights[f"{path}.weight"]).square()


def rewarded(
    has: Mapping[int, Tried],
    came: Mapping[int, TrainedFactors],
    masks: Mapping[int, Masks],
    r: Round,
) -> dict[int, Tried]:
    """What is known of the clients that answered, with the rewards of their arms."""
    totals = {p: f.changes.totals for p, f in came.items()}
    losses = {p: t["loss"] / max(1.0, t["count"]) for p, t in totals.items()}
    new, rates = mean(losses.values()), {}
    for p, loss in losses.items():
        last = has[p].loss
        seconds = _seconds(p, masks[p], came[p].start, totals[p]["count"], r)
        rates[p] = ((new if last is None else last) - loss) / seconds
    most = max(map(abs, rates.values())) or 1.0
    return {p: rewarded_arm(has[p], rates[p] / most, losses[p]) for p in came}


def _seconds(partition: int, masks: Masks, sent: Tensors, labels: float, r: Round) -> float:
    """Seconds of a device that cuts out what it has not; of 1e9 operations, 1e6 bytes where none.

    The factors are sent each way, the masks down.
    """
    flops, up, down = 1e9, 1e6, 1e6
    if r.plan.fleet:
        device = r.plan.fleet[partition]
        flops, up, down = device.flops, device.up, device.down
    size = 4.0 * sum(t.numel() for t in sent.values())
    bits = sum(m.numel() for m in masks.values())
    return (size + bits / 8) / down + 6.0 * count_kept(masks) * labels / flops + size / up


def _settled(model: Model, memory: Memory, r: Round, _: object) -> Talk[Step]:
    """The parts by what is important now, and what the cohort had."""
    yield from ()
    arms, memory = _arms(r), _with_parts(model, memory, r)
    had = [arms[memory.tried[p].arm] for p in r.cohort if p in memory.tried]
    told = {
        "density": mean(r.options.densities[part] for part, _ in had),
        "rank": mean(rank for _, rank in had),
    }
    return Step(model, memory, Notes(method=told))


def _own(model: Model, memory: Memory, partition: int) -> Model:
    """What a client has of the model; of who never took part, all of it."""
    its = memory.tried.get(partition)
    return model.under(memory.parts[its.part]) if its and memory.parts else model


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, d = config, options.densities
    one = len(set(d)) * len(set(c.ranks)) < 2
    return [
        *part_conflicts(d, "densities are parts", "the rest is never trained"),
        ("method-options", one, "there is nothing to choose", "two densities or --ranks"),
        ("sparsity", c.sparsity is None, "clients have a part of what is kept", "a number"),
        ("warmup", not c.warmup, "who has not trained does not know what is important", "above 0"),
        ("budget", c.budget != "none", "the bandit chooses ranks", "none"),
        ("score-steps", c.score_steps != 1, "what is important is known once a round", "1"),
        ("calibration", c.calibration != "dense", "nobody is asked for statistics", "dense"),
        *not_read(c, NO_STATISTICS, "nobody is asked for statistics"),
        *apart_conflicts(c),
    ]


METHOD = Method(
    "clients prune and train adapters by turns; a bandit finds each one's density and rank",
    "FedSpine, Yao et al. 2025, arXiv 2501.02438, read in its beginning; importance as LoRAPrune's",
    tune=_trained,
    before=_thinned,
    after=_settled,
    memory=Memory,
    init=_init,
    options=Options,
    own=_own,
    scores=False,
    apart=True,
    conflicts=_conflicts,
    sets={"adapters": "lora", "adapter_mean": "products", "score": "magnitude"},
    usual={"ranks": (8, 2)},
)

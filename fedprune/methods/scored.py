"""One score for each weight, from summed statistics, clients' scores or votes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.options.refusal import ConfigError
from fedprune.privacy.randomised_response import debiased, flip_probability
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.votes import vote_units_of
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.input_sums import unseen
from fedprune.scores.score import Evidence
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of, some_of
from fedprune.tensors.named import Masks, Tensors, count_kept, scattered


def votes_by_tensor(
    aggregate: Aggregate, evidence: Evidence, plan: Plan
) -> Callable[[str], Tensor]:
    """What gives the votes for the weights of a tensor, without those that noise adds."""
    c, shapes = plan.config, shapes_of(evidence.weights)
    assert aggregate.votes is not None  # the form wants them
    names = sorted(shapes)
    sizes = [count_kept(some_of(evidence.masks, [n])) for n in names]
    parts = dict(zip(names, aggregate.votes.split(sizes), strict=True))
    p = 0.0
    if c.response is not None:
        units = vote_units_of(c, plan.layout, evidence.masks).units
        p = flip_probability(c.response, units)

    def votes(name: str) -> Tensor:
        counts = debiased(parts[name], len(aggregate.answered), p)
        here, shape = some_of(evidence.masks, [name]), {name: shapes[name]}
        return scattered(counts, shape, here, shared=True)[name]

    return votes


def check_seen(evidence: Evidence, config: RunConfig) -> None:
    """Refuse to score a layer by inputs that no client had, as if they all were 0.

    With noise the number of rows is noised too, and says nothing about that.
    """
    lost = unseen(evidence.sums) if config.dp == "none" else []
    if lost:
        raise ConfigError(
            f"score={config.score!r}: no row went through the layer of {lost[0]} at any client "
            f"asked; allowed: --exclude {lost[0]}, a larger cohort, or another score"
        )


def scored(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about.

    Raises:
        ConfigError: a score of the user's own gives other names or shapes, or NaN.
    """
    scores = combined(aggregate, evidence, plan)
    _check_scores(scores, evidence, plan.config.score)
    return scores


def _check_scores(scores: Tensors, evidence: Evidence, name: str) -> None:
    """Refuse what a score, perhaps a user's own, made of the evidence."""
    wanted = {n: w.shape for n, w in evidence.weights.items()}
    found = {n: t.shape for n, t in scores.items()} if isinstance(scores, dict) else scores
    if found != wanted:
        raise ConfigError(
            f"score={name!r}: its finalise gives {str(found)[:100]}; "
            f"allowed: one tensor of the same name and shape for each of {len(wanted)} tensors"
        )
    bad = [n for n, t in scores.items() if t.isnan().any()]
    if bad:
        raise ConfigError(f"score={name!r}: its finalise gives NaN for {bad[0]}; allowed: numbers")


def best(
    scores: Tensors, sparsity: float | None, model: Model, r: Round, alive: Masks | None = None
) -> Masks:
    """The mask of the highest scores among what is alive (None: in the model), by the scope."""
    wanted = Wanted(sparsity, r.config.scope, r.plan.progress(r.number))
    alive = model.masks if alive is None else alive
    weights = {n: model.weights[n] for n in alive}
    return chosen(scores, wanted, r.config, r.layout, alive, weights)


def combined(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about, from the pooled sums or from the clients' own."""
    c = plan.config
    score, combine = scores_of(c.plugin)[c.score], combines_of(c.plugin)[c.combine]
    check_seen(evidence, c)
    if combine.pooled or not score.asks:
        return score.finalise(evidence)
    last, names = len(score.asks) - 1, tuple(evidence.weights)
    form = form_of(Question("score", 1, {}, evidence.masks, c.score, last, names), c, plan.layout)
    if not combine.valued:
        votes = votes_by_tensor(aggregate, evidence, plan)
        return {name: votes(name) for name in evidence.weights}
    assert aggregate.total is not None
    if combine.merge is None:
        return form.named(aggregate.total / aggregate.weight)
    assert aggregate.singles is not None
    return form.named(combine.merge(aggregate.singles, c.trim or 0.0))

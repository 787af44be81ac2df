# ruff: noqa: E501  (lines as a user sees them)
"""What does not go with privacy is refused in one line, word for word; every refusal has one."""

import inspect
from typing import Any

import pytest

from fedprune.config import RunConfig, configure
from fedprune.config import privacy_conflicts as conflicts
from fedprune.config.defaults import completed
from fedprune.options.refusal import ConfigError, Conflict
from fedprune.scores.catalog import scores_of

Keys = dict[str, Any]
MLP: Keys = {"task": "digits", "model": "mlp", "clients": 10}
NOISE: Keys = {"dp": "client", "dp_noise": 1.0, "panel": 2, "cohort": 4}

EXAMPLES: list[tuple[Keys, str, str]] = [
    ({"dp_clip": 1.0}, "dp-clip=1.0", "dp is none; allowed: leave it out"),
    ({"dp_noise": 1.0}, "dp-noise=1.0", "dp is none; allowed: leave it out"),
    ({"dp_score_clip": 1.0}, "dp-score-clip=1.0", "dp is none; allowed: leave it out"),
    ({"dp_score_noise": 1.0}, "dp-score-noise=1.0", "dp is none; allowed: leave it out"),
    ({"epsilon": 1.0}, "epsilon=1.0", "dp is none; allowed: leave it out"),
    ({"delta": 1e-06}, "delta=1e-06", "dp is none; allowed: leave it out"),
    ({"dp_metric_clip": 1.0}, "dp-metric-clip=1.0", "metrics are exact; allowed: leave it out"),
    ({"dp_metric_noise": 1.0}, "dp-metric-noise=1.0", "metrics are exact; allowed: leave it out"),
    ({"dp_rate": 0.1}, "dp-rate=0.1", "dp is none; allowed: leave it out"),
    ({"metrics": "noised"}, "metrics='noised'", "dp is none; allowed: exact"),
    ({"sampling": "poisson"}, "sampling='poisson'", "dp is none; allowed: fixed, round-robin"),
    ({"panel": 2}, "panel=2", "dp is none; allowed: 0"),
    (
        NOISE | {"metrics": "noised"},
        "panel=2",
        "the panel is not protected; allowed: 0, or exact metrics",
    ),
    ({"allow_uncovered": True}, "allow-uncovered=True", "dp is none; allowed: false"),
    (
        {"noise_source": "secret"},
        "noise-source='secret'",
        "there is neither noise nor a secure sum; allowed: seeded",
    ),
    (
        {"dp": "example", "dp_noise": 1.0, "sampling": "poisson"},
        "sampling='poisson'",
        "examples are protected in every client that is asked, however it was drawn; allowed: fixed, round-robin",
    ),
    (
        NOISE | {"score": "random", "dp_score_clip": 1.0},
        "dp-score-clip=1.0",
        "the score asks nobody; allowed: leave it out",
    ),
    (
        NOISE | {"weighting": "labels"},
        "weighting='labels'",
        "dp is client: a weight would tell its size; allowed: equal",
    ),
    (
        NOISE | {"combine": "median"},
        "combine='median'",
        "dp is client: it looks at clients one by one; allowed: sum, mean, mean-absolute, second-moment, rank-mean, votes",
    ),
    (
        {"dp": "example", "dp_noise": 1.0, "combine": "votes"},
        "combine='votes'",
        "noise is added to sums over examples, before anything is scored; allowed: sum",
    ),
    (
        NOISE | {"max_norm": 1.0},
        "max-norm=1.0",
        "dp is client: norms are bounded already; allowed: leave it out",
    ),
    (
        NOISE | {"strikes": 2},
        "strikes=2",
        "dp is client: who is left out would depend on the data, and others are drawn more often; "
        "allowed: leave it out",
    ),
    (
        NOISE | {"robust": "median"},
        "robust='median'",
        "dp is client: it looks at clients one by one; allowed: none",
    ),
    (
        NOISE | {"normalise": "l1"},
        "normalise='l1'",
        "dp is client: norms are bounded already; allowed: none",
    ),
    (
        NOISE | {"agreement": True},
        "agreement=True",
        "dp is client: votes would be released beside scores; allowed: false",
    ),
    (
        NOISE | {"masks": "union"},
        "masks='union'",
        "dp is client: masks of their own give data away; allowed: global",
    ),
    (
        NOISE | {"wire": "bf16"},
        "wire='bf16'",
        "dp is client: a cast may exceed the norm; allowed: fp32",
    ),
    (
        NOISE | {"uplink": "int8"},
        "uplink='int8'",
        "dp is client: a cast may exceed it; allowed: fp32",
    ),
    (
        NOISE | {"threshold": 0.1, "score": "magnitude"},
        "threshold=0.1",
        "dp is client: statistics are scaled, and a threshold is of their scale; allowed: a sparsity, or --dp-score-clip",
    ),
    (
        NOISE | {"score": "sparsegpt"},
        "score='sparsegpt'",
        "second moments with noise are no longer those of any inputs; allowed: a score that selects by ranking",
    ),
    (
        NOISE | {"reconstruct": "inputs"},
        "reconstruct='inputs'",
        "second moments with noise are no longer those of any inputs; allowed: leave it out",
    ),
    (
        NOISE | {"reduce": ["dead"]},
        "reduce=('dead',)",
        "second moments with noise are no longer those of any inputs; allowed: leave it out",
    ),
    (
        NOISE | {"task": "shakespeare-restore", "model": "t5", "vocabulary": "used", "clients": 10},
        "vocabulary='used'",
        "rare tokens are what noise hides; allowed: full",
    ),
    (
        NOISE | {"teacher": "somewhere", "distil": 0.5},
        "teacher='somewhere'",
        "the ledger knows nothing of another run's data; allowed: leave it out",
    ),
    (
        NOISE | {"init": "somewhere"},
        "init='somewhere'",
        "the ledger knows nothing of another run's data; allowed: leave it out",
    ),
    (
        NOISE | {"response": 1.0, "combine": "votes", "unit": "row"},
        "response=1.0",
        "dp is client: votes get its noise; allowed: leave it out, or --dp none",
    ),
    (
        NOISE | {"epsilon": 8.0, "baselines": ["random"]},
        "baselines=('random',)",
        "arms spend the same budget; allowed: none, and a run of their own",
    ),
    (
        {"dp": "client", "dp_noise": 0.0, "panel": 2, "cohort": 4},
        "dp-noise=0.0",
        "without noise nothing is protected; allowed: more than 0, or --allow-uncovered",
    ),
    (
        NOISE | {"dp_score_noise": 0.0},
        "dp-score-noise=0.0",
        "the mask would come from raw scores, and nothing would be protected; allowed: more than 0, or --allow-uncovered",
    ),
    (
        {"dp": "client", "dp_noise": 1.0, "dp_metric_noise": 0.0},
        "dp-metric-noise=0.0",
        "without noise nothing is protected; allowed: more than 0, or --allow-uncovered",
    ),
    (
        {"dp": "client", "dp_noise": 1.0, "metrics": "exact"},
        "metrics='exact'",
        "clients' losses would be released as they are; allowed: noised, or --panel N, or --allow-uncovered",
    ),
    (
        {"dp": "client", "dp_noise": 1.0, "panel": 10, "cohort": 4},
        "panel=10",
        "nobody is left to train; allowed: 0 to 9",
    ),
    (
        {"dp": "client", "dp_noise": 1.0, "panel": 2, "cohort": 9},
        "cohort=9",
        "8 clients train; allowed: 1 to 8",
    ),
    (NOISE | {"delta": 0.2}, "delta=0.2", "more than one in the 8 clients; allowed: below 0.125"),
    (
        {"dp": "client", "dp_noise": 1.0, "sampling": "poisson", "min_clients": 2},
        "min-clients=2",
        "with Poisson sampling the number of those drawn voids no round; allowed: 1",
    ),
    (
        {"dp": "client"},
        "dp-noise=None",
        "neither noise nor a budget that says how much; allowed: --dp-noise Z or --epsilon E",
    ),
    (
        {"dp": "example", "dp_noise": 1.0, "local_epochs": 1},
        "local-steps=0",
        "steps are drawn; allowed: --local-steps",
    ),
    (
        {"dp": "client", "epsilon": 8.0, "schedule": "adaptive"},
        "schedule='adaptive'",
        "clients' answers decide how often they are asked, so that no budget says the noise; allowed: another, or --dp-noise Z",
    ),
    (
        {"dp": "client", "epsilon": 8.0, "calibration": "sequential"},
        "scope='global'",
        "blocks are pruned one after the other; allowed: layer, row",
    ),
    (
        {"dp": "client", "epsilon": 8.0, "dp_score_noise": 1.0},
        "dp-score-noise=1.0",
        "it follows from epsilon; allowed: leave it out, or --dp-noise Z",
    ),
    (
        {"dp": "client", "epsilon": 8.0, "dp_metric_noise": 1.0},
        "dp-metric-noise=1.0",
        "it follows from epsilon; allowed: leave it out, or --dp-noise Z",
    ),
]


@pytest.mark.parametrize(("keys", "named", "rest"), EXAMPLES, ids=str)
def test_a_contradiction_is_refused(keys: Keys, named: str, rest: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configure({**MLP, **keys})
    assert str(refused.value) == f"{named}: {rest}"


def lists_of(keys: Keys) -> dict[str, list[Conflict]]:
    config = RunConfig.model_construct(**completed({**MLP, **keys}))
    given = {"c": config, "score": scores_of("")[config.score]}
    found = {}
    for name, function in inspect.getmembers(conflicts, inspect.isfunction):
        if name.startswith("_") and function.__annotations__.get("return") == "list[Conflict]":
            found[name] = function(*[given[p] for p in inspect.signature(function).parameters])
    return found


def test_every_misfit_has_an_example() -> None:
    missing: dict[str, set[int]] = {}
    for keys in [{}, *(keys for keys, _, _ in EXAMPLES)]:
        for name, listed in lists_of(keys).items():
            right = {i for i, (_, wrong, _, _) in enumerate(listed) if not wrong}
            missing[name] = missing.get(name, set(range(len(listed)))) & right
    assert len(missing) >= 5
    assert not {name: left for name, left in missing.items() if left}


def test_what_is_recommended_is_no_misfit() -> None:
    for keys in (NOISE, {"dp": "client", "dp_noise": 1.0}, {"dp": "example", "dp_noise": 1.0}):
        assert configure({**MLP, **keys}).dp == keys["dp"]

"""What does not go with privacy is refused in a line; every refusal has an example."""

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
PLAIN: Keys = {"dp": "client", "dp_noise": 1.0}
STEPS: Keys = {"dp": "example", "dp_noise": 1.0}
BUDGET: Keys = {"dp": "client", "epsilon": 8.0}
NOISE: Keys = PLAIN | {"panel": 2, "cohort": 4}
T5: Keys = {"task": "shakespeare-restore", "model": "t5", "clients": 10}

EXAMPLES: list[tuple[Keys, str, str]] = [
    ({"dp_clip": 1.0}, "dp-clip=1.0", "dp is none"),
    ({"dp_noise": 1.0}, "dp-noise=1.0", "dp is none"),
    ({"dp_score_clip": 1.0}, "dp-score-clip=1.0", "dp is none"),
    ({"dp_score_noise": 1.0}, "dp-score-noise=1.0", "dp is none"),
    ({"epsilon": 1.0}, "epsilon=1.0", "dp is none"),
    ({"delta": 1e-06}, "delta=1e-06", "dp is none"),
    ({"dp_metric_clip": 1.0}, "dp-metric-clip=1.0", "metrics are exact"),
    ({"dp_metric_noise": 1.0}, "dp-metric-noise=1.0", "metrics are exact"),
    ({"dp_rate": 0.1}, "dp-rate=0.1", "dp is none"),
    ({"metrics": "noised"}, "metrics='noised'", "dp is none"),
    ({"sampling": "poisson"}, "sampling='poisson'", "dp is none"),
    ({"panel": 2}, "panel=2", "dp is none"),
    (NOISE | {"metrics": "noised"}, "panel=2", "the panel is not protected"),
    ({"allow_uncovered": True}, "allow-uncovered=True", "dp is none"),
    ({"noise_source": "secret"}, "noise-source='secret'", "there is neither noise nor a secure"),
    (STEPS | {"sampling": "poisson"}, "sampling='poisson'", "examples are protected in every"),
    (NOISE | {"score": "random", "dp_score_clip": 1.0}, "dp-score-clip=1.0", "the score asks"),
    (NOISE | {"weighting": "labels"}, "weighting='labels'", "dp is client: a weight would tell"),
    (NOISE | {"combine": "median"}, "combine='median'", "dp is client: it looks at clients"),
    (STEPS | {"combine": "votes"}, "combine='votes'", "noise is added"),
    (NOISE | {"max_norm": 1.0}, "max-norm=1.0", "dp is client: norms are bounded already"),
    (NOISE | {"strikes": 2}, "strikes=2", "dp is client: who is left out would depend on the"),
    (NOISE | {"robust": "median"}, "robust='median'", "dp is client: it looks at clients one"),
    (NOISE | {"normalise": "l1"}, "normalise='l1'", "dp is client: norms are bounded already"),
    (NOISE | {"agreement": True}, "agreement=True", "dp is client: votes would be released"),
    (NOISE | {"masks": "union"}, "masks='union'", "dp is client: masks of their own give data"),
    (NOISE | {"wire": "bf16"}, "wire='bf16'", "dp is client: a cast may exceed the norm"),
    (NOISE | {"uplink": "int8"}, "uplink='int8'", "dp is client: a cast may exceed it"),
    (NOISE | {"threshold": 0.1, "score": "magnitude"}, "threshold=0.1", "dp is client: statistics"),
    (NOISE | {"score": "sparsegpt"}, "score='sparsegpt'", "second moments with noise are no"),
    (NOISE | {"reconstruct": "inputs"}, "reconstruct='inputs'", "second moments with noise"),
    (NOISE | {"reduce": ["dead"]}, "reduce=('dead',)", "second moments with noise are no longer"),
    (NOISE | T5 | {"vocabulary": "used"}, "vocabulary='used'", "rare tokens are what noise hides"),
    (NOISE | {"teacher": "somewhere", "distil": 0.5}, "teacher='somewhere'", "the ledger knows"),
    (NOISE | {"init": "somewhere"}, "init='somewhere'", "the ledger knows nothing of another"),
    (NOISE | {"response": 1.0, "combine": "votes", "unit": "row"}, "response=1.0", "dp is client:"),
    (NOISE | {"epsilon": 8.0, "baselines": ["random"]}, "baselines=('random',)", "arms spend the"),
    (NOISE | {"dp_noise": 0.0}, "dp-noise=0.0", "without noise nothing"),
    (NOISE | {"dp_score_noise": 0.0}, "dp-score-noise=0.0", "the mask would come from raw scores"),
    (PLAIN | {"dp_metric_noise": 0.0}, "dp-metric-noise=0.0", "without noise nothing"),
    (PLAIN | {"metrics": "exact"}, "metrics='exact'", "clients' losses would be released"),
    (PLAIN | {"panel": 10, "cohort": 4}, "panel=10", "nobody is left"),
    (PLAIN | {"panel": 2, "cohort": 9}, "cohort=9", "8 clients train"),
    (NOISE | {"delta": 0.2}, "delta=0.2", "more than one in the 8 clients"),
    (PLAIN | {"sampling": "poisson", "min_clients": 2}, "min-clients=2", "with Poisson sampling"),
    ({"dp": "client"}, "dp-noise=None", "neither noise nor a budget that says how much"),
    (STEPS | {"local_epochs": 1}, "local-steps=0", "steps are drawn"),
    (BUDGET | {"schedule": "adaptive"}, "schedule='adaptive'", "clients' answers decide"),
    (BUDGET | {"calibration": "sequential"}, "scope='global'", "blocks are pruned"),
    (BUDGET | {"dp_score_noise": 1.0}, "dp-score-noise=1.0", "it follows from"),
    (BUDGET | {"dp_metric_noise": 1.0}, "dp-metric-noise=1.0", "it follows from"),
]


@pytest.mark.parametrize(("keys", "named", "why"), EXAMPLES, ids=str)
def test_a_contradiction_is_refused(keys, named, why):
    with pytest.raises(ConfigError) as refused:
        configure({**MLP, **keys})
    said, _, allowed = str(refused.value).partition("; allowed: ")
    assert said.startswith(f"{named}: {why}")
    assert allowed
    assert "\n" not in allowed


def lists_of(keys: Keys) -> dict[str, list[Conflict]]:
    config = RunConfig.model_construct(**completed({**MLP, **keys}))
    given = {"c": config, "score": scores_of("")[config.score]}
    found = {}
    for name, function in inspect.getmembers(conflicts, inspect.isfunction):
        if name.startswith("_") and function.__annotations__.get("return") == "list[Conflict]":
            found[name] = function(*[given[p] for p in inspect.signature(function).parameters])
    return found


def test_every_misfit_has_an_example():
    missing: dict[str, set[int]] = {}
    for keys in [{}, *(keys for keys, _, _ in EXAMPLES)]:
        for name, listed in lists_of(keys).items():
            right = {i for i, (_, wrong, _, _) in enumerate(listed) if not wrong}
            missing[name] = missing.get(name, set(range(len(listed)))) & right
    assert len(missing) >= 5
    assert not {name: left for name, left in missing.items() if left}


def test_what_is_recommended_is_no_misfit():
    for keys in (NOISE, PLAIN, STEPS):
        assert configure({**MLP, **keys}).dp == keys["dp"]

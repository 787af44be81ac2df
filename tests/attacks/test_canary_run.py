"""Canaries in whole runs: what the seam really does, not what the ledger says that it does."""

from pathlib import Path

import canary_task
import pytest
import torch

from fedprune import RunConfig, federate
from fedprune.attacks.one_run import cap, epsilon_bound
from fedprune.config import configure
from fedprune.secagg.shared_noise import fewest_left

CLIENTS, PANEL = 104, 4


def configured(seed: int, **changes: object) -> RunConfig:
    keys = {
        "task": "canaries",
        "plugin": str(Path(canary_task.__file__)),
        "engine": "inline",
        "clients": CLIENTS,
        "panel": PANEL,
        "cohort": CLIENTS - PANEL,
        "rounds": 1,
        "sparsity": 0.0,
        "lr_schedule": "constant",
        "dp": "client",
        "dp_noise": 2.2,
        "dp_clip": 1.0,
        "seed": seed,
    }
    return configure({**keys, **changes})


def audited(config: RunConfig) -> tuple[float, float]:
    """The bound that guesses from the final weights prove, and what the run claims."""
    result = federate(config)
    (weight,) = result.state.weights.values()
    heard = (canary_task.directions(config) @ weight.flatten())[:-PANEL]
    guesses = len(heard) // 2
    surest = heard.abs().argsort(descending=True, stable=True)[:guesses]
    right = int(((heard > 0) == canary_task.coins(config)[:-PANEL])[surest].sum())
    bound = epsilon_bound(len(heard), guesses, right, config.delta or 1e-5)
    privacy = result.summary["privacy"]
    assert privacy["total"] == privacy["epsilon"]
    return bound, privacy["epsilon"]


@pytest.fixture(params=["noise", "clip"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "noise":
        silence = torch.zeros(canary_task.OWN * CLIENTS, dtype=torch.float64)
        monkeypatch.setattr(
            "fedprune.protocol.server_noise.gaussian", lambda size, *_: silence[:size]
        )
    else:
        monkeypatch.setattr("fedprune.protocol.client_privacy.clipped", lambda values, _: values)


@pytest.mark.usefixtures("broken")
def test_a_broken_run_is_caught():
    bound, claim = audited(configured(0))
    assert claim < 2.0 < bound <= cap(CLIENTS - PANEL, (CLIENTS - PANEL) // 2, 1e-5)


@pytest.mark.slow
def test_runs_of_twenty_seeds_keep_their_promise():
    found = [audited(configured(seed)) for seed in range(20)]
    assert sum(bound <= claim for bound, claim in found) >= 19


@pytest.mark.slow
@pytest.mark.usefixtures("broken")
def test_broken_runs_of_twenty_seeds_are_caught():
    found = [audited(configured(seed)) for seed in range(20)]
    assert sum(bound > claim for bound, claim in found) >= 19


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": "poisson", "cohort": 50},
        {"noise_source": "secret"},
        {"secure": "secagg", "clients": 44, "cohort": 40},
    ],
    ids=["central", "poisson", "secret", "secure"],
)
def test_what_reaches_the_weights_beside_the_clipped_changes_is_noise_as_booked(changes):
    config = configured(1, **{"clients": 104, "cohort": 100, "dp_noise": 1.5, **changes})
    result = federate(config)
    (weight,) = result.state.weights.values()
    signs = torch.where(canary_task.coins(config), 1.0, -1.0)
    sent = signs[:, None] * canary_task.directions(config)  # clipped to norm 1
    honest = sent[result.rows[0]["cohort"]].sum(0)
    noise = weight.flatten() * config.cohort - honest
    sd = 1.5 * (1.0 if config.sampling == "poisson" else 2.0)
    if config.secure != "none":  # shared out for drop-outs that do not happen, it is more
        sd *= (config.cohort / fewest_left(config.cohort, config)) ** 0.5
    # Of secret noise another each time: the spread of n coordinates is off by 1 / sqrt(2 n).
    assert abs(float(noise.std()) / sd - 1) < 4.5 / (2 * len(noise)) ** 0.5
    assert abs(float(noise.mean())) < 5 * sd / len(noise) ** 0.5

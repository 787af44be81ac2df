"""What devices keep to themselves where the configuration hides data, and what they refuse."""

from typing import Any

import pytest

from fedprune import NoRoundCompleted, RunConfig, federate
from fedprune.engines.flower.grid import grid_port
from fedprune.privacy.accounting_terms import SIMULATED
from tests.runs import tiny

PRIVATE = {"model": "mlp", "clients": 3, "cohort": 3, "rounds": 1, "warmup": 0, "end": 1}
PRIVATE |= {"min_clients": 1}
NOISE = {**PRIVATE, "dp": "client", "dp_noise": 1.0}


def reasons(grid: Any, config: RunConfig) -> set[str]:
    with pytest.raises(NoRoundCompleted) as nothing:
        federate(config, grid_port(grid, config))
    return {f["reason"] for row in nothing.value.result.rows for f in row["failures"]}


def test_devices_refuse_simulated_noise_and_say_so(devices):
    found = reasons(devices(3), tiny(**NOISE, noise_source="seeded"))
    assert len(found) == 3  # each with the name of its device
    assert all(SIMULATED in reason for reason in found)
    assert all("allowed on devices: secret" in reason for reason in found)


@pytest.mark.parametrize("more", [NOISE, {**PRIVATE, "secure": "secagg"}, PRIVATE], ids=str)
def test_no_reason_leaves_a_device_that_hides_data(devices, tmp_path, more):
    grid = devices(3)
    for context in grid.contexts.values():
        context.node_config["data"] = str(tmp_path / "private-name")
    told = reasons(grid, tiny(**more))
    assert ("private-name" in " ".join(told)) == (more is PRIVATE)

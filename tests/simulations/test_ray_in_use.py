"""A Ray that was the user's goes on after a run, and so does all that lives in it."""

import pytest

from fedprune import ConfigError
from fedprune.client.footprint import Footprint
from fedprune.client.host import labels_of
from fedprune.config import configure
from fedprune.engines.ray.engine import ray_grid, simulate
from fedprune.records.bound import Going
from fedprune.report.screen import Screen
from tests.runs import house_of, played, tiny


@pytest.mark.slow
def test_a_ray_that_is_in_use_is_used_and_goes_on(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote(num_cpus=0)
        class Counter:
            def __init__(self) -> None:
                self.count = 0

            def up(self) -> int:
                self.count += 1
                return self.count

        counter = Counter.remote()
        assert ray.get(counter.up.remote()) == 1
        config = tiny(model="mlp", engine="ray", rounds=2, warmup=0, end=1)
        host = house_of(config)
        about = (host.shards, labels_of(host), Footprint())
        simulate(config, tmp_path / "run", Screen(), Going(), *about)
        assert ray.get(counter.up.remote()) == 2
        rows = (tmp_path / "run" / "rounds.jsonl").read_text()
        alone = played(configure({**config.model_dump(exclude_none=True), "engine": "inline"}))
        assert alone.rows[-1]["weights_digest"] in rows
        elsewhere = config.model_copy(update={"ray_address": "127.0.0.1:1"})
        with (
            pytest.raises(ConfigError, match="this process uses a Ray already"),
            ray_grid(elsewhere, *about),
        ):
            pass
    finally:
        ray.shutdown()

"""A run on Ray: workers of our own, Flower's grid over them, the same server and client apps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.client.footprint import Footprint
from fedprune.config import RunConfig
from fedprune.engines.ray.nodes import Node, NodeWorkers, workers_that_fit
from fedprune.engines.ray.own import RayAhead, set_environment, start_ray
from fedprune.engines.ray.starting import check_gpus
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import Going
from fedprune.report.screen import Screen
from fedprune.runtime.process import put_back
from fedprune.tasks.task import Shard

if TYPE_CHECKING:
    from fedprune.engines.ray.grid import RayGrid


def simulate(
    config: RunConfig,
    folder: Path,
    screen: Screen,
    going: Going,
    shards: Mapping[int, Shard],
    labels: Mapping[int, int],
    needs: Footprint,
    *,
    leaving: bool = False,
    ahead: RayAhead | None = None,
) -> None:
    """Run to the end.

    A Ray that is being started `ahead` is waited for, used, and left to whoever began it.

    With `leaving` the process is about to end, and a Ray of its own is left to end with it
    (`fedprune.engines.ray.starting.leave`): Ray takes seconds to be ended in order.

    Settings of this process, the environment included, are as they were afterwards
    (`fedprune.runtime.process.put_back`). Where Ray is in use in it already, the run takes place
    there, on all that Ray has, and Ray goes on; else it starts a Ray of its own, and ends it.

    Raises:
        ConfigError: Ray did not start, `ray_address` names another one than that in use, or a node
            lacks what it needs.
        fedprune.engines.ray.grid.Unserved: no node was left; the rounds played are kept.
        SystemExit: no round was completed.
    """
    from fedprune.engines.flower.server_app import run_on

    with put_back(), ray_grid(config, shards, labels, needs, leaving=leaving, ahead=ahead) as grid:
        screen.line(f"  workers     {grid.pool.told()}")
        run_on(grid, config, folder, screen, going)


@contextmanager
def ray_grid(
    config: RunConfig,
    shards: Mapping[int, Shard],
    labels: Mapping[int, int],
    needs: Footprint,
    *,
    leaving: bool = False,
    ahead: RayAhead | None = None,
) -> Iterator[RayGrid]:
    """Within the block a grid whose workers are ready; afterwards they have ended.

    Of `leaving` and `ahead` see `simulate`.

    Raises:
        ConfigError: as for `simulate`.
    """
    set_environment(config)
    # Ray reads the environment when it is imported.
    with _ray(config, ahead, leaving=leaving):
        import ray

        from fedprune.engines.ray.grid import RayGrid
        from fedprune.engines.ray.identity import as_a_task
        from fedprune.engines.ray.node_files import node_files_of
        from fedprune.engines.ray.worker_pool import WorkerPool

        where = f"the cluster at {config.ray_address}" if config.ray_address else "Ray"
        check_gpus(config, ray.cluster_resources().get("GPU", 0.0), where)

        def workers_of(node: Node) -> NodeWorkers:
            return workers_that_fit(node, needs, config.gpus, config.workers)

        pool = WorkerPool(node_files_of(config, shards), workers_of, config.hosts)
        with as_a_task():
            try:
                grid = RayGrid(pool, dict(labels), config.timeout)
                grid.gather()
                yield grid
            finally:
                pool.end()


@contextmanager
def _ray(config: RunConfig, ahead: RayAhead | None, *, leaving: bool) -> Iterator[None]:
    """Within the block there is a Ray: the one in use here, the one at an address, or its own."""
    import ray

    if ahead is not None:
        ahead.wait()
        yield
        return
    if ray.is_initialized():
        if config.ray_address:
            raise ConfigError(
                f"ray-address={config.ray_address!r}: this process uses a Ray already; "
                "allowed: leave it out, or ray.shutdown() before"
            )
        yield
        return
    start_ray(config)
    try:
        yield
    finally:
        if config.ray_address or not leaving:
            ray.shutdown()

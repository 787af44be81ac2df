"""Commands of fedprune, spread over the nodes of a Ray cluster that is there."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.config import configure
from fedprune.engines.ray.own import set_environment, start_ray
from fedprune.engines.ray.starting import require_ray
from fedprune.options.refusal import ConfigError
from fedprune.runtime.ending import FAILED, INTERRUPTED
from fedprune.runtime.process import put_back

LIVES = 4
"""How often a command is begun whose node or worker goes meanwhile."""

LAG = 90.0
"""Seconds until the driver sees what a node wrote: NFS keeps what it knows of a folder up to 60 s
(acdirmax of nfs(5))."""

_POLL = 0.1


@dataclass(eq=False)
class NodeCommand:
    """A command that runs on some node, in the words of `subprocess.Popen`.

    Attributes:
        words: of the command, asked for each time that it is begun.
        shows: a file that is there when it has done its work.
        log: what it writes; why it was not begun is put there, too.
        submit: hands words and log to Ray.
        lives: times that it may be begun.
    """

    words: Callable[[], list[str]]
    shows: Path
    log: Path
    submit: Callable[[list[str], str], Any]
    lives: int = LIVES
    _code: int | None = None
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.lives -= 1
        self._task = self.submit(self.words(), str(self.log))

    def poll(self) -> int | None:
        """The exit code; None: it is not at its end, or its work is not to be seen here yet."""
        import ray

        if self._code is None and ray.wait([self._task], timeout=0)[0]:
            self._take_in()
        waiting = self._code == 0 and time.monotonic() < self._since + LAG
        return None if waiting and not self.shows.exists() else self._code

    def _take_in(self) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        try:
            came = ray.get(self._task)
        except TaskCancelledError:
            came = INTERRUPTED  # the command said so itself, if it had begun
        except RayError as error:
            if self.lives > 0 and not isinstance(error, RayTaskError):
                self._begin()
                return
            came = f"lost with its node or worker: {' '.join(str(error).split())[-300:]}"
        self._code = came if isinstance(came, int) else FAILED
        self._since = time.monotonic()
        if isinstance(came, str):
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{came}\n")

    def terminate(self) -> None:
        """Interrupt it, as SIGTERM does; it is begun no more."""
        self._cancel(force=False)

    def kill(self) -> None:
        """End it at once."""
        self._cancel(force=True)

    def _cancel(self, *, force: bool) -> None:
        import ray

        self.lives = 0
        ray.cancel(self._task, force=force)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one; subprocess.TimeoutExpired: there is none in time."""
        until = time.monotonic() + (LAG if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("fedprune", timeout or LAG)
            time.sleep(_POLL)
        return code


@dataclass(frozen=True)
class ClusterNodes:
    """A cluster that takes commands: how many nodes with how many processors, one for each command.

    `start` begins a command, by its words, what it leaves and its log.
    """

    start: Callable[[Callable[[], list[str]], Path, Path], NodeCommand]
    cpus: int
    nodes: int


@contextmanager
def spread_over(address: str, out: Path) -> Iterator[ClusterNodes]:
    """Within the block the cluster at an address takes commands; afterwards it is left as it was.

    All commands write to `out`; every node has to see it.

    Raises:
        ConfigError: no cluster answers there, it has no processor, or a node lacks what is needed.
    """
    config = configure({"engine": "ray", "ray_address": address})
    require_ray(config)
    with put_back(), _sign_in(out) as sign:
        set_environment(config)
        start_ray(config)
        import ray

        from fedprune.engines.ray import node_command, worker
        from fedprune.engines.ray.node_files import packages_needed
        from fedprune.engines.ray.nodes import nodes_of

        for module in (node_command, worker):
            ray.cloudpickle.register_pickle_by_value(module)
        try:
            needs, nodes = {**packages_needed(), "files": {}}, nodes_of(ray.nodes())
            _check(address, [node.id for node in nodes], needs, sign)
            run: Any = ray.remote(num_cpus=1, max_retries=0)(node_command.run_here)
            home = os.getcwd()

            def submit(words: list[str], log: str) -> Any:
                return run.remote(words, log, home, needs, sign)

            yield ClusterNodes(
                lambda words, shows, log: NodeCommand(words, shows, log.absolute(), submit),
                sum(node.cpus for node in nodes),
                len(nodes),
            )
        finally:
            ray.shutdown()


@contextmanager
def _sign_in(out: Path) -> Iterator[str]:
    """Within the block a file by which a node knows that it sees the same folder."""
    sign = out.absolute() / f".seen-{uuid.uuid4().hex}"
    sign.touch()
    try:
        yield str(sign)
    finally:
        sign.unlink(missing_ok=True)


def _check(address: str, nodes: list[str], needs: dict[str, Any], sign: str) -> None:
    """Refuse a cluster of which a node cannot take part."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from fedprune.engines.ray import node_command

    if not nodes:
        raise ConfigError(
            f"ray-address={address!r}: no node has a processor; allowed: a cluster that has one"
        )
    ask: Any = ray.remote(num_cpus=0, max_retries=0)(node_command.unfit)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            needs, sign
        )
        for node in nodes
    ]
    try:
        wrong = [why for why in ray.get(asked) if why]
    except RayError as error:  # a node that has just gone
        raise ConfigError(
            f"ray-address={address!r}: {' '.join(str(error).split())[:300]}; "
            "allowed: again, when the nodes that are listed are there"
        ) from None
    if wrong:
        raise ConfigError("; ".join(wrong))

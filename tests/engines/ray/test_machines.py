"""Runs on several machines, made of one: nodes are unplugged, join, and have disks of their own.

One Ray cluster plays all of it, a study first. One grid plays all the runs, one after the other:
starting workers takes longest.
"""

import csv
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from fedprune import ConfigError, RunConfig, federate
from fedprune.client.footprint import Footprint
from fedprune.client.host import build_host, labels_of
from fedprune.commands.main import main
from fedprune.config import configure
from fedprune.engines.flower.server_app import run_on
from fedprune.engines.ray.engine import ray_grid
from fedprune.engines.ray.nodes import Unserved, nodes_of
from fedprune.engines.ray.own import set_environment
from fedprune.records.bound import Going
from fedprune.report.screen import Screen
from fedprune.runtime.process import put_back
from fedprune.study.design import read_design
from fedprune.study.playing import cell_folder
from tests.machines import Machines, impossible, machines, unplugging, workers_of
from tests.runs import STUDY

WHY = impossible()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY), reason=WHY)]

ROOT = Path(__file__).resolve().parents[3]
BASE: dict[str, Any] = {
    **{"task": "digits", "model": "mlp", "clients": 6, "cohort": 6, "hosts": 3, "rounds": 4},
    **{"warmup": 1, "end": 3, "local_steps": 3, "seed": 5},
}
SECURE: dict[str, Any] = {"secure": "secagg", "noise_source": "seeded"}
REMEMBERED: dict[str, dict[str, Any]] = {
    "residuals": {"uplink": "int8", "error_feedback": True},
    "variates": {"scaffold": True, "optimizer": "sgd", "score": "magnitude"},
}
ROWS = """
from of_mine import SCORES
from dataclasses import replace
from pathlib import Path
from fedprune import TASKS as ours
digits = ours['digits']
def shards(config):
    assert Path(config.data).read_text() == 'one two three'
    return digits.shards(config)
def model(config):
    assert Path(config.data).read_text() == 'one two three'
    return digits.model(config)
TASKS = {'lines': replace(digits, folder=True, shards=shards, model=model)}
"""


@dataclass
class Site:
    """The machines, the grid on them, and where results go."""

    machines: Machines
    grid: Any
    place: Path

    def play(self, name: str, config: RunConfig, going: Going | None = None) -> None:
        with (self.place / f"{name}.screen").open("w") as file:
            screen = Screen(Console(file=file, width=300))
            run_on(self.grid, config, self.place / name, screen, going)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is empty on every node."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """Without a node."""
    with machines(0) as made:
        yield made


def connected(made: Machines) -> None:
    """Connect this process, once the nodes that are there, and no others, are known to be."""
    ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
    all_there(made)


def all_there(made: Machines) -> None:
    until = time.monotonic() + 120
    while len(nodes_of(ray.nodes())) != len(made.nodes) and time.monotonic() < until:
        time.sleep(0.1)


def known(made: Machines) -> None:
    """Wait until the nodes are known to be there, as somebody who looks on."""
    connected(made)
    ray.shutdown()


@pytest.fixture(scope="module")
def site(cluster: Machines, hidden: Path) -> Iterator[Site]:
    config = configure({**BASE, "engine": "ray"})
    host = build_host(config)
    while len(cluster.nodes) < 2:  # a study may have left one that has the package
        cluster.join([hidden, ROOT])
    with put_back():
        set_environment(config)
        connected(cluster)
        try:
            with ray_grid(config, host.shards, labels_of(host), Footprint()) as grid:
                yield Site(cluster, grid, hidden)
        finally:
            ray.shutdown()


def alone(config: RunConfig) -> Any:
    return federate(config.model_copy(update={"engine": "inline"}))


def rows(site: Site, name: str) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (site.place / name / "rounds.jsonl").read_text().splitlines()]


def as_alone(site: Site, name: str, config: RunConfig) -> None:
    """Whether a run is that of one process, bit for bit, and nothing was lost."""
    wanted = [json.loads(json.dumps(row)) for row in alone(config).rows]
    assert rows(site, name) == wanted
    assert not any(row["failures"] for row in wanted)


def test_a_study_on_nodes_has_the_results_of_one_machine(cluster, hidden, tmp_path, capsys):
    """A node that does not see the study's folder is refused."""
    file, out = tmp_path / "s.toml", hidden / "study"
    file.write_text(STUDY)
    command = ["study", str(file), "--out", str(out), "--ray-address", cluster.address]
    cells = read_design(file).cells
    (out / "cells").mkdir(parents=True)
    broken = cell_folder(cells[1], out)
    broken.write_text("a file where the run's folder would be")
    for _ in range(2):
        cluster.join()
    known(cluster)
    assert main(command) == 1
    said = f"3 runs, 2 at once on 2 nodes of the cluster at {cluster.address}"
    assert said in capsys.readouterr().out
    assert not ray.is_initialized()
    with (out / "results.csv").open() as results:
        found = {row["cell"]: row for row in csv.DictReader(results)}
    for cell in cells[::2]:
        digest = federate(cell.config).summary["weights_digest"]
        assert found[cell.name]["weights_digest"] == digest
    assert found[cells[1].name]["status"] == "failed"
    assert found[cells[1].name]["reason"].startswith("out=")
    cluster.join([hidden])
    known(cluster)
    assert main(command) == 2
    line = f"out={str(out)!r} is not the driver's there; allowed: --out in a folder that all nodes"
    assert line in capsys.readouterr().err
    assert not list(out.glob(".seen-*"))
    for number in list(cluster.nodes)[:2]:
        cluster.unplug(number)


@pytest.mark.parametrize("name", REMEMBERED)
def test_disks_of_their_own_and_no_package_make_no_difference(site: Site, name: str):
    """The nodes lack the folder of the run, where clients' memory lies, and one the package."""
    config = configure({**BASE, **REMEMBERED[name], "engine": "ray"})
    site.play(name, config)
    as_alone(site, name, config)
    assert len({member.node.id for member in site.grid.pool.members}) == 2


def test_nodes_that_go_cost_no_client_and_those_that_join_are_used(site: Site):
    """Of each kind of question: `test_ray_grid`. No secret is only in who was asked first."""
    config = configure({**BASE, **SECURE, "engine": "ray"})
    before = {member.node.id for member in site.grid.pool.members}
    with unplugging(site.grid, site.machines, ["tune", "unmask"]):
        site.play("secure", config)
    as_alone(site, "secure", config)
    # A node that was still taken for alive before may be there yet: three, of which two went.
    assert {member.node.id for member in site.grid.pool.members} - before


def test_without_any_node_a_run_ends_and_goes_on_later(site: Site):
    config = configure({**BASE, "engine": "ray"})

    class Gone(Screen):
        def _row(self, row: Any, seconds: float, state: Any) -> None:
            super()._row(row, seconds, state)
            if row["round"] == 2:
                for number in list(site.machines.nodes):
                    site.machines.unplug(number)

    site.grid.patience = 3.0
    with pytest.raises(Unserved, match="no node with a processor was there for 3 s"):
        run_on(site.grid, config, site.place / "gone", Gone(Console(file=StringIO())))
    assert len(rows(site, "gone")) == 2
    site.machines.join()
    site.grid.patience = 600.0
    site.play("gone", config, Going(resume=True))
    as_alone(site, "gone", config)


def test_files_that_nodes_lack_are_sent(site, hidden, tmp_path, monkeypatch):
    """A plug-in, what it imports, data; what clients remember of a score of it travels, too."""
    text = (ROOT / "tests" / "remembering.py").read_text()
    (tmp_path / "of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (hidden / "own.py").write_text(ROWS)
    (hidden / "data.txt").write_text("one two three")
    keys = {**BASE, "model": "", "task": "lines", "score": "moving"}
    keys["plugin"] = str(hidden / "own.py")
    config = configure({**keys, "data": str(hidden / "data.txt"), "engine": "ray"})
    host = build_host(config)
    site.grid.pool.end()
    with ray_grid(config, host.shards, labels_of(host), Footprint()) as grid:
        Site(site.machines, grid, hidden).play("sent", config)
    as_alone(site, "sent", config)


def test_a_driver_that_is_killed_leaves_nothing_running(site, hidden):
    """On a cluster that is not its own workers end within a minute, and their place is free."""
    site.grid.pool.end()
    out = hidden / "killed"
    words = "--task digits --model mlp --clients 6 --hosts 3 --rounds 2000 --local-steps 3"
    words += f" --engine ray --ray-address {site.machines.address} --out {out}"
    command = [sys.executable, "simulations/run.py", *words.split()]
    quiet = {"stdout": subprocess.DEVNULL, "start_new_session": True}
    driver = subprocess.Popen(command, cwd=ROOT, **quiet)
    workers, until = set[int](), time.monotonic() + 120
    # Ray rewrites a worker's title at each call, so that one look may miss it.
    played = out / "rounds.jsonl"
    while not (workers and played.is_file()) and time.monotonic() < until:
        assert driver.poll() is None
        workers.update(*(workers_of(node.pid) for node in site.machines.nodes.values()))
        time.sleep(0.1)
    assert driver.poll() is None
    assert workers
    driver.kill()
    driver.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, workers
        time.sleep(0.1)
    while (free := ray.available_resources().get("CPU")) != len(site.machines.nodes):
        assert time.monotonic() < until, free
        time.sleep(0.1)


def test_another_version_on_a_node_is_refused_by_name(site: Site, tmp_path: Path):
    other = tmp_path / "flwr-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 9.9.9\n")
    site.machines.join(PYTHONPATH=str(tmp_path))
    config = configure({**BASE, "engine": "ray"})
    host = build_host(config)
    all_there(site.machines)
    with (
        pytest.raises(ConfigError, match=r"node [0-9.]+: flwr is 9\.9\.9, .* is wanted"),
        ray_grid(config, host.shards, labels_of(host), Footprint()),
    ):
        pass

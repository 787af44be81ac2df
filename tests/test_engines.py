"""Inline equals Ray: the same bits in every row and weight.

Ray and its workers start once: one grid plays all the runs, one after the other. It is a Ray that
is in use already, as a user may have it; it goes on, with all that is in it. One of its own:
`tests/simulations/test_run.py`.
"""

import json
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedprune import ConfigError, Result, RunConfig, federate
from fedprune.client.footprint import Footprint
from fedprune.client.host import build_host, labels_of
from fedprune.commands.arguments import run_asked_for
from fedprune.report.screen import Screen
from fedprune.runtime.process import put_back
from tests.machines import workers_of
from tests.runs import cut_short, with_pages

# The default task, unequal shards, a partial cohort; pruned from round two on.
OPTIONS = "--clients 7 --cohort 4 --hosts 3 --rounds 2 --warmup 1 --local-steps 2 --seed 3"
DIGITS = "--task digits"

CASES = {
    # of a LLaMA, which a worker takes seconds to import: before the case in which workers end
    "plain": "",
    # a run of another process that was cut, and goes on here
    "resumed": "--method fedspine --ranks 4,2 --model llama",
    # two questions with something sent along, values one by one, masks of the clients' own
    "distil": f"{DIGITS} --distil 0.5 --l1 0.001 --lr-rewind --reconstruct outputs",
    "grasp": f"{DIGITS} --score grasp --combine median --score-wire log8 --warmup 0",
    "union": f"{DIGITS} --masks union --score wanda --precision bf16",
    "adaptive": f"{DIGITS} --schedule adaptive --tolerance 0.5 --blend layer "
    "--blend-grid 0.5,1,1.5 --moving ema",
    # models that change their shape on the way, secure sums, shared noise
    "reduce": f"{DIGITS} --reduce dead,merge,share,low-rank --rank-budget 0.5 --reduce-round 2",
    "channels": f"{DIGITS} --unit channel --sparsity 0.3 --shrink every --blend layer "
    "--moving ema --uplink int8",
    "sums": f"{DIGITS} --secure secagg --masks union --secure-bits 32",
    # a client that raises as soon as weights are gone
    "raises": "--task failing --plugin tests/failing_task.py --split iid --clients 8 --cohort 8",
    # each arm beside the run
    "arms": f"{DIGITS} --model mlp --method heterofl --unit row --sparsity 0.3 --cohort 3 "
    "--baselines dense,random,magnitude,lottery,dense-small,local-only,centralised",
    "noise": f"{DIGITS} --model mlp --secure secagg --dp client --dp-noise 1 --no-agreement "
    "--noise-source seeded",
    # both workers are killed on the way
    "killed": f"{DIGITS} --robust geometric-median --max-norm auto",
    # one that ends its worker each time it trains, be it os._exit, a signal or too little memory
    "ends": "--task ending --plugin tests/failing_task.py --split iid --clients 8 --cohort 8 "
    "--rounds 1 --warmup 0",
}

pytestmark = pytest.mark.slow


def configured(case: str, engine: str) -> RunConfig:
    arguments = [*OPTIONS.split(), *shlex.split(CASES[case]), "--engine", engine]
    return run_asked_for(arguments)[0]


@cache
def inline(case: str) -> Result:
    return federate(configured(case, "inline"))


@pytest.fixture(scope="module")
def in_use() -> Iterator[Any]:
    """What is in the Ray that this process uses already."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.put("in use")
    ray.shutdown()


@pytest.fixture(scope="module")
def on_ray(in_use: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs' folders, all of them played by two workers of one grid."""
    del in_use
    from fedprune.engines.flower.server_app import Going, run_on
    from fedprune.engines.ray.engine import ray_grid

    place = tmp_path_factory.mktemp("ray")
    configs = {case: configured(case, "ray") for case in CASES}
    host = build_host(configs["distil"])
    two = configs["distil"].model_copy(update={"workers": 2})
    with put_back(), ray_grid(two, host.shards, labels_of(host), Footprint()) as grid:
        for case, config in configs.items():
            try:
                looked_at = with_pages() if case in ("plain", "raises") else nullcontext()
                with (place / f"{case}.screen").open("w") as screen, looked_at:
                    if case == "resumed":
                        cut_short(config, place / case, 1)
                    told, going = Screen(Console(file=screen, width=300)), Going(case == "resumed")
                    with workers_killed(grid.pool) if case == "killed" else nullcontext():
                        run_on(grid, config, place / case, told, going)
            except BaseException as error:  # its test fails for want of a summary, and says why
                (place / f"{case}.error").write_text(repr(error))
    return place


@contextmanager
def workers_killed(pool: Any) -> Iterator[None]:
    """Within the block all are, once one has the pruning's question: nobody is left to ask."""
    give, found = pool.give, set[int]()

    def given(member: Any, job: Any) -> None:
        give(member, job)
        if job.message.metadata.message_type == "train.score":
            while len(found) < len(pool.members):  # one look may miss one
                found.update(workers_of(os.getpid()))
            for worker in found:
                os.kill(worker, signal.SIGKILL)
            pool.give = give

    pool.give = given
    yield
    assert found


def same(folder: Path, run: Result) -> None:
    """Whether a folder holds this run, bit for bit."""
    error = folder.with_suffix(".error")
    assert not error.exists(), error.read_text()
    rows: list[dict[str, Any]] = [json.loads(json.dumps(row)) for row in run.rows]
    assert [json.loads(x) for x in (folder / "rounds.jsonl").read_text().splitlines()] == rows
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("weights_digest", "mask_digest", "quality", "bytes_up", "bytes_down"):
        assert summary[key] == json.loads(json.dumps(run.summary[key]))


@pytest.mark.parametrize("case", [case for case in CASES if case != "ends"])
def test_inline_equals_ray_bit_for_bit(case, on_ray):
    same(on_ray / case, inline(case))
    assert inline(case).rows[-1]["removed"] > 0
    assert not inline(case).summary["failures"] or case == "raises"


def test_a_client_that_raises_in_a_worker_is_named_and_the_run_goes_on(on_ray):
    rows = [json.loads(x) for x in (on_ray / "raises" / "rounds.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [8, 7]
    (failed,) = rows[1]["failures"]
    assert (failed["partition"], failed["phase"], failed["field"]) == (1, "tune", "")
    assert failed["reason"] == "MemoryError: no room for this batch"
    said = (on_ray / "raises.screen").read_text()
    assert "client 1 failed while tuning: MemoryError: no room for this batch" in said
    assert "MemoryError" in (on_ray / "raises" / "report.html").read_text()


def test_a_client_that_always_ends_its_worker_takes_nobody_else_along(on_ray):
    """The bits are those of a run in one process in which it raises each time it trains."""
    rows = [json.loads(x) for x in (on_ray / "ends" / "rounds.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [7]
    assert [[f["partition"] for f in row["failures"]] for row in rows] == [[1]]
    alike = [row["weights_digest"] for row in inline("ends").rows]
    assert [row["weights_digest"] for row in rows] == alike


def test_a_ray_that_is_in_use_goes_on_and_no_other_can_be_asked_for(on_ray, in_use):
    del on_ray
    import ray

    from fedprune.engines.ray.engine import ray_grid

    assert ray.get(in_use, timeout=60) == "in use"
    elsewhere = configured("plain", "ray").model_copy(update={"ray_address": "127.0.0.1:1"})
    with (
        pytest.raises(ConfigError, match="this process uses a Ray already"),
        ray_grid(elsewhere, {}, {}, Footprint()),
    ):
        pass


def test_the_run_compared_is_partial_unequal_and_pruned():
    run = inline("plain")
    sizes = run.summary["shard_sizes"]
    assert len(set(sizes)) == len(sizes) == 7
    assert all(len(row["cohort"]) == 4 for row in run.rows)
    assert run.rows[-1]["removed"] > run.rows[0]["removed"] == 0

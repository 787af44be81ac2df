"""What is kept of the runs in `tests.gallery`: ``gallery.json``, and how it is compared.

A change of the code that is meant to change no result leaves every digest as it was.
``python -m tests.digests`` plays all runs and says which differ; with ``--record`` it writes them
anew, all or those that are named: the commit that does so says why.

Digests of floating-point numbers hold for one kind of processor and some versions of libraries.
`machine` tells these apart, by a computation that uses nothing of this project. On another one the
values under ``about`` are compared, within tolerances, and a warning says so.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fedprune import RunConfig, federate
from fedprune.client.host import build_host
from fedprune.config import configure, from_toml
from fedprune.engines.inline import inline_port
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Port
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.tensors.named import digest
from tests.gallery import GALLERY, Keys, Run
from tests.played import Played, watched
from tests.runs import Killed
from tests.tasks.rows import write_rows

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_name("gallery.json")
LIBRARIES = ["torch", "numpy", "transformers", "scikit-learn", "dp-accounting"]
LIBRARIES += ["zstandard", "pcodec"]
PLACES = 256
"""Of how many weights the file says whether they are kept, so that masks can be compared."""

Kept = dict[str, Any]
"""Digests by what they are of, and ``about``: coarse values."""


def played(name: str) -> Played:
    """One of the gallery's runs, played in this process."""
    run = GALLERY[name]
    with TemporaryDirectory() as place, ExitStack() as stack:
        return _played(run, Path(place), stack)


def _played(run: Run, place: Path, stack: ExitStack) -> Played:
    keys = _recipe(run.recipe) | run.keys if run.recipe else dict(run.keys)
    if run.rows:
        keys["data"] = str(write_rows(place / "rows.jsonl"))
    if "plugin" in keys:
        keys["plugin"] = str(ROOT / keys["plugin"])
    if run.before is not None:
        watched(configure(run.before), folder=place / "before")
        keys["init"] = str(place / "before")
    config = configure({key: value for key, value in keys.items() if value is not None})
    port = None
    if run.workers:
        # Flower is imported where it is wanted only.
        from fedprune.engines.flower.grid import grid_port
        from tests.server.grids import in_one_process, workers

        stack.enter_context(in_one_process())
        port = grid_port(workers(run.workers), config)
    if run.silent or run.unscored:
        port = _without(inline_port(build_host(config)), run.silent, run.unscored)
    return _resumed(config, port, run.killed, place) if run.killed else watched(config, port)


def _recipe(name: str) -> Keys:
    text = (ROOT / "simulations" / "recipes" / f"{name}.toml").read_text()
    return {key.replace("-", "_"): value for key, value in from_toml(text).items()}


def _resumed(config: RunConfig, port: Port | None, after: int, folder: Path) -> Played:
    states: list[State] = []

    def stop(row: Mapping[str, Any], _seconds: float, state: State) -> None:
        states.append(state)
        if row["round"] == after:
            raise Killed

    try:
        federate(config, port, folder=folder, watch=Watch(row=stop))
    except Killed:
        run = watched(config, port, folder=folder, resume=True)
        return replace(run, states=[*states, *run.states])
    raise AssertionError("it was to be killed")


def _without(port: Port, silent: Iterable[tuple[int, int]], unscored: Collection[int]) -> Port:
    gone = set(silent)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        tunes = question.kind == "tune"
        nobody = question.kind == "score" and question.round in unscored
        lost = {p for p in partitions if nobody or (tunes and (p, question.round) in gone)}
        there = [p for p in partitions if p not in lost]
        return port.ask(question, there)

    return replace(port, ask=ask)


def kept(run: Played) -> Kept:
    """What the file holds of a run."""
    rows, summary = run.result.rows, run.result.summary
    apart = {"weights": "weights_digest", "masks": "mask_digest"}
    told = [{k: v for k, v in row.items() if k not in apart.values()} for row in rows]
    state = run.result.state
    of = {name: [row[column] for row in rows] for name, column in apart.items()}
    of["weights"].append(digest(state.weights))
    of["masks"].append(digest(state.masks))
    of |= {"rows": [told, summary["quality"]], "ledger": run.lines}
    return {name: short(value) for name, value in of.items()} | {"about": about(run)}


def short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def about(run: Played) -> Kept:
    """Coarse values, the same on any machine within the tolerances of `apart`."""
    rows = run.result.rows
    return {
        "loss": [None if row.get("loss") is None else float(f"{row['loss']:.4g}") for row in rows],
        "sparsity": [round(row["sparsity"], 4) for row in rows],
        "answered": [row["answered"] for row in rows],
        "lines": len(run.lines),
        "kept": _some(run.result.state.masks),
    }


def _some(masks: Mapping[str, Tensor]) -> str:
    """Whether weights are kept, of some at even distances, four to a hexadecimal digit."""
    flat = torch.cat([masks[name].flatten() for name in sorted(masks)])
    bits = flat[torch.linspace(0, len(flat) - 1, PLACES).long()]
    return f"{int(''.join(str(int(b)) for b in bits), 2):0{PLACES // 4}x}"


def apart(now: Kept, then: Kept) -> list[str]:
    """Which coarse values are farther apart than another processor explains."""
    bits = int(now["kept"], 16) ^ int(then["kept"], 16)
    same = {
        "loss": _near(now["loss"], then["loss"], 0.02),
        "sparsity": _near(now["sparsity"], then["sparsity"], 0.01),
        "answered": now["answered"] == then["answered"],
        "lines": now["lines"] == then["lines"],
        "kept": bits.bit_count() <= 0.1 * PLACES,
    }
    return [name for name, near in same.items() if not near]


def _near(left: Sequence[float | None], right: Sequence[float | None], within: float) -> bool:
    """Whether numbers are as near as that, of 1 or of themselves."""
    return len(left) == len(right) and all(
        a == b or (a is not None and b is not None and abs(a - b) <= within * max(1, abs(a)))
        for a, b in zip(left, right, strict=True)
    )


def differing(now: Kept, then: Kept, *, exact: bool) -> list[str]:
    """What of a run is not as it was: names of digests, or of coarse values."""
    if exact:
        return [name for name in now if now[name] != then.get(name)]
    return apart(now["about"], then["about"])


def machine() -> dict[str, str]:
    """What decides about the bits of floating-point numbers: versions, processor, a computation."""
    found = {name: version(name) for name in LIBRARIES}
    return found | {"processor": torch.backends.cpu.get_cpu_capability(), "bits": _computed()}


def _computed() -> str:
    """The digest of what the operations of the runs give on this machine."""
    torch.manual_seed(0)
    made: dict[str, Tensor] = {}
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 10)),
    )
    step = torch.optim.AdamW(net.parameters(), lr=0.01)
    for i in range(3):
        step.zero_grad()
        answers = net(torch.randn(13, 1, 8, 8))
        nn.functional.cross_entropy(answers, torch.arange(13) % 10).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        step.step()
        made[f"answers {i}"] = answers.detach()
    made |= net.state_dict()
    q, k, v = torch.randn(3, 4, 2, 16, 8).unbind()
    made["attention"] = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    matrix = torch.randn(40, 24, dtype=torch.float64)
    made["gram"] = matrix.T @ matrix
    made["inverse"] = torch.linalg.cholesky(made["gram"] + torch.eye(24))
    made["values"] = torch.linalg.svdvals(matrix.float())
    made["sums"] = torch.stack([matrix.exp().sum(), matrix.float().tanh().norm(), matrix.var()])
    made["bf16"] = (matrix.bfloat16() @ matrix.bfloat16().T).float()
    return digest(made)[:12]


def main(arguments: Sequence[str]) -> int:
    """Play the runs that are named, or all, and compare them or write them down."""
    torch.set_num_threads(1)
    names = [a for a in arguments if not a.startswith("--")] or list(GALLERY)
    then = json.loads(FILE.read_text()) if FILE.exists() else {"machine": machine(), "runs": {}}
    exact = then["machine"] == machine()
    if "--record" in arguments:
        if not exact and set(names) != set(GALLERY):
            print("recorded on another machine: all of them, or none")
            return 2
        fresh = {name: kept(played(name)) for name in names}
        runs = {name: fresh.get(name) or then["runs"][name] for name in GALLERY}
        FILE.write_text(written({"machine": machine(), "runs": runs}))
        return 0
    bad = {}
    for name in names:
        wrong = differing(kept(played(name)), then["runs"].get(name, {"about": {}}), exact=exact)
        if wrong:
            bad[name] = wrong
            print(name, *wrong, flush=True)
    print(f"{len(names)} runs, {len(bad)} differ", "" if exact else "(another machine: coarsely)")
    return bool(bad)


def written(found: Mapping[str, Any]) -> str:
    """As JSON, a line for each run."""
    lines = [f" {json.dumps(n)}: {json.dumps(v)}" for n, v in found["runs"].items()]
    body = ",\n".join(lines)
    return f'{{"machine": {json.dumps(found["machine"])},\n"runs": {{\n{body}\n}}}}\n'


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""A whole run: the pruned arm, its baselines, and what is kept of them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.client.host import build_host, placed
from fedprune.client.teacher import check_distillation, teacher_in
from fedprune.config import RunConfig, with_values
from fedprune.config.terms import terms_of
from fedprune.engines.inline import inline_port
from fedprune.methods.acting import begun, cut_memories, opened
from fedprune.methods.catalog import check_method, memories_of
from fedprune.methods.measuring import described, measure, outcome, own_measured
from fedprune.options.refusal import ConfigError
from fedprune.options.values import for_flower
from fedprune.privacy.ledger import LEDGER_NAME, Spent, open_ledger
from fedprune.privacy.release import Occasion, Release
from fedprune.protocol.coded_answers import encode_answer
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Aggregate, Answer, Question
from fedprune.protocol.models import dense_model, layout_for, shaped
from fedprune.protocol.port import Port
from fedprune.protocol.questions import broadcast
from fedprune.protocol.releases import OPEN, metric_spread
from fedprune.protocol.server_privacy import guarded
from fedprune.protocol.server_privacy import opened as opened_port
from fedprune.protocol.stored import FOLDER_NAME as RELEASED_NAME
from fedprune.protocol.stored import Stored, forget
from fedprune.records.bound import Going
from fedprune.records.checkpoint import save_state
from fedprune.records.choices import choices_in
from fedprune.records.folder import (
    CONFIG_NAME,
    begin,
    check_resumable,
    checkpoint_path,
    gone_on,
    growing,
    record,
    rewind,
    write_results,
    write_summary,
)
from fedprune.records.previous import (
    PreviousRun,
    continued,
    on_the_earlier_task,
    previous_run,
)
from fedprune.records.summary import About, Summary, summary_of
from fedprune.rounds import run
from fedprune.runtime.process import put_back
from fedprune.selection.options import followed_method
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.rows import Row
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import State, Totals, first_state, reverted
from fedprune.server.watch import Watch
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.metrics import naive_of
from fedprune.tasks.task import Part
from fedprune.tensors import count_kept, load_into

RUN = "python simulations/run.py"
PRUNED = "pruned"
WARM = "warm"
"""Name of the checkpoint at the end of the warm-up, which all arms share."""


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        model: the pruned model, in eval mode on the CPU.
        state: the pruned arm's last state: weights, masks, traffic.
        rows: one per round and arm, as in ``rounds.jsonl``.
        summary: as in ``summary.json``.
    """

    model: nn.Module
    state: State
    rows: list[Row]
    summary: Summary


class NoRoundCompleted(RuntimeError):
    """No round of a run had enough answers to change the model.

    Attributes:
        result: what there is all the same: rows with every failure, the model as it began.
    """

    def __init__(self, reason: str, result: Result) -> None:
        super().__init__(reason)
        self.result = result


def federate(
    config: RunConfig,
    port: Port | None = None,
    *,
    folder: Path | None = None,
    resume: bool = False,
    anyway: bool = False,
    watch: Watch | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Result:
    """Run a configuration to its end.

    Args:
        config: what to run.
        port: the clients; by default all are served in this process, without Flower or Ray.
        folder: where results go; None keeps nothing on disk.
        resume: go on from the folder's checkpoints, to the same bits as an unbroken run.
        anyway: go on although configuration, data, plug-in or versions are not those that the run
            began with; the summary then says so (``resumed_anyway``).
        watch: who looks on.
        weights: the state to begin with instead of the task's seeded initialisation.

    What it changes in this process (threads, global generators, settings of libraries) is as it
    was before when it ends, see `fedprune.runtime.process.put_back`.

    Raises:
        NoRoundCompleted: every round had too few answers, or the privacy budget did not allow for
            one. The folder holds all that a run's folder holds, and the summary says why.
        ConfigError: what only the first pruning could tell.
        ValueError: task, model and data do not fit together (`fedprune.client.rehearsal`), or a
            choice does not fit the model; before anything is asked or written.
    """
    check_method(config)
    with put_back():
        going = Going(resume, anyway)
        result = _federated(config, port, folder, going, watch or Watch(), weights)
    if "failed" in result.summary:
        raise NoRoundCompleted(result.summary["failed"], result)
    return result


def _federated(
    config: RunConfig,
    port: Port | None,
    folder: Path | None,
    going: Going,
    watch: Watch,
    weights: Mapping[str, Tensor] | None,
) -> Result:
    began, port = time.perf_counter(), _rehearsed(config, port, folder)
    before = previous_run(config.init, config.plugin) if config.init else None
    fresh, blank = _opening(config, weights, before)
    book = _opened(config, folder, replace(going, data=port.data), watch)
    path = None if folder is None else folder / LEDGER_NAME
    ledger = open_ledger(path, terms_of(config), resume=going.resume)
    shelf = Stored(None if folder is None else folder / RELEASED_NAME)
    opening = opened_port(port, config, ledger, PRUNED, shelf)
    fresh, naive = without_model(fresh, blank, opening)
    # A client that cannot answer now is asked again in every round, and counted there.
    start = Round(0, blank, present=lambda: list(opening.present()))
    fresh = unfailed(opened(begun(fresh, start), start, opening)[0])
    ends: dict[str, tuple[State, Plan]] = {}
    tests: dict[str, Totals] = {}
    for arm, its_config in arms_of(config).items():
        shown = guarded(book.shown(arm, port), config, ledger, arm, shelf)
        end = book.play(arm, book.start(arm, fresh), replace(blank, config=its_config), shown)
        played = end
        end, plan = _finished(end, replace(blank, config=its_config))
        end = _tested(end, plan, shown)
        book.tested(arm, played, end)
        tests[arm] = end.tested or {}
        ends[arm] = end, plan
        if not end.completed:
            break  # what kept every client from answering would keep it in the other arms too
    end, plan = ends[PRUNED]
    end = replace(end, model=outcome(end, config))
    model = shaped(config, end.edits)[0].eval()
    load_into(model, end.weights)
    seconds = time.perf_counter() - began
    sizes = dict(port.present())
    about = About(type(model).__name__, sizes, seconds, naive, plan, port.own_data())
    summary = summary_of(config, blank.layout, end, tests, about)
    if before is not None and config.engine != "flower":
        ledger.book(*_measured_before(before, end.round, blank.layout))
    summary["privacy"] = ledger.closing() | _stopped(config, ends[PRUNED][0])
    summary |= _failed(end, book.rows, summary["privacy"])
    summary["privacy"]["metrics_sd"] = metric_spread(config)
    summary |= {"resumed_anyway": book.differences} if book.differences else {}
    summary |= choices_in([row for row in book.rows if row["arm"] == PRUNED])
    if folder is not None:
        again = commands(config, folder, port)
        summary |= again | _written(folder, end, model, (blank, plan), again["command"])
    if before is not None and config.engine != "flower":
        summary["before"] = on_the_earlier_task(before, end)
    if folder is not None:
        _reported(folder, summary)
        forget(folder)
    return Result(model, end, book.rows, summary)


def _rehearsed(config: RunConfig, port: Port | None, folder: Path | None) -> Port:
    """A port to clients with which task, model and data were tried."""
    if port is not None and port.rehearsed:
        return port
    host = build_host(placed(config, folder) if folder else config)
    return port or inline_port(host)  # one's own port has its clients elsewhere


def _reported(folder: Path, summary: Summary) -> None:
    write_summary(folder, summary)
    # matplotlib takes a second to import: the workers, who import this module, need not.
    from fedprune.report.page import write_report

    write_report(folder)


def _written(
    folder: Path, end: State, model: nn.Module, plans: tuple[Plan, Plan], command: str
) -> Summary:
    """Write the model of a run and what is said of it; the plans are the first and the last."""
    first, last = plans
    return dict(
        write_results(folder, end, model, first.config, (first.layout, last.layout), command)
    )


def _tested(end: State, plan: Plan, port: Port) -> State:
    """The state with the test totals at the end of an arm, if the privacy budget allows for them.

    Of a run that had them already they are not asked for again.
    """
    if end.tested is not None:
        return end
    r = Round(end.round, plan)
    try:
        end, tested = measure(end, r, port, "test")
        end, own = own_measured(end, r, port)
    except Spent:
        return end
    return replace(end, tested=tested, tested_own=own or None)


def _measured_before(
    before: PreviousRun, round_: int, layout: Layout
) -> tuple[Occasion, tuple[Release, ...]]:
    """What leaves the earlier run's clients when the new model is measured on their data."""
    everyone = tuple(range(before.config.clients))
    occasion = Occasion("before", round_, "evaluate", 0, "everyone", everyone, len(everyone))
    form = form_of(Question("evaluate", round_, {}, {}, part="test"), before.config, layout)
    fields = tuple(f"totals.{name}" for name in sorted(form.totals))
    return occasion, (Release("metrics", fields, reason=OPEN),)


def _stopped(config: RunConfig, end: State) -> dict[str, str]:
    """Why a run ended before its last round: only a privacy budget makes one do so."""
    if end.round == config.rounds:
        return {}
    due = end.round + 1
    return {"stopped": f"round {due} of {config.rounds} would exceed epsilon={config.epsilon:g}"}


def _failed(end: State, rows: Sequence[Row], privacy: Mapping[str, Any]) -> dict[str, str]:
    """Why a run came to nothing, with the first failure of a client; nothing where it did not."""
    if end.completed:
        return {}
    failures = [f for row in rows for f in row["failures"]]
    why = str(privacy.get("stopped", "too few clients answered"))
    if failures:
        first = next((f for f in failures if f["phase"] == "tune"), failures[0])
        field_ = f"{first['field']}: " if first["field"] else ""
        why += f"; client {first['partition']}, phase {first['phase']}: {field_}{first['reason']}"
    return {"failed": f"no round was completed: {why}"}


def _opening(
    config: RunConfig, weights: Mapping[str, Tensor] | None, before: PreviousRun | None
) -> tuple[State, Plan]:
    """The state before round one, and the plan of the dense model."""
    model = dense_model(config)
    if weights is not None:
        load_into(model, weights)
    layout = layout_for(config, model)
    fresh = first_state(model, layout)
    positions = positions_for(config, model, layout)
    whole = flops(fresh.masks, positions) if positions else 0.0
    packet = dense_packet(fresh, layout)
    plan = Plan(config, layout, packet, model, dummy_of(config), positions, flops_dense=whole)
    plan = replace(plan, teacher=_teacher(config, model))
    if before is None:
        return fresh, plan
    state = continued(config, before)
    start = (layout.whole - count_kept(state.masks)) / layout.whole
    if config.sparsity and config.sparsity < start:
        raise ConfigError(
            f"sparsity={config.sparsity}: {config.init} has {start:.6g} already, and density does "
            f"not rise; allowed: 0 (prune no further), {start:.6g} to 1"
        )
    return state, replace(plan, start=start)


def _finished(end: State, plan: Plan) -> tuple[State, Plan]:
    """The last state with what its mask emptied taken out, where that is wanted, and its plan."""
    plan = fitted(plan, end.edits)
    if plan.config.shrink == "never":
        return end, plan
    model, smaller = shrunk(end.model, plan)
    memories = cut_memories(end, plan, smaller)
    return replace(end, model=model, memories=memories), smaller


def _teacher(config: RunConfig, model: nn.Module) -> bytes:
    """Another run's model to learn from, if there is one; refused before anything starts.

    Raises:
        ConfigError: it cannot be had, or there is nothing to learn from it.
    """
    try:
        teacher = teacher_in(config.teacher, config.plugin) if config.teacher else b""
        check_distillation(config, model, teacher)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return teacher


def without_model(state: State, plan: Plan, port: Port) -> tuple[State, dict[str, float]]:
    """What the commonest label, or the labels' frequencies, reach: it gives a number its meaning.

    From sums over the labels of everyone's training and test parts (counts, or those of
    `Task.naive`); empty where a task has none.
    """
    config = plan.config
    naive = naive_of(tasks_of(config.plugin)[config.task])
    if naive is None or (config.dp != "none" and not config.panel):
        return state, {}
    asked, aggregate = described(state, Round(0, plan), port)
    if aggregate.total is None:
        return state, {}
    test, train = aggregate.total.split(aggregate.total.numel() // 2)
    # A client that cannot answer now is asked again in every round, and counted there.
    return unfailed(asked), dict(naive.reached(train, test, config))


def unfailed(state: State) -> State:
    """The state without failures from before round one."""
    return replace(state, book=replace(state.book, failures=(), failed=0))


def dummy_of(config: RunConfig) -> Part | None:
    """One example without data in it, where the task has one."""
    dummy = tasks_of(config.plugin)[config.task].dummy
    return None if dummy is None else dummy(config)


def positions_for(config: RunConfig, model: nn.Module, layout: Layout) -> Mapping[str, float]:
    """How many rows each prunable layer sees in one example; nothing without a dummy."""
    task, dummy = tasks_of(config.plugin)[config.task], dummy_of(config)
    if dummy is None:
        return {}
    try:
        return positions_of(model, layout, dummy, task.loss)
    except Exception:  # a loss of the user's own that fails is for the clients to report
        if config.target_flops is not None:
            raise
        return {}


def commands(config: RunConfig, folder: Path, port: Port) -> dict[str, str]:
    """How to repeat a run and how to go on with it; ``flwr run`` cannot go on with one.

    For devices SUPERLINK stands for the name that the user's own Flower configuration gives the
    SuperLink, which nobody else knows.
    """
    if config.engine == "flower":
        where = ["SUPERLINK"] * port.own_data()
        where += ["--federation", port.federation] * bool(port.federation)
        given = ["--stream", "--run-config", as_run_config(config)]
        return {"command": shlex.join(["flwr", "run", ".", *where, *given])}
    code = f" --plugin {config.plugin}" if config.plugin else ""  # a file does not choose code
    return {
        "command": f"{RUN} --config {folder / CONFIG_NAME}{code} --out {folder}-again",
        "resume": f"{RUN} --resume {folder}{code}",
    }


def as_run_config(config: RunConfig) -> str:
    """The configuration in the form of Flower's ``--run-config``: the keys that were given."""
    given = {"task": config.task} | config.given
    return " ".join(
        f"{key.replace('_', '-')}={for_flower(value)}"
        for key, value in given.items()
        if key not in {"engine", "out"} and value not in ("", None)
    )


_ASKS_NOBODY = {
    "combine": "sum",
    "normalise": "none",
    "masks": "global",
    "average": None,
    "score_during": "pass",
    "score_wire": "fp32",
    "calibration": "dense",
}


def arms_of(config: RunConfig) -> dict[str, RunConfig]:
    """The pruned arm first, then a baseline per name: same seed, rounds and data."""
    # Nothing follows from these: a dense arm keeps the plan of a run that prunes.
    amounts = dict.fromkeys(("threshold", "target_bytes", "target_flops"))
    changes: dict[str, dict[str, Any]] = {
        "dense": {**amounts, "sparsity": 0.0, "reduce": ()},
        "random": {"score": "random"} | _ASKS_NOBODY,
    }

    def without_method(changed: dict[str, Any]) -> RunConfig:
        arm = with_values(config, {**changed, "method_options": {}})
        return with_values(arm, {"method": followed_method(arm)})

    return {PRUNED: config} | {name: without_method(changes[name]) for name in config.baselines}


def dense_packet(state: State, layout: Layout) -> tuple[int, int]:
    """Bytes of one dense fp32 tuning question and of its answer, encoded to be weighed."""
    question = Question("tune", 1, state.weights, {}, lr=1.0, known=frozenset([0]))
    values = torch.zeros(sum(s.numel() for s in layout.shapes.values()))
    answer = Answer(values, 1.0, {"loss": 1.0, "count": 1.0})
    return broadcast(question, "fp32").size([0]), encode_answer(answer, question, "fp32").size()


@dataclass
class _Book:
    """The rows of every arm as they come, in memory and in the folder."""

    config: RunConfig
    folder: Path | None
    watch: Watch
    rows: list[Row]
    states: dict[str, State]
    differences: Sequence[str] = ()

    def start(self, arm: str, fresh: State) -> State:
        """Where an arm begins: its checkpoint, the shared end of the warm-up, or the beginning.

        Up to the end of the warm-up nothing tells the arms apart, so it is run once.
        """
        if arm in self.states:
            return self.states[arm]
        if WARM not in self.states:
            return fresh
        warm = self.states[WARM]
        for row in [r for r in self.rows if r["arm"] == PRUNED and r["round"] <= warm.round]:
            self._keep({**row, "arm": arm}, 0.0, warm)
        return warm

    def play(self, arm: str, state: State, plan: Plan, port: Port) -> State:
        """Run an arm from a state to its end, a row at a time."""
        clock = time.perf_counter()
        for state, row in run(state, plan, port):  # noqa: B020 (the last state is the result)
            now = time.perf_counter()
            if arm == PRUNED and self.config.baselines and state.round == self.config.warmup:
                self._keep_warm(state)
            self._keep({"arm": arm, **row}, now - clock, state)
            clock = now
        return state

    def _keep(self, row: Row, seconds: float, state: State) -> None:
        self.rows.append(row)
        if self.folder is not None:
            record(self.folder, row, seconds, state)
        self.watch.row(row, seconds, state)

    def tested(self, arm: str, played: State, end: State) -> None:
        """Keep the test totals with an arm's last checkpoint, and what asking for them changed."""
        if self.folder is None or played.tested is not None or not end.tested:
            return
        state = reverted(played, end)
        state = replace(state, tested=end.tested, tested_own=end.tested_own)
        save_state(state, checkpoint_path(self.folder, arm), growing(self.folder))

    def _keep_warm(self, state: State) -> None:
        self.states[WARM] = state
        if self.folder is not None:
            save_state(state, checkpoint_path(self.folder, WARM), growing(self.folder))

    def shown(self, arm: str, port: Port) -> Port:
        """The port, with every question announced to who looks on."""

        def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
            self.watch.phase(arm, question, len(partitions))
            return port.ask(question, partitions)

        return replace(port, ask=ask)


def _opened(config: RunConfig, folder: Path | None, going: Going, watch: Watch) -> _Book:
    if folder is None:
        return _Book(config, None, watch, [], {})
    if not going.resume:
        begin(folder, config, going.data())
        return _Book(config, folder, watch, [], {})
    known = check_resumable(folder)
    differences = gone_on(folder, config, going.data(), anyway=going.anyway)
    rows, states = rewind(folder, [*arms_of(config), WARM], known, memories_of(config.plugin))
    return _Book(config, folder, watch, rows, states, differences)

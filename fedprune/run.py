"""A whole run: the pruned arm, its baselines, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fedprune.adapters.factors import cut_adapters
from fedprune.client.host import build_host
from fedprune.client.memory import in_run
from fedprune.config import RunConfig, with_values
from fedprune.config.cohort import newcomers_of
from fedprune.config.measured_noise import metric_spread
from fedprune.config.options import Results
from fedprune.config.streamed import only_reads
from fedprune.config.terms import accounting_terms_of
from fedprune.engines.inline import inline_port
from fedprune.methods.acting import opened
from fedprune.methods.catalog import config_checked
from fedprune.methods.measuring import outcome
from fedprune.opening import opening_of, unfailed, without_model
from fedprune.privacy.ledger import open_ledger
from fedprune.privacy.ledger_file import LEDGER_NAME
from fedprune.protocol.models import shaped
from fedprune.protocol.port import Port
from fedprune.protocol.server_privacy import ready_port as opened_port
from fedprune.protocol.stored import RELEASED_FOLDER as RELEASED_NAME
from fedprune.protocol.stored import Stored, forget
from fedprune.records.arms import PRUNED, arm_names, arms_of
from fedprune.records.book import open_book
from fedprune.records.bound import Going, began_in
from fedprune.records.choices import choices_in
from fedprune.records.gap import gap_of
from fedprune.records.playing_arms import ArmsWorld, play_arms
from fedprune.records.pooled import check_poolable
from fedprune.records.previous import (
    on_the_earlier_task,
    previous_run,
    release_of_before,
)
from fedprune.records.provenance import commands_for, provenance_of
from fedprune.records.results import write_results, write_summary
from fedprune.records.sizes import Summary
from fedprune.records.summary import About, failed, stopped, summary_of
from fedprune.records.writing import only_writer
from fedprune.report.board import Board
from fedprune.report.callback import Callback, Telling, callbacks_of
from fedprune.report.live import LivePage
from fedprune.report.result import Result
from fedprune.report.tracking import trackers_of
from fedprune.runtime.process import put_back, trim_memory
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.structure.edits import Edits
from fedprune.tensors.models import load_into, retyped
from fedprune.tensors.named import Tensors


class NoRoundCompleted(RuntimeError):
    """No round of a run had enough answers to change the model.

    Attributes:
        result: what there is all the same: rows with every failure, the model as it began.
    """

    def __init__(self, reason: str, result: Result) -> None:
        super().__init__(reason)
        self.result = result


def run_federated(
    config: RunConfig,
    port: Port | None = None,
    *,
    folder: Path | None = None,
    resume: bool = False,
    anyway: bool = False,
    watch: Watch | None = None,
    weights: Mapping[str, Tensor] | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Result:
    """Run a configuration to its end, over clients that are there already.

    Args:
        config: what to run.
        port: the clients; by default all are served in this process, without Flower or Ray.
        folder: as the others, of `fedprune.library.federating.federate`.
        resume: see there.
        anyway: see there.
        watch: who looks on.
        weights: see there.
        callbacks: who is told; None: those of the plug-in.

    Raises:
        NoRoundCompleted: as there.
        ConfigError: as there.
        ValueError: as there.
    """
    config = config_checked(config, resumed=resume)
    if config.engine == "auto":  # whoever brings a port or none, has chosen
        config = with_values(config, {"engine": "inline"})
    own = callbacks_of(config.plugin) if callbacks is None else callbacks
    own = [*trackers_of(config), *own]
    told = Telling(own if folder is None else [Board(), LivePage(), *own])
    with put_back(), ExitStack() as held, told:
        going, looking = Going(resume, anyway), (told.beside(watch or Watch()), told)
        result = _federated(config, port, folder, going, looking, weights, held)
        told.summary = result.summary
    if "failed" in result.summary:
        raise NoRoundCompleted(result.summary["failed"], result)
    return result


def _federated(
    config: RunConfig,
    port: Port | None,
    folder: Path | None,
    going: Going,
    looking: tuple[Watch, Telling],
    weights: Mapping[str, Tensor] | None,
    held: ExitStack,
) -> Result:
    (watch, told), began, alone = looking, time.perf_counter(), port is None
    port = _rehearsed(config, port, folder)
    before = previous_run(config.init, config.plugin) if config.init else None
    fresh, blank = opening_of(config, weights, before, port.model)
    arms = arms_of(config, blank.layout)
    check_poolable(config)
    held.enter_context(only_writer(folder))
    book = open_book(config, folder, replace(going, data=port.data, held=fresh.weights), watch)
    told.start(config, folder, book.rows)
    path = None if folder is None else folder / LEDGER_NAME
    ledger = open_ledger(path, accounting_terms_of(config), resume=going.resume)
    shelf = Stored(None if folder is None else folder / RELEASED_NAME)
    opening = opened_port(port, config, ledger, PRUNED, shelf)
    fresh, naive = without_model(fresh, blank, opening)
    starts = _starts(config, fresh, blank, opening)
    del fresh  # each arm lets go of it when it has begun: of large models one more is one too many
    played = play_arms(ArmsWorld(port, config, book, ledger, shelf), starts, blank, arms)
    ends, tests, adapters = played.ends, played.tests, played.adapters
    end, plan = ends[PRUNED]
    end = replace(end, model=outcome(end, config))
    trim_memory(blank.layout.parameters)
    model = _holding(end, plan, port.model if alone else None)
    seconds, sizes = time.perf_counter() - began, dict(port.present())
    about = About(type(model).__name__, sizes, seconds, naive, plan, port.own_data())
    summary = summary_of(config, blank.layout, end, tests, about)
    if before is not None and config.engine != "flower":
        ledger.book(*release_of_before(before, end.round, blank.layout))
    summary["privacy"] = ledger.closing() | stopped(config, ends[PRUNED][0])
    summary |= failed(end, book.rows, summary["privacy"])
    summary["privacy"]["metrics_sd"] = metric_spread(config)
    summary |= gap_of(config, tests, played.alone, summary["failures"]) | played.said
    summary |= {"resumed_anyway": book.differences} if book.differences else {}
    summary |= choices_in([row for row in book.rows if row["arm"] == PRUNED])
    if before is not None and config.engine != "flower":
        summary["before"] = on_the_earlier_task(before, end)
    if folder is not None:
        _adapters_written(folder, end, model, plan, adapters, before.edits if before else ())
        again = commands_for(config, folder, port)
        summary |= again | _written(folder, end, model, (blank, plan), again["command"])
        _reported(folder, summary)
    return Result(model, end, book.rows, summary, config)


def _holding(end: State, plan: Plan, resident: nn.Module | None) -> nn.Module:
    """A model with the state's weights: the plan's, which nobody else has any more, if it was cut.

    The resident one, if nobody else has it and nobody trained: one more of a large model is one too
    many.
    """
    if end.edits and end.edits == plan.edits and plan.model is not None:
        model = plan.model
    elif resident is not None and only_reads(plan.config) and not end.edits:
        model = resident
    else:
        model = shaped(plan.config, end.edits)[0]
    if plan.config.adapters != "none":
        retyped(model, end.weights)
    load_into(model, end.weights)
    return model.eval()


def _starts(config: Results, fresh: State, blank: Plan, port: Port) -> dict[str, State]:
    """What each arm begins with, once the riders have opened."""
    # A client that cannot answer now is asked again in every round, and counted there.
    start = Round(0, blank, present=lambda: list(port.present()))
    fresh = unfailed(opened(fresh, start, port)[0])
    trim_memory(blank.layout.parameters, first=True)
    return dict.fromkeys(arm_names(config), fresh)


def _rehearsed(config: RunConfig, port: Port | None, folder: Path | None) -> Port:
    """A port to clients with which task, model and data were tried, newcomers among them."""
    if port is None or not port.rehearsed:
        host = build_host(config)
        # One's own port has its clients elsewhere.
        port = port or inline_port(host, memory=in_run(folder))
    return replace(port, away=newcomers_of(config))


def _reported(folder: Path, summary: Summary) -> None:
    summary["provenance"] = provenance_of(began_in(folder))
    write_summary(folder, summary)
    # matplotlib takes a second to import: the workers, who import this module, need not.
    from fedprune.report.page import write_report

    write_report(folder)
    forget(folder)


def _written(
    folder: Path, end: State, model: nn.Module, plans: tuple[Plan, Plan], command: str
) -> Summary:
    """Write the model of a run and what is said of it; the plans are the first and the last."""
    first, last = plans
    held = None if first.base is None else first.base.weights
    return dict(
        write_results(folder, end, model, first.config, (first.layout, last.layout), command, held)
    )


def _adapters_written(
    folder: Path, end: State, model: nn.Module, plan: Plan, adapters: Tensors, cuts: Edits
) -> None:
    """Write the adapters beside their merged model; `cuts` were made before they began."""
    if not adapters:
        return
    # As peft, which they need, these are imported where there are any.
    from fedprune.adapters.options import adapter_scale
    from fedprune.export.adapter_folder import ADAPTER_NAME, write_adapter

    scale = adapter_scale(plan.config)
    left = adapters if cuts else cut_adapters(adapters, plan.layout)
    if left:
        write_adapter(folder / ADAPTER_NAME, model, left, end.masks, scale)

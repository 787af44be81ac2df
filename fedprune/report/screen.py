"""What a person watches while a run goes on: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.methods.catalog import FOLLOWING, method_name, method_of
from fedprune.options.refusal import counted
from fedprune.protocol.held_weights import brings_weights
from fedprune.protocol.messages import Question
from fedprune.protocol.parts_asked import at_once_words
from fedprune.protocol.votes import vote_words
from fedprune.records.previous import data_gone
from fedprune.records.staying import staying_kinds, staying_summary, uncut, uncut_summary
from fedprune.records.summary import population_of
from fedprune.report.closing import came_short, closing_lines, figure, in_bytes
from fedprune.report.privacy_lines import before
from fedprune.report.reading import left_out_text, worded
from fedprune.report.remaining import RoundTimes
from fedprune.runtime.sums import SUMMARY_NAME
from fedprune.selection.options import Pruning
from fedprune.server.fleet import devices_told
from fedprune.server.rows import Row
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import OWN, tasks_of
from fedprune.tasks.coverage import reading_summary
from fedprune.tasks.owners import sentences


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave to the command what to say: rich would end it without a word."""
        raise


class Screen:
    """Lines about a run; `watch` and `tick` are what the engines call."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("clients"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not (self.console.is_terminal or self.console.is_jupyter),
        )
        self.task = self.bar.add_task("", visible=False, left="")
        self.pace: RoundTimes | None = None
        self.metric, self.wide, self.headed = "loss", 7, False

    def line(self, text: str = "", style: str = "") -> None:
        """One line, as it is."""
        self.console.print(text, style=style, markup=False, emoji=False)

    def opening(self, config: RunConfig, folder: Path | None, *, own_data: bool = False) -> None:
        """What will run, as far as the configuration tells.

        `own_data`: whether clients are devices, which have data of their own.
        """
        task = tasks_of(config.plugin)[config.task]
        self.metric, self.pace = task.metric, RoundTimes(config)
        self.line(f"fedprune  {config.task}: {task.summary}", "bold")
        split = "" if own_data else f"split {config.split}, "
        where = "flower" if config.engine == "flower" else counted(config.hosts, "host")
        self.line(
            f"  federation  {counted(config.clients, 'client')}, {split}{config.cohort} a round, "
            f"{counted(config.rounds, 'round')}, {where}"
        )
        if own_data:
            self.line("  data        each device's own")
        for text in devices_told(config):
            self.line(text)
        for text in sentences(population_of(config)):
            self.line(f"              {text}", "yellow")
        self.line(f"  pruning     {_goal(config)}")
        for text in before(config):
            self.line(text)
        if config.init:
            self.line(f"  starts      from {config.init}: its masks and structure are kept")
            if gone := data_gone(config.init):
                self.line(f"              its data {gone} is gone: its task cannot be measured")
        if config.adapters != "none" and _untrained(config):
            what = "adapters of a model that nothing has trained learn next to nothing"
            self.line(f"  warning     {what}: --init RUN, or a pretrained --model", "yellow")
        self.wide = max(7, *map(len, ("", *config.baselines)))
        if config.baselines:
            self.line(f"  baselines   {', '.join(config.baselines)}: same seed and rounds")
        if folder is not None:
            self.line(f"  results     {folder}")

    def model(self, name: str, layout: Layout, config: RunConfig | None = None) -> None:
        """The model's size, what of it stays dense, and what is worth knowing before it runs."""
        prunable = sum(layout.shapes[n].numel() for n in layout.prunable)
        still = sum(s.numel() for n, s in layout.frozen.items() if n in layout.spared)
        frozen = f", {still:,} frozen" if still else ""
        self.line(
            f"  model       {name}, {layout.parameters:,} parameters, {prunable:,} of them "
            f"prunable{frozen}"
        )
        if text := staying_summary(staying_kinds(layout)):
            self.line(f"  stays dense {text}")
        warnings = [
            *layout.notes,
            *([] if config is None else [uncut_summary(uncut(config, layout))]),
            *([] if config is None else [at_once_words(config, layout)]),
        ]
        for text in filter(None, warnings):
            self.line(f"  warning     {text}", "yellow")

    def response(self, config: RunConfig, layout: Layout) -> None:
        """What randomised response leaves of the votes, before anybody is asked."""
        first, *warning = vote_words(config, layout) or ("",)
        if first:
            self.line(f"  response    {first}")
        for text in warning:
            self.line(f"  warning     {text}", "yellow")

    def shards(self, labels: Mapping[int, int], unit: str, reading: Mapping[str, int]) -> None:
        """How much each client trains on, and what of texts is left out, unless private."""
        sizes = sorted(labels.values())
        if not any(sizes):
            self.line(f"  shards      {len(sizes)}, how many training {unit} in each is private")
            return
        self.line(
            f"  shards      {len(sizes)} of {sizes[0]:,} to {sizes[-1]:,} training {unit}, "
            f"median {sizes[len(sizes) // 2]:,}"
        )
        for text in reading_summary(reading):
            self.line(f"              {text}", "yellow")

    def engine(self, name: str, why: str = "") -> None:
        """Which engine plays the run, and why or with what."""
        self.line(f"  engine      {name}{': ' if why else ''}{why}")

    def watch(self) -> Watch:
        """What `federate` tells as it goes; the head of the table comes with the first of it."""
        self.bar.start()
        return Watch(self._phase, self._row)

    def _head(self) -> None:
        if self.headed:
            return
        self.headed = True
        head = f"{'arm':<{self.wide}} {'round':>5}  {'phase':<8} {'sparsity':>8} {'loss':>7} "
        head += f"{worded(self.metric):>10} {'up':>9} {'down':>9} {'seconds':>8}"
        self.line()
        self.line(head, "bold")

    def tick(self, partitions: int) -> None:
        """So many more partitions have answered."""
        self.bar.advance(self.task, partitions)

    def _phase(self, arm: str, question: Question, partitions: int) -> None:
        self._head()
        of = f" of {self.pace.config.rounds}" if self.pace else ""
        text = f"{arm}  round {question.round}{of}  {KINDS[question.kind].doing}"
        self.bar.reset(self.task, total=partitions, description=text, visible=True)

    def _row(self, row: Row, seconds: float, state: State) -> None:
        del state
        self._head()
        value = row.get(self.metric)
        cells = f"{row['arm']:<{self.wide}} {row['round']:>5}  {row['phase']:<8} "
        # 100.0% is said where nothing is left.
        removed = row["sparsity"] if row["sparsity"] == 1 else min(row["sparsity"], 0.999)
        cells += f"{removed:>8.1%} "
        cells += f"{figure(row['loss'], 3):>7} {figure(value, 3):>10} "
        cells += f"{in_bytes(row['bytes_up']):>9} {in_bytes(row['bytes_down']):>9} {seconds:>8.1f}"
        self.line(cells)
        if self.pace:
            self.bar.update(self.task, left=self.pace.left(row, seconds))
        for failure in row["failures"]:
            where = f" {failure['field']}:" if failure["field"] else ""
            phase = failure["phase"]
            known = KINDS[phase].doing if phase in KINDS else f"in phase {phase}"
            doing = "joining" if phase == "hello" else known
            self.line(
                f"        client {failure['partition']} failed while {doing}:"
                f"{where} {failure['reason']}",
                "yellow",
            )
        undone, out = row.get("undone"), left_out_text(row.get("left_out"))
        said = [undone, out and f"left out for their strikes: {out}", *(row.get("notices") or ())]
        for notice in filter(None, said):
            self.line(f"        {notice}", "yellow")

    def stop(self) -> None:
        """Take the live line away."""
        self.bar.stop()

    def closing(self, folder: Path) -> None:
        """Dense against pruned, where the results are, and how to repeat them.

        Raises:
            SystemExit: no round was completed, or the model could not be measured.
        """
        self.stop()
        summary = json.loads((folder / SUMMARY_NAME).read_text())
        for text in closing_lines(summary, folder):
            self.line(text)
        if why := came_short(summary):
            raise SystemExit(f"fedprune: {why}")


def _untrained(c: RunConfig) -> bool:
    """Whether the model begins by chance, where that is known: not of tasks of the user's own."""
    own = c.task == OWN or c.plugin
    return not (own or c.init or brings_weights(c))


def _goal(c: RunConfig) -> str:
    if c.sparsity == 0.0:
        return "none further" if c.init else "none: dense federated averaging"
    when = f"{c.schedule} over rounds {c.warmup + 1} to {c.end}"
    if c.schedule == "one-shot":
        when = f"at once in round {c.warmup + 1}"
    whose = [] if c.combine == "sum" else [f"clients combined by {c.combine}"]
    whose += [] if c.masks == "global" else [f"clients' own masks by {c.masks}"]
    shape = "" if c.unit_shape is None else f" {c.unit_shape[0]},{c.unit_shape[1]}"
    unit = [] if c.unit == "weight" else [f"unit {c.unit}{shape}"]
    by = f"{_amount(c)} by {c.score}"
    if c.method not in FOLLOWING:
        scored = f" with {c.score}" if method_of(c).scores else ""
        by = f"{_amount(c)} by method {method_name(c)}{scored}"
    return ", ".join([by, *whose, *unit, f"scope {c.scope}", when])


def _amount(c: Pruning) -> str:
    if c.target_bytes is not None:
        return f"down to {in_bytes(c.target_bytes)} on disk"
    if c.target_flops is not None:
        return f"down to {c.target_flops:.3g} of the FLOPs"
    if c.schedule == "adaptive":
        return f"up to {c.sparsity:g} sparsity while the loss rises by {c.tolerance:.3g} at most"
    return f"{c.sparsity:g} sparsity" if c.sparsity else f"scores at or below {c.threshold:g}"

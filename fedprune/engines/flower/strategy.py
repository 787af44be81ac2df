"""`FedPrune`: what a Flower user puts where a strategy goes.

It has `start`, like every Flower strategy, and is no subclass: Flower's `Strategy` is one train
and one evaluate exchange a round, while a round here asks up to three times and decides a mask in
between. The rounds are those of `fedprune.rounds.loop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import Tensor

from fedprune.client.memory import in_run
from fedprune.config import RunConfig, overridden
from fedprune.engines.flower.grid import grid_port
from fedprune.options.refusal import ConfigError
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.records.arms import PRUNED
from fedprune.run import run_federated
from fedprune.server.rows import Row
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.measures import shown_columns
from fedprune.tensors.models import state_of

log = logging.getLogger("fedprune")
_flower_log = logging.getLogger("flwr")
"""Flower's own, which prints what a strategy says: ``[ROUND 1/3]`` and the round's figures."""

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class FedPrune:
    """Federated pruning as a Flower strategy.

    Attributes:
        config: what to run.
        folder: where results go; None keeps nothing on disk.
        resume: go on from the folder's checkpoints.
        watch: who looks on.
        anyway: go on although the run began with something else.
    """

    config: RunConfig
    folder: Path | None = None
    resume: bool = False
    watch: Watch = field(default_factory=Watch)
    anyway: bool = False

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run to the end.

        Args:
            grid: Flower's grid.
            initial_arrays: weights to begin with, as ``ArrayRecord(model.state_dict())``; by
                default the task's seeded initialisation.
            num_rounds: instead of the configuration's; what was not given but follows from it
                (warm-up, end of pruning, noise of a budget) follows again.
            timeout: seconds a phase may take, instead of the configuration's.
            train_config: keys of the configuration to change, such as ``{"lr": 0.01}``.
            evaluate_config: the same; one configuration serves both.
            evaluate_fn: called with the round and the global weights: with round 0 before the
                first round, then after every round.

        Returns:
            Flower's result: the pruned weights (float32, 0.0 where removed: all in memory, however
            large the model is), and by round the clients' training loss, their validation sums,
            and what `evaluate_fn` returned.

        Raises:
            ConfigError: a change, or a tensor of `initial_arrays`, does not fit.
        """
        changes = {**(train_config or {}), **(evaluate_config or {})}
        config = _changed(self.config, num_rounds, timeout, changes)
        given, result = None, Result()
        if initial_arrays is not None:
            given = _weights(initial_arrays, layout_for(config, dense_model(config)))
        if evaluate_fn is not None and not self.resume:
            _evaluate(result, 0, given or state_of(dense_model(config)), evaluate_fn)
        done = run_federated(
            config,
            grid_port(grid, config, memory=in_run(self.folder)),
            folder=self.folder,
            resume=self.resume,
            anyway=self.anyway,
            watch=self._noting(result, config, evaluate_fn),
            weights=given,
        )
        result.arrays = _arrays(done.state.weights)
        return result

    def _noting(self, result: Result, config: RunConfig, evaluate_fn: EvaluateFn | None) -> Watch:
        """The watch, which also writes every row of the run into Flower's result."""
        metric, begun = tasks_of(config.plugin)[config.task].metric, list[int]()

        def head(arm: str, question: Question, partitions: int) -> None:
            self.watch.phase(arm, question, partitions)
            if arm == PRUNED and question.round not in begun:
                begun.append(question.round)
                _flower_log.info("[ROUND %s/%s]", question.round, config.rounds)

        def note(row: Row, seconds: float, state: State) -> None:
            self.watch.row(row, seconds, state)
            if row["arm"] == PRUNED:
                _note(result, row, metric, state, evaluate_fn)
                _flower_log.info("\t└──> %s", _figures(row, metric))

        return Watch(head, note)


def _changed(
    config: RunConfig, rounds: int | None, timeout: float | None, changes: Mapping[str, Any]
) -> RunConfig:
    """The configuration with what `start` was given over it; what follows, follows again."""
    told = {"rounds": rounds, "timeout": timeout}
    over = {key: value for key, value in told.items() if value is not None} | dict(changes)
    changed, left_out = overridden(config.given, over)
    for line in left_out:
        log.warning(line)
    return changed


def _weights(arrays: ArrayRecord, layout: Layout) -> dict[str, Tensor]:
    """The model's state in an ArrayRecord: tied weights once, no buffers that are not state."""
    given = arrays.to_torch_state_dict()
    for name, shape in layout.shapes.items():
        if name not in given or given[name].shape != shape:
            found = tuple(given[name].shape) if name in given else "nothing"
            raise ConfigError(f"initial_arrays: {name}: {found}; allowed: {tuple(shape)}")
    return {name: given[name].float() for name in layout.shapes}


def _arrays(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Flower's arrays of a state, made one tensor after the other."""
    return ArrayRecord({n: Array.from_torch_tensor(w.float()) for n, w in weights.items()})


def _note(
    result: Result, row: Row, metric: str, state: State, evaluate_fn: EvaluateFn | None
) -> None:
    round_ = row["round"]
    if row["train_loss"] is not None:
        train = {"train_loss": row["train_loss"], "sparsity": row["sparsity"]}
        result.train_metrics_clientapp[round_] = MetricRecord(train)
    if row["loss"] is not None:
        names = shown_columns(metric)
        measured = {n: row[n] for n in names if row[n] is not None}
        result.evaluate_metrics_clientapp[round_] = MetricRecord(measured)
    if evaluate_fn is not None:
        _evaluate(result, round_, state.weights, evaluate_fn)


def _figures(row: Row, metric: str) -> str:
    """What a round came to, in a line of a log."""
    measured = [(n, row.get(n)) for n in ("sparsity", *shown_columns(metric))]
    told = [f"{name} {value:.4g}" for name, value in measured if value is not None]
    failed = len(row["failures"])
    return ", ".join([*told, f"{row['answered']} answered, {failed} failed"])


def _evaluate(
    result: Result, round_: int, weights: Mapping[str, Tensor], evaluate_fn: EvaluateFn
) -> None:
    given = evaluate_fn(round_, _arrays(weights))
    if given is not None:
        result.evaluate_metrics_serverapp[round_] = given

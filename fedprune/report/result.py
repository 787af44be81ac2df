"""What a run gives back to a program."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedprune.config import RunConfig
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.records.sizes import Summary
from fedprune.server.rows import Row
from fedprune.server.state import State
from fedprune.tasks.catalog import known_as_own
from fedprune.tasks.task import Task
from fedprune.tensors.named import Masks

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class ShortSummary(dict[str, Any]):
    """A summary that shows what matters, not its hundreds of lines, where it is printed."""

    def __repr__(self) -> str:
        quality = (self.get("quality") or {}).get("final") or {}
        shown = {"sparsity": self.get("sparsity"), **quality}
        if self.get("failures"):
            shown["failures"] = self["failures"]
        told = [f"{n} {v:.4g}" for n, v in shown.items() if isinstance(v, int | float)]
        return f"<summary: {', '.join(told)}; keys {', '.join(self)}>"


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        model: the pruned model, in eval mode on the CPU.
        state: the pruned arm's last state: weights, masks, traffic.
        rows: one per round and arm, as in ``rounds.jsonl``.
        summary: as in ``summary.json``.
        config: what ran; None: not known, and then nothing can be saved.
        task: the task, where it is a program's own and in no table.
    """

    model: nn.Module
    state: State
    rows: list[Row]
    summary: Summary
    config: RunConfig | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", ShortSummary(self.summary))

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"Result({kind}, {len(self.rows)} rows, {self.summary!r})"

    @property
    def masks(self) -> Masks:
        """Masks by parameter name, True = kept."""
        return self.state.masks

    def frame(self) -> pandas.DataFrame:
        """The rows as a table of pandas, one line for each round and arm.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(self.rows)

    def plot(self) -> Figure:
        """Quality over the rounds, every arm, as a figure of matplotlib."""
        from fedprune.report.plots import quality_figure

        return quality_figure(self.rows, self.summary["metric"])

    def save(self, folder: str | Path) -> Path:
        """Write the model as safetensors to a new folder, for `fedprune.load`."""
        return self._exported("safetensors", folder)

    def to_hf(self, folder: str | Path) -> Path:
        """Write a model of transformers to a new folder, for ``from_pretrained``.

        Raises:
            ValueError: the model is none of transformers, or was cut to a shape that its
                configuration cannot hold.
        """
        return self._exported("hf", folder)

    def _exported(self, to: str, folder: str | Path) -> Path:
        if self.config is None:
            raise ValueError("config: not known of this result; allowed: one of federate()")
        with nullcontext() if self.task is None else known_as_own(self.task):
            exported = ExportedModel(self.model, self.config, self.state.edits, self.state.masks)
            export(exported, to, Path(folder))
        return Path(folder)

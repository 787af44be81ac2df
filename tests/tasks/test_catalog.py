"""A federated run of every family on a task of its own, on a few lines of text."""

from pathlib import Path

import pytest

from fedprune import TASKS, federate
from fedprune.config import configure

KINDS = [
    (task, model)
    for task in (
        "text-classification",
        "language-modelling",
        "masked-language-modelling",
        "text-to-text",
    )
    for model in TASKS[task].models
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"line {i} of the play,Line {i} of the play!,{i % 2}" for i in range(60)]
    file.write_text("\n".join(["text,target,label", *lines]) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), KINDS)
def test_every_family_is_pruned_on_its_task(task: str, model: str, rows: Path):
    sizes = {"clients": 2, "rounds": 3, "local_steps": 1, "batch_size": 4, "length": 16}
    asked = {"task": task, "model": model, "data": str(rows), "engine": "inline", **sizes}
    result = federate(configure({**asked, "sparsity": 0.6}))
    prunable = result.summary["prunable_parameters"]
    assert result.summary["failures"] == 0
    assert result.summary["kept_parameters"] == prunable - int(0.6 * prunable + 0.5)
    assert result.summary["quality"]["final"]["count"] > 0
    parameters = dict(result.model.named_parameters())
    for name, mask in result.state.masks.items():
        assert not parameters[name][~mask].any()

"""A task, a model and a score of one's own, through the tables and through a plug-in file."""

import pytest
import torch
from torch import Tensor, nn

import fedprune
from fedprune import SCORES, TASKS, Loss, RunConfig, Score, Shard, Task, federate
from fedprune.client.trial_client import EXAMPLES_TRIED
from fedprune.config import configure
from fedprune.protocol.models import dense_model
from fedprune.scores.score import Evidence, Probe, Statistic
from fedprune.tasks.task import Part
from fedprune.tensors.models import state_of


class Line(nn.Module):
    """y = x w + b; `mirror` shares w, so that ties go through a whole run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.mirror = nn.Linear(6, 6, bias=False)
        self.mirror.weight = self.first.weight
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mirror(torch.tanh(self.first(x))))).squeeze(-1)


def squares(model: nn.Module, batch: Part) -> Loss:
    error = model(batch["x"]) - batch["y"]
    return Loss(error.square().sum(), len(error), int((error.abs() < 0.5).sum()))


def own_shards(config: RunConfig) -> list[Shard]:
    gen = torch.Generator().manual_seed(config.seed)

    def part(n: int) -> Part:
        x = torch.randn(n, 6, generator=gen)
        return {"x": x, "y": x[:, 0] - x[:, 1]}

    return [Shard(part(30 + 20 * p), part(6), part(6)) for p in range(config.clients)]


LINE = Task(
    summary="a line",
    metric="accuracy",
    unit="points",
    model=lambda _config: Line(),
    loss=squares,
    shards=own_shards,
    output=("out",),
    splits={"iid": ""},
    defaults={"rounds": 5, "warmup": 1, "cohort": 3, "lr": 0.1},
)


def squared_inputs(probe: Probe) -> dict[str, Tensor]:
    """Σ x² per input of the first layer, by a hook: a statistic that needs no gradient."""
    sums = {"first.weight": torch.zeros(6)}
    first = probe.model.get_submodule("first")

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        sums["first.weight"] += inputs[0].square().sum(0)

    hook = first.register_forward_hook(add)
    with torch.no_grad():
        for batch in probe.batches:
            probe.loss(probe.model, batch)
    hook.remove()
    return {"first.weight": sums["first.weight"].expand(6, 6)}


def wanda(evidence: Evidence) -> dict[str, Tensor]:
    name = "first.weight"
    return {name: evidence.weights[name].abs() * evidence.sums[name].sqrt()}


WANDA = Score(
    "|w| times the norm of its input", "Sun et al. 2023", wanda, (Statistic(squared_inputs),)
)


@pytest.fixture
def tables(monkeypatch) -> None:
    monkeypatch.setitem(TASKS, "line", LINE)
    monkeypatch.setitem(SCORES, "inputs", WANDA)


def config_of(**keys: object) -> RunConfig:
    return configure({"engine": "inline", "task": "line", "clients": 4, "sparsity": 0.5, **keys})


@pytest.mark.usefixtures("tables")
def test_an_own_score_decides_the_mask_by_the_pooled_statistic():
    """One-shot before any training: the mask is that of one client with everyone's data."""
    config = config_of(score="inputs", rounds=1, warmup=0, cohort=4, schedule="one-shot")
    end = federate(config).state
    w = state_of(dense_model(config))["first.weight"]
    x = torch.cat([shard.train["x"] for shard in own_shards(config)])
    score = w.abs() * x.square().sum(0).sqrt()
    expected = score > score.flatten().sort().values[17]
    assert torch.equal(end.masks["first.weight"], expected)


@pytest.mark.usefixtures("tables")
def test_a_score_that_breaks_on_later_examples_is_a_failure_of_the_clients_not_of_the_run(
    monkeypatch,
):
    def broken(probe: Probe) -> dict[str, Tensor]:
        if sum(len(batch["x"]) for batch in probe.batches) > EXAMPLES_TRIED:
            raise ArithmeticError(f"no {next(iter(probe.prunable))}")
        return squared_inputs(probe)

    monkeypatch.setitem(SCORES, "inputs", Score("broken", "-", wanda, (Statistic(broken),)))
    result = federate(config_of(score="inputs"))
    assert result.summary["sparsity"] == 0.0
    reasons = {f["reason"] for row in result.rows for f in row["failures"]}
    assert reasons == {"ArithmeticError: no first.weight"}


@pytest.mark.usefixtures("tables")
def test_an_own_task_model_and_score_through_the_tables(tmp_path):
    config = config_of(score="inputs")
    result = federate(config, folder=tmp_path / "run")
    assert (config.rounds, config.warmup, config.lr) == (5, 1, 0.1)
    assert list(result.state.masks) == ["first.weight"], "ties once, the head of output spared"
    assert result.summary["kept_parameters"] == 18
    assert result.summary["prunable_parameters"] == 36
    assert result.summary["failures"] == 0
    assert result.rows[-1]["loss"] < result.rows[0]["loss"]
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        back = fedprune.load(folder)
        assert isinstance(back, Line)
        assert back.mirror.weight is back.first.weight
        assert int((back.mirror.weight == 0).sum()) == 18
        x = torch.randn(3, 6)
        assert torch.equal(back(x), result.model(x))


PLUGIN = """
from __future__ import annotations

import torch
from torch import nn

from fedprune import Loss, Score, Shard, Task


def loss(model, batch):
    total = nn.functional.mse_loss(model(batch["x"]), batch["y"], reduction="sum")
    return Loss(total, len(batch["y"]), 0)


def shards(config):
    parts = [{"x": torch.ones(n, 4), "y": torch.ones(n, 4)} for n in (3, 8, 20)]
    return [Shard(part, part, part) for part in parts]


def last_rows(evidence):
    def place(w):
        return torch.arange(w.numel()).view(w.shape).float()

    return {name: place(w) for name, w in evidence.weights.items()}


TASKS = {
    "ones": Task("ones to ones", "mse", "rows", lambda _config: nn.Linear(4, 4), loss, shards,
                 defaults={"rounds": 3, "warmup": 1, "lr": 0.01}),
}
SCORES = {"position": Score("where it stands", "nowhere", last_rows)}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_an_own_task_and_score_through_a_plugin_file(tmp_path):
    (tmp_path / "ones.py").write_text(PLUGIN)
    plugin = str(tmp_path / "ones.py")
    config = config_of(task="ones", clients=3, score="position", plugin=plugin, sparsity=0.5)
    result = federate(config, folder=tmp_path / "run")
    assert result.state.masks["weight"].tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    assert result.summary["unit"] == "rows"
    assert result.summary["shard_sizes"] == [3, 8, 20]
    page = (tmp_path / "run/report.html").read_text()
    for found in (*result.rows, *result.summary["quality"].values()):
        assert found["mse"] == found["loss"] > 0
        assert not {"perplexity", "accuracy"} & found.keys()
    assert "test mse" in page
    assert not any(word in page for word in ("perplexity", "accuracy"))
    back = fedprune.load(tmp_path / "run", plugin=plugin)
    assert torch.equal(state_of(back)["weight"], result.state.weights["weight"])
    assert not back.weight[:2].any()
    assert back.weight[2:].all()


BRANCHES = """
import torch
from torch import nn

from fedprune import Shard, Task
from fedprune.tasks.losses import classification_loss


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(9, 5)
        self.last, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x).relu()
        h = self.left(h) if float(x[0, 0]) > 0 else self.right(h)
        return self.head(self.last(h.relu()))


def part(rows, seed):
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return {"images": x, "labels": (x[:, 0] > 0).long()}


def shards(config):
    return [Shard(part(40, p), part(8, p + 50), part(8, p + 90)) for p in range(config.clients)]


TASKS = {
    "branches": Task("two ways", "accuracy", "examples", lambda _config: Branching(),
                     classification_loss, shards, output=("head",), dummy=lambda _: part(1, 0),
                     defaults={"rounds": 3, "warmup": 1, "lr": 0.05}),
}
"""


@pytest.mark.slow
def test_channels_of_a_model_that_cannot_be_traced_are_pruned_by_depgraph(tmp_path):
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    (tmp_path / "branches.py").write_text(BRANCHES)
    keys = {"task": "branches", "plugin": str(tmp_path / "branches.py"), "clients": 3}
    keys |= {"unit": "channel", "sparsity": 0.4}
    with pytest.raises(ValueError, match="no channel was recognised in this model"):
        federate(config_of(**keys))
    result = federate(config_of(**keys, structure="depgraph"), folder=tmp_path / "run")
    small = result.model
    kept = small.first.out_features
    assert 0 < kept < 9
    assert small.left.in_features == small.right.in_features == kept
    back = fedprune.load(tmp_path / "run", plugin=keys["plugin"])
    seen = torch.linspace(-1, 1, 24).reshape(4, 6)
    assert torch.equal(back(seen), small(seen))

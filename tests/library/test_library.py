"""From Python: own models and data, pruning without clients, a run on Ray, what comes back."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedprune import (
    SCORES,
    TASKS,
    Callback,
    ConfigError,
    RunConfig,
    federate,
    load,
    own_task,
    prune,
)
from fedprune.library.forms import part_of
from fedprune.report import live
from fedprune.server.watch import Watch
from tests.runs import tiny

X = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
TWO = {"clients": 2, "rounds": 2, "lr": 0.05}
NOBODY_TRAINS = {"rounds": 1, "warmup": 0, "schedule": "one-shot", "local_steps": 0}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class Named(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"inputs": X[i], "labels": Y[i]}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Returning(nn.Sequential):
    """The same model, whose outputs are what is made of them."""

    def __init__(self, made):
        super().__init__(*net())
        self.made = made

    def forward(self, x):
        return self.made(super().forward(x))


STATES, PAIR = Returning(lambda x: {"states": x}), Returning(lambda x: (x, x))
FORMS = {
    "pair": (X, Y),
    "arrays": {"inputs": X.numpy(), "labels": Y.numpy()},
    "dataset": TensorDataset(X, Y),
    "named": Named(),
    "list of pairs": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "loader": DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True),
    "hugging face": Dataset.from_dict({"inputs": X.tolist(), "labels": Y.tolist()}),
}


def test_partitions_of_flower_datasets_are_read_as_their_transforms_make_them(tmp_path):
    from flwr_datasets import FederatedDataset

    rows = Dataset.from_dict({"pixels": X.tolist(), "label": Y.tolist()})
    rows.to_parquet(tmp_path / "train.parquet")
    dealt = FederatedDataset(dataset=str(tmp_path), partitioners={"train": 3})
    tables = [dealt.load_partition(p) for p in range(3)]
    tensors = [t.with_format("torch")[:] for t in tables]
    made = [
        table.with_transform(lambda b: b | {"pixels": [torch.tensor(x) / 2 for x in b["pixels"]]})
        for table in tables
    ]
    for forms, scale in ((tables, 1), (made, 2)):
        for form, table in zip(forms, tensors, strict=True):
            part = part_of(form)
            assert set(part) == {"pixels", "labels"}
            assert torch.equal(part["pixels"] * scale, table["pixels"])
    shard = own_task(net(), made).shards(tiny(task="digits", clients=3))[1]
    assert set(shard.train) == {"pixels", "labels"}
    with pytest.raises(ConfigError, match="data=FederatedDataset: not read; allowed: a Dataset"):
        own_task(net(), dealt)
    with pytest.raises(ConfigError, match="data=train Dataset, test Dataset: not read"):
        own_task(net(), tables[0].train_test_split(0.2))


@pytest.mark.slow
def test_all_forms_of_data_are_the_same_task():
    in_words = own_task(Returning(lambda logits: {"logits": logits}), (X, Y))
    numbers = own_task(net(), (X.double().numpy(), Y.numpy()))  # float64
    tasks = [in_words, numbers, *(own_task(net(), form) for form in FORMS.values())]
    assert len({federate(task, **TWO).summary["weights_digest"] for task in tasks}) == 1
    assert "own" not in TASKS


def test_true_and_false_and_whole_numbers_of_any_type_are_classes():
    tasks = [own_task(net(), (X, y)) for y in (Y > 0, (Y > 0).long(), (Y > 0).int())]
    runs = [federate(task, clients=np.int64(2), rounds=1) for task in tasks]
    assert len({run.summary["weights_digest"] for run in runs}) == 1


@pytest.mark.parametrize(
    ("score", "scope"),
    [
        *(("taylor", "global"), ("wanda", "row"), ("magnitude", "global"), ("sparsegpt", "layer")),
        *(("grasp", "layer"), ("synflow", "global"), ("taylor", "row")),
    ],
)
def test_pruning_on_one_machine_is_a_run_that_prunes_and_trains_nobody(score, scope):
    """With all of what its clients train on pooled, and the scores that are sums over examples."""
    parts = [(X[:40], Y[:40]), (X[40:], Y[40:])]
    kinds = {"scope": scope, "score": score, "seed": 3}
    run = federate(own_task(net(), parts), sparsity=0.6, **NOBODY_TRAINS, **kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "own", run.task)
        shards = run.task.shards(run.config)
    pooled = {n: torch.cat([s.train[n] for s in shards]) for n in ("inputs", "labels")}
    model = net()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    done = prune(model, 0.6, data=pooled, **kinds)
    assert all(torch.equal(done.masks[n], run.masks[n]) for n in run.masks)
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    for name, weight in done.model.state_dict().items():
        if name in done.masks:
            assert not weight[~done.masks[name]].any()
        else:
            assert torch.equal(weight, before[name])
        torch.testing.assert_close(weight, run.model.state_dict()[name])


OF_OTHER_MODELS = {
    **{"contribution": "head", "flap": "head"},
    **{"block_influence": "layer", "block_similarity": "layer", "movement": "nobody trains"},
}


@pytest.mark.parametrize("score", SCORES)
def test_every_score_prunes_on_one_machine_or_says_why_not(score):
    if score in OF_OTHER_MODELS:
        with pytest.raises(ValueError, match=OF_OTHER_MODELS[score]):
            prune(net(), 0.5, score=score, data=(X, Y))
    else:
        assert prune(net(), 0.5, score=score, data=(X, Y)).sparsity == pytest.approx(0.5, abs=0.01)


def test_flap_on_one_machine_sets_biases_for_what_went():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_attention_heads=4, **sizes)).eval()
    ids, seen = torch.randint(8, (20, 5)), {}
    readers = ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj")
    hooks = [
        model.get_submodule(n).register_forward_pre_hook(lambda _m, x, n=n: seen.update({n: x[0]}))
        for n in readers
    ]
    model(ids)
    for hook in hooks:
        hook.remove()

    def loss(logits, labels):
        return nn.functional.cross_entropy(logits[:, -1], labels, reduction="none")

    done = prune(model, 0.4, score="flap", data=(ids, ids[:, 0]), loss=loss)
    lost = [n for n in readers if not done.masks[f"{n}.weight"].all()]
    assert lost
    for n in lost:
        gone = model.get_submodule(n).weight * ~done.masks[f"{n}.weight"]
        expected = gone @ seen[n].flatten(0, -2).mean(0)
        torch.testing.assert_close(done.model.get_submodule(n).bias, expected, atol=1e-6, rtol=1e-4)


def test_two_who_look_on_both_see_every_round(capsys):
    seen: list[int] = []
    watch = Watch(row=lambda row, *_: seen.append(row["round"]))
    federate(own_task(net(), (X, Y)), **TWO, watch=watch, progress=True)
    assert seen == [1, 2]
    assert "pruned      2" in capsys.readouterr().out
    done = prune(net(), 0.5, score="wanda", data=(X.double().numpy(), Y.numpy()))
    assert done.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_result_that_is_printed_says_how_many_failures_there_were():
    data = [(X, X[:, :3]), (X, X[:, :3] * torch.nan)]
    result = federate(own_task(net(), data), rounds=1)
    assert f"failures {result.summary['failures']};" in repr(result)
    assert result.summary["failures"] > 0


def test_values_as_labels_are_learned_by_squared_error_and_own_losses_by_themselves():
    targets = X @ torch.randn(6, 3)
    by_default = federate(own_task(net(), (X, targets)), clients=2, rounds=2)
    said = own_task(net(), (X, targets), loss=lambda out, y: ((out - y) ** 2).sum(-1))
    by_hand = federate(said, clients=2, rounds=2)
    assert by_default.summary["weights_digest"] == by_hand.summary["weights_digest"]


def test_a_result_is_looked_at_drawn_and_saved(tmp_path):
    result = federate(own_task(net(), (X, Y), output=("4",)), clients=2, rounds=2, sparsity=0.5)
    assert len(repr(result)) < 1500
    assert set(result.masks) == {"0.weight", "2.weight"}
    assert list(result.frame()["round"]) == [1, 2]
    assert result.plot().axes
    again = load(result.save(tmp_path / "saved"), model=net())
    assert torch.equal(again(X), result.model(X))
    with pytest.raises(ValueError, match="allowed: --to safetensors"):
        result.to_hf(tmp_path / "hf")


@pytest.mark.slow
def test_a_language_model_of_a_result_is_one_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    result = federate(tiny(task="shakespeare", rounds=1, warmup=0, end=1))
    again = AutoModelForCausalLM.from_pretrained(result.to_hf(tmp_path / "hf"))
    ids = torch.arange(12).unsqueeze(0)
    torch.testing.assert_close(again(ids).logits, result.model(ids).logits)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: federate("digits"), "what=str: no configuration"),
        (lambda: federate(RunConfig(), clients=3), "clients: beside a configuration"),
        (lambda: federate(own_task(net(), (X, Y)), task="digits"), "a task is given already"),
        (lambda: federate(own_task(net(), [(X, Y)] * 2), clients=3), "data of 2 clients"),
        (lambda: federate(own_task(net(), (X, Y)), engine="ray"), "known to this process alone"),
        (lambda: federate(own_task(net(), (X[:5], Y[:5])), clients=2), "at least 3"),
        (lambda: own_task(net(), []), "of no client"),
        (lambda: own_task(net(), {"a": X}), "not read"),
        (lambda: own_task(net(), [1, 2]), "data=int: not read"),
        (lambda: own_task(net(), (X, Y[:3])), "inputs 90, labels 3"),
        (lambda: own_task(net(), [(X[0], "a"), (X[1], "b")]), "data=tuple .*: not read"),
        (lambda: own_task(net(), TensorDataset(X[:0], Y[:0])), "no examples"),
        (lambda: federate(own_task(net(), (X, Y + 1)), clients=2), "label 3, .* gives 3 values"),
        (lambda: federate(own_task(net(), (X, Y - 1)), clients=2), "label -1, "),
        (lambda: federate(own_task(STATES, (X, Y)), clients=2), "gives states; allowed: logits"),
        (lambda: federate(own_task(PAIR, (X, Y)), clients=2), "gives a tuple"),
        (lambda: federate(own_task(net(), (X, X)), clients=2), "for labels .*, which are no class"),
        (lambda: prune(net().to("meta"), 0.5, score="magnitude"), "0.weight is on the device meta"),
        (lambda: own_task(net(), (X, Y), validation=0.6, test=0.6), "some to train on"),
        (lambda: own_task(net(), (X, X, Y)), "data=3 tensors"),
        (lambda: prune(net(), 0.5, score="wanda"), "data=None"),
        (lambda: prune(net(), 0.5, scop="row"), "'scop': no such option of prune .* scope"),
        (lambda: own_task(net(), DataLoader(Stream())), "data=Stream: a stream, of no length"),
        (lambda: federate(own_task(net(), (X, Y)), callbacks=[print]), "callbacks=.*: no callback"),
        (lambda: federate(own_task(net(), (X, Y)), callbacks=[Callback]), "no callback"),
        (lambda: prune(net(), 1.5), "sparsity=1.5"),
        (lambda: prune(net(), 0, score="magnitude"), "sparsity=0: prunes nothing"),
        (lambda: prune(net(), None, score="magnitude"), "sparsity=None"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(act, says):
    with pytest.raises(ConfigError, match=says) as error:
        act()
    assert "allowed: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_a_mean_is_refused():
    with pytest.raises(ValueError, match="the loss of each"):
        federate(own_task(net(), (X, Y), loss=nn.CrossEntropyLoss()), clients=2)


@pytest.mark.slow
def test_progress_is_printed_in_notebooks(capsys, monkeypatch):
    federate(own_task(net(), (X, Y)), clients=2, rounds=2)
    assert not capsys.readouterr().out
    kernel, shell = ModuleType("IPython"), type("ZMQInteractiveShell", (), {})()
    kernel.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    federate(own_task(net(), (X, Y)), clients=2, rounds=2)
    assert "pruned      2" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_page_about_python_shows_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert "Result(Sequential, 6 rows" in capsys.readouterr().out
    assert names["done"].sparsity == pytest.approx(0.5, abs=1e-3)
    assert (tmp_path / "pruned").is_dir()


@pytest.mark.slow
def test_engine_ray_is_ray(monkeypatch):
    import ray

    began = []
    here = federate(tiny(rounds=1, warmup=0, end=1))
    start = ray.init
    monkeypatch.setattr(ray, "init", lambda *a, **k: began.append(1) or start(*a, **k))
    there = federate(tiny(rounds=1, warmup=0, end=1, engine="ray", workers=1))
    assert began
    assert not ray.is_initialized()
    assert there.summary["weights_digest"] == here.summary["weights_digest"]


class Heard(Callback):
    """Writes down what it is told, and stops the run after so many rows."""

    def __init__(self, most: int = 99) -> None:
        self.said: list[Any] = []
        self.most = most

    def started(self, config, folder, rows):
        self.said.append((config.rounds, folder.name, [(r["arm"], r["round"]) for r in rows]))

    def row(self, row):
        self.said.append((row["arm"], row["round"]))
        row.clear()  # a copy
        if len(self.said) > self.most:
            raise RuntimeError("stopped")

    def ended(self, summary):
        self.said.append(summary and summary["rounds_completed"])


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_callbacks_hear_every_round_once_also_when_resumed_and_the_board_has_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(live, "FIRST_PAGE", 0.0)
    plugin, folder = tmp_path / "mine.py", tmp_path / "run"
    plugin.write_text(
        "from fedprune import Callback\n"
        "class Seen(Callback):\n"
        "    def row(self, row): print('seen', row['arm'], row['round'])\n"
        "CALLBACKS = {'seen': Seen()}\n"
    )
    config = tiny(rounds=2, warmup=0, end=2, baselines="dense", plugin=str(plugin))
    first, then = Heard(most=1), Heard()
    with pytest.raises(RuntimeError, match="stopped"):
        federate(config, folder=folder, callbacks=[first])
    assert first.said == [(2, "run", []), ("pruned", 1), None]
    page = (folder / "report.html").read_text("utf-8")
    assert "digits, not ended" in page
    assert "The run has not ended: arm pruned is at round 1 of 2." in page
    board = EventAccumulator(str(folder / "tensorboard" / "pruned")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1]
    done = federate(config, folder=folder, resume=True, callbacks=[then])
    rounds = [("pruned", 2), ("dense", 1), ("dense", 2)]
    assert then.said == [(2, "run", [("pruned", 1)]), *rounds, 2]
    assert "not ended" not in (folder / "report.html").read_text("utf-8")
    assert capsys.readouterr().out.splitlines().count("seen dense 2") == 1
    board = EventAccumulator(str(folder / "tensorboard" / "pruned")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2]
    [test] = board.Scalars("test/loss")
    assert (test.step, test.value) == (2, pytest.approx(done.summary["quality"]["final"]["loss"]))
    assert "_hparams_/session_start_info" in board.Tags()["scalars"] + list(board.summary_metadata)


def test_callbacks_of_another_kind_are_refused(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("CALLBACKS = {'seen': print}")
    with pytest.raises(ConfigError, match=r"a dictionary of fedprune\.Callback by name"):
        federate(tiny(plugin=str(plugin)))

"""Laws of every task in the table; a new one is tested by its line there."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fedprune.randomness import seeded
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.layout import layout_of
from fedprune.tasks import speeches
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.imagefolder import GREY
from fedprune.tasks.measures import METRICS, measures
from fedprune.tasks.metrics import label_counts
from fedprune.tasks.pretrained import PACKAGED
from fedprune.tasks.task import Part, Shard, Task, batches, examples, extra_names, output_of

SMALL = [name for name in TASKS if name not in ("r8", "bbc", "fashion-mnist", "domains")]
"""Tasks whose model and data are quick to have; the others have tests of their own."""

SPEECHES = [
    (f"p/{name}", "p", f'Speak, {name}! I will not; {i} times "no".\n')
    for i in range(60)
    for name in "ABCD"
]


LABELS = {"text-regression": "value", "multi-label": "topics"}
"""Tasks whose labels are in another column than the classes."""


@pytest.fixture(scope="module")
def config_of(asked, rows_file, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("speeches")
    for name in "abcd":
        (folder / f"1800_{name}_x.txt").write_text("We are at peace. " * 90)

    pictures = tmp_path_factory.mktemp("pictures")
    for i in range(60):
        image = bytes((i * k * k) % 256 for k in range(64))
        (pictures / "ab"[i % 2]).mkdir(exist_ok=True)
        (pictures / "ab"[i % 2] / f"{i}.pgm").write_bytes(b"P5 8 8 255 " + image)

    def made(task: str, **keys: Any) -> Any:
        data = {"presidents": str(folder), "image-classification": str(pictures)}.get(task, "")
        if "text" in TASKS[task].columns:
            data = str(rows_file)
        if task in LABELS:
            keys = {"label_column": LABELS[task], **keys}
        length = 16 if TASKS[task].models.keys() & SMALL_MODELS.keys() else None
        return asked(task, data=data, length=length, **keys)

    return made


@pytest.fixture(autouse=True)
def few_speeches(monkeypatch) -> None:
    """No test here needs 38 plays."""
    monkeypatch.setattr(speeches, "speeches", lambda: SPEECHES)
    assert speeches.MOST_CHARACTERS


DEALT: dict[str, Sequence[Shard]] = {}


def shards_of(task: str, config: Any) -> Sequence[Shard]:
    key = f"{task} {config.model in GREY} {config.model in PACKAGED}"  # those bring a tokenizer
    if key not in DEALT:
        DEALT[key] = TASKS[task].shards(config)
    return DEALT[key]


def first_rows(part: Part, n: int) -> Part:
    return {name: t[:n] for name, t in part.items()}


CASES = [(name, model) for name in SMALL for model in TASKS[name].models]


@pytest.mark.sampled(25)
@pytest.mark.parametrize(("name", "model"), CASES)
def test_every_task_runs_with_every_model_of_its_own(name, model, config_of):
    task: Task = TASKS[name]
    config = config_of(name, model=model)
    with seeded(0, "init"):
        built = task.model(config)
    part = first_rows(shards_of(name, config)[0].train, 5)
    loss = task.loss(built.train(), part)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)
    layout = layout_of(built, output=output_of(task, built))
    heads = [built.get_submodule(h) for h in output_of(task, built)]
    spared = {id(p) for h in heads for p in h.parameters()}
    assert spared
    prunable = {id(p) for n, p in built.named_parameters() if n in layout.prunable}
    assert not spared & prunable
    assert set(extra_names(task, config)) <= loss.extra.keys()
    torch.testing.assert_close(loss.each.sum(), loss.total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_sums_do_not_depend_on_the_batches(name, config_of):
    task: Task = TASKS[name]
    config = config_of(name)
    with seeded(0, "init"):
        model = task.model(config).eval()
    part = first_rows(shards_of(name, config)[1].train, 11)

    def totals(size: int) -> dict[str, float]:
        found = {"loss": 0.0, "count": 0.0, "correct": 0.0}
        with torch.no_grad():
            for batch in batches(part, size):
                loss = task.loss(model, batch)
                sums = {"loss": loss.total.item(), "count": loss.count, "correct": loss.correct}
                for key, value in {**sums, **loss.extra}.items():
                    found[key] = found.get(key, 0.0) + value
        return found

    whole = totals(11)
    for size in (1, 4):
        assert totals(size) == pytest.approx(whole, rel=1e-5)
    assert whole["count"] == task.labels(part)
    found = measures(whole, task.metric)
    assert {"loss", task.metric} <= found.keys()
    assert ("perplexity" in found) == METRICS[task.metric].likelihood
    assert all(value == value for value in found.values())


@pytest.mark.parametrize("name", [name for name in SMALL if TASKS[name].classes])
def test_every_label_is_one_of_the_classes(name, config_of):
    task: Task = TASKS[name]
    config = config_of(name)
    assert task.classes is not None
    classes = task.classes(config)
    counts = [
        label_counts(part, classes)
        for shard in shards_of(name, config)
        for part in (shard.train, shard.validation, shard.test)
    ]
    assert sum(float(c.sum()) for c in counts) > 0
    assert all(len(c) == classes for c in counts)


@pytest.mark.parametrize("name", SMALL)
def test_the_dummy_goes_where_an_example_goes(name, config_of):
    task: Task = TASKS[name]
    config = config_of(name)
    dummy, real = task.dummy(config), first_rows(shards_of(name, config)[0].train, 1)
    assert examples(dummy) == 1
    for key, tensor in dummy.items():
        assert tensor.shape == real[key].shape
        assert tensor.dtype == real[key].dtype
    with seeded(0, "init"):
        model = task.model(config).eval()
    assert torch.isfinite(task.loss(model, dummy).total)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_offers(name):
    task: Task = TASKS[name]
    assert task.summary
    assert task.metric in METRICS
    assert task.models
    assert set(task.splits) >= {"iid"}
    assert task.defaults.get("split", "iid") in task.splits
    assert task.paths == (name not in ("digits", "fashion-mnist"))
    assert (task.test_sums is None) == (not task.test_sum_names)
    assert set(task.columns) <= {"text", "label", "target", "client"}
    assert not task.columns or task.folder


@pytest.mark.parametrize("name", SMALL)
def test_a_model_and_its_shards_are_the_same_again(name, config_of):
    task: Task = TASKS[name]
    config = config_of(name)
    states = []
    for _ in range(2):
        with seeded(0, "init"):
            states.append(task.model(config).state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    again = task.shards(config)
    for one, two in zip(shards_of(name, config), again, strict=True):
        assert all(torch.equal(one.test[n], two.test[n]) for n in one.test)

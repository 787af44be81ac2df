import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune import TASKS, Loss
from fedprune.learning.distillation import (
    Distillation,
    attention_apart,
    counterparts,
    divergence,
    projection,
    states_apart,
    taught,
)
from fedprune.learning.local_training import tune
from fedprune.learning.optimizers import OPTIMIZERS
from fedprune.protocol.models import dense_model
from fedprune.structure.attention import eager
from fedprune.structure.families.family import Need
from fedprune.tasks.loading import build
from fedprune.tasks.losses import next_token_loss
from fedprune.tasks.masked import masked_token_loss
from fedprune.tasks.restore import text_to_text_loss
from fedprune.tasks.task import Part
from fedprune.tasks.zoo import families_for
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import masked
from tests.runs import tiny

LOSSES = {"causal": next_token_loss, "masked": masked_token_loss, "seq2seq": text_to_text_loss}
PURPOSES = {
    name: purpose
    for purpose, first in (("causal", "llama"), ("masked", "bert"), ("seq2seq", "t5"))
    for name in families_for(purpose, first)
}


def model_of(name: str, depth: int = 2, width: int = 32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size: Any = SimpleNamespace(task="some", model=name, depth=depth, width=width)
    return build(size, Need(PURPOSES[name], 20, 8, 0, 19))


def batch() -> Part:
    ids = torch.randint(1, 19, (3, 8), generator=torch.Generator().manual_seed(2))
    labels = ids.roll(-1, 1)
    labels[0, 5:] = -100
    return {"inputs": ids, "attention": torch.ones_like(ids), "labels": labels}


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_the_sum_over_counted_labels(temperature):
    s, t = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    found = divergence(s, t, {"labels": labels}, temperature)
    p, q = softmax(t.numpy() / temperature), softmax(s.numpy() / temperature)
    each = (p * np.log(p / q)).sum(-1)
    assert found.item() == pytest.approx(each[(labels != -100).numpy()].sum(), rel=1e-5)
    assert divergence(t, t, {"labels": labels}, temperature).item() == 0.0
    classes = divergence(s[:, 0], t[:, 0], {"labels": torch.tensor([0, 1])}, temperature)
    assert classes.item() == pytest.approx(each[:, 0].sum(), rel=1e-5)


def test_at_a_high_temperature_it_is_the_distance_of_logits():
    """Hinton et al. 2015, sect. 2.1: T²·KL tends to |z_s - z_t|²/(2N), logits of mean zero."""
    s, t = (z - z.mean(-1, keepdim=True) for z in (logits(0, 1, 6), logits(1, 1, 6)))
    high = 100.0
    found = high**2 * divergence(s, t, {"labels": torch.tensor([0])}, high).item()
    assert found == pytest.approx(float((s - t).square().sum()) / 12, rel=0.03)


def test_answers_of_another_shape_and_losses_without_logits_are_refused():
    with pytest.raises(ValueError, match=r"^teacher: answers of shape \(2, 4\) for \(2, 5\)"):
        divergence(logits(0, 2, 5), logits(0, 2, 4), {"labels": torch.tensor([0, 1])}, 1.0)
    model = nn.Linear(2, 2)
    lesson = Distillation(model, lambda m, part: Loss(m(part["x"]).sum(), 1, 0), 0.5, 1.0)
    with pytest.raises(ValueError, match="does not give its logits"):
        taught(lesson, model, {"x": torch.ones(1, 2), "labels": torch.zeros(1)})


@pytest.mark.parametrize(
    "task",
    ["digits", "fashion-mnist", "shakespeare", "shakespeare-masked", "shakespeare-restore",
     "presidents", "language-modelling", "masked-language-modelling", "text-to-text"],
)  # fmt: skip
def test_losses_of_tasks_say_what_they_are_of(task):
    given = {"data": "nowhere"} if TASKS[task].folder else {}
    config = tiny(task=task, **given)
    dummy = TASKS[task].dummy
    found = TASKS[task].loss(dense_model(config).eval(), dummy(config))
    labels = dummy(config)["labels"]
    assert found.logits.shape[:-1] == labels.shape
    mean = nn.functional.cross_entropy(found.logits.flatten(0, -2), labels.flatten())
    assert mean.item() == pytest.approx(found.total.item() / found.count, rel=1e-5)


def test_distance_of_states_is_relative_to_the_teacher():
    s, t = logits(0, 2, 3, 8), logits(1, 2, 3, 8)
    expected = float(((s - t) ** 2).mean() / (t**2).mean())
    assert states_apart(s, t, 0).item() == pytest.approx(expected)
    assert states_apart(10 * s, 10 * t, 0).item() == pytest.approx(expected)


def test_the_wider_states_are_projected_the_same_way_for_everyone():
    wide, narrow = logits(0, 2, 3, 12), logits(1, 2, 3, 4)
    down = projection(12, 4, 5).double()
    assert torch.allclose(down.t() @ down, torch.eye(4, dtype=torch.float64), atol=1e-6)
    for student, teacher in ((wide @ down, wide), (wide, wide @ down)):
        assert states_apart(student, teacher, 5).item() == pytest.approx(0.0, abs=1e-10)
    found, wanted = (states_apart(narrow, teacher, 5) for teacher in (wide, wide @ down))
    assert found.item() == pytest.approx(wanted.item())
    assert not torch.equal(projection(12, 4, 6), projection(12, 4, 5))


def test_distance_of_attention_is_the_divergence_of_its_rows():
    s, t = logits(0, 2, 3, 4, 4).softmax(-1), logits(1, 2, 3, 4, 4).tril()
    t = t.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1)
    p, q = t.numpy(), s.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(p > 0, p * np.log(p / q), 0.0).sum(-1)
    assert attention_apart(s, t).item() == pytest.approx(each.mean(), rel=1e-5)
    assert attention_apart(t, t).item() == pytest.approx(0.0, abs=1e-7)
    # What dropout took and scaled up.
    assert math.isfinite(attention_apart((s * (s > 0.2)) / 0.9, t).item())
    means = attention_apart(s[:, :2].mean(1, keepdim=True), t.mean(1, keepdim=True)).item()
    assert attention_apart(s[:, :2], t).item() == pytest.approx(means)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", PURPOSES)
def test_parts_belong_together_by_how_far_up_they_are(name):
    small, large = model_of(name), model_of(name, depth=4)
    for kind in ("block", "head"):
        same = counterparts(large, large, kind)
        assert all(s == t for s, t in same.items())
        pairs = counterparts(small, large, kind)
        assert len(pairs) * 2 == len(same)
        for s, t in pairs.items():
            number = next(int(part) for part in s.split(".") if part.isdigit())
            assert t == s.replace(f".{number}", f".{2 * number + 1}", 1)
        # Blocks that were taken out of the student leave the others with their own.
        own = counterparts(small, large, kind, own=True)
        assert all(s == t for s, t in own.items())
        # Nor does it matter when all of them are.
        assert counterparts(nn.Linear(2, 2), large, kind, own=True) == {}


def test_families_are_matched_stack_by_stack():
    pairs = counterparts(model_of("llama"), model_of("gpt2", depth=4))
    assert pairs == {f"model.layers.{i}": f"transformer.h.{2 * i + 1}" for i in (0, 1)}
    frozen = model_of("bert")
    frozen.get_submodule("bert.encoder.layer.0").requires_grad_(False)
    assert list(counterparts(frozen, model_of("bert"))) == ["bert.encoder.layer.1"]


def test_a_net_with_other_stacks_or_without_is_refused(cnn):
    model = cnn[0].model
    with pytest.raises(ValueError, match=r"^distil-hidden: 2 stacks of blocks for 1 of the te"):
        counterparts(model_of("t5"), model_of("bert"))
    with pytest.raises(ValueError, match=r"^distil-hidden: 0 stacks of blocks .*; allowed: 0"):
        counterparts(model, model)
    with pytest.raises(ValueError, match=r"^distil-attention: 0 kinds of attention .*allowed: 0"):
        counterparts(model, model, "head")


def lesson_for(name: str, teacher: nn.Module, **keys: float) -> Distillation:
    teacher = teacher.eval().requires_grad_(False)
    weights = {"answers": 0.0, "temperature": 2.0, "hidden": 0.0, "attention": 0.0, **keys}
    return Distillation(teacher, LOSSES[PURPOSES[name]], **weights)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", PURPOSES)
def test_each_term_is_zero_against_oneself_and_draws_towards_another(name):
    student = model_of(name).eval()
    for key in ("answers", "hidden", "attention"):
        itself = lesson_for(name, copy.deepcopy(student), **{key: 1.0})
        other = lesson_for(name, model_of(name, seed=1), **{key: 1.0})
        with eager(student, itself.teacher, other.teacher):
            both = [taught(lesson, student, batch()) for lesson in (itself, other)]
            nothing, far = (t.total - (0 if key == "answers" else t.own.total) for t in both)
            assert float(nothing.detach()) == pytest.approx(0.0, abs=1e-4)
            assert float(far.detach()) > 1e-3
            gradients = torch.autograd.grad(far, list(student.parameters()), allow_unused=True)
        found = [g for g in gradients if g is not None]
        assert all(torch.isfinite(g).all() for g in found)
        assert sum(float(g.abs().sum()) for g in found) > 0


def test_the_terms_add_up_by_labels():
    student, teacher = model_of("llama").eval(), model_of("llama", seed=1)
    keys = {"answers": 0.3, "hidden": 0.5, "attention": 0.7}
    found = {}
    with eager(student, teacher), torch.no_grad():
        for key, weight in keys.items():
            distillation = lesson_for("llama", teacher, **{key: weight})
            found[key] = taught(distillation, student, batch())
        whole = taught(lesson_for("llama", teacher, **keys), student, batch())
    own = whole.own.total
    parts = sum(t.total - own for t in found.values())
    assert torch.allclose(whole.total, own + parts, rtol=1e-5)
    kl = 4.0 * found["answers"].divergence
    assert found["answers"].total.item() == pytest.approx(0.7 * own.item() + 0.3 * kl, rel=1e-5)


def test_eager_attention_is_for_the_time_being():
    model = model_of("llama")
    before = model.config._attn_implementation  # type: ignore[union-attr]
    assert before != "eager"
    with eager(model, nn.Sequential(nn.Linear(1, 1), model)):
        assert model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert model.config._attn_implementation == before  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero_under_a_teacher(optimizer, cnn):
    host, question = cnn
    model, teacher = copy.deepcopy(host.model), copy.deepcopy(host.model)
    load_into(model, masked(question.weights, question.masks))
    task = TASKS["digits"]
    distillation = Distillation(teacher.eval().requires_grad_(False), task.loss, 0.9, 2.0)
    rows = {n: t[:8] for n, t in host.shards[0].train.items()}
    before = copy.deepcopy(teacher.state_dict())
    config, steps = tiny(optimizer=optimizer, weight_decay=0.1), iter([[rows]] * 3)
    tuned = tune(model, question.masks, steps, task, 0.05, config, distillation=distillation)
    for name, mask in question.masks.items():
        assert not state_of(model)[name][~mask].any()
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert tuned.divergence > 0


def test_a_lesson_of_weight_zero_changes_no_bit(cnn):
    host, _ = cnn
    task = TASKS["digits"]
    rows = {n: t[:8] for n, t in host.shards[0].train.items()}
    ends = []
    for distillation in (None, Distillation(copy.deepcopy(host.model).eval(), task.loss, 0.0, 2.0)):
        model = copy.deepcopy(host.model)
        tune(model, {}, iter([[rows]] * 2), task, 0.05, tiny(), distillation=distillation)
        ends.append(model.state_dict())
    assert all(torch.equal(t, ends[1][n]) for n, t in ends[0].items())

"""The teacher of a run: the model as it was before pruning, or that of another run.

It travels as a coded file (`fedprune.codec.coded_file`), which says by itself how its model is
built; the checksum at its end names it. Whoever has acknowledged that name is not sent it again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fedprune.codec.bounded import Buffer
from fedprune.codec.coded_file import CODED_NAME, from_coded, to_coded
from fedprune.config import RunConfig
from fedprune.learning.distillation import Distillation, taught
from fedprune.learning.options import Tuning
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import refuse
from fedprune.protocol.messages import Question
from fedprune.protocol.origin import blank
from fedprune.randomness import seeded
from fedprune.runtime.sums import check_sums
from fedprune.structure.attention import eager
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.claims import filled_by, held_in
from fedprune.tasks.options import Data
from fedprune.tensors.models import frozen_of, load_into
from fedprune.tensors.named import masked


def distils(config: Tuning) -> bool:
    """Whether clients learn from a teacher."""
    return bool(config.distil or config.distil_hidden or config.distil_attention)


def teacher_in(folder: str, plugin: str = "") -> bytes:
    """The model of a finished run, to teach; of a plug-in's task, with the caller's own `plugin`.

    Frozen parameters that are as its task makes them (a pretrained encoder's) are left out.

    Raises:
        ValueError: there is no such run, or its file is damaged.
    """
    path = Path(folder) / CODED_NAME
    if not path.is_file():
        refuse("teacher", folder, f"no {CODED_NAME} there", "the folder of a finished run")
    check_sums(path.parent)
    head, weights, masks = from_coded(path.read_bytes(), str(path))
    with filled_by(held_in(weights), str(path)):
        model = blank(with_code_of(plugin, head, path), plugin)
    frozen = frozen_of(model)
    if all(torch.equal(w, weights[n]) for n, w in frozen.items()):
        weights = {n: w for n, w in weights.items() if n not in frozen}
    origin = {key: head[key] for key in head if key not in {"mask_bytes", "shapes"}}
    return to_coded(origin, weights, masks)


def teacher_model(teacher: Buffer, config: Data) -> nn.Module:
    """The teacher's model, in eval mode on the CPU, its parameters frozen.

    Raises:
        ValueError: it is damaged, or does not fit the model that it says it is.
    """
    head, weights, masks = from_coded(bytes(teacher), "teacher")
    with seeded(config.seed, "init"), filled_by(held_in(weights), "teacher"):
        model = blank(head, config.plugin)
    weights, frozen = masked(weights, masks), frozen_of(model)
    load_into(model, {n: w for n, w in weights.items() if n not in frozen})
    with torch.no_grad():
        for name in frozen.keys() & weights.keys():
            frozen[name].copy_(weights[name])
    return model.eval().requires_grad_(False)


def distillation_of(
    question: Question, config: RunConfig, model: nn.Module | None
) -> Distillation | None:
    """What a client learns from the teacher in the round of a question; None without one."""
    if model is None:
        return None
    c, share = config, question.distil
    return Distillation(
        model,
        tasks_of(c.plugin)[c.task].loss,
        share * c.distil,
        c.temperature or 1.0,
        share * c.distil_hidden,
        share * c.distil_attention,
        c.seed,
        not c.teacher,
    )


def check_distillation(config: RunConfig, student: nn.Module, teacher: bytes) -> None:
    """Refuse a teacher that the student has nothing to learn from, by one example without data.

    `teacher`: another run's model; empty: the student's own.
    """
    task = tasks_of(config.plugin)[config.task]
    if not distils(config) or task.dummy is None:
        return
    dummy, theirs = task.dummy(config), from_coded(teacher)[0]["task"] if teacher else config.task
    if theirs != config.task:
        refuse("teacher", config.teacher, f"it is of task {theirs}", config.task)
    model = teacher_model(teacher, config) if teacher else student
    question = Question("tune", 1, {}, {}, distil=1.0)
    distillation = distillation_of(question, config, model)
    assert distillation is not None  # there is a model
    was_training = student.training
    student.eval()
    with torch.no_grad(), eager(student, model):
        taught(distillation, student, dummy)
    student.train(was_training)

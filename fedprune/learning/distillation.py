"""Distillation on one client: a teacher answers the same batch, and the student is drawn to it.

Answers: Hinton et al. 2015, arXiv 1503.02531, sect. 2. States of the blocks: TinyBERT, Jiao et al.
2020, arXiv 1909.10351, eqs. 8 and 11, here relative to the teacher's size. Attention: MiniLM, Wang
et al. 2020, arXiv 2002.10957, eq. 5, here of every block that has a counterpart. Where widths
differ the wider states go through a fixed random projection and not through a learned one, which
would be a parameter that is none of the model's and would have to travel.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.randomness import generator
from fedprune.structure.groups import structure_of
from fedprune.tasks.losses import counted_labels
from fedprune.tasks.task import Loss, Part
from fedprune.tensors.hooks import removed_after

LEAST = 1e-6
"""What an attention weight counts as at least, so that one that dropout took has a logarithm."""


@dataclass(frozen=True)
class Distillation:
    """What a client learns from a teacher in a round.

    Attributes:
        teacher: in eval mode, on the student's device.
        loss: of the task, with logits in it.
        answers: a, the part of the loss that is the distance to the teacher's answers.
        temperature: T, of both sides' answers.
        hidden: weight of the distance of the blocks' outputs.
        attention: weight of the distance of attention weights.
        seed: of the projection.
        own: the teacher is the student as it was before it was pruned.
    """

    teacher: nn.Module
    loss: Callable[[nn.Module, Part], Loss]
    answers: float
    temperature: float
    hidden: float = 0.0
    attention: float = 0.0
    seed: int = 0
    own: bool = False


@dataclass(frozen=True)
class Taught:
    """What came of a batch.

    Attributes:
        own: the task's loss of the student.
        total: what the student is to minimise, summed over labels.
        divergence: Σ over labels of KL(teacher ‖ student) at the temperature, nats.
    """

    own: Loss
    total: Tensor
    divergence: float


def taught(
    distillation: Distillation, student: nn.Module, batch: Part, called: nn.Module | None = None
) -> Taught:
    """(1 - a)·loss + a·T²·KL + labels·(hidden·distance of states + attention·distance of weights).

    The student is in training mode; `called` (compiled) has its parameters and is called instead.

    Raises:
        ValueError: the two have nothing to compare.
    """
    teacher = distillation.teacher
    pairs = counterparts(student, teacher, own=distillation.own) if distillation.hidden else {}
    looks = (
        counterparts(student, teacher, "head", own=distillation.own)
        if distillation.attention
        else {}
    )
    with torch.no_grad(), recorded_outputs(teacher, [*pairs.values(), *looks.values()]) as wanted:
        right = distillation.loss(teacher, batch)
    with recorded_outputs(student, [*pairs, *looks]) as found:
        own = distillation.loss(student if called is None else called, batch)
    distance = divergence(_logits(own), _logits(right), batch, distillation.temperature)
    total = (
        1 - distillation.answers
    ) * own.total + distillation.answers * distillation.temperature**2 * distance
    if pairs:
        apart = [
            states_apart(found[s][0], wanted[t][0], distillation.seed) for s, t in pairs.items()
        ]
        total = total + distillation.hidden * own.count * torch.stack(apart).mean()
    if looks:
        apart = [attention_apart(found[s][-1], wanted[t][-1]) for s, t in looks.items()]
        total = total + distillation.attention * own.count * torch.stack(apart).mean()
    return Taught(own, total, max(0.0, distance.item()))


def _logits(loss: Loss) -> Tensor:
    if loss.logits is None:
        raise ValueError("distil: the task's loss does not give its logits; allowed: 0")
    return loss.logits


def divergence(student: Tensor, teacher: Tensor, batch: Part, temperature: float) -> Tensor:
    """Σ over the counted labels of KL(teacher ‖ student), both at a temperature, nats.

    Args:
        student: logits (B, classes) or (B, T, classes).
        teacher: of the same shape.
        batch: whose labels of -100 do not count.
        temperature: what logits are divided by.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        shapes = f"{tuple(teacher.shape)} for {tuple(student.shape)}"
        raise ValueError(f"teacher: answers of shape {shapes}; allowed: the same task and data")
    where = counted_labels(batch)
    ours, theirs = (
        nn.functional.log_softmax(logits[where].float() / temperature, -1)
        for logits in (student, teacher)
    )
    return nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)


def states_apart(student: Tensor, teacher: Tensor, seed: int) -> Tensor:
    """Mean square of the difference of states (B, T, width), over the teacher's own mean square.

    Padding is a place like any other.
    """
    wide, narrow = sorted((student.shape[-1], teacher.shape[-1]), reverse=True)
    if wide != narrow:
        down = projection(wide, narrow, seed).to(student)
        student = student @ down if student.shape[-1] == wide else student
        teacher = teacher @ down if teacher.shape[-1] == wide else teacher
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)


@functools.lru_cache(maxsize=4)
def projection(wide: int, narrow: int, seed: int) -> Tensor:
    """Orthonormal columns (wide, narrow), drawn from the seed: the same for every client."""
    gen = generator(seed, "projection", wide, narrow)
    drawn = torch.randn(wide, narrow, generator=gen, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(drawn).Q
    return columns.float()


def attention_apart(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over queries of KL(teacher ‖ student) of attention weights (B, heads, T, T), nats.

    Where the numbers of heads differ, of their means over heads.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    ours, theirs = student.float(), teacher.float()
    ours = (ours / ours.sum(-1, keepdim=True).clamp_min(LEAST)).clamp_min(LEAST)
    each = torch.where(theirs > 0, theirs * (theirs.clamp_min(LEAST).log() - ours.log()), 0.0)
    return each.sum(-1).mean()


def counterparts(
    student: nn.Module, teacher: nn.Module, kind: str = "block", *, own: bool = False
) -> dict[str, str]:
    """Which part of the teacher each part of the student is held against, by path.

    Stack by stack the one that is as far up: block i of M against block (i + 1)·N // M - 1 of N,
    as in TinyBERT, sect. 4.1. Of the student's only those in which something is trained. `kind` is
    "block", or "head" for attentions. With `own` the teacher is the student as it was: parts of the
    same name belong together.

    Raises:
        ValueError: one has no such parts, or another number of stacks of them.
    """
    ours, theirs = _places(student, kind), _places(teacher, kind)
    if own and theirs and set(ours) <= set(theirs):  # some, or all, may have been cut out since
        return {path: path for path in ours if _trained(student, path)}
    lower, upper = _stacks(ours), _stacks(theirs)
    if not lower or len(lower) != len(upper):
        what = {"block": "stacks of blocks", "head": "kinds of attention"}[kind]
        key = {"block": "distil-hidden", "head": "distil-attention"}[kind]
        found = f"{len(lower)} {what} for {len(upper)} of the teacher"
        raise ValueError(f"{key}: {found}; allowed: 0, or a teacher of a similar kind")
    pairs = {
        path: above[(i + 1) * len(above) // len(below) - 1]
        for below, above in zip(lower, upper, strict=True)
        for i, path in enumerate(below)
    }
    return {s: t for s, t in pairs.items() if _trained(student, s)}


def _trained(model: nn.Module, path: str) -> bool:
    """Whether anything below a path is trained."""
    named = model.named_parameters()
    return any(p.requires_grad and name.startswith(f"{path}.") for name, p in named)


def _places(model: nn.Module, kind: str) -> list[str]:
    found = structure_of(model, [name for name, _ in model.named_parameters()])
    if kind == "block":
        return [block.path for block in found.blocks]
    return [group.path for group in found.groups if group.kind == kind]


def _stacks(paths: Sequence[str]) -> list[list[str]]:
    """Paths that differ in their first number, together."""
    stacks: dict[str, list[str]] = {}
    for path in paths:
        stacks.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", path, count=1), []).append(path)
    return list(stacks.values())


@contextmanager
def recorded_outputs(
    model: nn.Module, paths: Sequence[str]
) -> Iterator[dict[str, Sequence[Tensor]]]:
    """Within the block the outputs of these modules are kept by path, as tuples."""
    kept: dict[str, Sequence[Tensor]] = {}

    def hook_of(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[path] = output if isinstance(output, tuple) else (output,)

        return hook

    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    with removed_after([modules[path].register_forward_hook(hook_of(path)) for path in paths]):
        yield kept

"""Options of training and averaging."""

from __future__ import annotations

from typing import Literal

from fedprune.options.section import BY_TASK, Count, Section, option


class Tuning(Section):
    """How a client trains."""

    optimizer: str = option("tuning", "the clients' optimizer (see --list)", BY_TASK)
    lr: float = option("tuning", "the clients' learning rate in round one", BY_TASK, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = option(
        "tuning", "learning rate over rounds", "cosine"
    )
    lr_rewind: bool = option("tuning", "begin --lr-schedule anew at every pruning", False)
    momentum: float | None = option("tuning", "momentum of sgd (default 0.9)", None, ge=0, lt=1)
    weight_decay: float = option("tuning", "weight decay", 0.0, ge=0)
    batch_size: Count = option("tuning", "examples in a step", BY_TASK)
    score_batch: Count = option("tuning", "examples in a batch of scoring and measuring", 64)
    accumulate: Count = option("tuning", "batches whose gradients make one step", 1)
    precision: Literal["fp32", "bf16"] = option(
        "tuning", "type of the computation while tuning (bf16: autocast)", "fp32"
    )
    compile: bool = option("tuning", "torch.compile the model that is tuned", False)
    checkpointing: bool = option(
        "tuning", "recompute activations instead of keeping them (long sequences)", False
    )
    local_steps: int = option(
        "tuning", "steps a client takes in a round (0: by epochs)", BY_TASK, ge=0
    )
    local_epochs: int = option("tuning", "passes over the shard instead of steps", 0, ge=0)
    clip: float = option("tuning", "largest gradient norm of a step (0: no clipping)", 1.0, ge=0)
    proximal: float = option("tuning", "FedProx: weight of |w - w_sent|²/2", 0.0, ge=0)
    l1: float = option("tuning", "weight of Σ|w| over prunable weights", 0.0, ge=0)
    l2: float = option("tuning", "weight of Σw²/2 over prunable weights", 0.0, ge=0)
    group_lasso: float = option(
        "tuning", "weight of Σ sqrt(size)·|w| over the units of --unit", 0.0, ge=0
    )
    shrinkage: Literal["gradient", "proximal"] | None = option(
        "tuning", "how l1 and group lasso act: proximal gives exact zeros (default)", None
    )
    distil: float = option(
        "tuning",
        "part of the clients' loss that is the distance to a teacher's answers",
        0.0,
        ge=0,
        le=1,
    )
    distil_hidden: float = option(
        "tuning", "weight of the distance to the outputs of the teacher's blocks", 0.0, ge=0
    )
    distil_attention: float = option(
        "tuning", "weight of the distance to the teacher's attention", 0.0, ge=0
    )
    temperature: float | None = option(
        "tuning", "temperature of the answers in --distil (default 2)", None, gt=0
    )
    distil_schedule: Literal["constant", "linear"] = option(
        "tuning", "weights of distillation over rounds: linear falls to 0", "constant"
    )
    teacher: str = option(
        "tuning", "folder of a finished run to learn from (default: the model before pruning)", ""
    )


class Averaging(Section):
    """How the clients' changes become one."""

    masks: str = option(
        "combining", "whose masks weights are tuned under when pruned (see --list)", "global"
    )
    average: str | None = option(
        "combining",
        "denominator of the mean change under --masks union, intersection (default l0-mean)",
        None,
    )
    robust: str = option(
        "combining",
        "rule for clients' changes that some of them cannot bend (see --list): one by one, every "
        "client alike",
        "none",
    )
    byzantine: int | None = option(
        "combining",
        "how many of a cohort may send anything, with --robust trimmed-mean, multi-krum, nearest-* "
        "(default three of ten)",
        None,
        ge=1,
    )
    max_norm: float | Literal["auto"] | None = option(
        "combining",
        "largest norm of a client's change that counts; auto: five times the running median of "
        "those that did (default: no limit)",
        None,
    )
    server_lr: float = option("tuning", "factor on the averaged change", 1.0, gt=0)
    blend: str = option("tuning", "share of a round's change that is kept (see --list)", "none")
    blend_grid: tuple[float, ...] | None = option(
        "tuning", "shares that --blend tries (default 0,0.25,0.5,0.75,1,1.25)", None, strict=False
    )
    moving: str = option(
        "tuning", "running average of the rounds as the result (see --list)", "none"
    )
    moving_decay: float | None = option(
        "tuning",
        "part of the average that --moving ema keeps in a round (default 0.5)",
        None,
        ge=0,
        lt=1,
    )
    weighting: Literal["labels", "equal", "equal-scores"] = option(
        "privacy",
        "weight of a client in means of changes and of clients' own scores (equal-scores: by "
        "labels for changes only; default: labels, with --dp equal)",
        "labels",
    )

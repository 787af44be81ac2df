"""Options of training and averaging."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, Count, option
from fedprune.options.section import Section

_DISTILS = tuple({key: Not(0.0)} for key in ("distil", "distil_hidden", "distil_attention"))
_ADAPTIVE = ("adagrad", "adam", "yogi")
_COUNTING = ("trimmed-mean", "multi-krum", "nearest-trimmed-mean", "nearest-geometric-median")


def _byzantine(c: Any) -> int | None:
    from fedprune.learning.robust_rules import byzantine_of

    return byzantine_of(c.robust, c.cohort)


def _lr(c: Any) -> Any:
    """The task's; without its momentum of 0.9 a step is a tenth of what the task's rate makes."""
    usual = c.usual("lr", BY_TASK)
    return 10.0 * usual if c.scaffold and isinstance(usual, float) else usual


class Tuning(Section):
    """How a client trains."""

    optimizer: str = option(
        "tuning",
        "the clients' optimizer",
        BY_TASK,
        names=NameTable("fedprune.learning.optimizers", "OPTIMIZERS"),
    )
    lr: float = option(
        "tuning",
        "the clients' learning rate in round one (with --scaffold ten times the task's)",
        BY_TASK,
        derived=_lr,
        gt=0,
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = option(
        "tuning", "learning rate over rounds", "cosine"
    )
    lr_rewind: bool = option(
        "tuning",
        "restart --lr-schedule at each pruning",
        False,
        when={"lr_schedule": ("linear", "cosine"), "sparsity": Not(0.0)},
    )
    momentum: float | None = option(
        "tuning",
        "momentum (default: 0.9, with --scaffold 0)",
        when={"optimizer": "sgd"},
        derived=lambda c: 0.0 if c.scaffold else c.usual("momentum", 0.9),
        ge=0,
        lt=1,
    )
    weight_decay: float = option("tuning", "weight decay", 0.0, ge=0)
    batch_size: Count = option("tuning", "examples in a step", BY_TASK)
    score_batch: Count = option("tuning", "examples in a batch for scoring and measuring", 64)
    accumulate: Count = option("tuning", "batches whose gradients are added up for one step", 1)
    precision: Literal["fp32", "bf16"] = option(
        "tuning", "floating-point type of training (bf16: autocast)", "fp32"
    )
    compile: bool = option("tuning", "compile the model with torch.compile for training", False)
    checkpointing: bool = option(
        "tuning", "recompute activations instead of keeping them (long sequences)", False
    )
    local_steps: int = option(
        "tuning",
        "training steps of a client in a round (0: by --local-epochs; both 0: no training, "
        "rounds only prune)",
        BY_TASK,
        derived=lambda c: 0 if c.local_epochs else c.usual("local_steps", BY_TASK),
        ge=0,
    )
    local_epochs: int = option(
        "tuning", "passes over a client's training data in a round, instead of steps", 0, ge=0
    )
    clip: float = option(
        "tuning",
        "largest gradient norm of a step (0: no clipping; default: 1, with --scaffold 0)",
        1.0,
        derived=lambda c: 0.0 if c.scaffold else c.usual("clip", 1.0),
        ge=0,
    )
    scaffold: bool = option(
        "tuning",
        "SCAFFOLD: clients' steps are corrected by control variates",
        False,
        when={"optimizer": "sgd"},
    )
    proximal: float = option("tuning", "FedProx: weight of |w - w_sent|²/2", 0.0, ge=0)
    l1: float = option("tuning", "weight of Σ|w| over prunable weights", 0.0, ge=0)
    l2: float = option("tuning", "weight of Σw²/2 over prunable weights", 0.0, ge=0)
    group_lasso: float = option(
        "tuning", "weight of Σ sqrt(size)·|w| over the units of --unit", 0.0, ge=0
    )
    shrinkage: Literal["gradient", "proximal"] | None = option(
        "tuning",
        "how --l1 and --group-lasso act; proximal gives exact zeros",
        "proximal",
        when=({"l1": Not(0.0)}, {"group_lasso": Not(0.0)}),
    )
    distil: float = option(
        "tuning",
        "weight of the distance to the teacher's outputs, as a part of the loss",
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
        "tuning", "softmax temperature of distillation", 2.0, when={"distil": Not(0.0)}, gt=0
    )
    distil_schedule: Literal["constant", "linear"] = option(
        "tuning",
        "weights of distillation over rounds; linear falls to 0",
        "constant",
        when=_DISTILS,
    )
    teacher: str = option(
        "tuning",
        "folder of a finished run whose model is the teacher (default: the model before pruning)",
        "",
        when=_DISTILS,
    )


def trains(tuning: Tuning) -> bool:
    """Whether clients train at all: a model may also be pruned and measured only."""
    return bool(tuning.local_steps or tuning.local_epochs)


class Averaging(Section):
    """How the clients' changes become one."""

    masks: str = option(
        "combining",
        "masks that clients train under once something is pruned",
        "global",
        names=NameTable("fedprune.learning.mask_rules", "MASKS"),
    )
    average: str | None = option(
        "combining",
        "denominator of the mean change",
        "l0-mean",
        when={"masks": ("union", "intersection")},
        names=NameTable("fedprune.learning.averaging", "AVERAGES", "averages_of"),
    )
    robust: str = option(
        "combining",
        "robust rule for averaging clients' changes; it sees them one by one and gives each the "
        "same weight",
        "none",
        names=NameTable("fedprune.learning.robust_rules", "ROBUST"),
    )
    byzantine: int | None = option(
        "combining",
        "number of clients in a cohort that may be malicious (default three of ten)",
        when={"robust": _COUNTING},
        derived=_byzantine,
        ge=1,
    )
    max_norm: float | Literal["auto"] | None = option(
        "combining",
        "refuse a client's change with a larger norm; auto: five times the running median of "
        "those accepted (default: no limit)",
        None,
    )
    server_optimizer: str = option(
        "tuning",
        "optimizer that the server applies to the averaged change",
        "sgd",
        names=NameTable("fedprune.learning.server_steps", "SERVER_OPTIMIZERS"),
    )
    server_lr: float = option(
        "tuning",
        "the server's learning rate (default: 1, with adagrad, adam and yogi 0.01)",
        1.0,
        derived=lambda c: 0.01 if c.server_optimizer in _ADAPTIVE else 1.0,
        gt=0,
    )
    server_momentum: float | None = option(
        "tuning",
        "the server's momentum, beta 1 (default: 0.9, with adagrad 0)",
        when={"server_optimizer": ("momentum", *_ADAPTIVE)},
        derived=lambda c: 0.0 if c.server_optimizer == "adagrad" else 0.9,
        ge=0,
        lt=1,
    )
    server_decay: float | None = option(
        "tuning",
        "decay of the server's second moment, beta 2",
        0.99,
        when={"server_optimizer": ("adam", "yogi")},
        ge=0,
        lt=1,
    )
    server_floor: float | None = option(
        "tuning",
        "tau: added to the root of the second moment",
        1e-3,
        when={"server_optimizer": _ADAPTIVE},
        gt=0,
    )
    blend: str = option(
        "tuning",
        "what part of a round's change is applied",
        "none",
        names=NameTable("fedprune.learning.blending", "BLENDS"),
    )
    blend_grid: tuple[float, ...] | None = option(
        "tuning",
        "parts that are tried",
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.25),
        when={"blend": ("global", "layer")},
        strict=False,
    )
    moving: str = option(
        "tuning",
        "running average over rounds, as the result",
        "none",
        names=NameTable("fedprune.learning.moving_average", "MOVING"),
    )
    moving_decay: float | None = option(
        "tuning", "weight of the old average in a round", 0.5, when={"moving": "ema"}, ge=0, lt=1
    )
    weighting: Literal["labels", "equal"] = option(
        "combining",
        "weights of clients in means of changes (default: labels, with --dp, --robust and "
        "--scaffold equal)",
        derived=lambda c: (
            "equal" if c.robust != "none" or c.dp != "none" or c.scaffold else "labels"
        ),
    )

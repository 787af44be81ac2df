"""One schema for the TOML file, the command line and Flower's run config.

`RunConfig(...)` is always complete: what the user leaves out is filled from the task's defaults
and from a few rules. It remembers which keys were given, because what followed from them follows
again when one of them is changed.
"""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from fedprune.allowed import check_given, refused, unreadable
from fedprune.defaults import beside_noise, completed
from fedprune.given import parsed, replaced
from fedprune.naming import Refusal
from fedprune.plugins import with_code_of
from fedprune.process import put_back
from fedprune.rules import check

BY_TASK = "by task"
"""What ``--help`` shows where the task sets the default."""


class ConfigError(Refusal):
    """A configuration that cannot run. One line: key=value: what is wrong; allowed: what is."""


def _field(group: str, text: str, default: Any, **limits: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)


Count = Annotated[int, Field(ge=1, le=10**9)]


class RunConfig(BaseModel):
    """A complete configuration: every key has its value, and the values fit together.

    `model_fields_set` names the keys that were given; the others followed from them. None for a
    key that may be left out is as if it were not given.

    Raises:
        ConfigError: one line that names the key, the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    task: str = _field("what is learned", "task (see --list)", "shakespeare")
    clients: Count = _field(
        "what is learned",
        "partitions that the data is split over (default 20; with --client-column all there are)",
        20,
    )
    split: str = _field("what is learned", "who holds which rows (see --list)", BY_TASK)
    alpha: float | None = _field(
        "what is learned", "concentration of --split dirichlet (default 0.5)", None, gt=0
    )
    model: str = _field("what is learned", "family, folder or hub id (see --list)", BY_TASK)
    depth: int | None = _field(
        "what is learned", "blocks of a family built from scratch (default 2)", None, ge=1, le=64
    )
    width: int | None = _field(
        "what is learned",
        "width of such a family, a multiple of 16, with a head for each 16 (default 64)",
        None,
        ge=16,
        le=4096,
        multiple_of=16,
    )
    length: int | None = _field(
        "what is learned",
        "tokens of an example of text, pixels of an image's side (default: by task)",
        None,
        ge=8,
        le=8192,
    )
    data: str = _field("what is learned", "file or folder, for tasks that read one", "")
    encoding: str | None = _field(
        "what is learned",
        "encoding of --data's files of text without a byte order mark (default utf-8)",
        None,
    )
    text_column: str | None = _field(
        "what is learned", "column of the text in --data (default text)", None
    )
    label_column: str | None = _field(
        "what is learned", "column of the class in --data (default label)", None
    )
    target_column: str | None = _field(
        "what is learned", "column of the text to write, for text-to-text (default target)", None
    )
    class_names: tuple[str, ...] = _field(
        "what is learned",
        "names of the classes, in their order (default: the task's, or the labels in --data)",
        (),
        strict=False,
    )
    client_column: str | None = _field(
        "what is learned", "column of --data that says whose row it is, for --split natural", None
    )
    small_owners: Literal["train-only", "group", "drop"] | None = _field(
        "what is learned",
        "owners in --client-column with too little to be cut in train, validation and test: "
        "(see --list; default train-only)",
        None,
    )
    plugin: str = _field("what is learned", "Python file with your own SCORES or TASKS", "")
    init: str = _field(
        "what is learned",
        "folder of a run to go on from: its masks and structure stay, on this data and task",
        "",
    )
    seed: int = _field("what is learned", "every random number derives from it", 0, ge=0)

    rounds: Count = _field("federation", "rounds in all", BY_TASK)
    cohort: Count = _field(
        "federation", "partitions asked a round, drawn without replacement", BY_TASK
    )
    min_clients: Count = _field(
        "federation", "answers without which a round is void (default 1, or what --robust needs)", 1
    )
    hosts: Count = _field(
        "federation", "groups that fold their clients' sums (default min(clients, 8))", ""
    )

    score: str = _field("pruning", "importance of a weight (see --list)", "taylor")
    sparsity: float | None = _field(
        "pruning", "fraction of prunable weights removed (default 0.8)", None, ge=0, lt=1
    )
    threshold: float | None = _field(
        "pruning", "remove scores at or below this instead of a fraction", None
    )
    target_bytes: int | None = _field(
        "pruning",
        "remove what it takes for model.fedprune to have at most so many bytes",
        None,
        ge=1,
    )
    target_flops: float | None = _field(
        "pruning",
        "remove what it takes to keep this part of the FLOPs of prunable layers",
        None,
        gt=0,
        lt=1,
    )
    scope: str = _field("pruning", "who competes with whom (see --list)", "global")
    layers: dict[str, float] = _field(
        "pruning", "density by shell pattern over names, with --scope patterns", {}
    )
    unit: str = _field("pruning", "what is removed together (see --list)", "weight")
    unit_shape: tuple[int, int] | None = _field(
        "pruning", "N,M of n:m (N kept), or rows,columns of a block", None, strict=False
    )
    structure: str = _field(
        "pruning", "how channels are found, with --unit channel (see --list)", "auto"
    )
    pool: str | None = _field(
        "pruning", "a unit's score from its weights' (see --list; default mean)", None
    )
    min_density: float = _field("pruning", "part of every tensor that stays", 0.0, ge=0, lt=1)
    max_density: float = _field("pruning", "part of any tensor that may stay", 1.0, gt=0, le=1)
    schedule: str = _field("pruning", "way to the sparsity (see --list; default cubic)", "")
    warmup: int = _field("pruning", "dense rounds before the first pruning", BY_TASK, ge=0)
    end: Count = _field(
        "pruning", "last round that prunes (default: two thirds of the way from warm-up)", ""
    )
    frequency: Count = _field("pruning", "rounds from one pruning to the next", 1)
    tolerance: float | None = _field(
        "pruning",
        "part by which --schedule adaptive lets the validation loss rise (default 0.02)",
        None,
        ge=0,
        le=10,
    )
    candidates: int | None = _field(
        "pruning", "amounts that --schedule adaptive tries at a time (default 4)", None, ge=2, le=64
    )
    adaptive: str | None = _field(
        "pruning", "what an adaptive schedule chooses (see --list; default global)", None
    )
    floor: int = _field("pruning", "fewest weights kept in any tensor", 1, ge=0)
    exclude: tuple[str, ...] = _field(
        "pruning", "shell patterns of parameters never pruned", (), strict=False
    )
    include: tuple[str, ...] = _field(
        "pruning", "shell patterns of parameters pruned against the rule", (), strict=False
    )
    regrow: float | None = _field(
        "pruning",
        "part of the kept weights that --schedule regrow exchanges at first (default 0.3)",
        None,
        gt=0,
        le=1,
    )
    rewind: int | None = _field(
        "pruning",
        "round whose weights the survivors go back to when pruned (0: the start)",
        None,
        ge=0,
    )
    reconstruct: str | None = _field(
        "pruning", "fit what stays, by least squares, after a pruning (see --list)", None
    )
    score_steps: Count = _field(
        "pruning", "times a pruning scores and removes, a little each time", 1
    )
    score_during: Literal["pass", "tune"] = _field(
        "pruning", "statistics from a pass of their own, or collected while tuning", "pass"
    )
    calibration: Literal["dense", "sequential", "local"] = _field(
        "pruning",
        "dense: score all layers at once; sequential: block by block behind pruned ones; local: "
        "each client behind what it prunes itself, for votes and for --masks of their own",
        "dense",
    )
    score_cohort: Literal["cohort", "all"] = _field(
        "pruning", "who is asked for scores: the round's cohort, or everyone who trains", "cohort"
    )
    score_examples: int | None = _field(
        "pruning",
        "training examples that a client draws to be scored on (default: all it has)",
        None,
        ge=1,
    )
    probes: int | None = _field(
        "pruning",
        "random perturbations of a score that takes some (default 64)",
        None,
        ge=2,
        le=100_000,
    )

    combine: str = _field("combining", "how clients' scores become one (see --list)", "sum")
    trim: float | None = _field(
        "combining",
        "part that trimmed-mean leaves out at either end (default 0.1)",
        None,
        gt=0,
        lt=0.5,
    )
    vote_scope: str | None = _field(
        "combining", "scope of the clients' own masks when they vote (default: --scope)", None
    )
    normalise: str = _field(
        "combining", "what each client does to its scores first (see --list)", "none"
    )
    masks: str = _field(
        "combining", "whose masks weights are tuned under when pruned (see --list)", "global"
    )
    average: str | None = _field(
        "combining",
        "denominator of the mean change under --masks union, intersection (default l0-mean)",
        None,
    )
    robust: str = _field(
        "combining",
        "rule for clients' changes that some of them cannot bend (see --list): one by one, every "
        "client alike",
        "none",
    )
    byzantine: int | None = _field(
        "combining",
        "how many of a cohort may send anything, with --robust trimmed-mean, multi-krum, nearest-* "
        "(default three of ten)",
        None,
        ge=1,
    )
    max_norm: float | Literal["auto"] | None = _field(
        "combining",
        "largest norm of a client's change that counts; auto: five times the running median of "
        "those that did (default: no limit)",
        None,
    )
    strikes: int | None = _field(
        "federation",
        "rounds in a row that a client may fail in before it is left out for as many (default: "
        "it is always asked)",
        None,
        ge=1,
    )
    agreement: bool = _field(
        "combining", "clients also send their own mask as votes, to measure agreement", True
    )

    optimizer: str = _field("tuning", "the clients' optimizer (see --list)", BY_TASK)
    lr: float = _field("tuning", "the clients' learning rate in round one", BY_TASK, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = _field(
        "tuning", "learning rate over rounds", "cosine"
    )
    lr_rewind: bool = _field("tuning", "begin --lr-schedule anew at every pruning", False)
    momentum: float | None = _field("tuning", "momentum of sgd (default 0.9)", None, ge=0, lt=1)
    weight_decay: float = _field("tuning", "weight decay", 0.0, ge=0)
    batch_size: Count = _field("tuning", "examples in a step", BY_TASK)
    score_batch: Count = _field("tuning", "examples in a batch of scoring and measuring", 64)
    accumulate: Count = _field("tuning", "batches whose gradients make one step", 1)
    precision: Literal["fp32", "bf16"] = _field(
        "tuning", "type of the computation while tuning (bf16: autocast)", "fp32"
    )
    compile: bool = _field("tuning", "torch.compile the model that is tuned", False)
    checkpointing: bool = _field(
        "tuning", "recompute activations instead of keeping them (long sequences)", False
    )
    local_steps: int = _field(
        "tuning", "steps a client takes in a round (0: by epochs)", BY_TASK, ge=0
    )
    local_epochs: int = _field("tuning", "passes over the shard instead of steps", 0, ge=0)
    clip: float = _field("tuning", "largest gradient norm of a step (0: no clipping)", 1.0, ge=0)
    proximal: float = _field("tuning", "FedProx: weight of |w - w_sent|²/2", 0.0, ge=0)
    l1: float = _field("tuning", "weight of Σ|w| over prunable weights", 0.0, ge=0)
    l2: float = _field("tuning", "weight of Σw²/2 over prunable weights", 0.0, ge=0)
    group_lasso: float = _field(
        "tuning", "weight of Σ sqrt(size)·|w| over the units of --unit", 0.0, ge=0
    )
    shrinkage: Literal["gradient", "proximal"] | None = _field(
        "tuning", "how l1 and group lasso act: proximal gives exact zeros (default)", None
    )
    distil: float = _field(
        "tuning",
        "part of the clients' loss that is the distance to a teacher's answers",
        0.0,
        ge=0,
        le=1,
    )
    distil_hidden: float = _field(
        "tuning", "weight of the distance to the outputs of the teacher's blocks", 0.0, ge=0
    )
    distil_attention: float = _field(
        "tuning", "weight of the distance to the teacher's attention", 0.0, ge=0
    )
    temperature: float | None = _field(
        "tuning", "temperature of the answers in --distil (default 2)", None, gt=0
    )
    distil_schedule: Literal["constant", "linear"] = _field(
        "tuning", "weights of distillation over rounds: linear falls to 0", "constant"
    )
    teacher: str = _field(
        "tuning", "folder of a finished run to learn from (default: the model before pruning)", ""
    )
    server_lr: float = _field("tuning", "factor on the averaged change", 1.0, gt=0)

    blend: str = _field("tuning", "share of a round's change that is kept (see --list)", "none")
    blend_grid: tuple[float, ...] | None = _field(
        "tuning", "shares that --blend tries (default 0,0.25,0.5,0.75,1,1.25)", None, strict=False
    )
    moving: str = _field(
        "tuning", "running average of the rounds as the result (see --list)", "none"
    )
    moving_decay: float | None = _field(
        "tuning",
        "part of the average that --moving ema keeps in a round (default 0.5)",
        None,
        ge=0,
        lt=1,
    )

    wire: str = _field("wire", "type of the weights on the wire (see --list)", "fp32")
    uplink: str | None = _field(
        "wire", "type of the changes that clients send (see --list; default: --wire)", None
    )
    error_feedback: bool = _field(
        "wire", "clients add to what they send what rounding kept back before", False
    )
    score_wire: str = _field("wire", "type of the statistics on the wire (see --list)", "fp32")

    engine: Literal["ray", "inline", "flower"] = _field(
        "engine",
        "ray: Flower's simulation; inline: this process, no Ray; flower: set by `flwr run`",
        "ray",
    )
    workers: int = _field("engine", "client processes (0: one a processor)", 0, ge=0)
    gpus: float = _field(
        "engine", "GPUs a worker gets (-1: CUDA shared evenly, if there)", -1.0, ge=-1, le=1
    )
    ray_address: str = _field("engine", "address of a running Ray cluster", "")
    timeout: float = _field(
        "engine",
        "seconds a phase may take (a client: half of what is left to its host)",
        3600.0,
        gt=0,
    )

    vocabulary: Literal["full", "used"] = _field(
        "pruning",
        "used: before round one, take tokens that no client uses out of embeddings and head",
        "full",
    )
    shrink: Literal["never", "end", "every"] = _field(
        "pruning",
        "take heads, neurons, channels, sub-layers that masks emptied out of the model: never, at "
        "the end, after every pruning (default: end, where --unit is one of these)",
        "never",
    )

    reduce: tuple[Literal["dead", "merge", "share", "low-rank"], ...] = _field(
        "redundancy", "what to take out once: dead, merge, share, low-rank", (), strict=False
    )
    reduce_round: int | None = _field(
        "redundancy",
        "the round that does (default: after the last pruning, if one is left)",
        None,
        ge=1,
    )
    reduce_within: float | None = _field(
        "redundancy",
        "relative distance within which neurons merge and matrices are shared (default 0: equal)",
        None,
        ge=0,
        lt=1,
    )
    rank_by: Literal["activations", "weights"] | None = _field(
        "redundancy", "whose error factors make least (see --list; default activations)", None
    )
    rank_energy: float | None = _field(
        "redundancy",
        "part of its energy that a factored matrix keeps (default 0.95)",
        None,
        gt=0,
        le=1,
    )
    rank_budget: float | None = _field(
        "redundancy",
        "part of the kept weights that factors and other matrices hold",
        None,
        gt=0,
        lt=1,
    )
    rank_tolerance: float | None = _field(
        "redundancy",
        "smallest such part with which the loss on validation rises by at most this part",
        None,
        ge=0,
    )

    dp: Literal["none", "client", "example"] = _field(
        "privacy", "whose part in what is released noise hides: a client's, an example's", "none"
    )
    epsilon: float | None = _field(
        "privacy", "privacy budget: the run stops before the release that exceeds it", None, gt=0
    )
    delta: float | None = _field(
        "privacy", "probability with which epsilon may not hold (default 1e-5)", None, gt=0, lt=1
    )
    sampling: Literal["fixed", "poisson", "round-robin"] = _field(
        "privacy",
        "fixed: a cohort of --cohort; poisson: each client by itself, --cohort on average; "
        "round-robin: --cohort clients in turn, in a public order",
        "fixed",
    )
    weighting: Literal["labels", "equal", "equal-scores"] = _field(
        "privacy",
        "weight of a client in means of changes and of clients' own scores (equal-scores: by "
        "labels for changes only; default: labels, with --dp equal)",
        "labels",
    )
    dp_clip: float | None = _field(
        "privacy",
        "largest L2 norm of a client's change, or of an example's gradient (default 1)",
        None,
        gt=0,
    )
    dp_noise: float | None = _field(
        "privacy",
        "noise on changes, in sensitivities (default: what --epsilon allows over the run)",
        None,
        ge=0,
    )
    dp_score_clip: float | None = _field(
        "privacy",
        "largest L2 norm of what is summed for scores (default: all are scaled to norm 1)",
        None,
        gt=0,
    )
    dp_score_noise: float | None = _field(
        "privacy",
        "noise on what is summed for scores, in sensitivities (default: as --dp-noise)",
        None,
        ge=0,
    )
    dp_rate: float | None = _field(
        "privacy",
        "part of its examples that a client draws for a step, with --dp example (default 0.1)",
        None,
        gt=0,
        le=1,
    )
    metrics: Literal["exact", "noised"] = _field(
        "privacy",
        "losses and counts that measure: as they are, or with noise (default with --dp, unless "
        "there is a --panel)",
        "exact",
    )
    dp_metric_clip: float | None = _field(
        "privacy", "largest L2 norm of a client's losses and metrics (default 10)", None, gt=0
    )
    dp_metric_noise: float | None = _field(
        "privacy", "noise on metrics, in sensitivities (default: as --dp-noise)", None, ge=0
    )
    panel: int = _field(
        "privacy", "clients, the last ones, that only measure: their data is not protected", 0, ge=0
    )
    allow_uncovered: bool = _field(
        "privacy", "go on although something is released that no guarantee covers", False
    )
    noise_source: Literal["seeded", "secret"] = _field(
        "privacy",
        "secret: noise from the operating system (default wherever there is noise); seeded: noise "
        "and keys follow from --seed, for simulation only: anyone with the seed can remove it",
        "seeded",
    )
    response: float | None = _field(
        "privacy",
        "pure epsilon of a client's vote by randomised response, with --combine votes",
        None,
        gt=0,
    )
    secure: Literal["none", "secagg"] = _field(
        "privacy", "secagg: the server sees sums of masked answers only (SecAgg+)", "none"
    )
    secure_neighbours: int | None = _field(
        "privacy", "clients that each shares keys with (default: by the cohort)", None, ge=2
    )
    secure_dropout: float | None = _field(
        "privacy",
        "part of a cohort that may drop out of a secure sum (default 0.3)",
        None,
        ge=0,
        lt=1,
    )
    secure_bits: int | None = _field(
        "privacy", "width of the integers of a secure sum: 32, 64 (default 64)", None
    )
    secure_minimum: int | None = _field(
        "privacy", "fewest clients in a secure sum (default 3)", None, ge=2
    )
    ranges: dict[str, float] = _field(
        "privacy",
        "largest magnitude in a secure sum, by shell pattern over quantity/tensor",
        {},
    )
    defence: float = _field(
        "privacy",
        "part of its change, the largest, that each client keeps back (PriPrune)",
        0.0,
        ge=0,
        lt=1,
    )

    baselines: tuple[Literal["dense", "random"], ...] = _field(
        "results",
        "arms to run beside: dense, random (after --init: random among the weights that are left)",
        (),
        strict=False,
    )
    out: str = _field("results", "folder of the results (default runs/<task>-<time>)", "")
    verbose: bool = _field("results", "show Flower's and Ray's own logs", False)

    def __init__(self, /, **given: Any) -> None:
        """See the class. Values have their types: text that says a number is for `configure`."""
        try:
            check_given(type(self), given)  # what completes it relies on the types
            super().__init__(**given)
        except ValidationError as error:
            refusal = refused(error.errors()[0], type(self).model_fields)
            raise ConfigError(str(refusal), refusal.key, refusal.allowed) from None
        except Refusal as refusal:
            raise ConfigError(str(refusal), refusal.key, refusal.allowed) from None
        except OSError as error:
            raise ConfigError(unreadable(error, given)) from None
        except (ValueError, ImportError) as error:  # from a plug-in's file
            raise ConfigError(str(error)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _completed(
        cls, given: dict[str, Any], complete: ModelWrapValidatorHandler[RunConfig]
    ) -> RunConfig:
        given = {key: v for key, v in given.items() if v is not None or not _optional(key)}
        return _remembering(complete(completed(given)), given)

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        check(self)
        if self.dp != "none" and self.dp_noise is None:
            from fedprune.privacy.planning import noise_of_budget

            # Not known before all else is; the model is frozen for everybody else.
            with put_back():  # the accountant's package is told to be quiet
                self.__dict__["dp_noise"] = noise_of_budget(self)
        self.__dict__.update(beside_noise(self))
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The keys that were given, with their values."""
        return {key: value for key, value in self if key in self.model_fields_set}

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> RunConfig:
        """The configuration with other values: what followed from the old ones follows again.

        Args:
            update: keys to change; None takes back what was given.
            deep: as in pydantic, without an update.

        Raises:
            ConfigError: the values do not fit together.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {**self.given, **flat(update)}
        return configure({key: value for key, value in given.items() if value is not None})


def _optional(key: str) -> bool:
    field = RunConfig.model_fields.get(key)
    return field is not None and types.NoneType in typing.get_args(field.annotation)


def _remembering(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The configuration, with these as the keys that were given."""
    config.__pydantic_fields_set__.intersection_update(given)
    return config


def with_values(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration but for these values: nothing follows from them, nothing is checked.

    For arms, which keep the plan of another run.
    """
    return BaseModel.model_copy(config, update=changes)


def configure(given: Mapping[str, Any]) -> RunConfig:
    """A complete configuration from the keys the user gave (``local-steps`` or ``local_steps``).

    Raises:
        ConfigError: one line that names the key, the value and what is allowed.
    """
    return RunConfig(**_read(given))


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as Python spells them."""
    return {str(key).replace("-", "_"): value for key, value in given.items()}


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values as they are in Python, as far as they can be read."""
    fields = RunConfig.model_fields
    return {
        key: parsed(key, value, fields[key].annotation) if key in fields else value
        for key, value in flat(given).items()
    }


def overridden(
    given: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[RunConfig, tuple[str, ...]]:
    """A configuration with other values, and what of the keys given has no meaning beside them.

    Args:
        given: keys of a file, or of another configuration.
        changes: keys that win over them. One takes the place of what says the same in another
            way, such as a threshold of a sparsity; what nothing reads beside it is left out.

    Returns:
        The configuration, and a line for each key that was left out.

    Raises:
        ConfigError: the values do not fit together.
    """
    given, changes = _read(given), _read(changes)
    new = {k: v for k, v in changes.items() if v is not None and v != given.get(k)}
    by = {key: [k for k in new if key in replaced(given, {k: new[k]})] for key in given}
    gone = {key: f"not beside {_spelled(by[key])}" for key in sorted(replaced(given, new))}
    first: ConfigError | None = None
    while True:
        kept = {key: value for key, value in given.items() if key not in gone}
        try:
            config = configure({**kept, **changes})
        except ConfigError as refusal:
            key = refusal.key.replace("-", "_")
            idle = refusal.allowed.endswith("leave it out") and key not in _WANTED
            first = first or refusal
            if not idle or not new or key not in kept.keys() - changes.keys():
                raise first from None
            gone[key] = str(refusal).partition(": ")[2].rpartition("; allowed: ")[0]
            continue
        lines = [f"{_spelled([k])}={given[k]!r} is left out: {why}" for k, why in gone.items()]
        return config, tuple(lines)


_WANTED = ("init", "teacher", "reduce", "reconstruct", "rewind")
"""Keys that a run is made for: refused beside another value, and never left out."""


def _spelled(keys: Iterable[str]) -> str:
    return ", ".join(sorted(key.replace("_", "-") for key in keys))


_HEAD = "# What was given: --config reads these keys, and all others follow from them again."
_FOLLOWED = "# What followed from it: read back to compare, and as a record of what ran."


def to_toml(config: RunConfig) -> str:
    """The configuration as TOML, keys spelled as on the command line.

    First the keys that were given, then, in the table ``followed``, those that followed from them.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    said = config.model_fields_set - {key for key, value in values.items() if value == ""}
    given, followed = (
        {key.replace("_", "-"): v for key, v in values.items() if (key in said) is wanted}
        for wanted in (True, False)
    )
    rest = tomli_w.dumps({"followed": followed})
    return f"{_HEAD}\n{tomli_w.dumps(given)}\n{_FOLLOWED}\n{rest}"


def from_toml(text: str) -> dict[str, Any]:
    """The keys that a TOML document gives; what followed from them when it was written is not.

    Raises:
        ConfigError: it is not TOML.
    """
    document = _document(text)
    document.pop("followed", None)
    return document


def all_keys(text: str) -> dict[str, Any]:
    """Every key of a TOML document as Python spells it, given or followed.

    Raises:
        ConfigError: it is not TOML.
    """
    document = _document(text)
    followed = document.pop("followed", {})
    return flat({**followed, **document})


def recorded(text: str, plugin: str | None = None, where: object = "a file") -> RunConfig:
    """The configuration as it was when `to_toml` wrote it: nothing follows again.

    Args:
        text: of the document.
        plugin: the caller's plug-in, "" for none, where the text is a file's: that runs no code of
            its own choice. None: the text is the caller's own.
        where: the file, for messages.

    Raises:
        ConfigError: it is not TOML, no configuration, or names a plug-in that was not given.
    """
    keys = _of_caller(flat(all_keys(text)), plugin, where)
    return _remembering(configure(keys), flat(from_toml(text)))


def _of_caller(keys: dict[str, Any], plugin: str | None, where: object) -> dict[str, Any]:
    """The keys with the caller's plug-in, see `recorded`."""
    try:
        return keys if plugin is None else with_code_of(plugin, keys, where)
    except ValueError as error:
        raise ConfigError(str(error), "plugin") from None


def _document(text: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ConfigError(f"config: not TOML: {error}; allowed: flat keys, as in --help") from None
    if not isinstance(found.get("followed", {}), dict):
        raise ConfigError("followed: no such key; allowed: the table that a run wrote")
    return found


def given_in(text: str, plugin: str | None = None, where: object = "a file") -> dict[str, Any]:
    """As `from_toml`; of a document with every key and no word of what followed, those that count.

    Earlier versions wrote such: there, what would follow with the same value is taken to have
    followed.

    Args:
        text: of the document.
        plugin: as for `recorded`.
        where: the file, for messages.

    Raises:
        ConfigError: it is not TOML, or names a plug-in that was not given.
    """
    given = _of_caller(flat(from_toml(text)), plugin, where)
    if "followed" in _document(text) or not {"task", "clip", "wire", "verbose"} <= given.keys():
        return given
    whole = configure(given)
    # The noise last: to see whether it follows takes longest.
    for key in [*(k for k in reversed(RunConfig.model_fields) if k != "dp_noise"), "dp_noise"]:
        fewer = {k: value for k, value in given.items() if k != key}
        if key in given and _follows(fewer, whole):
            given = fewer
    return given


def _follows(given: Mapping[str, Any], whole: RunConfig) -> bool:
    """Whether a configuration follows from these keys."""
    try:
        return configure(given) == whole
    except ConfigError:
        return False


def from_flower(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys given in Flower's flat run config: those of ``toml``, and those beside it, not "".

    A whole configuration may come as one TOML document under ``toml``; the other keys win over it.

    Raises:
        ConfigError: the document is not TOML.
    """
    beside = {key: value for key, value in run_config.items() if value != "" and key != "toml"}
    return given_in(str(run_config.get("toml", ""))), beside

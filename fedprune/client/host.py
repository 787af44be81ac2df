"""Hosts: where partitions are served and their answers added up.

A host holds one resident model and the shards of its partitions. It answers a question for each
of them in order; every answer is cast, encoded, counted, decoded and checked as if it had come
from a device of its own, and what leaves the host is one sum. Partition p of n always belongs to
host p * hosts // n, so the order of every sum is fixed whoever is sampled, fails or works where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from fedprune.client.answers import answer
from fedprune.client.context import ClientContext, hidden
from fedprune.client.memory import (
    FOLDER_NAME,
    Residuals,
    keep,
    recalled,
)
from fedprune.client.rehearsal import rehearse
from fedprune.client.teacher import teacher_model
from fedprune.client.tokens import read_with
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet, digest_of
from fedprune.config import RunConfig, with_values
from fedprune.config.kinds import KINDS
from fedprune.learning.local_training import Train, prepared, tune
from fedprune.options.refusal import Refused
from fedprune.protocol.client_privacy import (
    hides,
    leaving,
    noised_means,
    noised_metrics,
    noises_itself,
    silenced,
)
from fedprune.protocol.coded_answers import encode_answer
from fedprune.protocol.forms import Form, form_of
from fedprune.protocol.messages import (
    Aggregate,
    Answer,
    Question,
)
from fedprune.protocol.models import dense_model, layout_after, layout_for
from fedprune.protocol.noise import source_for
from fedprune.protocol.parts import (
    Part,
    added,
    failure_of,
    understood,
)
from fedprune.protocol.questions import decode_question
from fedprune.protocol.releases import most_votes
from fedprune.randomness import generator
from fedprune.runtime.guarding import allowance, guarded
from fedprune.runtime.process import one_thread, put_back
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.claims import TooLarge, within_memory
from fedprune.tasks.shards import checked, shards_of
from fedprune.tasks.task import Shard, Task
from fedprune.tensors import Tensors, counters_of, digest, reset

log = logging.getLogger("fedprune")

REBUILT = 3
"""Models of other edits that a host keeps: tiers are asked one after the other, in every round."""

Tick = Callable[[int], None]
"""Told how many more partitions have answered, or failed."""


@dataclass(frozen=True)
class Host:
    """What a process that serves partitions keeps: built once, used for every question.

    Attributes:
        config: complete configuration.
        task: what is learned.
        model: the resident model; its values are overwritten.
        layout: its layout.
        shards: the partitions that are served.
        device: where the model is.
        tuned: the same model, compiled where that was asked for.
        edits: what was cut out of the dense model.
        rebuilt: the same host around the models of other edits, the newest last.
        teachers: the newest model to learn from, by its digest.
        residuals: what its clients did not send yet, with ``--error-feedback``.
        counters: the model's buffers that are no state, as it was built.
        train: how its clients tune.
        said: what was said of clients' code that raises where noise hides it.
    """

    config: RunConfig
    task: Task
    model: nn.Module
    layout: Layout
    shards: Mapping[int, Shard]
    device: torch.device
    tuned: nn.Module
    edits: Edits = ()
    rebuilt: dict[Edits, Host] = field(default_factory=dict)
    teachers: dict[str, nn.Module] = field(default_factory=dict)
    residuals: Residuals = field(default_factory=Residuals)
    counters: Tensors = field(default_factory=dict)
    train: Train = tune
    said: set[str] = field(default_factory=set)


def build_host(
    config: RunConfig,
    shards: Mapping[int, Shard] | None = None,
    memory: Path | None = None,
    *,
    tried: bool = False,
    train: Train = tune,
) -> Host:
    """Build the model and the shards (all of the task's, unless given), and try them together.

    Residuals are kept in `memory`, or in the run's folder. What was `tried` before is not again.
    Clients tune by `train`, which takes and returns what
    `fedprune.learning.local_training.tune` does.

    Raises:
        ValueError: as `fedprune.tasks.shards.shards_of` and `fedprune.client.rehearsal.rehearse`.
    """
    with put_back():
        host = replace(_opened(config, shards, memory), train=train)
        if not tried:
            rehearse(host.task, config, host.model, host.layout, host.shards, train)
        return host


def _opened(config: RunConfig, shards: Mapping[int, Shard] | None, memory: Path | None) -> Host:
    task = tasks_of(config.plugin)[config.task]
    everyone = shards is None
    shards = shards_of(task, config) if shards is None else checked(shards, config)
    model = dense_model(config) if everyone else _no_larger_than_memory(config)
    cuda = torch.cuda.is_available() and config.gpus != 0
    device = torch.device("cuda" if cuda else "cpu")
    layout = layout_for(config, model)
    model = model.to(device)
    return Host(
        *(config, task, model, layout, shards, device, prepared(model, config)),
        residuals=Residuals(memory or residual_folder(config)),
        counters=counters_of(model),
    )


def _no_larger_than_memory(config: RunConfig) -> nn.Module:
    """The dense model of a device, whose size is a server's word.

    Raises:
        ValueError: it is larger than this machine could train; found without allocating it, where
            the task can build it on PyTorch's meta device.
    """
    name = f"model={config.model!r}"
    if not Path(config.model).is_dir():  # what is in a folder is held against its own files
        try:
            with within_memory(name), torch.device("meta"):
                tasks_of(config.plugin)[config.task].model(config)
        except TooLarge:
            raise
        except Exception as error:  # such as a model that reads its weights from elsewhere
            log.debug("not to be built on the meta device: %s", error)
    with within_memory(name):
        return dense_model(config)


def residual_folder(config: RunConfig) -> Path | None:
    """Where clients of a run on this machine keep their residuals; None without a folder."""
    return Path(config.out) / FOLDER_NAME if config.error_feedback and config.out else None


def placed(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration as those who serve partitions get it: it says where they keep residuals."""
    out = str(folder.resolve())
    return with_values(config, {"out": out}) if config.error_feedback else config


def with_edits(host: Host, edits: Edits) -> Host:
    """The host around the model with these edits; of those rebuilt the newest few are kept."""
    if edits == host.edits:
        return host
    if edits in host.rebuilt:
        host.rebuilt[edits] = host.rebuilt.pop(edits)  # the newest again
    else:
        model = dense_model(host.config)
        layout = layout_after(host.config, model, edits)
        model = model.to(host.device)
        shards = read_with(edits, host.task, host.shards.items())
        whole = replace(host, model=model, layout=layout, edits=edits, shards=shards)
        fresh = replace(whole, rebuilt={}, counters=counters_of(model))
        while len(host.rebuilt) >= REBUILT:
            del host.rebuilt[next(iter(host.rebuilt))]
        host.rebuilt[edits] = replace(fresh, tuned=prepared(model, host.config))
    return host.rebuilt[edits]


def serve(
    host: Host, packet: Packet, partitions: Sequence[int], tick: Tick | None = None
) -> Aggregate:
    """The sum of the partitions' answers; a partition that fails is left out and named.

    Raises:
        ValueError: the configuration promises secure sums, and this one would be in the open.
    """
    _in_the_open(host)
    asked = _asked(host, packet)
    total = Aggregate()
    for i, partition in enumerate(partitions):
        part = _part(asked, partition, len(partitions) - i)
        total = added(part, asked.question, asked.form, host.config, total)
        if tick:
            tick(1)
    return total


def _in_the_open(host: Host) -> None:
    if host.config.secure != "none":
        raise ValueError(f"secure={host.config.secure}: asked for an answer in the open")


def parts_of(host: Host, packet: Packet, partitions: Sequence[int]) -> list[Part]:
    """What each of the partitions sends, in their order: what a device answers.

    Raises:
        ValueError: as for `serve`.
    """
    _in_the_open(host)
    asked = _asked(host, packet)
    return [_part(asked, p, len(partitions) - i) for i, p in enumerate(partitions)]


def sum_of(host: Host, packet: Packet, parts: Sequence[Part]) -> Aggregate:
    """The sum that `serve` gives, of parts that are there already."""
    asked = _asked(host, packet)
    total = Aggregate()
    for part in parts:
        total = added(part, asked.question, asked.form, host.config, total)
    return total


@dataclass(frozen=True)
class _Asked:
    """A question as a host serves it: the model that it is about, and the form of its answers.

    Attributes:
        host: around that model.
        question: what is asked.
        form: of the answers.
        seconds: how long a partition may take, by how many are still to answer.
    """

    host: Host
    question: Question
    form: Form
    seconds: Callable[[int], float]


def _asked(host: Host, packet: Packet) -> _Asked:
    host = with_edits(host, edits_in(packet["bits"]))
    question = decode_question(packet, host.layout)
    form = form_of(question, host.config, host.layout)
    return _Asked(host, question, form, allowance(host.config.timeout))


def _part(asked: _Asked, partition: int, left: int) -> Part:
    """What a partition sends, with as many of the host's still to answer, itself included."""
    host, question = asked.host, asked.question
    try:
        meant = answered(host, question, partition, asked.seconds(left))
        packet = encoded(host, question, partition, meant)
        if host.config.error_feedback and KINDS[question.kind].changes:
            _keep_back(asked, partition, meant, packet)
        return Part(partition, packet)
    except Exception as error:  # whatever a client's code raises must not stop the others
        failure = failure_of(partition, question.kind, error)
        failure = silenced(failure, host.config, error)
        return Part(partition, failure=failure)


def _keep_back(asked: _Asked, partition: int, meant: Answer, packet: Packet) -> None:
    """Keep what the packet does not say of the change; of one that will be refused, nothing."""
    host, question = asked.host, asked.question
    try:
        given = understood(packet, question, asked.form)
    except Refused:
        return
    at = (host.residuals, partition, question.round)
    since = question.counted.get(partition, 0)
    keep(*at, since, meant.values - given.values, question.weights, question.masks)


def released(host: Host, question: Question, partition: int) -> Packet:
    """What one partition sends: its answer, encoded."""
    return encoded(host, question, partition, answered(host, question, partition))


def answered(
    host: Host, question: Question, partition: int, seconds: float | None = None
) -> Answer:
    """One partition's answer; of a change with what it kept back before, where it does that.

    Raises:
        RuntimeError: it took longer than so many seconds, by default half of the phase's.
    """
    limit = host.config.timeout / 2 if seconds is None else seconds
    reset(host.model, host.counters)
    with one_thread():
        return _answered(host, question, partition, limit)


def _answered(host: Host, question: Question, partition: int, limit: float) -> Answer:
    client = ClientContext(
        partition,
        host.shards[partition],
        host.model,
        host.task,
        host.config,
        host.layout,
        host.device,
        host.tuned,
        _teacher(host, question),
        host.train,
        host.said,
    )
    form = form_of(question, host.config, host.layout)
    most = most_votes(question, host.config, form, host.layout)
    given = _given(client, question, form, limit)
    given = leaving(given, question, host.config, most)
    if noises_itself(question.kind, host.config):
        q = question
        what = f"metrics {q.part} {q.candidates} {digest(q.rungs)} {digest(q.given)}"
        source = source_for(question, host.config, partition, what)
        given = replace(given, totals=noised_means(given.totals, host.config, source))
    if not host.config.error_feedback or not KINDS[question.kind].changes:
        return given
    at = (host.residuals, partition, question.counted.get(partition, 0))
    return replace(given, values=given.values + recalled(*at, question.weights, question.masks))


def _given(client: ClientContext, question: Question, form: Form, limit: float) -> Answer:
    """What a client answers; zeros, if its code fails and noise is to hide what it would say.

    A failure would tell. Of --dp example these are means alone: each example that fails counts as 0
    by itself (`fedprune.client.dp_sgd`), as the noise that the client adds is not to be left out.

    Raises:
        Exception: whatever the client's code raises, if nothing hides it; Refused, which is about
            the question and is public, in any case.
    """
    try:
        return guarded(lambda: answer(question, client), limit)
    except Exception as error:
        c = client.config
        bounded = c.dp == "client" and KINDS[question.kind].asks == "cohort"
        if isinstance(error, Refused) or not (bounded or noised_metrics(question.kind, c)):
            raise
        hidden(error, "zeros leave each client whose code does", client.said)
        return _zeros(form)


def _zeros(form: Form) -> Answer:
    votes = torch.zeros(form.voters, dtype=torch.bool) if form.voters else None
    beside = torch.zeros(form.statistics) if form.statistics else None
    totals = dict.fromkeys(form.totals, 0.0)
    return Answer(torch.zeros(form.values), 1.0, {**totals, "count": 0.0}, votes, beside)


def encoded(host: Host, question: Question, partition: int, meant: Answer) -> Packet:
    """An answer in the types of the wire; the same bits whoever encodes it, and when."""
    c = host.config
    own = form_of(question, c, host.layout).own
    gen = generator(c.seed, "rounding", question.round, partition)
    wire = c.uplink or c.wire
    fixed = hides(c)
    return encode_answer(meant, question, wire, c.score_wire, own=own, gen=gen, fixed=fixed)


def _teacher(host: Host, question: Question) -> nn.Module | None:
    """The model to learn from, built once; the one before is let go of."""
    if not question.teacher:
        return None
    name = digest_of(question.teacher)
    if name not in host.teachers:
        host.teachers.clear()
        model = teacher_model(question.teacher, host.config)
        host.teachers[name] = model.to(host.device)
    return host.teachers[name]


def grouped(partitions: Sequence[int], config: RunConfig) -> dict[int, list[int]]:
    """Host to the partitions of it that are asked, both ascending."""
    groups: dict[int, list[int]] = {}
    for partition in sorted(partitions):
        groups.setdefault(partition * config.hosts // config.clients, []).append(partition)
    return groups


def labels_of(host: Host) -> dict[int, int]:
    """The partitions a host can serve and the labels in their training parts.

    How many labels a client has is its own affair where its answers are: then 0 stands for it.
    """
    if hides(host.config):
        return dict.fromkeys(sorted(host.shards), 0)
    return {p: host.task.labels(shard.train) for p, shard in sorted(host.shards.items())}

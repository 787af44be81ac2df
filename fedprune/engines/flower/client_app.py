"""Flower ClientApp: unpack, answer for every hosted partition, fold, pack.

In simulation a node hosts the partitions that a message names, and any worker process can serve
any host, because what it keeps is built from the configuration alone. A real device hosts one
partition, itself: its node config names it (``partition-id``) and its folder (``data``); one that
stands for a site hosts several (``partition-id="3,4"``), each in a folder of its number there. With
``signing-key`` and ``signers`` it signs what it shows for secure sums, and takes part in them with
nobody whose signature it does not know. What a device sends of each is the coded answer, the one
whose bytes are counted. It keeps the configuration, that it was rehearsed with this device's data
(every message is answered by a new process), and the newest mask and teacher in Flower's
``Context.state``; in simulation nothing is there: Flower's pickles it with every message. The
secrets of a secure sum are there until it is opened, see `fedprune.secagg.device_memory`. What it
remembers of its own (`fedprune.client.memory`) lies in ``<data>.remembered``, and never leaves it.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedprune.client.carried_memory import disclosed, returned
from fedprune.client.host import Host, labels_of
from fedprune.client.memory import ClientMemory
from fedprune.client.serving import parts_of, serve, sum_of
from fedprune.codec.wire import Packet, head_of
from fedprune.config import recorded
from fedprune.config.terms import noised
from fedprune.engines.flower.client_hosts import (
    SECURE_RECORD,
    HostOf,
    config_text,
    data_place,
    host_of_node,
    ledger_of_device,
    memory_of_device,
    secret_memory,
    simulated_host,
    whole_question,
)
from fedprune.engines.flower.clocks import own_clock
from fedprune.engines.flower.given import admit, charge
from fedprune.engines.flower.messages import Copies, packet_in, records
from fedprune.engines.flower.node_config import device_of, first_partition, is_device
from fedprune.learning.local_training import Train, tune
from fedprune.options.refusal import ConfigError, Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.client_privacy import hides, silenced
from fedprune.protocol.failures import Failure, plain
from fedprune.protocol.held_weights import BASE, Lacking
from fedprune.protocol.parts import PartitionPart, failure_of
from fedprune.protocol.replies import named_reply, parts_packet, question_name, sum_packet
from fedprune.protocol.versions import OWN_VERSION, check_same_protocol
from fedprune.secagg.client_stages import serve_call
from fedprune.secagg.device_memory import served_once
from fedprune.secagg.keys import seeds_from
from fedprune.secagg.messages import StageReply
from fedprune.secagg.packets import call_of, reply_packet
from fedprune.tasks.catalog import known_if_own
from fedprune.tasks.task import Task
from fedprune.tensors.models import return_lent

log = logging.getLogger("fedprune")


def client_app(
    train: Train = tune,
    simulated: Callable[[str, Train], Host] | None = None,
    task: Task | None = None,
) -> ClientApp:
    """A ClientApp that answers everything this project's server asks.

    Args:
        train: how a client tunes; it takes and returns what
            `fedprune.learning.local_training.tune` does.
        simulated: what makes, of a configuration's text, the host of a worker of a simulation,
            which answers messages one after the other; by default it reads all data itself.
        task: what is learned, where `server_app` was given this one, too.
    """
    app = ClientApp()
    own = known_if_own(task)
    host_of = functools.partial(host_of_node, train=train, simulated=simulated or simulated_host)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        with own():
            return _reply(message, _announced(packet_in(message), context, host_of), context)

    @app.train("score")
    @app.train("tune")
    @app.evaluate()
    def answer_all(message: Message, context: Context) -> Message:
        with own():
            return _answer_to(message, context, functools.partial(_said, host_of=host_of))

    @app.query("keys")
    @app.query("shares")
    @app.query("confirm")
    @app.query("unmask")
    def secure_stage(message: Message, context: Context) -> Message:
        with own():
            return _answer_to(message, context, functools.partial(_said_in_stage, host_of=host_of))

    return app


def _announced(came: Packet, context: Context, host_of: HostOf) -> Packet:
    """Who this node is: whether a device, and the labels each of its partitions trains on."""
    config = config_text(came, context)
    device = is_device(context.node_config)
    about: dict[str, Any] = {"device": device, "labels": {}, **OWN_VERSION, **own_clock()}
    try:
        check_same_protocol(came.fields, "server", "device")
        about["labels"], about["place"] = labels_of(host_of(config, context)), data_place(context)
    except Exception as error:  # such as a folder without data: the server is told which and why
        _log("this node cannot take part", error)
        first = first_partition(context.node_config)
        about["failure"] = asdict(_failed(config, first, "hello", error))
    return Packet({"about": json.dumps(about)})


def _said(came: Packet, context: Context, host_of: HostOf) -> Packet:
    """One sum over the partitions asked, or ``missing`` where a device lacks what it needs."""
    config, packet = config_text(came, context), whole_question(came, context)
    if not config or packet is None:
        return Packet({"missing": True})
    if "call" in came.fields:
        return _stage(came, config, packet, context, host_of)
    return _answered(packet, config, context, host_of)


def _said_in_stage(came: Packet, context: Context, host_of: HostOf) -> Packet:
    """A stage of a secure sum that needs no question; the stage "masked" comes with it above."""
    config = config_text(came, context)
    return _stage(came, config, None, context, host_of) if config else Packet({"missing": True})


def _stage(
    came: Packet, config: str, packet: Packet | None, context: Context, host_of: HostOf
) -> Packet:
    """What the partitions asked say in a stage of a secure sum."""
    partitions = came.fields["partitions"]
    stage = "secure"
    try:
        call = call_of(came)
        stage, host = call.stage, host_of(config, context)
        if not is_device(context.node_config):
            if host.config.noise_source == "secret" and not noised(host.config):
                what = "noise-source='secret': a worker of a simulation keeps no secret"
                raise Refused("noise-source", what, told=what)
            return reply_packet(serve_call(host, call, partitions, packet=packet))

        known = device_of(context.node_config).register
        ledger = ledger_of_device(config, context)

        def served(seed: bytes) -> StageReply:
            if packet is not None:
                admit(ledger, host, packet, partitions)
            own = seeds_from(seed, call.session)
            said = serve_call(host, call, partitions, own, packet, register=known)
            return replace(said, bytes_up=0)

        under = str(context.state.config_records["rehearsed"]["digest"])
        memory, reply = served_once(secret_memory(context), call, packet, served, under)
        context.state[SECURE_RECORD] = ConfigRecord(vars(memory))
        charge(ledger, reply.size())
        return reply
    except Lacking:
        return Packet({"missing": BASE})
    except Exception as error:  # such as keys of a sum that this device knows nothing of
        _log("this node cannot take part in a secure sum", error)
        failures = tuple(_failed(config, p, stage, error) for p in partitions)
        return reply_packet(StageReply(failures=failures))


def _answered(packet: Packet, config: str, context: Context, host_of: HostOf) -> Packet:
    """The reply to a question: of a worker one sum, of a device its coded parts.

    A device of several partitions sends their sum where that is smaller and the server takes it.
    """
    partitions = packet.fields["partitions"]
    try:
        host = host_of(config, context)
        if not is_device(context.node_config):
            memory = disclosed(packet)
            folded = sum_packet(serve(host, packet, partitions, memory=memory))
            kept = returned(memory, head_of(packet)["round"])
            return replace(folded, buffers={**folded.buffers, **kept})
        ledger = ledger_of_device(config, context)
        admit(ledger, host, packet, partitions)
        reply = _coded(host, packet, memory_of_device(config, context))
        return_lent(host.model)
        charge(ledger, reply.size())
        return reply
    except Lacking:
        return Packet({"missing": BASE})
    except Exception as error:  # such as a folder that is no longer there
        _log("this node cannot answer", error)
        kind = plain(head_of(packet).get("kind"))
        failures = tuple(_failed(config, p, kind, error) for p in partitions)
        if not is_device(context.node_config):
            return sum_packet(Aggregate(failures=failures))
        return parts_packet([PartitionPart(f.partition, failure=f) for f in failures])


def _coded(host: Host, packet: Packet, memory: ClientMemory) -> Packet:
    """What a device sends: its coded parts, or their sum."""
    parts = parts_of(host, packet, packet.fields["partitions"], memory)
    apart = parts_packet(parts)
    if not packet.fields.get("sum"):
        return apart
    total = replace(sum_of(host, packet, parts), bytes_up=0)
    whole = sum_packet(total, fixed=hides(host.config))
    return min(apart, whole, key=Packet.size)


def _log(what: str, error: Exception) -> None:
    """Say it on the device: a refusal in one line, anything else with where it came from."""
    refusal = isinstance(error, Refused | ConfigError) or "; allowed: " in str(error)
    log.error("%s: %s", what, error, exc_info=None if refusal else error)


def _failed(text: str, partition: int, phase: str, error: Exception) -> Failure:
    """Why nothing came, as far as it may be told: a configuration that hides data hides that."""
    failure = failure_of(partition, phase, error)
    try:
        return silenced(failure, recorded(text), error)
    except ValueError:  # what cannot be read says nothing of data
        return failure


def _answer_to(
    message: Message, context: Context, said: Callable[[Packet, Context], Packet]
) -> Message:
    """A reply that says which question it answers: one with what was said before is refused."""
    came = packet_in(message)
    name = question_name(came)
    return _reply(message, named_reply(said(came, context), name), context)


def _reply(message: Message, packet: Packet, context: Context) -> Message:
    copies: Copies | None = None if is_device(context.node_config) else {}
    return Message(records(packet, copies), reply_to=message)


app = client_app()
"""The app of who brings no training of its own."""

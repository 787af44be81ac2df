"""The host of a client app: of a worker of a simulation, or of a device with data of its own."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from fedprune.client.host import Host, build_host
from fedprune.client.memory import FOLDER_NAME, ClientMemory, on_device
from fedprune.client.rehearsal import try_out
from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet, head_of
from fedprune.config import all_keys, recorded
from fedprune.config.terms import simulated
from fedprune.engines.flower.given import DeviceLedger
from fedprune.engines.flower.node_config import check_allowed, device_of, is_device
from fedprune.learning.local_training import Train
from fedprune.options.plugins import check_of_this_app
from fedprune.options.refusal import Refused
from fedprune.privacy.accounting_terms import SIMULATED
from fedprune.protocol.held_weights import read_by
from fedprune.protocol.question_fields import HELD
from fedprune.protocol.replies import identity
from fedprune.records.bound import RESUMABLE
from fedprune.runtime.json_text import text_of
from fedprune.runtime.process import hand_back_at_once
from fedprune.secagg.device_memory import DeviceMemory
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.shards import data_digest

HostOf = Callable[[str, Context], Host]
"""The host of a configuration on this node."""


def host_of_node(
    text: str, context: Context, train: Train, simulated: Callable[[str, Train], Host]
) -> Host:
    """This process's resident model and shards for a configuration."""
    if not is_device(context.node_config):
        return simulated(text, train)
    hand_back_at_once()
    here = device_of(context.node_config)
    host, digest = _device_host(text, here.data, here.partitions, train)
    check_allowed(host.config, here)
    record = context.state.config_records.get("rehearsed")
    if not record or record["digest"] != digest:
        held = read_by(host.base)
        try_out(host.task, host.config, host.model, host.layout, host.shards, train, held)
        context.state["rehearsed"] = ConfigRecord({"digest": digest})
    return host


def _readable(place: Path) -> Path:
    """A device's file or folder; one that may not be read looks empty to who searches it."""
    if place.exists() and not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
        allowed = "a file or folder that may be"
        raise PermissionError(f"data={place}: may not be read by this user; allowed: {allowed}")
    return place


_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""What Linux draws when it starts, and tells who is on this machine alone."""


def data_place(context: Context) -> str:
    """A name of where a device's data is, alike for two devices of a run with the same data.

    It tells nothing else to who does not know what is drawn here. "" where nothing is.
    """
    try:
        secret, at = _BOOT.read_text(), os.stat(str(context.node_config["data"]))
    except (KeyError, OSError):
        return ""
    return identity(f"{secret} {context.run_id} {at.st_dev} {at.st_ino}")


@functools.lru_cache(maxsize=1)
def simulated_host(text: str, train: Train) -> Host:
    """The host of a worker of a simulation, which reads all data itself."""
    return build_host(recorded(text), train=train)


@functools.lru_cache(maxsize=1)
def _device_host(
    text: str, data: str, partitions: tuple[int, ...], train: Train
) -> tuple[Host, str]:
    """The host of a device, not rehearsed yet, and a digest of configuration and data."""
    check_of_this_app(str(all_keys(text).get("plugin", "")))
    config = recorded(text)
    if simulated(config):
        what = f"noise-source='seeded': {SIMULATED}; allowed on devices: secret"
        raise Refused("noise-source", what, told=what)
    local = tasks_of(config.plugin)[config.task].local
    if local is None:
        raise ValueError(f"task={config.task}: a device has no way to bring its own data to it")
    folder = Path(data)
    alone = len(partitions) == 1
    own = {p: local(_readable(folder if alone else folder / str(p)), config) for p in partitions}
    host = replace(build_host(config, own, tried=True, train=train), lends=alone)
    whole = hashlib.sha256(text.encode()).hexdigest()
    return host, f"{whole} {data_digest(host.shards)}"


SECURE_RECORD = "secure"


def secret_memory(context: Context) -> DeviceMemory | None:
    """What this device remembers of the newest secure sum, in Flower's state."""
    record: Any = context.state.config_records.get(SECURE_RECORD)
    return DeviceMemory(**record) if record else None


def config_text(came: Packet, context: Context) -> str:
    """The run's configuration as TOML: as it came, or as this device keeps it; "" if neither."""
    text = str(came.fields["config"])
    if not is_device(context.node_config):
        return text
    if text:
        context.state["config"] = ConfigRecord({"toml": text})
        return text
    record = context.state.config_records.get("config")
    kept = str(record["toml"]) if record else ""
    return kept if identity(kept) == came.fields["config_id"] else ""


def whole_question(came: Packet, context: Context) -> Packet | None:
    """The question with what it names: as it came, or as this device keeps it; None if neither."""
    head = head_of(came)
    named = {buffer: text_of(head, key, "") for buffer, key in HELD.items()}
    found = {buffer: _kept(came[buffer], context, HELD[buffer], named[buffer]) for buffer in named}
    if any(named[buffer] and not found[buffer] for buffer in named):
        return None
    return replace(came, buffers={**came.buffers, **found})


def _kept(came: Buffer, context: Context, name: str, digest: str) -> Buffer:
    """A mask or a teacher as it came, or as this device keeps it; empty if neither.

    The newest of each is kept, by its digest.
    """
    if not is_device(context.node_config):
        return came
    if came:
        context.state[name] = ConfigRecord({"digest": digest, "bits": bytes(came)})
        return came
    record = context.state.config_records.get(name)
    kept = record["bits"] if record and record["digest"] == digest else b""
    assert isinstance(kept, bytes)  # Flower's records hold many types, this one was put there above
    return kept


def memory_of_device(config: str, context: Context) -> ClientMemory:
    """What this device remembers of a run, beside its data."""
    data = Path(device_of(context.node_config).data)
    return on_device(data.with_name(f"{data.name}.{FOLDER_NAME}"), _name_of(config))


def ledger_of_device(config: str, context: Context) -> DeviceLedger:
    """Where this device writes down what it gives in a run."""
    here = device_of(context.node_config)
    beside = Path(here.data).with_name(f"{Path(here.data).name}.given")
    return DeviceLedger(beside, here.floors, _name_of(config), context.run_id)


def _name_of(config: str) -> str:
    """A name of a configuration; a run that goes on with another --timeout is the same run."""
    keys = {k: v for k, v in sorted(all_keys(config).items()) if k not in {*RESUMABLE, "out"}}
    return identity(repr(keys))[:16]

"""What a device keeps between messages, in Flower's state and beside its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from fedprune.client.memory import FOLDER_NAME, ClientMemory, on_device
from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet, head_of
from fedprune.config import all_keys
from fedprune.engines.flower.given import DeviceLedger, ledger_beside
from fedprune.engines.flower.node_config import device_of, is_device
from fedprune.protocol.question_fields import HELD
from fedprune.protocol.replies import identity
from fedprune.records.bound import RESUMABLE
from fedprune.runtime.json_text import text_of
from fedprune.secagg.device_memory import DeviceMemory

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
    return ledger_beside(Path(here.data), here.floors, _name_of(config), context.run_id)


def _name_of(config: str) -> str:
    """A name of a configuration; a run that goes on with another --timeout is the same run."""
    keys = {k: v for k, v in sorted(all_keys(config).items()) if k not in {*RESUMABLE, "out"}}
    return identity(repr(keys))[:16]

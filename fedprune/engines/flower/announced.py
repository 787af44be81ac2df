"""What a node says of itself when a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedprune.codec.wire import Packet
from fedprune.engines.flower.clocks import clock_in
from fedprune.options.refusal import Refused
from fedprune.protocol.failures import Failure, failure_said, plain
from fedprune.protocol.versions import OWN_VERSION, check_same_protocol
from fedprune.runtime.json_text import read_object
from fedprune.runtime.version import RELEASE


@dataclass(frozen=True)
class Announced:
    """A node as it announced itself.

    Attributes:
        device: it has data of its own; if not, it is a worker of a simulation.
        labels: the partitions it can serve, and the labels each trains on.
        failure: why it cannot take part.
        version: of fedprune there.
        place: of its data, as `place_of_data` says; "" where it does not say.
        clock: the seconds that its clock was ahead of its SuperLink's, which refused it, and the
            time until which; None: it does not say so.
    """

    device: bool
    labels: Mapping[int, int]
    failure: Failure | None = None
    version: str = RELEASE
    place: str = ""
    clock: tuple[float, float] | None = None


def greeting(config: str) -> Packet:
    """What a node is asked when it has come: who it is, for a configuration's text."""
    return Packet({"config": config, **OWN_VERSION})


_LONGEST, _LONGEST_EACH = 2**16, 40
"""Bytes that a node may announce itself with: of itself, and of each partition that there is."""

_MOST_LABELS = 10**12


def node_of(reply: Packet, clients: int) -> Announced:
    """The node that a reply to a greeting describes, of a run with so many clients.

    Raises:
        Refused: it describes none, or partitions that there are not.
    """
    try:
        about = read_object(reply.fields["about"], _LONGEST + _LONGEST_EACH * clients)
        labels = {int(p): int(n) for p, n in about["labels"].items()}
        failure = about.get("failure")
        told = failure_said(failure, "hello") if failure else None
        version = check_same_protocol(about, "device", "server")
        place = str(about.get("place", ""))[:_LONGEST_EACH]
        clock = clock_in(about["clock"]) if "clock" in about else None
        node = Announced(bool(about["device"]), labels, told, version, place, clock)
    except Refused:
        raise
    except Exception as error:  # whatever a malformed announcement raises must not stop the run
        raise Refused("hello", plain(f"malformed: {error!r}")) from None
    wrong = next((p for p in labels if not 0 <= p < clients), None)
    if wrong is not None:
        allowed = f"0 to {clients - 1}"
        raise Refused("partition-id", f"{plain(wrong)}: no such client; allowed: {allowed}")
    if not all(0 <= n <= _MOST_LABELS for n in labels.values()):
        raise Refused("labels", f"a count that cannot be; allowed: 0 to {_MOST_LABELS}")
    return node


def announced_on(grid: Grid, reply: Packet | Refused, clients: int) -> Announced:
    """The same of a grid, on which a node may have said nothing that can be read.

    Raises:
        Refused: that, or as `node_of`, or a node of a network that is no device.
    """
    if isinstance(reply, Refused):
        raise reply
    node = node_of(reply, clients)
    if not node.device and networked(grid):
        # Any node of a network could say that it is a worker and holds everybody's data.
        raise Refused("data", "no device; allowed: --node-config 'partition-id=0 data=\"...\"'")
    return node


def refusal_said(reason: str) -> str:
    """What a node said, without the kind of its error where it is a refusal."""
    kind, _, line = reason.partition(": ")
    return line if kind.endswith("Error") and "; allowed: " in line else reason


def networked(grid: Grid) -> bool:
    """Whether a grid's nodes are programs on a network: they may say what they like.

    By the name of Flower's class: its module is not public, and moves.
    """
    return any(kind.__name__ == "HttpGrid" for kind in type(grid).__mro__)

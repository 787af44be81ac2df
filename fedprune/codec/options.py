"""Options of what travels."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fedprune.options.name_table import NameTable
from fedprune.options.option import option
from fedprune.options.section import Section

_wire = partial(option, "wire")


class Wire(Section):
    """Types of what travels."""

    wire: str = _wire(
        "type of the weights on the wire",
        "fp32",
        names=NameTable("fedprune.codec.wire", "VALUE_TYPES"),
    )
    base: Literal["auto", "held", "sent"] = _wire(
        "held: a client reads a pretrained model's weights from its own copy of the files and "
        "is sent what differs; of a model from scratch it makes the first weights by the seed; "
        "sent: all weights are sent; auto: held for pretrained models and with --adapters",
        "auto",
    )
    uplink: str | None = _wire(
        "type of the changes that clients send (default: --wire)",
        names=NameTable("fedprune.codec.wire", "UPLINK_TYPES"),
    )
    error_feedback: bool = _wire(
        "clients keep what rounding took from a change and add it to the next one", False
    )
    score_wire: str = _wire(
        "type of the statistics on the wire",
        "fp32",
        names=NameTable("fedprune.codec.wire", "SCORE_SUMMARIES"),
    )

"""Options of what travels."""

from __future__ import annotations

from typing import Literal

from fedprune.options.name_table import NameTable
from fedprune.options.option import option
from fedprune.options.section import Section


class Wire(Section):
    """Types of what travels."""

    wire: str = option(
        "wire",
        "type of the weights on the wire",
        "fp32",
        names=NameTable("fedprune.codec.wire", "VALUE_TYPES"),
    )
    base: Literal["auto", "held", "sent"] = option(
        "wire",
        "weights of a pretrained model that clients have from the same files: held, so that only "
        "what differs is sent, or sent; held also spares the first "
        "weights of a model from scratch, which clients make by the seed",
        "auto",
    )
    uplink: str | None = option(
        "wire",
        "type of the changes that clients send (default: --wire)",
        names=NameTable("fedprune.codec.wire", "UPLINK_TYPES"),
    )
    error_feedback: bool = option(
        "wire", "clients add to what they send what rounding kept back before", False
    )
    score_wire: str = option(
        "wire",
        "type of the statistics on the wire",
        "fp32",
        names=NameTable("fedprune.codec.wire", "SCORE_TYPES"),
    )

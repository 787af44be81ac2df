"""Options of what travels."""

from __future__ import annotations

from fedprune.options.section import Section, option


class Wire(Section):
    """Types of what travels."""

    wire: str = option("wire", "type of the weights on the wire (see --list)", "fp32")
    uplink: str | None = option(
        "wire", "type of the changes that clients send (see --list; default: --wire)", None
    )
    error_feedback: bool = option(
        "wire", "clients add to what they send what rounding kept back before", False
    )
    score_wire: str = option("wire", "type of the statistics on the wire (see --list)", "fp32")

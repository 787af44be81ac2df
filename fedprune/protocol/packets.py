"""Questions and answers as packets, and back: what a device would send and receive."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.bounded import shapes_in
from fedprune.codec.masks import decode_mask
from fedprune.codec.model_digest import (
    bits_of,
    edits_in,
    mask_bits,
    model_digest,
)
from fedprune.codec.wire import (
    SCORE_TYPES,
    Packet,
    counted_of,
    digest_of,
    flags_of,
    head_of,
    more_of,
    pack,
    pack_counted,
    pack_flags,
    pack_rungs,
    plain_flags,
    plain_flags_of,
    rungs_of,
    values_of,
)
from fedprune.config.kinds import KINDS
from fedprune.learning.candidates import as_table, from_table
from fedprune.options.refusal import Refused
from fedprune.protocol.messages import Answer, Question
from fedprune.runtime.json_text import (
    number,
    number_within,
    text_of,
    texts_of,
    whole_number,
)
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tensors import Masks, Tensors, count_kept, gathered, scattered, shapes_of


def encode_question(question: Question, wire: str) -> Packet:
    """The question as a packet.

    Mask and edits are in `bits`, the teacher is by itself: for those who lack them.
    """
    head: dict[str, Any] = {
        "kind": question.kind,
        "round": question.round,
        "score": question.score,
        "ask": question.ask,
        "names": question.names,
        "given": {n: list(t.shape) for n, t in question.given.items()},
        "dense": question.dense,
        "sparsity": question.sparsity,
        "lr": question.lr,
        "part": question.part,
        "progress": question.progress,
        "mask": model_digest(question.masks, question.edits),
    }
    head |= {"again": question.again} if question.again else {}
    if question.teacher:
        head |= {"teacher": digest_of(question.teacher), "distil": question.distil}
    if question.limit:
        head["limit"] = question.limit
    weights = question.weights if KINDS[question.kind].weights else {}
    values = gathered(weights, question.masks)
    along = gathered(question.given, _fitting(question.given, question.masks))
    if question.candidates:
        head["candidates"] = as_table(question.candidates, sorted(question.weights))
    rungs = pack_rungs(gathered(question.rungs, question.masks)) if question.rungs else b""
    bits = bits_of(question.masks, question.edits)
    packet = pack(head, values, wire, bits, along)
    counted = pack_counted(question.counted, sorted(question.counted))
    return replace(packet, teacher=question.teacher, rungs=rungs, counted=counted)


def _fitting(given: Tensors, masks: Masks) -> Masks:
    return {n: masks[n] for n, t in given.items() if n in masks and masks[n].shape == t.shape}


def decode_question(packet: Packet, layout: Layout) -> Question:
    """The question as the client sees it.

    Raises:
        ValueError: it is malformed, or bits or values do not fit the head or the layout. Nothing
            else is raised, whatever the packet holds.
    """
    head = head_of(packet)
    kind = text_of(head, "kind")
    if kind not in KINDS:
        raise ValueError(f"kind: no such question, {kind[:100]!r}")
    masks, edits = _skeleton(packet, head, layout)
    if digest_of(packet.teacher) != text_of(head, "teacher", ""):
        raise ValueError("the teacher is not the one that the question names")
    shapes = shapes_in(head, "given")
    along = {n: m for n, m in masks.items() if n in shapes and m.shape == shapes[n]}
    return Question(
        kind,
        whole_number(head, "round", _LATEST),
        scattered(
            values_of(packet, shared=True), layout.shapes if KINDS[kind].weights else {}, masks
        ),
        masks,
        text_of(head, "score"),
        whole_number(head, "ask", _LATEST),
        texts_of(head, "names"),
        scattered(more_of(packet), shapes, along),
        _flag(head, "dense"),
        None if head.get("sparsity", "") is None else number_within(head, "sparsity", 1.0),
        number_within(head, "lr", _HIGHEST),
        _part(head),
        number_within(head, "progress", 1.0),
        edits=edits,
        teacher=bytes(packet.teacher),
        distil=number_within(head, "distil", _HIGHEST, 0.0),
        candidates=from_table(head.get("candidates", ()), sorted(layout.shapes)),
        rungs=_rungs(packet, masks),
        counted=counted_of(packet.counted),
        limit=number_within(head, "limit", _HIGHEST, 0.0),
        again=whole_number(head, "again", _LATEST, 0),
    )


_LATEST = 2**31 - 1  # rounds are counted in int32 elsewhere
_HIGHEST = sys.float_info.max


def _skeleton(packet: Packet, head: Mapping[str, Any], layout: Layout) -> tuple[Masks, Edits]:
    """Mask and edits of a question; nothing is unpacked that the layout has no tensor for."""
    prunable = {name: layout.shapes[name] for name in layout.prunable}
    masks = decode_mask(mask_bits(packet.bits), sum(s.numel() for s in prunable.values()), prunable)
    edits = edits_in(packet.bits)
    if model_digest(masks, edits) != text_of(head, "mask"):
        raise ValueError("the mask is not the one that the question names")
    return masks, edits


def _rungs(packet: Packet, masks: Masks) -> Tensors:
    if not packet.rungs:
        return {}
    return scattered(rungs_of(packet.rungs, count_kept(masks)), shapes_of(masks), masks)


def _flag(head: Mapping[str, Any], name: str) -> bool:
    if not isinstance(head.get(name), bool):
        raise ValueError(f"{name} is neither true nor false")
    return bool(head[name])


def _part(head: Mapping[str, Any]) -> str:
    part = text_of(head, "part")
    if part not in ("", "validation", "test"):
        raise ValueError("part: neither validation nor test")
    return part


def encode_answer(
    answer: Answer,
    question: Question,
    wire: str,
    score_wire: str = "fp32",
    *,
    own: bool = False,
    gen: torch.Generator | None = None,
    fixed: bool = False,
) -> Packet:
    """The answer as a packet.

    Args:
        answer: what the client releases.
        question: what it answers.
        wire: type of the changes.
        score_wire: type of the statistics.
        own: leave out the values that the client's own mask, its votes, removes.
        gen: what a type that rounds at random draws from.
        fixed: as many bytes whatever the answer says, so that they tell nothing: the numbers of the
            head are padded, votes are not coded.
    """
    totals = {n: float(x) for n, x in answer.totals.items()} if fixed else answer.totals
    head: dict[str, Any] = {"weight": float(answer.weight) if fixed else answer.weight}
    head |= {"totals": totals} | ({"flags": "plain"} if fixed and answer.votes is not None else {})
    coded = plain_flags if fixed else pack_flags
    votes = b"" if answer.votes is None else coded(answer.votes)
    values = answer.values
    if own and answer.votes is not None:
        values = values[on_own_mask(answer.votes, question)]
    statistics = SCORE_TYPES[score_wire]
    types = {"changes": wire, "statistics": statistics, "float32": "fp32"}
    kind = types[KINDS[question.kind].values]
    return pack(head, values, kind, votes, answer.statistics, statistics, gen, fixed=fixed)


def decode_answer(packet: Packet, question: Question, alive: int, *, own: bool = False) -> Answer:
    """The answer as the server would see it, its values cast back from the wire's type.

    They may be the packet's memory, and are not to be written to.

    Args:
        packet: what came.
        question: what it answers.
        alive: the length of the votes, if there are any.
        own: the values come on the client's own mask.

    Raises:
        ValueError: bits or values do not fit the question.
    """
    head = head_of(packet)
    flags = plain_flags_of if head.get("flags") == "plain" else flags_of
    votes = flags(packet.bits, alive) if packet.bits else None
    values = values_of(packet, shared=True)
    if own:
        if votes is None:
            raise Refused("votes", "none, while the values come on the client's own mask")
        where = on_own_mask(votes, question)
        if values.numel() != int(where.sum()):
            raise Refused("values", f"{values.numel()} values on {int(where.sum())} coordinates")
        values = torch.zeros(where.numel()).masked_scatter_(where, values)
    more = more_of(packet) if packet.more else None
    return Answer(values, number(head, "weight"), _totals(head), votes, more)


def _totals(head: Mapping[str, Any]) -> dict[str, float]:
    totals = head.get("totals")
    if not isinstance(totals, dict):
        raise Refused("totals", "no sums by name")
    return {name: number(totals, name) for name in totals}


def on_own_mask(votes: Tensor, question: Question) -> Tensor:
    """Which of a tuning answer's values lie on the client's own mask: what is free always does."""
    own = scattered(votes, shapes_of(question.masks), question.masks)
    flags = {
        n: own.get(n, torch.ones(t.shape, dtype=torch.bool)) for n, t in question.weights.items()
    }
    return gathered(flags, question.masks)

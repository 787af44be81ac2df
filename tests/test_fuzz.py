"""Whatever reads bytes of others gives a value or ValueError, whatever the bytes are.

What is right is mutated part by part: bytes, and where a part is JSON the values in it; checksums
are made to fit, as what one catches says nothing about what is behind it. What claims to be large
is in `tests/codec/test_bounded.py` and `tests/tasks/test_claims.py`. Other numbers of inputs:

    HOSTILE=100000 python -m pytest tests/test_fuzz.py
"""

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fedprune.client.memory import ClientMemory, recall
from fedprune.codec.coded_file import CODED_NAME, from_coded, to_coded
from fedprune.codec.flags import (
    counted_of,
    flags_of,
    pack_flags,
    pack_rungs,
    plain_flags_of,
    rungs_of,
)
from fedprune.codec.masks import MASK_MAGIC, VERSION, _checksum, decode_mask, encode_mask
from fedprune.codec.model_digest import bits_of, edits_in, mask_bits
from fedprune.codec.wire import Packet, head_of, pack, values_of
from fedprune.config import configure, recorded, to_toml
from fedprune.export.folders import load
from fedprune.export.manifest import MANIFEST_NAME, read_manifest, write_manifest
from fedprune.learning.candidates import Candidate, as_table, from_table
from fedprune.methods.catalog import memories_of
from fedprune.privacy.ledger_file import read_ledger
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import decode_question, encode_question
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.origin import origin_of
from fedprune.protocol.parts import decode_answer, encode_answer
from fedprune.protocol.replies import folded_of, parts_in, sum_packet
from fedprune.records.checkpoint import load_state, save_state
from fedprune.runtime.files import write_verified
from fedprune.runtime.json_text import read_json
from fedprune.secagg.keys import Keys
from fedprune.secagg.messages import Call, StageReply
from fedprune.secagg.packets import (
    call_of,
    call_packet,
    reply_of,
    reply_packet,
    table_bytes,
    table_of,
)
from fedprune.server.state import Model, State
from fedprune.streaming.files import places_in
from fedprune.structure.edits import Edit, from_json, to_json
from fedprune.tasks.claims import check_config
from fedprune.tasks.rowfiles import READERS
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks

EACH = int(os.environ.get("HOSTILE", "5000")) // 36

GEN = torch.Generator().manual_seed(1)
FLAGS = torch.rand(300, generator=GEN) < 0.3
VALUES = torch.randn(300, generator=GEN)
EDITS = (Edit("head", "a.b", (0, 2)), Edit("rank", "c", (4,)))
PACKED = pack(
    {"weight": 2.0, "totals": {"loss": 1.5}},
    {"values": (VALUES, "int4"), "more": (VALUES, "fp32")},
    gen=GEN,
)

CONFIG = configure({"task": "digits", "model": "mlp", "clients": 2, "cohort": 2, "rounds": 2})
MODEL = dense_model(CONFIG)
LAYOUT = layout_for(CONFIG, MODEL)
WEIGHTS = state_of(MODEL)
MASKS = full_masks(WEIGHTS, LAYOUT.prunable)
FIRST = LAYOUT.prunable[0]
QUESTION = Question(
    *("tune", 3, WEIGHTS, MASKS, "wanda", 0, LAYOUT.prunable, {FIRST: WEIGHTS[FIRST]}),
    *(False, 0.5, 0.01, "validation", 0.5),
    candidates=(Candidate(), Candidate(0.5, {FIRST: 0.25})),
    rungs={n: m.byte() for n, m in MASKS.items()},
    counted={0: 1, 1: 2},
    limit=1.0,
)
TAUGHT = encode_question(QUESTION, "fp32")
ALL = sum(w.numel() for w in WEIGHTS.values())
ANSWER = encode_answer(
    Answer(torch.randn(ALL, generator=GEN), 5.0, {"loss": 1.0, "count": 5.0}), QUESTION, "fp32"
)
FAILURE = Failure(1, "tune", "values", "why")
MORE: Any = (FLAGS.long(), (0,), (FAILURE,), 700)
SUM = sum_packet(Aggregate(VALUES.double(), 5.0, {"loss": 1.0}, *MORE, norms=(1.0,)))
PEERS = {3: b"k" * 128, 4: b"l" * 128}
THREE = frozenset({3})
CALL = call_packet(
    Call("unmask", b"s" * 16, (3, 4), PEERS, THREE, THREE, {3: PEERS}, b"", {"v": 1})
)
REPLY = reply_packet(StageReply(PEERS, {3: {4: b"x" * 40}}, failures=(), bytes_up=7))

Decoder = Callable[..., Any]
Parts = tuple[bytes, ...]


def packet(read: Decoder, field: str, sent: Packet) -> tuple[Decoder, Parts]:
    """What reads a packet of one field and some buffers, and those of one that is well formed."""
    text = isinstance(sent.fields[field], str)

    def given(about: bytes, *buffers: bytes) -> Any:
        said = about.decode(errors="replace") if text else about
        return read(Packet({field: said}, dict(zip(sent.buffers, buffers, strict=True))))

    said = str(sent.fields[field]).encode() if text else bytes(sent.fields[field])
    return given, (said, *map(bytes, sent.buffers.values()))


DECODERS: dict[str, tuple[Decoder, Parts]] = {
    "mask": (decode_mask, (encode_mask({"a": FLAGS.view(10, 30), "b": ~FLAGS[:7]}),)),
    "mask of rare weights": (decode_mask, (encode_mask({"a": torch.arange(9000) % 997 == 0}),)),
    "mask of known tensors": (
        partial(decode_mask, most=300, shapes={"a": (10, 30)}),
        (encode_mask({"a": FLAGS.view(10, 30)}),),
    ),
    "flags": (lambda data: flags_of(data, 300), (pack_flags(FLAGS),)),
    "plain flags": (lambda data: plain_flags_of(data, 300), (bytes(38),)),
    "rungs": (lambda data: rungs_of(data, 300), (pack_rungs(torch.arange(300).byte() % 4),)),
    "edits": (edits_in, (bits_of({"a": FLAGS}, EDITS),)),
    "edits as text": (lambda data: from_json(data.decode()), (to_json(EDITS).encode(),)),
    "mask behind edits": (lambda d: decode_mask(mask_bits(d)), (bits_of({"a": FLAGS}, EDITS),)),
    "values": packet(values_of, "head", PACKED),
    "more": packet(partial(values_of, name="more"), "head", PACKED),
    "head": (lambda data: head_of(Packet({"head": data})), (bytes(PACKED.head),)),
    "pairs": (counted_of, (bytes(range(16)),)),
    "candidates": (
        lambda data: from_table(read_json(data), ["a", "b"]),
        (json.dumps(as_table((Candidate(), Candidate(0.5, {"b": 1.0})), ["a", "b"])).encode(),),
    ),
    "question": packet(
        lambda sent: decode_question(sent, LAYOUT),
        "head",
        replace(TAUGHT, buffers={**TAUGHT.buffers, "teacher": b""}),
    ),
    "answer": packet(lambda sent: decode_answer(sent, QUESTION, 300), "head", ANSWER),
    "coded file": (
        from_coded,
        (to_coded({"task": "digits", "plugin": ""}, {"a": VALUES * FLAGS}, {"a": FLAGS}),),
    ),
    "a device's parts": packet(
        lambda sent: parts_in(sent, [0, 1], "tune"),
        "about",
        Packet(
            {"about": json.dumps({"answered": [0], "failures": [vars(FAILURE)]})},
            {"0.head": bytes(ANSWER.head), "0.values": bytes(ANSWER["values"])},
        ),
    ),
    "a sum": packet(lambda sent: folded_of(sent, [0, 1], "tune"), "about", SUM),
    "a call of a secure sum": packet(call_of, "call", CALL),
    "a reply in it": packet(lambda sent: reply_of(sent, [3, 4], "keys", 32), "about", REPLY),
    "a table in it": (table_of, (table_bytes({3: PEERS}),)),
    "keys in it": (Keys.from_bytes, (b"k" * 128,)),
    "a configuration": (lambda data: recorded(data.decode()), (to_toml(CONFIG).encode(),)),
}


def odd(found: Any, random_: random.Random) -> Any:
    """Something else in the place of a value of JSON."""
    others = [None, True, -1, 0, 10**400, -(10**30), 1.5, -0.0, float("nan"), float("inf"), 2**63]
    others += ["", "x", "\ud800", "\u202e\x1b[31m", "é" * 3000, [], {}, [[]], [found, found]]
    return random_.choice([*others, {"a": found}, [found] * 3, str(found)[:50]])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers within a value of JSON, and the keys in them."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in list(keys):
        yield value, key
        yield from places(value[key])


def said_otherwise(data: bytes, random_: random.Random) -> bytes:
    """JSON with a few of its values, or names, other ones."""
    said = json.loads(data)
    for _ in range(random_.randint(1, 3)):
        found = list(places(said))
        if not found:
            break
        within, key = random_.choice(found)
        if random_.random() < 0.15:
            del within[key]
        elif isinstance(within, dict) and random_.random() < 0.1:
            within[random_.choice(["x", "\ud800", key + key])] = within.pop(key)
        else:
            within[key] = copy.deepcopy(odd(within[key], random_))
    text = json.dumps(said)
    if text.startswith("{") and random_.random() < 0.1:
        text = text[:-1] + "," + text[1:]  # every name twice
    return text.encode()


def cut_and_pasted(data: bytes, random_: random.Random) -> bytes:
    """The data with bytes changed, cut out, doubled or swapped for another kind's."""
    out = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(out) + 1)
        match random_.randrange(5):
            case 0 if out:
                byte = random_.choice([0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)])
                out[at % len(out)] = byte
            case 1:
                del out[at : at + random_.randint(1, 9)]
            case 2:
                out[at:at] = out[at : at + random_.randint(1, 40)]
            case 3:
                out[at:at] = random_.randbytes(random_.randint(1, 9))
            case _:
                out = out[:at]
    return bytes(out)


def mutated(data: bytes, random_: random.Random) -> bytes:
    if data[:1] in (b"{", b"[") and random_.random() < 0.7:
        try:
            return said_otherwise(data, random_)
        except ValueError:  # several values, or what is no JSON any more
            pass
    return cut_and_pasted(data, random_)


def repaired(name: str, data: bytes) -> bytes:
    """With a checksum that fits."""
    if data[:4] == MASK_MAGIC and len(data) > 13:
        return MASK_MAGIC + bytes([VERSION]) + _checksum(data[13:]) + data[13:]
    if name == "coded file" and len(data) > 40:
        return with_head(data, lambda head: head)
    return data


def with_head(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A coded file with another head, and a checksum that fits."""
    end = 12 + int.from_bytes(data[8:12], "little")
    head = change(data[12:end])
    body = data[:8] + len(head).to_bytes(4, "little") + head + data[end:-32]
    return body + hashlib.sha256(body).digest()


def refusals(name: str, decode: Decoder, right: Parts, inputs: int) -> int:
    """How many of so many mutated inputs are refused, each by a ValueError."""
    random_, refused = random.Random(name), 0
    decode(*right)
    full = [i for i, part in enumerate(right) if part]
    for _ in range(inputs):
        parts = list(right)
        for at in random_.sample(full, random_.randint(1, min(2, len(full)))):
            if name == "coded file" and random_.random() < 0.5:
                parts[at] = with_head(parts[at], lambda head: said_otherwise(head, random_))
            else:
                parts[at] = repaired(name, mutated(parts[at], random_))
        try:
            decode(*parts)
        except ValueError:
            refused += 1
    return refused


@pytest.mark.parametrize("name", DECODERS)
def test_any_bytes_give_a_value_or_a_value_error(name):
    assert refusals(name, *DECODERS[name], EACH) > EACH // 20, "much of what is changed is noticed"


def saved(weights: dict[str, Any]) -> bytes:
    return save({n: w.contiguous() for n, w in weights.items()})


def said(value: Any) -> bytes:
    return json.dumps(value).encode()


RIGHT: dict[str, Callable[[Path], object]] = {
    CODED_NAME: lambda p: p.write_bytes(to_coded(origin_of(CONFIG), WEIGHTS, MASKS)),
    MANIFEST_NAME: lambda p: write_manifest(
        p.parent, {"task": "digits", "plugin": "", "config": {}, "edits": []}
    ),
    "pruned.safetensors": lambda p: save_state(State(1, Model(WEIGHTS, MASKS)), p),
    "tune/0/0-2.safetensors": lambda p: write_verified(
        p, saved({f"residual/{n}": w for n, w in WEIGHTS.items()})
    ),
    "privacy.jsonl": lambda p: p.write_bytes(b'{"round": 1, "chain": "x"}\n'),
    "model.safetensors": lambda p: p.write_bytes(
        saved({"a": torch.zeros(3, 4), "b": torch.zeros(2)})
    ),
    "config.json": lambda p: p.write_bytes(
        said({"n_layer": 2, "id2label": {"0": "a"}, "text_config": {"x": [1]}})
    ),
    "a.csv": lambda p: p.write_bytes(b'client,text,label\n1,a b,0.10\n2,"c, d",1\n3,e,0\n'),
    "a.tsv": lambda p: p.write_bytes(b"client\ttext\n1\ta\n2\tb\n"),
    "a.jsonl": lambda p: p.write_bytes(b'{"text": "a", "n": [1, 2]}\n{"text": "b", "n": null}\n'),
    "a.json": lambda p: p.write_bytes(b'[{"text": "a", "n": 1e400}, {"text": "b"}]'),
    "a.txt": lambda p: p.write_bytes(b"a\nb\n\xc3\xa9\n"),
    "a.conll": lambda p: p.write_bytes(b"a O\nb B-x\n\nc O\n"),
}
"""What writes a file that is well formed, by its name."""

READ: dict[str, Callable[[Path], object]] = {
    CODED_NAME: lambda p: load(p.parent),
    MANIFEST_NAME: lambda p: read_manifest(p.parent),
    "pruned.safetensors": lambda p: load_state(p, memories_of("")),
    "tune/0/0-2.safetensors": lambda p: recall(ClientMemory(p.parents[2]), "tune", 0, 2),
    "privacy.jsonl": lambda p: None if p.read_bytes() == b"" else read_ledger(p),
    "model.safetensors": places_in,
    "config.json": lambda p: check_config(p.parent),
}
"""What reads it; rows of users' own by what their names end with."""


def made_sound(path: Path, content: bytes) -> None:
    """Write what was mutated with a digest that fits it."""
    if path.suffix == ".safetensors" and path.name != "model.safetensors":
        write_verified(path, content)
    elif path.name == MANIFEST_NAME:
        said = read_json(content)
        files = said.pop("files", None) if isinstance(said, dict) else None
        said = {**said, "files": files} if files is not None else said
        del said["sha256"]
        text = json.dumps(said, sort_keys=True)
        path.write_text(json.dumps({**said, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", RIGHT)
def test_any_file_gives_a_value_or_a_value_error(name, tmp_path):
    path, random_ = tmp_path / name, random.Random(name)
    decode = READ.get(name) or partial(READERS.get(path.suffix), encoding=None)
    RIGHT[name](path)
    right = path.read_bytes()
    for _ in range(EACH):
        if name == CODED_NAME:
            content = with_head(right, partial(said_otherwise, random_=random_))
        elif path.suffix == ".safetensors" and name != "model.safetensors":
            content = mutated_tensors(right[:-40], random_)
        else:
            content = mutated(right, random_)
        try:
            made_sound(path, content)
        except (ValueError, KeyError, TypeError, AttributeError):
            path.write_bytes(content)
        with suppress(ValueError, FileNotFoundError):  # a file that a manifest names may be gone
            decode(path)


def mutated_tensors(data: bytes, random_: random.Random) -> bytes:
    """A safetensors file with another header, or other bytes."""
    if random_.random() < 0.3:
        return cut_and_pasted(data, random_)
    end = 8 + int.from_bytes(data[:8], "little")
    head = said_otherwise(data[8:end], random_)
    if random_.random() < 0.7:
        said = json.loads(data[8:end])
        rest = said.get("__metadata__", {}).get("fedprune")
        if rest:
            said["__metadata__"]["fedprune"] = said_otherwise(rest.encode(), random_).decode()
            head = json.dumps(said).encode()
    return len(head).to_bytes(8, "little") + head + data[end:]

"""Small inputs that claim to be large, or are written as nothing here writes: refused, and cheaply.

Inputs that are mutated at random are in `tests/test_fuzz.py`.
"""

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from pcodec import ChunkConfig, standalone

from fedprune.codec.bit_codes import KEPT_GAPS, PLAIN, ZSTD
from fedprune.codec.coded_file import from_coded
from fedprune.codec.flags import flags_of, rungs_of
from fedprune.codec.mask_blocks import _number, mask_block
from fedprune.codec.masks import MASK_MAGIC, VERSION, _checksum, decode_mask, encode_mask
from fedprune.codec.model_digest import edits_in
from fedprune.codec.wire import Packet, head_of
from fedprune.learning.candidates import from_table
from fedprune.structure.edits import from_json

Decoder = Callable[[bytes], Any]


def mask_file(signatures: bytes, *blocks: tuple[int, bytes]) -> bytes:
    body = mask_block(PLAIN, signatures) + b"".join(mask_block(*block) for block in blocks)
    return MASK_MAGIC + bytes([VERSION]) + _checksum(body) + body


def signature(name: bytes, *shape: int) -> bytes:
    return _number(len(name)) + name + b"".join(map(_number, [len(shape), *shape]))


def claims() -> Iterator[tuple[str, Decoder, bytes]]:
    """Small inputs that claim to be large, or are written as nothing here writes."""
    large = signature(b"a", 2**32)
    yield "4e9 weights", decode_mask, mask_file(large, (KEPT_GAPS, b""))
    yield "many dimensions", decode_mask, mask_file(signature(b"a", *[1] * 99), (PLAIN, b"\x01"))
    yield "a shape past 64 bits", decode_mask, mask_file(signature(b"a", 2**40, 2**40), (1, b""))
    twice = mask_file(signature(b"a", 8) * 2, (PLAIN, b"\x01\x01"))
    yield "two of one name", decode_mask, twice
    yield "bits beyond the last", decode_mask, mask_file(signature(b"a", 3), (PLAIN, b"\xff"))
    long = b"\x01a\x01" + b"\x83\x00"
    yield "a number written long", decode_mask, mask_file(long, (PLAIN, b"\x01"))
    zeros = zstandard.compress(bytes(2**28), 1)
    yield "zstd of a quarter gigabyte", decode_mask, mask_file(signature(b"a", 80), (ZSTD, zeros))
    header = MASK_MAGIC + bytes([VERSION])
    names = mask_block(ZSTD, zeros)
    yield "names of a quarter gigabyte", decode_mask, header + _checksum(names) + names
    ones = standalone.simple_compress(np.ones(10**7, np.uint32), ChunkConfig())
    yield "gaps beyond", decode_mask, mask_file(signature(b"a", 80), (KEPT_GAPS, bytes(ones)))
    same = standalone.simple_compress(np.array([1, 0], np.uint32), ChunkConfig())
    yield "a position twice", decode_mask, mask_file(signature(b"a", 80), (KEPT_GAPS, bytes(same)))
    first = standalone.simple_compress(np.array([0], np.uint32), ChunkConfig())
    yield "a position before", decode_mask, mask_file(signature(b"a", 8), (KEPT_GAPS, bytes(first)))
    flags = mask_file(signature(b"", 2**24), (KEPT_GAPS, b""))
    yield "more flags than asked", lambda d: flags_of(d, 300), flags
    yield "more rungs than asked", lambda d: rungs_of(d, 30), flags
    packed = zstandard.compress(b"[" + b"1," * 2**24 + b"1]", 3)
    edits = b"EDIT" + len(packed).to_bytes(4, "little") + packed
    yield "edits of 32 megabytes", edits_in, edits
    yield "deep json", from_json_bytes, b"[" * 10**6
    yield "a deep head", lambda d: head_of(Packet({"head": d})), b'{"a":' * 10**5
    head = {"task": "x", "plugin": "", "mask_bytes": 0, "shapes": {"a": [2**40]}}
    yield "a coded file of a tera", from_coded, coded(head)
    head["shapes"] = {"a": [-1]}
    yield "a coded file of less than nothing", from_coded, coded(head)
    text = b'{"a":1,"a":2}'
    yield "one name twice", lambda d: head_of(Packet({"head": d})), text
    names = b"".join(signature(str(i).encode(), 0) for i in range(40_000))
    yield "40,000 empty masks", decode_mask, mask_file(names, (PLAIN, b""))
    many = [(PLAIN, b"")] * 1000
    yield "more blocks than masks", decode_mask, mask_file(signature(b"a", 8), *many)
    wide = mask_file(signature(b"a" * 9000, 2**29), (KEPT_GAPS, b""))
    yield "a long name, many weights", decode_mask, wide
    yield "another tensor", lambda d: decode_mask(d, shapes={"b": (2**24,)}), flags
    yield "another shape", lambda d: decode_mask(d, shapes={"": (2**23, 2)}), flags
    often = standalone.simple_compress(np.ones(5, np.uint32), ChunkConfig())
    most = mask_file(signature(b"a", 8), (KEPT_GAPS, bytes(often)))
    yield "gaps of the common", decode_mask, most
    frame = zstandard.compress(bytes(10))
    for what, payload in ("two frames", frame * 2), ("a frame and more", frame + b"x"):
        yield what, decode_mask, mask_file(signature(b"a", 80), (ZSTD, payload))
    held = mask_file(signature(b"a", 2**28), (KEPT_GAPS, b""))
    head = {"mask_bytes": len(held), "shapes": {"a": [2**28]}, "junk": "x" * 9000}
    yield "a coded file of mostly nothing", from_coded, coded(head, held)
    for shape in ([2**62, 2**62, 0], [1] * 99, [10**400], [1.0], [True], "12", None):
        head = {"mask_bytes": 0, "shapes": {"a": shape}}
        yield f"a shape of {shape!r}"[:40], from_coded, coded(head)
    many_values = b'{"a":[' + b"[]," * 1_050_000 + b"1]}"
    yield "a million values", lambda d: head_of(Packet({"head": d})), many_values
    one = b'{"kind":"head","path":"a","like":"","kept":'
    for kept in (b"[2,1]", b"[1,1]", b"[-1]", b"[1.0]", b"[true]", b'"12"', b"{}", b"[1e999]"):
        yield f"edits that keep {kept!r}", from_json_bytes, b"[" + one + kept + b"}]"
    for said in (b"{}", b"null", b"[1]", b"[" + one + b'[],"kept":[]}]', one + b"[]}"):
        yield f"edits {said!r}"[:40], from_json_bytes, said


def from_json_bytes(data: bytes) -> Any:
    return from_json(data.decode())


def coded(head: dict[str, Any], mask: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    body = b"FEDPRUN1" + len(text).to_bytes(4, "little") + text + mask
    return body + hashlib.sha256(body).digest()


@pytest.mark.slow
def test_what_claims_to_be_large_is_refused_in_a_few_megabytes(subtests):
    for what, decode, data in claims():
        with subtests.test(what):
            tracemalloc.start()
            try:
                with pytest.raises(ValueError):  # noqa: PT011  each decoder says it in its words
                    decode(data)
                most = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert most < 8e6 + 4 * len(data)


@pytest.mark.parametrize(
    "table",
    [
        *(
            None,
            3,
            [[1]],
            [[1, [[10**30, 1]]]],
            {"a": 1},
            [[0, {"a": 1}]],
            "ab",
            [[0, [[0, 1]] * 2]],
        ),
        *([[share, []] for share in ("x", [], "1", float("nan"), 10**400, True)]),
        *([[0, [[place, 1]]] for place in (-1, 0.0, 0.5, float("inf"), "0", True, None, 1)]),
    ],
    ids=lambda table: repr(table)[:40],
)
def test_a_table_of_candidates_is_one_or_a_value_error(table):
    with pytest.raises(ValueError):  # noqa: PT011
        from_table(table, ["w"])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 2**16, 10**7])
def test_a_mask_that_keeps_all_or_nothing_is_not_mistaken_for_a_claim(size):
    for mask in (torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)):
        assert torch.equal(decode_mask(encode_mask({"a": mask}))["a"], mask)
        assert torch.equal(decode_mask(encode_mask({"a": mask}), size)["a"], mask)

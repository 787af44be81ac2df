"""The parts of an encoded mask: blocks of bytes with their lengths, names with shapes.

Who reads raises EOFError where they are cut short, and ValueError where they are not as they are
written here, or are more.
"""

from __future__ import annotations

from collections.abc import Sequence


def signature(name: str, shape: Sequence[int]) -> bytes:
    """A name and a shape; nothing else has the same bytes."""
    text = name.encode("utf-8", "surrogatepass")
    return _number(len(text)) + text + b"".join(map(_number, [len(shape), *shape]))


class Cursor:
    """Bytes that are read one part after the other, without a copy of any."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at = memoryview(data), 0

    def read(self, size: int) -> memoryview:
        """The next bytes; fewer where they end."""
        part = self.data[self.at : self.at + size]
        self.at += len(part)
        return part

    @property
    def over(self) -> bool:
        """Whether all bytes were read."""
        return self.at == len(self.data)


def read_signatures(stream: Cursor, most: int) -> dict[str, tuple[int, ...]]:
    """Name to shape of all signatures that follow, so many at the most."""
    shapes: dict[str, tuple[int, ...]] = {}
    while not stream.over:
        if len(shapes) == most:
            raise ValueError(f"more than {most} masks")
        name = bytes(_read(stream, _read_number(stream))).decode("utf-8", "surrogatepass")
        if name in shapes:
            raise ValueError(f"two masks of one name, {name[:100]!r}")
        if (dimensions := _read_number(stream)) > _MOST_DIMENSIONS:
            raise ValueError(f"{dimensions} dimensions; allowed: {_MOST_DIMENSIONS}")
        shapes[name] = tuple(_read_number(stream) for _ in range(dimensions))
    return shapes


_MOST_DIMENSIONS = 64  # as many as torch takes


def mask_block(code: int, payload: bytes) -> bytes:
    """A code, the length of what is coded, and that."""
    return bytes([code]) + _number(len(payload)) + payload


def read_block(stream: Cursor) -> tuple[int, memoryview]:
    """The inverse of `mask_block`, of the next one."""
    code = _read(stream, 1)[0]
    return code, _read(stream, _read_number(stream))


def _number(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the top bit says that more follow."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _number(rest) if rest else bytes([low])


_LONGEST_NUMBER = 9  # bytes: 63 bits


def _read_number(stream: Cursor) -> int:
    value = 0
    for at in range(_LONGEST_NUMBER):
        byte = _read(stream, 1)[0]
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            if at and not byte:
                raise ValueError("a number that could be shorter")
            return value
    raise ValueError("a number of too many bytes")


def _read(stream: Cursor, size: int) -> memoryview:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"{size} bytes expected, {len(data)} left")
    return data

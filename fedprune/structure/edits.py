"""What a model's shape has become: a list of edits that any client replays on the dense model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from fedprune.runtime.json_text import read_json


@dataclass(frozen=True)
class Edit:
    """One change of shape. Values do not travel with it: they are the state of the new model.

    Attributes:
        kind: what is cut or replaced, a name in `fedprune.structure.surgery.EDITS`.
        path: the module's path in the dense model.
        kept: original indices of the units that stay, ascending; () = the whole part is gone. Of
            "rank" the one number is the rank, of "slice" how many channels between layers are left;
            of "bias", which a layer gets, there are none.
        like: the path of the module whose weight it shares, for "share"; the id as which those
            are read that are gone, for "vocab".
    """

    kind: str
    path: str
    kept: tuple[int, ...] = ()
    like: str = ""


Edits = tuple[Edit, ...]

CUTS = frozenset({"expert", "head", "neuron", "channel", "vocab"})
"""Kinds that only take away: what they leave are numbers of the dense model, in its order."""


def to_json(edits: Iterable[Edit]) -> str:
    """The edits as one line."""
    return json.dumps([asdict(edit) for edit in edits], separators=(",", ":"))


def from_json(text: str) -> Edits:
    """The inverse of `to_json`.

    Raises:
        ValueError: it is no list of edits. Nothing else is raised, whatever the text is.
    """
    return edits_of_list(read_json(text))


def edits_of_list(said: Any) -> Edits:
    """Edits as JSON has them.

    Raises:
        ValueError: they are no list of edits.
    """
    if not isinstance(said, list):
        raise ValueError(f"no list of edits: {type(said).__name__}")
    return tuple(_edit(one) for one in said)


_LONGEST = 1000  # characters of a module's path


def _edit(said: Any) -> Edit:
    if not isinstance(said, dict) or set(said) != {"kind", "path", "kept", "like"}:
        raise ValueError("no list of edits: each has kind, path, kept and like")
    kind, path, kept, like = (said[key] for key in ("kind", "path", "kept", "like"))
    if not all(isinstance(text, str) for text in (kind, path, like)):
        raise ValueError("no list of edits: kind, path and like are texts")
    if max(map(len, (kind, path, like))) > _LONGEST:
        raise ValueError(f"no list of edits: a text of more than {_LONGEST} characters")
    if not isinstance(kept, list) or not all(type(n) is int and 0 <= n < 2**31 for n in kept):
        raise ValueError("no list of edits: what is kept are whole numbers from 0")
    if any(a >= b for a, b in pairwise(kept)):
        raise ValueError("no list of edits: what is kept is not ascending")
    return Edit(kind, path, tuple(kept), like)

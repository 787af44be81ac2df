"""Entities in a row of tags, as the CoNLL shared tasks count them."""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Kind, place of the first word, place after the last."""

ENDS, BEGINS = "ESLU", "BSUO"
"""Prefixes after which no entity goes on, and at which none does."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities that tags say, by the rules of conlleval (Tjong Kim Sang and Buchholz 2000).

    BIO in both of its kinds and BIOES: an entity begins at B and S, and where an I or E does not
    continue one of its kind. L and U are E and S by other names. O is none. A tag without a prefix
    is an entity of one word.
    """
    found: set[Entity] = set()
    start, (last, kind) = -1, ("O", "")
    for i, (prefix, its_kind) in enumerate([*map(tag_parts, tags), ("O", "")]):
        if start >= 0 and (last in ENDS or prefix in BEGINS or its_kind != kind):
            found.add((kind, start, i))
            start = -1
        if prefix != "O" and start < 0:
            start = i
        last, kind = prefix, its_kind
    return found


def tag_parts(tag: str) -> tuple[str, str]:
    """Prefix and kind of a tag: "B" and "PER" of B-PER, "O" and "" of O, "S" of one without."""
    prefix, _, kind = tag.partition("-")
    return (prefix, kind) if prefix in {*"BIESLUO"} else ("S", tag)

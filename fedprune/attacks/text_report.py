"""Characters found in a client's text from what is released: sections of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedprune.attacks.exposed import Exposed, protections, views
from fedprune.attacks.page import Figure, Passage, Table, pivot, share_cell
from fedprune.attacks.quantities import QUANTITIES
from fedprune.attacks.scene import Scene, message, scene
from fedprune.attacks.spelling import in_place, spelled
from fedprune.attacks.words import evidence, found_tokens
from fedprune.config import configure
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.task import Part
from fedprune.tasks.tokenization import ALPHABET

_CLIENTS, _LENGTH = 10, 16
EMBEDDINGS = "model.embed_tokens.weight"
_READERS = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
SPELLED = ("change", "|g|")

TEXT_CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ()) for name in QUANTITIES},
    "|g|, with embeddings": ("|g|", (EMBEDDINGS,)),
    "votes, with embeddings": ("votes", (EMBEDDINGS,)),
}
"""Scores leave embeddings out unless asked (--include); a change of the weights holds them."""

_TEXT = (
    f"A client with one text of {_LENGTH} characters answers one question about the default model "
    "of the task shakespeare, untrained. Where embeddings are released, the rows of characters "
    "that occur stand out. Where they are not, the gradient of the first projections has its rows "
    "in the span of the vectors of those characters, and Σ x² of their inputs is a sum of the "
    "squares of these vectors, which a least-squares fit takes apart.",
    "The share of the characters of the text that are among the first k found, k being how many "
    "different ones there are: precision and recall at once. The column on the right is chance; "
    "of a sum, the characters of one client count, and common ones are found because everyone "
    "uses them.",
    "What to take from it: Σ x², which needs no gradient and looks harmless, lists the characters "
    "of a short text exactly. Masks of inner layers tell no more than chance. Longer texts hold "
    "most characters, so that a list of them says less; a list of words would say more.",
)
ORDER = (
    "Knowing which characters occur, the observer searches for their order: the text whose release "
    "would look like the message (after TAG and LAMP). A search of {steps} steps, which finds "
    "little more than chance, 1 in k in place with k different characters. The papers search "
    "longer, and with a language model as a prior; that they find more stays true.",
)


def text_findings(
    seeds: Sequence[int],
    epsilons: Sequence[float],
    steps: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Passage], dict[str, Any]]:
    """Sections about the characters of a text and their order, and their figures.

    `steps`: of the search for the order; 0 leaves it out.
    """
    shards = TASKS["shakespeare"].shards(
        configure({"task": "shakespeare", "clients": _CLIENTS, "length": _LENGTH})
    )
    known = protections(epsilons, _CLIENTS)
    figures, told, orders = list[Figure](), list[list[str]](), list[list[str]]()
    for seed in seeds:
        parts = [{n: t[5 + seed : 6 + seed] for n, t in s.train.items()} for s in shards]
        for name, (quantity, more) in TEXT_CASES.items():
            keys = {"task": "shakespeare", "seed": seed, "length": _LENGTH, "include": more}
            made = scene(quantity, parts, keys)
            seen_by = views(made, [message(made, p) for p in range(_CLIENTS)], known, seed)
            for column, seen in seen_by.items():
                part, found = _found(made, seen, parts[0])
                figure = {"recall": part, "found": _written(found)}
                figures.append({"quantity": name, "protection": column, "seed": seed, **figure})
                if seed == seeds[0] and column == "plain":
                    told.append([name, _text(parts[0])[:-1], _written(found)])
            if name in SPELLED and steps:
                orders.append([str(seed), name, *_order(made, seen_by["plain"], parts[0], steps)])
            tick()
    return _sections(figures, told, orders, steps), {"rows": figures, "order": orders}


def _sections(
    figures: list[Figure], told: list[list[str]], orders: list[list[str]], steps: int
) -> list[Passage]:
    words = ("quantity", "text", "characters found", "text found")
    listed = Table(["quantity", "text", "characters found"], told, words)
    sections = [
        Passage("Which characters a text holds", _TEXT, pivot(figures, share_cell("recall"))),
        Passage("The characters of the first text, from plain messages", (), listed),
    ]
    if orders:
        about = (ORDER[0].format(steps=steps),)
        table = Table(["seed", "quantity", "text", "text found", "in place"], orders, words)
        sections.append(Passage("The order of its characters", about, table))
    return sections


def _found(made: Scene, seen: Exposed, part: Part) -> tuple[float, list[int]]:
    truth = set(part["inputs"].flatten().tolist())
    found = found_tokens(evidence(made, seen, EMBEDDINGS, _READERS), len(truth))
    return len(truth & set(found)) / len(truth), found


def _order(made: Scene, seen: Exposed, part: Part, steps: int) -> list[str]:
    """The text, what was made of it, and how much of that is in place."""
    _, candidates = _found(made, seen, part)
    found = spelled(made, seen, EMBEDDINGS, candidates, _LENGTH, steps)
    return [_text(part), _written(found), f"{100 * in_place(found, _ids(part)):.0f} %"]


def _ids(part: Part) -> list[int]:
    return [*part["inputs"][0].tolist(), int(part["labels"][0, -1])]


def _text(part: Part) -> str:
    return _written(_ids(part))


def _written(ids: Sequence[int]) -> str:
    """The characters, with a middle dot for a blank and an arrow for the end of a line."""
    return "".join(ALPHABET[i] for i in ids).replace(" ", "·").replace("\n", "↵")

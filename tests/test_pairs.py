"""Every choice beside every other one: refused before a run begins, or a run that keeps the laws.

The choices are those of the schema and of the tables of names, so that a new one joins by being
there. `FEDPRUNE_PAIRS=SEED,ROWS` plays other combinations, and more of them.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from fedprune.config import configure
from fedprune.options.refusal import ConfigError
from tests.choices import EXCLUDED, LOOKED_AT, SWITCHES, chosen_by_name, factors, given, refusal_of
from tests.pairs import Array, covering
from tests.played import play

SEED, ROWS = map(int, os.environ.get("FEDPRUNE_PAIRS", "0,40").split(","))
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "far", "host")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """The factors, with a file for the tasks that read one."""
    path, chance = tmp_path_factory.mktemp("pairs") / "rows.jsonl", random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=4)) for _ in range(60)]
    rows = [
        {"text": text, "label": "ab"[i % 2], "target": text[:9], "client": f"c{i % 6}"}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return factors(path)


@pytest.fixture(scope="module")
def array(found) -> Array:
    sizes = {name: len(values) for name, values in found.items()}
    return covering(sizes, lambda row: refusal_of(row, found), LOOKED_AT, most=ROWS, seed=SEED)


def test_every_choice_of_the_schema_is_a_factor_or_named_with_its_reason():
    found = factors(Path("rows.jsonl"))
    assert chosen_by_name() - found.keys() == EXCLUDED.keys() - found.keys()
    assert not EXCLUDED.keys() & found.keys()
    assert found.keys() >= SWITCHES.keys()


@pytest.mark.slow
def test_every_choice_can_be_made(array, found):
    nowhere = [(name, found[name][i]) for (name, i), row in array.alone.items() if row is None]
    assert not nowhere


@pytest.mark.slow
def test_the_rows_have_most_pairs(array):
    """Of those that are left many cannot be had."""
    assert len(array.had) > 1.5 * len(array.left)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROWS))
def test_a_combination_keeps_the_laws(number, array, found):
    if number < len(array.rows):
        try:
            play(configure(given(array.rows[number], found)))
        except ConfigError as refused:  # of a model, which is there only when it is rehearsed
            if not str(refused).startswith(("batched=", "adapters=")):
                raise

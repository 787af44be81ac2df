"""Every kind of question has a form, an answer, and a way to Flower."""

import inspect
from dataclasses import replace
from typing import Any

import pytest

from fedprune.client.answers import ANSWERS
from fedprune.config.kinds import KINDS
from fedprune.engines.flower import client_app
from fedprune.protocol.forms import FORMS, form_of
from fedprune.protocol.limits import clip_of
from fedprune.protocol.messages import Question
from fedprune.protocol.releases import releases_of
from fedprune.server.state import first_state
from tests.runs import house_of, tiny


def test_every_kind_has_a_form_and_an_answer():
    assert KINDS.keys() == FORMS.keys() == ANSWERS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_flower_knows_the_messages_of_a_kind(name):
    verb, _, action = KINDS[name].flower.partition(".")
    handler = f'@app.{verb}("{action}")' if action else f"@app.{verb}()"
    assert handler in inspect.getsource(client_app)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_about_data_alone_counts_and_says_so(name):
    kind = KINDS[name]
    assert kind.doing
    assert kind.weights or kind.quantity == "counts"
    assert not (kind.totals_only and kind.asks == "cohort")


@pytest.mark.parametrize(
    "privacy", [{}, {"dp": "client", "dp_noise": 1.0, "dp_clip": 0.5, "allow_uncovered": True}]
)
@pytest.mark.parametrize("name", ["tune", "own", "evaluate"])
def test_a_kind_is_treated_by_its_row_and_not_by_its_name(name, privacy, monkeypatch):
    """Of changes that a method of its own might ask for: the same form, bounds and bookings."""
    config = tiny(model="mlp", **privacy)
    host = house_of(config)
    state = first_state(host.model, host.layout)
    question = Question(name, 1, state.weights, state.masks, score="taylor", part="test")

    def treated(kind: str) -> list[Any]:
        asked = replace(question, kind=kind)
        form = form_of(asked, config, host.layout)
        return [replace(form, masks={}), releases_of(asked, form, config), clip_of(kind, config)]

    expected = treated(name)
    monkeypatch.setitem(KINDS, "another", KINDS[name])
    monkeypatch.setitem(FORMS, "another", FORMS[name])
    assert treated("another") == expected

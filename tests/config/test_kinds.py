"""Every kind of question has a form, an answer, and a way to Flower."""

import inspect

import pytest

from fedprune.client.answers import ANSWERS
from fedprune.config.kinds import KINDS
from fedprune.engines.flower import client_app
from fedprune.protocol.forms import FORMS


def test_every_kind_has_a_form_and_an_answer():
    assert KINDS.keys() == FORMS.keys() == ANSWERS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_flower_knows_the_messages_of_a_kind(name: str):
    verb, _, action = KINDS[name].flower.partition(".")
    handler = f'@app.{verb}("{action}")' if action else f"@app.{verb}()"
    assert handler in inspect.getsource(client_app)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_about_data_alone_counts_and_says_so(name: str):
    kind = KINDS[name]
    assert kind.doing
    assert kind.weights or kind.quantity == "counts"
    assert not (kind.totals_only and kind.asks == "cohort")

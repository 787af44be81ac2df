import pytest
import torch

from fedprune.client.host import build_host
from fedprune.engines.inline import inline_port
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.redundancy.moments import inputs_from, questions, together
from fedprune.structure.layers import input_rows, layers_of, watching
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, full_masks, masked
from tests.runs import tiny


@pytest.fixture(scope="module")
def asked():
    host = build_host(tiny())
    weights = copied(state_of(host.model))
    masks = full_masks(weights, host.layout.prunable)
    masks["features.0.weight"][0] = False
    question = Question("inputs", 1, masked(weights, masks), masks)
    form = form_of(question, host.config, host.layout)
    aggregate = inline_port(host).ask(question, [0, 2, 4])
    found = inputs_from(form.named(aggregate.total), host.layout.prunable)
    return host, question, aggregate, found


def test_what_clients_sum_is_the_second_moment_of_their_pooled_inputs(asked):
    host, _, aggregate, found = asked
    rows: dict[str, list[torch.Tensor]] = {n: [] for n in host.layout.prunable}

    def see(name: str, layer, x: torch.Tensor, _y: torch.Tensor) -> None:
        rows[name].append(input_rows(layer, x).flatten(0, 2).double())

    with watching(layers_of(host.model, host.layout.prunable), see), torch.no_grad():
        for partition in (0, 2, 4):
            host.task.loss(host.model, host.shards[partition].train)
    assert aggregate.answered == (0, 2, 4)
    for name, seen in rows.items():
        x = torch.cat(seen)
        assert found.rows[name] == len(x)
        assert torch.allclose(found.moments(name), x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


def test_layers_may_be_asked_for_one_after_the_other(asked):
    host, question, _, found = asked
    names = list(questions(host.layout, host.layout.prunable, most=9**2 + 144**2))
    assert names == [("features.0.weight", "features.4.weight"), ("hidden.weight",)]
    pieces = []
    for some in names:
        part = Question("inputs", 1, question.weights, question.masks, names=some)
        total = inline_port(host).ask(part, [0, 2, 4]).total
        pieces.append(inputs_from(form_of(part, host.config, host.layout).named(total), some))
    whole = together(pieces)
    assert whole.rows == found.rows
    assert all(torch.equal(whole.products[n], found.products[n]) for n in found.products)


def test_an_answer_of_another_shape_is_refused(asked):
    from fedprune.options.refusal import Refused
    from fedprune.protocol.checks import check_summand

    host, question, *_ = asked
    form = form_of(question, host.config, host.layout)
    with pytest.raises(Refused, match="wrong shape"):
        check_summand(torch.zeros(form.values - 1), 1.0, {"count": 1.0}, form)


def test_where_nothing_went_the_moments_are_zero():
    sums = {"w/inputs": torch.zeros(2, 2), "w/rows": torch.zeros(1)}
    assert not inputs_from(sums, ["w"]).moments("w").any()

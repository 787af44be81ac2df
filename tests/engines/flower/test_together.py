"""Several asks in one exchange: on their way side by side, to the bits of one after the other."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from fedprune import federate
from fedprune.config import configure
from fedprune.config.terms import accounting_terms_of
from fedprune.engines.flower import asking, open_sums
from fedprune.engines.inline import inline_port
from fedprune.privacy.ledger import Spent, open_ledger
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.protocol.server_privacy import private_port
from fedprune.server.state import first_state
from tests.gallery import METHODS, MLP, NOISE
from tests.runs import Spy, house_of
from tests.server.grids import FakeGrid, failures, run_on, workers


@dataclass
class Counting(FakeGrid):
    """Knows how many messages were on their way at once, by kind."""

    most: dict[str, int] = field(default_factory=dict)

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        there = Counter(self._sent[i].metadata.message_type for i in ids if i in self._sent)
        self.most |= {kind: max(n, self.most.get(kind, 0)) for kind, n in there.items()}
        return super().pull_messages(ids)


LOTTERY = {**MLP, "method": "lotteryfl", **METHODS["lotteryfl"]}
HETERO = {**MLP, "method": "heterofl", **METHODS["heterofl"]}
REMEMBERING = {**MLP, "plugin": "tests/remembering.py", "score": "moving", "end": 4}
REMEMBERING |= {"hosts": 3, "cohort": 4}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("keys", "bytes_", "most"),
    [
        (LOTTERY, None, {"train.tune": 3, "evaluate": 4}),
        (LOTTERY, 1, {"train.tune": 1, "evaluate": 1}),
        (HETERO, None, {"train.tune": 3}),
        (REMEMBERING, None, {"train.score": 3}),
        (REMEMBERING, 1, {"train.score": 1}),
    ],
)
def test_as_many_are_on_their_way_as_there_is_room_for(keys, bytes_, most, monkeypatch):
    if bytes_:
        for module in (asking, open_sums):
            monkeypatch.setattr(module, "ON_THE_WAY", bytes_)
    config, net = configure(keys), Counting(workers(2).contexts)
    result = run_on(net, config)
    assert {kind: net.most[kind] for kind in most} == most
    assert result.rows == federate(config).rows


@pytest.mark.slow
def test_who_is_lost_among_many_is_the_one_who_is_missed():
    """As in a run without that client, but for its failure."""
    config = configure(LOTTERY)

    def lose(_, question, reply):
        fields = question.content.config_records["fields"]
        gone = question.metadata.message_type == "train.tune" and fields["partitions"] == [1]
        return None if gone else reply

    lossy = run_on(workers(2, meddle=lose), config)
    without = Spy(inline_port(house_of(config)), lambda q, p: q.kind == "tune" and p == 1)
    spared = federate(config, without.port)
    assert lossy.summary["weights_digest"] == spared.summary["weights_digest"]
    assert {(f["partition"], f["phase"]) for f in failures(lossy)} == {(1, "tune")}
    assert not spared.state.book.failed


def test_of_an_exchange_that_the_budget_does_not_allow_for_nothing_is_put():
    """Two questions, of which the budget covers one."""
    config = configure({**MLP, "dp": "client", **NOISE, "epsilon": None})
    terms = replace(accounting_terms_of(config), budget=None)
    put = []

    def several(asks):
        put.append(len(asks))
        return [Aggregate(totals={"count": 1.0})] * len(asks)

    model, port = dense_model(config), Port(Exchange(several), dict)
    weights, masks = first_state(model, layout_for(config, model)).model.weights, {}
    asks = [Ask(Question("tune", 1, weights, masks, lr=lr), [0, 1, 2]) for lr in (0.1, 0.2)]
    alone = open_ledger(None, terms)
    private_port(port, config, alone, "pruned").put(asks[:1])
    spent = replace(terms, budget=alone.epsilon)
    gate = private_port(port, config, open_ledger(None, spent), "pruned")
    with pytest.raises(Spent):
        gate.put(asks)
    assert put == [1]
    private_port(port, config, open_ledger(None, terms), "pruned").put(asks)
    assert put == [1, 2]

"""Secure sums over an engine's hosts: equal to sums in the open, whoever drops out and when."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedprune import ConfigError, RunConfig, federate
from fedprune.client.host import Host
from fedprune.client.serving import serve
from fedprune.engines.inline import inline_port
from fedprune.engines.inline_sums import inline_transport
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import encode_question
from fedprune.protocol.failures import Failure
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.secagg.fixed_point import scale_for
from fedprune.secagg.messages import Call, StageReply, Transport
from fedprune.secagg.secure_sum import FEWEST_HOLDERS, secure_ask
from fedprune.server.state import first_state
from tests.runs import house_of, tiny

STAGES = ("keys", "shares", "masked", "confirm", "unmask")


def sealed(**changes: Any) -> RunConfig:
    return tiny(**{"secure": "secagg", "clients": 12, "cohort": 10, "hosts": 4, **changes})


@dataclass
class Unreliable:
    """A transport under which partitions leave before they send in a stage, and stay away.

    Attributes:
        inner: what reaches them.
        gone: who leaves, by the number of the try and the stage; stages by name are of the first.
        calls: what was asked of whom.
    """

    inner: Transport
    gone: Mapping[Any, Collection[int]]
    calls: list[tuple[Call, list[int], StageReply]] = field(default_factory=list)
    away: set[int] = field(default_factory=set)
    tries: int = 0

    def __call__(self, call: Call, partitions: Sequence[int], enclosed: Any) -> StageReply:
        self.tries += call.stage == "keys"
        self.away.update(self.gone.get((self.tries, call.stage), ()))
        if self.tries == 1:
            self.away.update(self.gone.get(call.stage, ()))
        left = [p for p in partitions if p not in self.away]
        reply = self.inner(call, left, enclosed)
        failures = tuple(Failure(p, call.stage, "", "left") for p in partitions if p in self.away)
        self.calls.append((call, list(partitions), reply))
        return replace(reply, failures=reply.failures + failures)


def question_of(host: Host, kind: str = "tune", **what: Any) -> Question:
    state = first_state(host.model, host.layout)
    given: dict[str, Any] = {"score": "taylor", "lr": 0.1, "sparsity": 0.5, "part": "validation"}
    return Question(kind, 3, state.weights, state.masks, **{**given, **what})


def put(host, question, asked=range(10), gone=None):
    transport = Unreliable(inline_transport(host), gone or {})
    layout = layout_at(host.config, question.edits)
    return secure_ask(question, asked, layout, host.config, transport), transport


def in_the_open(host: Host, question: Question, asked: Collection[int]) -> Aggregate:
    bare = host.config.model_copy(update={"secure": "none", "ranges": {}})
    return inline_port(replace(host, config=bare)).ask(question, sorted(asked))


def agrees(found: Aggregate, right: Aggregate, step: float = 2.0**-36) -> None:
    assert found.answered == right.answered
    assert found.weight == right.weight
    worst = len(found.answered) * step / 2
    assert torch.allclose(found.total, right.total, rtol=1e-12, atol=worst)
    assert (found.votes is None) == (right.votes is None)
    assert found.votes is None or found.votes.equal(right.votes)
    assert found.totals == pytest.approx(right.totals, rel=1e-9)
    assert found.totals.get("count") == right.totals.get("count")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["score", "tune", "evaluate", "describe", "inputs"])
def test_a_secure_sum_is_the_sum_in_the_open(kind):
    host = house_of(sealed())
    question = question_of(host, kind)
    found, seen = put(host, question, range(12))
    largest = {"inputs": 1e9, "describe": 1e12}.get(kind, 1e6)
    step = scale_for(largest, 12, 64).step
    agrees(found, in_the_open(host, question, range(12)), step)
    assert found.tries == 1
    assert found.failures == ()
    assert found.singles is None
    assert [call.stage for call, _, _ in seen.calls] == list(STAGES)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gone", [{4}, {2, 5, 9}])
def test_who_drops_out_is_left_out_and_named(stage, gone):
    host = house_of(sealed())
    question = question_of(host, "score")
    found, _ = put(host, question, gone={stage: gone})
    # Once a masked vector has come, it is in the sum, whether or not its sender stays.
    out = set() if stage in ("confirm", "unmask") else gone
    agrees(found, in_the_open(host, question, set(range(10)) - out))
    assert {f.partition for f in found.failures} == out
    assert {(f.phase, f.field) for f in found.failures} <= {("score", stage)}
    assert all(f.reason == "left" for f in found.failures)
    assert found.tries == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stage", STAGES)
def test_with_too_few_left_the_sum_is_tried_again_among_them(stage):
    host = house_of(sealed())
    question = question_of(host, "score")
    gone = {0, 2, 3, 5, 8, 9}
    found, seen = put(host, question, gone={stage: gone})
    agrees(found, in_the_open(host, question, set(range(10)) - gone))
    assert {f.partition for f in found.failures} == gone
    assert found.tries == 2
    assert len({call.session for call, _, _ in seen.calls}) == 2
    first, again = (r.keys for c, _, r in seen.calls if c.stage == "keys")
    assert not {*first.values()} & {*again.values()}, "new masks"
    alone, _ = put(host, question, sorted(set(range(10)) - gone))
    assert found.bytes_up > alone.bytes_up
    assert found.bytes_down > alone.bytes_down


def test_a_sum_that_fails_twice_is_no_sum():
    host = house_of(sealed())
    question = question_of(host, "evaluate")
    gone = {(1, "masked"): {0, 1, 2, 3, 4, 5}, (2, "unmask"): {6, 7}}
    found, _ = put(host, question, gone=gone)
    assert found.total is None
    assert found.answered == ()
    assert [f.partition for f in found.failures] == list(range(10))
    assert {f.reason for f in found.failures if f.partition in {0, 7}} == {"left"}
    assert "fewer than" in next(f.reason for f in found.failures if f.partition == 8)
    assert found.bytes_up > 0


def test_fewer_than_the_minimum_are_not_asked():
    host = house_of(sealed(secure_minimum=4))
    found, seen = put(host, question_of(host, "evaluate"), [1, 5, 7])
    assert seen.calls == []
    assert found.total is None
    assert {f.reason for f in found.failures} == {"3 clients are fewer than secure-minimum=4"}


def test_a_value_out_of_range_is_its_clients_own_affair(caplog):
    """Too large, as NaN is: refused before it is masked, and the others' sum is right."""
    host = house_of(sealed(ranges={"metrics/loss": 45.0}))
    question = question_of(host, "evaluate")
    losses = {p: in_the_open(host, question, [p]).totals["loss"] for p in range(10)}
    beyond = {p for p, loss in losses.items() if loss > 45.0}
    assert 0 < len(beyond) < 4, losses
    found, _ = put(host, question)
    assert {(f.partition, f.reason) for f in found.failures} == {
        (p, "out-of-range totals") for p in beyond
    }
    assert caplog.text.count("is beyond 45, the range of a secure sum") == len(beyond)
    agrees(found, in_the_open(host, question, set(range(10)) - beyond))


def test_what_leaves_a_host_is_masked():
    """One host's masked vector is no sum of its partitions', nor near it."""
    host = house_of(sealed())
    question = question_of(host, "describe")
    _, seen = put(host, question, range(12))
    total = next(r.total for c, _, r in seen.calls if c.stage == "masked")
    high = (total >> np.uint64(63)).astype(float).mean()
    assert 0.2 < high < 0.8
    counts = in_the_open(host, question, range(12)).total
    assert not np.isin(total, counts.numpy().astype(np.uint64)).any()


@pytest.mark.slow
def test_the_number_of_hosts_does_not_show():
    question = question_of(house_of(sealed()), "tune")
    one, many = (put(house_of(sealed(hosts=n)), question)[0] for n in (1, 10))
    assert one.total.equal(many.total)
    assert (one.bytes_up, one.bytes_down) == (many.bytes_up, many.bytes_down)


def test_a_host_that_seals_answers_nothing_in_the_open():
    host = house_of(sealed())
    with pytest.raises(ValueError, match="secagg: asked for an answer in the open"):
        serve(host, encode_question(question_of(host), "fp32"), [0, 1, 2])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("masks", ["union", "intersection"])
def test_own_masks_are_counted_before_anything_is_added(masks):
    """What fewer than three clients hold is zero in every client's vector, not only in the sum."""
    host = house_of(sealed(masks=masks))
    question = question_of(host, "tune", sparsity=0.9)
    found, seen = put(host, question)
    right = in_the_open(host, question, range(10))
    assert [c.stage for c, _, _ in seen.calls] == [*STAGES, *STAGES]
    assert found.votes.equal(right.votes)
    rare = right.votes < FEWEST_HOLDERS
    assert rare.any()
    assert not rare.all()
    assert (found.held[rare] == 0).all()
    assert torch.allclose(found.held[~rare], right.held[~rare])
    form = form_of(question, host.config, host.layout)
    counts = replace(form, shapes={n: m.shape for n, m in form.masks.items()}).named(found.votes)
    ours, theirs = form.named(found.total), form.named(right.total)
    for name in ours:
        shown = counts.get(name, torch.full_like(ours[name], FEWEST_HOLDERS)) >= FEWEST_HOLDERS
        assert torch.allclose(ours[name], theirs[name] * shown, atol=1e-9)
        assert not ours[name][~shown].any()


@pytest.mark.slow
def test_drop_outs_between_counting_and_adding_start_both_again():
    """Else a coordinate of three holders would be opened for those of them that are left."""
    host = house_of(sealed(masks="union"))
    question = question_of(host, sparsity=0.9)
    # The second session is that of the first try's values.
    found, seen = put(host, question, gone={(2, "masked"): {6, 7, 8}})
    assert found.tries == 2
    assert set(found.answered) == set(range(10)) - {6, 7, 8}
    assert len(seen.calls) == 3 + 5 + 10
    assert [f.partition for f in found.failures] == [6, 7, 8]
    right = in_the_open(host, question, found.answered)
    assert found.votes.equal(right.votes)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [{6}, {6, 7}])
def test_who_holds_what_is_not_counted_again_without_one_or_two(gone):
    """The difference of two counts would be what those few hold."""
    host = house_of(sealed(masks="union"))
    question = question_of(host, "tune", sparsity=0.9)
    found, seen = put(host, question, gone={(2, "masked"): gone})
    assert found.total is None
    assert found.answered == ()
    assert len(seen.calls) == 5 + 3  # one count, and an addition that was not opened
    assert "would show the masks" in found.failures[0].reason


def test_without_the_packages_that_encrypt_one_line_says_what_to_install(monkeypatch):
    host = house_of(sealed())
    monkeypatch.setattr("fedprune.secagg.terms.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"secure='secagg': .* pip install 'fedprune\[privacy\]'"):
        federate(host.config, inline_port(host))


@dataclass
class Lying(Unreliable):
    """Partition 4 says something else in a stage than it should."""

    stage: str = ""
    bend: Callable[[Mapping[int, bytes]], Mapping[int, bytes]] = dict

    def __call__(self, call: Call, partitions: Sequence[int], enclosed: Any) -> StageReply:
        reply = super().__call__(call, partitions, enclosed)
        if call.stage != self.stage or 4 not in reply.shares:
            return reply
        return replace(reply, shares={**reply.shares, 4: self.bend(reply.shares[4])})


SHOWN: dict[str, Callable[[Mapping[int, bytes]], Mapping[int, bytes]]] = {
    "showed wrong shares": lambda shares: {p: bytes(32) for p in shares},
    "showed shares of another size": lambda shares: dict.fromkeys(shares, b""),
    "showed shares are not": lambda shares: {p: shares[p] for p in sorted(shares)[1:]},
}


@pytest.mark.parametrize("lie", SHOWN)
def test_who_shows_wrong_shares_is_named_and_voids_nothing(lie):
    host = house_of(sealed(clients=6, cohort=6))
    question = question_of(host)
    transport = Lying(inline_transport(host), {}, stage="unmask", bend=SHOWN[lie])
    found = secure_ask(question, range(6), host.layout, host.config, transport)
    agrees(found, in_the_open(host, question, range(6)), scale_for(1e6, 6, 64).step)
    assert (found.answered, found.tries, found.failures) == (tuple(range(6)), 1, ())
    (said,) = found.notices
    assert said.startswith(f"client 4 {lie}")

"""What hosts say is taken as it comes, in the order of hosts, and not kept."""

import itertools
import weakref
from types import SimpleNamespace

import pytest

from fedprune.codec.wire import Packet
from fedprune.engines.flower.asking import Asking, Request
from fedprune.engines.flower.exchange import Lost
from fedprune.options.refusal import Refused
from fedprune.protocol.failures import Failure
from fedprune.protocol.replies import named_reply, question_name

QUESTION = Packet({})
REPLY = named_reply(Packet({}), question_name(QUESTION))
HOSTS = [[0, 1], [2], [5, 7], [9]]


class Said:
    """What a host said; it can be looked at whether anybody has it still."""


def asked(take, read, absent=None):
    known = {"grid": None, "lacking": set(), "breaking": set(), "absent": lambda _: Lost("left")}
    fleet = SimpleNamespace(**known)
    request = Request("train.tune", "tune", lambda *_: Packet({}), read, lambda *_: 1)
    places = {k: (None if k == absent else 1, group) for k, group in enumerate(HOSTS)}
    return Asking(fleet, request, places, take)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_who_is_ahead_of_its_turn_waits_and_whoever_was_taken_is_gone(order):
    alive, taken = {}, []

    def read(_, group):
        said = Said()
        alive[HOSTS.index(group)] = weakref.ref(said)
        return said

    asking = asked(lambda group, _: taken.append(group), read)
    for i, k in enumerate(order):
        assert asking.hear(k, QUESTION, REPLY, again=False) == len(HOSTS[k])
        come = set(order[: i + 1])
        turns = list(itertools.takewhile(come.__contains__, range(4)))
        assert taken == [HOSTS[k] for k in turns]
        assert {k for k, ref in alive.items() if ref() is not None} == come - set(turns)
    assert not any(asking.unanswered(k) for k in range(4))


@pytest.mark.parametrize("reply", [Lost("dead"), Lost("left", left=True), Refused("x", "bad")])
def test_who_may_be_asked_again_holds_up_those_behind_until_that_is_over(reply):
    taken = []
    asking = asked(lambda group, said: taken.append((group, said)), lambda *_: "yes", absent=3)
    for k, came in enumerate([REPLY, reply, REPLY]):
        asking.hear(k, QUESTION, came, again=False)
    waits = asking.unanswered(1)
    assert waits == (isinstance(reply, Lost) and not reply.left)
    assert [group for group, _ in taken] == (HOSTS[:1] if waits else HOSTS)
    if waits:
        asking.hear(1, QUESTION, REPLY, again=True)
    assert [group for group, _ in taken] == HOSTS
    field, reason = ("x", "bad") if isinstance(reply, Refused) else ("", "left")
    assert taken[1][1] == ("yes" if waits else (Failure(2, "tune", field, reason),))
    assert taken[3][1] == (Failure(9, "tune", "", "left"),)


def test_in_the_end_all_are_taken_with_why_nothing_came():
    taken = []
    asking = asked(lambda group, said: taken.append((group, said)), lambda *_: "yes")
    asking.hear(0, QUESTION, Lost("dead"), again=True)
    asking.hear(1, QUESTION, REPLY, again=True)
    assert taken == []
    asking.go_on(over=True)
    assert [group for group, _ in taken] == HOSTS
    failed = [[f.partition for f in said] for _, said in taken if said != "yes"]
    assert failed == [HOSTS[0], *HOSTS[2:]]

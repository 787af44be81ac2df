"""The graph of masks, and when those who are left are enough."""

import pytest

from fedprune.secagg.graph import connected, enough, neighbours_of
from fedprune.secagg.terms import Terms


def circle(n, k, threshold=None, session=b"s"):
    return Terms(session, tuple(range(10, 10 + n)), k, threshold or k // 2 + 1, 64)


@pytest.mark.parametrize(("n", "k"), [(5, 4), (6, 3), (7, 2), (8, 7), (12, 5), (25, 10)])
def test_neighbours_are_mutual_and_everyone_has_as_many(n, k):
    terms = circle(n, k)
    near = {m: neighbours_of(m, terms) for m in terms.members}
    for member, others in near.items():
        assert len(set(others)) == k
        assert list(others) == sorted(others)
        assert member not in others
        assert all(member in near[other] for other in others)
    assert connected(terms.members, terms)


def test_the_graph_is_drawn_from_the_session():
    drawn = {neighbours_of(10, circle(30, 4, session=bytes([i]))) for i in range(20)}
    assert len(drawn) > 10
    assert neighbours_of(10, circle(30, 4)) == neighbours_of(10, circle(30, 4))


def test_two_halves_of_a_circle_are_not_connected():
    terms = circle(8, 2, 2)
    start = terms.members[0]
    one, other = neighbours_of(start, terms)
    opposite = next(
        m
        for m in terms.members
        if m not in (start, one, other) and not set(neighbours_of(m, terms)) & {start, one, other}
    )
    left = set(terms.members) - {start, opposite}
    assert connected(left - {one}, terms) != connected(left, terms) or not connected(left, terms)
    assert not connected(left, terms)
    assert "not all connected" in enough("keys", left, left, terms)


def test_few_clients_are_not_enough_even_if_they_are_everyone():
    terms = Terms(b"s", (1, 2, 3, 4, 5), 4, 3, 64, minimum=5)
    everyone = {1, 2, 3, 4, 5}
    assert enough("keys", everyone, everyone, terms) == ""
    assert "4 clients are left after keys" in enough("keys", everyone, {1, 2, 3, 4}, terms)


def test_who_dropped_out_with_shares_out_needs_as_many_holders_as_who_is_summed():
    terms = Terms(b"s", tuple(range(6)), 5, 4, 64)
    everyone = set(range(6))
    assert enough("masked", everyone, everyone - {0}, terms) == ""
    # two gone: each survivor has three neighbours left, each of the gone four
    assert "3 neighbours of client 2" in enough("masked", everyone, everyone - {0, 1}, terms)
    # only one of them had shared anything, the other had not
    lacking = enough("unmask", everyone, everyone - {0, 1}, terms, summed=everyone - {0})
    assert "3 neighbours" in lacking
    assert (
        enough(
            "unmask", everyone, everyone - {0}, terms, shared=everyone - {0}, summed=everyone - {0}
        )
        == ""
    )


def test_nobody_needs_the_keys_of_someone_whose_neighbours_all_left_too():
    terms = circle(12, 2, 2)
    lost = terms.members[3]
    present = set(terms.members) - {lost, *neighbours_of(lost, terms)}
    lacking = enough("unmask", terms.members, terms.members, terms, summed=present)
    assert lacking == ""

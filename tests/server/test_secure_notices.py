"""What is said about secure sums, and how often."""

import torch

from fedprune.protocol.aggregate import Aggregate
from fedprune.server.ask import noticed
from fedprune.server.state import Book


def summed(*clients: int, tries: int = 1) -> Aggregate:
    return Aggregate(torch.zeros(1), 1.0, answered=clients, tries=tries)


def after(*sums: Aggregate) -> Book:
    book = Book()
    for aggregate in sums:
        book = noticed(book, "tune", aggregate)
    return book


def test_sums_in_the_open_leave_no_trace():
    assert after(summed(0, 1, 2, tries=0), summed(0, 1, tries=0)) == Book()


def test_sums_that_one_client_tells_apart_are_named_once():
    book = after(summed(0, 1, 2), summed(0, 1, 2), summed(1, 2), summed(2, 1), summed(0, 1, 2))
    assert book.notices == ("tune: this sum and an earlier one differ by one client alone: 0",)
    assert book.sums == (frozenset({0, 1, 2}), frozenset({1, 2}))


def test_sums_that_differ_by_more_or_not_at_all_are_fine():
    assert after(summed(0, 1, 2), summed(3, 4), summed(0, 1, 3), summed(0, 1, 2)).notices == ()


def test_a_sum_between_two_others_names_both_clients():
    book = after(summed(0, 1, 2), summed(0, 1, 2, 3, 4), summed(0, 1, 2, 4))
    assert book.notices[-1].endswith("one client alone: 3, 4")


def test_a_second_try_is_told_with_how_many_are_in_it():
    assert after(summed(0, 4, 5, tries=2)).notices == (
        "tune: the secure sum was tried again, 3 clients are in it",
    )


def test_of_no_sum_nobody_is_remembered():
    book = noticed(Book(), "score", Aggregate(tries=2))
    assert book.sums == ()
    assert book.notices == ("score: the secure sum was tried again, 0 clients are in it",)

"""Terms: enough neighbours and shares for the drop-outs that are tolerated, and not one fewer."""

import random

import pytest

from fedprune.config import RunConfig
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.terms import Terms, terms_of


def config(**keys):
    return RunConfig(task="digits", secure="secagg", **keys)


@pytest.mark.parametrize("n", range(3, 34))
def test_a_small_cohort_is_complete_and_survives_what_is_tolerated(n):
    terms = terms_of(config(), b"s", range(n))
    gone = 3 * n // 10
    assert terms.neighbours == n - 1
    assert terms.threshold == n - 1 - gone  # every survivor has exactly so many neighbours left
    assert terms.threshold > terms.neighbours / 2


def test_a_large_cohort_is_sparse_and_still_survives():
    terms = terms_of(config(secure_dropout=0.2), b"s", range(300))
    assert terms.neighbours == 126
    near = [set(neighbours_of(m, terms)) for m in terms.members]
    rng = random.Random(0)
    for _ in range(100):
        left = set(rng.sample(list(terms.members), 240))
        assert min(len(those & left) for those in near) >= terms.threshold


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.2, 0.3])
def test_a_lying_server_needs_a_third_of_a_clients_neighbours(dropout):
    """By trying who says what to whom: c collude, each other one gives one of its two shares."""
    for n in (*range(3, 72), 100, 150, 300, 1000):
        terms = terms_of(config(secure_dropout=dropout), b"s", range(n))
        k, t = terms.neighbours, terms.threshold
        opens = [c for c in range(k + 1) if any(c + h >= t <= k - h for h in range(k - c + 1))]
        assert min(opens) == terms.colluders >= k / 3, n
        assert 2 * terms.confirmations - n >= n / 3, n  # as many members for two stories
        assert terms.confirmations <= n - int(dropout * n + 1e-9), n


def test_keys_of_the_configuration_are_followed():
    terms = terms_of(
        config(secure_neighbours=5, secure_bits=32, secure_minimum=4, secure_dropout=0.0),
        b"s",
        [9, 3, 5, 1, 2, 30, 31],
    )
    assert terms.members == (1, 2, 3, 5, 9, 30, 31)
    assert (terms.neighbours, terms.bits, terms.minimum) == (6, 32, 4)  # 7 x 5 is odd
    assert terms.threshold == 6  # nobody may go, so everyone is needed


@pytest.mark.parametrize(
    ("keys", "members", "words"),
    [
        ({}, range(2), "secure_minimum=3: 2 clients are too few"),
        ({"secure_minimum": 8}, range(7), "secure_minimum=8"),
    ],
)
def test_what_cannot_be_protected_is_refused(keys, members, words):
    with pytest.raises(ValueError, match=words):
        terms_of(config(**keys), b"s", members)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fedprune.secagg.terms.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install 'fedprune\[privacy\]'"):
        terms_of(config(), b"s", range(5))


@pytest.mark.parametrize(
    "bad",
    [
        {"members": (2, 1, 3)},
        {"members": (1, 1, 3)},
        {"members": (1, 2)},
        {"neighbours": 5},
        {"neighbours": 0},
        {"neighbours": 3},  # five clients with three neighbours each: no such graph
        {"threshold": 2},
        {"threshold": 5},
        {"bits": 16},
        {"minimum": 1},
    ],
)
def test_a_device_refuses_terms_that_protect_nothing(bad):
    good = {"members": (1, 2, 3, 4, 5), "neighbours": 4, "threshold": 3, "bits": 64}
    Terms(b"s", **good)
    with pytest.raises(ValueError, match=r"secure|threshold|members"):
        Terms(b"s", **good | bad)


def test_every_term_is_in_the_binding():
    good = {"session": b"s", "members": (1, 2, 3, 4, 5), "neighbours": 4, "threshold": 3}
    good |= {"bits": 64, "minimum": 3}
    others = [
        {"session": b"t"},
        {"members": (1, 2, 3, 4, 6)},
        {"threshold": 4},
        {"bits": 32},
        {"minimum": 4},
        {"neighbours": 2, "threshold": 2},
    ]
    bindings = [Terms(**good | other).binding for other in [{}, *others]]
    assert len(set(bindings)) == len(bindings)
    assert Terms(**good).binding == bindings[0]

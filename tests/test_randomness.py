import hashlib

import pytest
import torch

from fedprune.randomness import derive, draw, generator, seeded


def test_a_derived_seed_is_63_bits_of_sha256_of_what_it_is_for():
    first = hashlib.sha256(b"7|batches|3|12").digest()[:8]
    assert derive(7, "batches", 3, 12) == int.from_bytes(first, "big") // 2


def test_every_part_of_a_purpose_counts():
    places = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1)]
    places += [(0, "a", 1, 0), (0, "a", 10), (0, "a", 1, 0, 0)]
    assert len({derive(*place) for place in places}) == len(places)
    assert all(0 <= derive(*place) < 2**63 for place in places)


def test_a_generator_is_fresh_each_time_and_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    first, again = (torch.rand(5, generator=generator(1, "x", 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(5, generator=generator(1, "x", 3)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeded_sets_the_global_generator_and_gives_it_back():
    before = torch.random.get_rng_state()
    with seeded(1, "init"):
        first = torch.rand(4)
    torch.rand(100)
    with seeded(1, "init"):
        again = torch.rand(4)
    with seeded(2, "init"):
        other = torch.rand(4)
    torch.random.set_rng_state(before)
    with pytest.raises(RuntimeError), seeded(1, "init"):
        torch.rand(-1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_draw_is_sorted_without_replacement_and_only_from_the_population():
    population = [3, 5, 8, 13, 21, 34]
    for round_ in range(50):
        drawn = draw(population, 4, generator(0, "cohort", round_))
        assert drawn == sorted(set(drawn))
        assert len(drawn) == 4
        assert set(drawn) <= set(population)


def test_every_member_is_drawn_about_equally_often():
    drawn = [p for r in range(600) for p in draw(list(range(6)), 2, generator(0, "cohort", r))]
    shares = [drawn.count(p) / 600 for p in range(6)]
    assert all(0.26 < share < 0.41 for share in shares)  # 1/3, give or take four deviations


@pytest.mark.parametrize("size", [3, 4, 100])
def test_a_draw_of_no_fewer_than_there_are_is_everyone(size):
    assert draw([9, 4, 6], size, generator(0, "cohort", 1)) == [4, 6, 9]


def test_nobody_is_drawn_from_nobody():
    assert draw([], 3, generator(0, "cohort", 1)) == []

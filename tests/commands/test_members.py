from pathlib import Path

import numpy as np
import pytest

from fedprune.attacks.membership import confidences
from fedprune.commands.members import People, at_once, by_shadows, by_threshold, people_of
from fedprune.commands.subject import Subject, subject
from fedprune.report.reading import read_run
from fedprune.tasks.task import examples


@pytest.fixture(scope="module")
def looked(run_folder: Path) -> Subject:
    return subject(str(run_folder))


def test_members_are_training_rows_of_who_was_in_a_cohort(looked, run_folder):
    rows = read_run(run_folder).rows
    shards = looked.task.shards(looked.config)
    everyone = people_of(looked, rows)
    assert {p for row in rows for p in row["cohort"]} == set(range(5))
    assert sum(map(examples, everyone.members)) == sum(examples(s.train) for s in shards)
    assert sum(map(examples, everyone.others)) == sum(examples(s.test) for s in shards)
    some = people_of(looked, [{"cohort": [1, 3]}])
    assert list(map(examples, some.members)) == [examples(shards[p].train) for p in (1, 3)]
    assert len(some.others) == len(everyone.others)


def test_the_threshold_looks_at_how_sure_the_run_s_model_is(looked):
    people = people_of(looked, [{"cohort": [2]}])
    members, others = by_threshold(looked, people)
    wanted = confidences(looked.model, looked.task, people.members[0])
    np.testing.assert_array_equal(members, wanted)
    assert len(others) == sum(map(examples, people.others))


@pytest.mark.slow
def test_shadows_know_half_of_the_examples_and_order_them(looked):
    everyone = people_of(looked, [{"cohort": [0]}])
    people = People(everyone.members[:1], everyone.others[:1])
    told: list[int] = []
    members, others = by_shadows(looked, people, 6, lambda: told.append(1))
    assert len(told) == 6
    assert (len(members), len(others)) == (examples(people.members[0]), examples(people.others[0]))
    assert np.isfinite(members).all()
    assert np.isfinite(others).all()
    again, _ = by_shadows(looked, people, 6)
    np.testing.assert_array_equal(members, again)


def test_who_has_a_cohort_s_data_takes_a_client_s_steps(looked):
    c = looked.config
    alone = at_once(c, 1000)
    assert (alone.local_steps, alone.batch_size) == (c.local_steps, c.cohort * c.batch_size)
    epochs = c.model_copy(update={"local_steps": 0, "local_epochs": 2, "accumulate": 3})
    alone = at_once(epochs, 1000)
    # 200 rows a client, 24 in a step: 9 steps an epoch.
    assert (alone.local_steps, alone.local_epochs, alone.accumulate) == (18, 0, 1)
    assert alone.batch_size == 3 * 24

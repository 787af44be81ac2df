import pytest

from fedprune.tasks.labelled import distinct


@pytest.mark.parametrize(
    "labels",
    [
        ["0.10", "0.1", "0.100"] * 20,
        [str(i % 20) for i in range(60)],
        [f"{i % 20}.5" for i in range(60)],
        [str(i % 40) for i in range(400)],
        [f"topic {i % 150}" for i in range(300)],
        ["seen once", *["often"] * 30],
    ],
)
def test_classes_are_the_distinct_labels(labels):
    assert distinct(labels, "label-column='y'") == sorted(set(labels))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([f"{i / 7:.4f}" for i in range(300)], "300 distinct numbers in 300 rows"),
        ([f"{i % 21}.5" for i in range(6000)], "21 distinct numbers in 6,000 rows"),
        ([str(1900 + i % 90) for i in range(300)], "90 distinct numbers in 300 rows"),
        ([f"{i}e-3" for i in range(50)], "50 distinct numbers in 50 rows"),
        ([f"user {i}" for i in range(50)], "50 distinct labels in 50 rows"),
    ],
)
def test_a_column_of_numbers_or_of_names_is_refused(labels, what):
    with pytest.raises(ValueError, match="are no classes; allowed: ") as caught:
        distinct(labels, "label-column='y'")
    assert str(caught.value).startswith(f"label-column='y': {what} are")
    assert ("text-regression" in str(caught.value)) == ("numbers" in what)


def test_one_label_is_none():
    with pytest.raises(ValueError, match="every row has the same label"):
        distinct(["a", "a"], "label-column='y'")

import pytest

from fedprune.commands.arguments import listing
from fedprune.config import configure
from fedprune.config.privacy_matrix import matrix
from fedprune.options.refusal import ConfigError


def test_every_pair_that_the_issue_forbids_is_in_the_table():
    table = matrix()
    pairs = {
        "dp client": ("weighting", "combine", "uplink", "metrics", "model"),
        "dp example": ("weighting", "accumulate", "distil"),
        "response": ("unit", "response"),
        "secure secagg": ("combine", "uplink", "score-wire"),
    }
    for name, keys in pairs.items():
        there = {line.split()[0] for line in table[name]}
        assert set(keys) <= there, name


def test_the_table_is_printed_and_is_what_is_refused():
    printed = listing("")
    (line,) = (x for x in matrix()["secure secagg"] if x.startswith("combine"))
    assert "beside --secure secagg\n" in printed
    assert f"  {line}" in printed
    with pytest.raises(ConfigError) as refused:
        configure({"task": "digits", "secure": "secagg", "combine": "median"})
    assert str(refused.value) == f"combine='median': {' '.join(line.split()[1:])}"

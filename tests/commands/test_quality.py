import json

import pytest

from fedprune.commands.inputs import quality_of
from fedprune.commands.subject import subject


def test_it_is_what_the_run_measured(run_folder):
    told = json.loads((run_folder / "summary.json").read_text())["quality"]["final"]
    found = quality_of(subject(str(run_folder)))
    assert found.keys() == told.keys()
    assert found == {name: pytest.approx(value, rel=1e-6) for name, value in told.items()}

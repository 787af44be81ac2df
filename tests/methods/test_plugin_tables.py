"""The files of docs/extending.md, as a user would write and run them."""

import re
from pathlib import Path

import pytest
import torch

from fedprune import ConfigError, federate, load
from fedprune.methods.catalog import check_method
from tests.runs import played, same, tiny

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def written(tmp_path: Path) -> dict[str, str]:
    """The page's blocks that are files, by their names."""
    found = {}
    for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", DOCS.read_text(), re.S):
        (tmp_path / name).write_text(code)
        found[name] = str(tmp_path / name)
    return found


@pytest.mark.slow
def test_a_method_of_one_s_own_remembers_scores(written, tmp_path):
    path = written["my_method.py"]
    assert len(Path(path).read_text().splitlines()) <= 50
    given = {"plugin": path, "method": "remembering", "agreement": False, "model": "mlp"}
    plain = played(tiny(agreement=False, model="mlp"))
    forgetful = played(tiny(**given, method_options={"keep": 0.0}))
    assert same(forgetful.state.masks, plain.state.masks), "keeps nothing: a run of any score"
    config = tiny(**given, method_options={"keep": 0.9})
    mean = federate(config, folder=tmp_path / "run")
    assert not same(mean.state.masks, plain.state.masks)
    memory = mean.state.memories["remembering"].mean
    assert all(torch.isfinite(t).all() and t.any() for t in memory.values())
    again = federate(config, folder=tmp_path / "run", resume=True)
    assert again.summary["weights_digest"] == mean.summary["weights_digest"]
    assert same(again.state.memories["remembering"].mean, memory)
    assert load(tmp_path / "run", plugin=path) is not None
    with pytest.raises(ConfigError, match=r"keep=1\.5: not below 1; allowed: a number"):
        check_method(tiny(**given, method_options={"keep": "1.5"}))


KEYS = [
    {"combine": "root-mean"},
    {"schedule": "late"},
    {"masks": "union", "average": "half"},
    {"selector": "first"},
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_tables_of_one_s_own_change_what_they_say(keys, written):
    config = tiny(plugin=written["my_tables.py"], model="mlp", **keys)
    found = played(config)
    usual = played(tiny(model="mlp", **({"masks": "union"} if "masks" in keys else {})))
    assert found.summary["weights_digest"] != usual.summary["weights_digest"]
    if "schedule" in keys:
        removed = [row["sparsity"] for row in found.rows]
        assert removed[2] < usual.rows[2]["sparsity"]
        assert removed[-1] == pytest.approx(0.7, abs=1e-3)
    if "selector" in keys:
        assert {tuple(row["cohort"]) for row in found.rows} == {(0, 1, 2)}


@pytest.mark.parametrize("table", ["COMBINES", "SCHEDULES", "AVERAGES", "SELECTORS", "METHODS"])
def test_a_table_of_something_else_is_refused(table, tmp_path):
    path = tmp_path / f"bad_{table.lower()}.py"
    path.write_text(f"{table} = {{'x': 3}}")
    with pytest.raises((ConfigError, ImportError), match=f"{table} is something else; allowed: a"):
        check_method(tiny(plugin=str(path)))


def test_a_selector_that_chooses_strangers_is_refused(tmp_path):
    path = tmp_path / "strangers.py"
    path.write_text(
        "from fedprune.config.selectors import Selector\n"
        "SELECTORS = {'x': Selector('', '', lambda there, n, r, gen: [99])}"
    )
    with pytest.raises(
        ConfigError, match=r"selector='x': chose \[99\] in round 1; allowed: at most 3"
    ):
        federate(tiny(plugin=str(path), selector="x", model="mlp"))


@pytest.mark.parametrize("flag", ["exchanges", "chosen"])
def test_a_schedule_that_would_be_a_method_is_refused(flag, tmp_path):
    path = tmp_path / f"{flag}.py"
    path.write_text(
        "from fedprune.selection.schedules import Schedule\n"
        f"SCHEDULES = {{'mine': Schedule(lambda i, n, final: 1.0, '', {flag}=True)}}"
    )
    with pytest.raises(ConfigError, match=r"schedule 'mine' exchanges .*; allowed: fractions"):
        tiny(plugin=str(path), schedule="mine", model="mlp")

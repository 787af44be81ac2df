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


IMPORTS = """
from fedprune.config.selectors import Selector
from fedprune.selection.schedules import Schedule
"""
WRONG = [
    *(
        (f"{table} = {{'x': 3}}", {}, f"{table} is something else; allowed: a")
        for table in ("COMBINES", "SCHEDULES", "AVERAGES", "SELECTORS", "METHODS")
    ),
    (
        "SELECTORS = {'x': Selector('', '', lambda there, n, r, gen: [99])}",
        {"selector": "x"},
        r"selector='x': chose \[99\] in round 1; allowed: at most 3",
    ),
    *(
        (
            f"SCHEDULES = {{'mine': Schedule(lambda i, n, final: 1.0, '', {flag}=True)}}",
            {"schedule": "mine"},
            r"schedule 'mine' exchanges .*; allowed: fractions",
        )
        for flag in ("exchanges", "chosen")
    ),
]


@pytest.mark.parametrize(("code", "keys", "says"), WRONG)
def test_what_a_table_may_not_hold_is_refused(code, keys, says, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(IMPORTS + code)
    with pytest.raises((ConfigError, ImportError), match=says):
        federate(tiny(plugin=str(path), model="mlp", **keys))

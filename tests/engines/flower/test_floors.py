"""What a device asks of a run, and keeps to itself: who refuses one is left out, and says why."""

import json
import logging
import re
from types import SimpleNamespace

import pytest

from fedprune import ConfigError, NoRoundCompleted
from fedprune.engines.flower.node_config import FLOORS, check_floors, floors_of
from fedprune.options.refusal import Refused
from fedprune.privacy.accounting_terms import SIMULATED
from tests.runs import tiny
from tests.server.grids import context, failures, run_on

RUN = {"engine": "flower", "clients": 3, "cohort": 3, "rounds": 2, "warmup": 1, "end": 2}
RUN |= {"min_clients": 2, "local_steps": 1, "timeout": 2.0, "score": "magnitude", "model": "mlp"}
PRIVATE = {"dp": "client", "sparsity": 0.0, "dp_noise": 3.0, "epsilon": 8.0}
NAMED = " (node 77 (attic at 192.0.2.7))"
SECURE = {"secure": "secagg", "secure_minimum": 2, "sparsity": 0.0}


@pytest.fixture
def folder(folders, tmp_path):
    """A device's folder in a place of its own, where its ledger goes."""
    (tmp_path / "own").symlink_to(folders[2])
    return tmp_path / "own"


def run(devices, folder, options, run_id=1, **floors):
    grid = devices(2)
    keys = {key.replace("_", "-"): value for key, value in floors.items()}
    grid.contexts[77] = context(77, **{"partition-id": 2, "data": str(folder)}, **keys)
    grid.contexts[77].run_id = run_id
    named = {i: SimpleNamespace(node_id=i, name="", location="") for i in grid.contexts}
    named[77] = SimpleNamespace(node_id=77, name="attic", location="192.0.2.7")
    grid.get_nodes = lambda: list(named.values())
    return run_on(grid, tiny(**RUN | options))


def said(result):
    """By round, what was said of the device with floors; of others nothing is."""
    assert {f["partition"] for f in failures(result)} <= {2}
    return [[f["reason"] for f in row["failures"]] for row in result.rows]


@pytest.mark.parametrize(
    ("floors", "options", "reason"),
    [
        ({"require-secure": True}, {}, "require-secure=True: secure='none'"),
        ({"noise": "secret"}, {}, "noise='secret': nothing gets secret noise"),
        ({"noise": "secret"}, SECURE, "noise='secret': nothing gets secret noise"),
        ({"min-cohort": 4}, {}, "min-cohort=4: cohort=3"),
        ({"min-cohort": 3}, {}, "min-cohort=3: min-clients=2"),
        ({"min-cohort": 3}, SECURE | {"min_clients": 3}, "min-cohort=3: secure-minimum=2"),
        ({"max-epsilon": 9}, {}, "max-epsilon=9: dp='none'"),
        ({"max-epsilon": 9.0}, PRIVATE | {"epsilon": None}, "max-epsilon=9.0: no epsilon is given"),
        ({"max-epsilon": 7.9}, PRIVATE, "max-epsilon=7.9: epsilon=8.0"),
        ({"max-epsilon": 9.0}, PRIVATE | {"delta": 1e-3}, "max-epsilon=9.0: delta=0.001"),
        ({"max-rounds": 1}, {}, "max-rounds=1: rounds=2"),
    ],
)
def test_a_configuration_below_a_floor_is_refused_by_its_name(floors, options, reason):
    with pytest.raises(Refused, match=f"^{re.escape(reason)}; allowed: [^\n]*$") as refused:
        check_floors(tiny(**RUN | options), floors_of(floors))
    assert refused.value.field == next(iter(floors))
    assert refused.value.told == str(refused.value), "where clients hide reasons too"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("floors", "options"),
    [({"require_secure": True}, {}), ({"noise": "secret"}, SECURE), ({"max_epsilon": 7}, PRIVATE)],
)
def test_a_run_goes_on_without_who_refuses_it(devices, folder, caplog, floors, options):
    with caplog.at_level(logging.ERROR, "fedprune"):
        result = run(devices, folder, options, **floors)
    (first, *rest), (floor,) = said(result), floors
    assert first[0].startswith(f"{floor.replace('_', '-')}=")
    assert first[0].endswith(NAMED)
    assert not any(rest)
    assert {row["answered"] for row in result.rows} == {2}
    assert f"this node cannot take part: {first[0].removesuffix(NAMED)}" in caplog.text


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("floors", "options"),
    [
        ({"require_secure": True, "min_cohort": 2}, SECURE),
        ({"require_secure": False, "min_cohort": 2, "max_rounds": 2, "max_bytes": 10**9}, {}),
        ({"max_epsilon": 8.0, "noise": "secret", "max_bytes": 10**9}, PRIVATE),
        ({"max_epsilon": 8.0, "require_secure": True}, SECURE | PRIVATE),
    ],
)
def test_what_meets_the_floors_is_answered_with_the_same_bits(devices, folder, floors, options):
    result = run(devices, folder, options, **floors)
    assert not any(said(result))
    if "dp" not in options:
        free = run(devices, folder, options)
        assert result.summary["weights_digest"] == free.summary["weights_digest"]


@pytest.mark.slow
def test_the_ledger_outlives_a_run(devices, folder):
    """Rounds, bytes and epsilon of one run after the other, whatever the server says of them."""
    assert not any(said(run(devices, folder, {}, max_rounds=3)))
    second = said(run(devices, folder, {}, run_id=2, max_rounds=3))
    assert not second[0]
    assert all(r.startswith("max-rounds=3: this device has answered in 3 rou") for r in second[1])
    assert second[1]
    sent = said(run(devices, folder, {}, run_id=3, max_bytes=60_000))
    assert sent[-1][0].startswith("max-bytes=60000: ")
    assert sent[-1][0].endswith(NAMED), "not only by its partition, which works"


@pytest.mark.slow
def test_budgets_of_runs_add_up(devices, folder):
    def reasons(seed):
        rows = said(run(devices, folder, PRIVATE | {"seed": seed, "epsilon": 5.0}, max_epsilon=5.0))
        return [reason for row in rows for reason in row]

    assert reasons(0) == []
    (spent,) = (p for p in folder.with_name("own.given").iterdir() if p.is_dir())
    one = max(json.loads(line)["epsilon"] for line in (spent / "privacy.jsonl").open())
    assert 3 < one < 5, "a second run fits in part"
    told = reasons(1)
    assert told[0].startswith("max-epsilon=5.0: epsilon=")
    assert f"and other runs were given {one:.4g}; allowed: 5 in all" in told[0]


@pytest.mark.slow
def test_a_ledger_that_was_cut_ends_the_answers(devices, folder):
    run(devices, folder, {}, max_rounds=3)
    book = folder.with_name("own.given") / "given.jsonl"
    book.write_text("".join(book.read_text().splitlines(keepends=True)[:-1]))
    assert "was cut, changed or taken away" in said(run(devices, folder, {}, max_rounds=3))[0][0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, -1) for key in FLOORS),
        *((key, "true") for key in FLOORS),
        *(("max-epsilon", value) for value in (0, float("nan"), float("inf"), True)),
        *((key, value) for key in ("min-cohort", "max-rounds", "max-bytes") for value in (0, 1.5)),
        ("noise", "seeded"),
    ],
)
def test_a_value_that_is_no_floor_is_one_line(key, value):
    with pytest.raises(ConfigError, match=rf"^{key}=.*: no floor of a device; allowed: [^\n]*$"):
        floors_of({key: value})


def test_a_run_whose_last_round_is_void_says_so(devices, folder):
    result = run(devices, folder, {"min_clients": 3}, max_bytes=75_000)
    assert result.summary["short_why"] == "1 of 2 rounds void, in which nothing changes"


NOISE = {"dp": "client", "dp_noise": 1.0}


def reasons(grid, more):
    """Why no device took part in a run of one round."""
    with pytest.raises(NoRoundCompleted) as nothing:
        run_on(grid, tiny(**RUN | {"min_clients": 1, "rounds": 1, "warmup": 0, "end": 1} | more))
    return {f["reason"] for f in failures(nothing.value.result)}


def test_devices_refuse_simulated_noise_and_say_so(devices):
    found = reasons(devices(3), NOISE | {"noise_source": "seeded", "engine": "inline"})
    assert len(found) == 3  # each with the name of its device
    assert all(SIMULATED in reason for reason in found)
    assert all("allowed on devices: secret" in reason for reason in found)


@pytest.mark.parametrize("more", [NOISE, {"secure": "secagg"}, {}], ids=str)
def test_no_reason_leaves_a_device_that_hides_data(devices, tmp_path, more):
    grid = devices(3)
    for each in grid.contexts.values():
        each.node_config["data"] = str(tmp_path / "private-name")
    assert ("private-name" in " ".join(reasons(grid, more))) == (more == {})

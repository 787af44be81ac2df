"""Simulated devices: who is of which class, there, large enough, dropping out; and their clock.

Every field of a class, and every option about them, changes what comes of a run.
"""

import json
from collections import Counter
from dataclasses import fields, replace
from types import MappingProxyType

import pytest
import torch

from fedprune import ConfigError, RunConfig, federate
from fedprune.config import configure
from fedprune.config.kinds import KINDS
from fedprune.config.profiles import DeviceClass, dealt_profiles
from fedprune.engines.inline import inline_port
from fedprune.learning.regime import PLAIN_REGIME
from fedprune.learning.steps import step_rows
from fedprune.opening import opening_of
from fedprune.protocol.messages import Question
from fedprune.server.fleet import fleet_of
from fedprune.server.work import bytes_needed, work_for
from fedprune.structure.flops import flops
from fedprune.structure.groups import stages_of
from fedprune.tensors.named import full_masks
from tests.runs import TINY, cut_short, house_of, overheard, played, tiny

CLASSES = {
    "fast": {"share": 1, "flops": 2e9, "up": 5e6, "down": 1e7, "watts": 2},
    "slow": {"share": 1, "flops": 1e8, "up": 1e5, "down": 4e5, "watts": 1},
}


def file_of(folder, **changes):
    """A file of the classes, with other fields in the class slow."""
    classes = {**CLASSES, "slow": {**CLASSES["slow"], **changes}}
    lines = [f"[{n}]\n" + "\n".join(f"{k} = {v}" for k, v in c.items()) for n, c in classes.items()]
    path = folder / "fleet.toml"
    path.write_text("\n".join(lines))
    return str(path)


def simulated(folder, **more):
    slow = {k: more.pop(k) for k in ("availability", "dropout", "memory", "flops") if k in more}
    return tiny(profiles=file_of(folder, **slow), **{"clients": 8, "cohort": 4, **more})


@pytest.mark.parametrize("clients", [1, 7, 20, 101])
def test_classes_are_dealt_by_their_shares(clients):
    shares = {"a": 5.0, "b": 3.0, "c": 0.5}
    profiles = [DeviceClass(n, s, 1.0, 1.0, 1.0) for n, s in shares.items()]
    found = Counter(p.name for p in dealt_profiles(profiles, clients, seed=1))
    assert found.total() == clients
    assert all(abs(found[n] - clients * s / 8.5) < 1 for n, s in shares.items())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("keys", "passes"),
    [
        ({}, "step"),
        ({"dropout": 0.5}, "step"),
        ({"score": "wanda"}, 1),
        ({"score": "perturbation", "probes": 4}, 1 + 4),
        ({"score": "ablation", "unit": "row"}, "rows"),
        ({"score": "magnitude", "schedule": "adaptive", "tolerance": 0.2}, None),
    ],
)
def test_the_clock_is_the_slowest_of_each_phase_by_hand(tmp_path, keys, passes):
    config = simulated(tmp_path, **{"model": "mlp", "agreement": False, "local_steps": 5, **keys})
    result, asked, _ = overheard(config)
    fleet, shards = fleet_of(config), house_of(config).shards
    matrices = [p.numel() for p in house_of(config).model.parameters() if p.dim() == 2]
    forward = 2 * sum(matrices)
    step = 3 * forward - 2 * matrices[0]  # nobody asks for the gradient of an image
    seconds, joules, compared = 0.0, 0.0, 0
    for question, _, total in asked:
        if question.kind not in ("score", "tune", "compare"):
            continue
        each, n = {}, len(total.answered)
        for p in total.answered:
            size = len(shards[p].train["labels"])
            if question.kind == "tune":
                taken = step_rows(size, config, torch.Generator())
                work = step * sum(len(rows) for several in taken for rows in several)
            elif question.kind == "score":
                rows = 1 + sum(len(m) for m in question.masks.values())
                work = size * (
                    step if passes == "step" else forward * (rows if passes == "rows" else passes)
                )
            else:
                compared += 1
                work = len(question.candidates) * forward * total.totals["count"] / n
            sent = total.bytes_down / n / fleet[p].down + total.bytes_up / n / fleet[p].up
            each[p] = sent + work / fleet[p].flops
        seconds += max(each.values())
        joules += sum(s * fleet[p].watts for p, s in each.items())
    assert result.rows[-1]["clock"] == pytest.approx(seconds)
    assert result.summary["devices"]["joules"] == pytest.approx(joules)
    assert (compared > 0) == (passes is None)


@pytest.mark.slow
def test_more_are_asked_than_count_and_the_slowest_count_for_nothing(tmp_path):
    keys = {"model": "mlp", "cohort": 4, "rounds": 3, "end": 3}
    config = simulated(tmp_path, over_select=1.5, **keys)
    fleet = fleet_of(config)
    result, asked, _ = overheard(config)
    assert [len(row["cohort"]) for row in result.rows] == [6, 6, 6]
    assert {row["answered"] for row in result.rows} == {4}
    assert result.summary["failures"] == 0
    for question, whom, _ in asked:
        if question.kind == "tune":
            cohort = result.rows[question.round - 1]["cohort"]
            fast = [p for p in cohort if fleet[p].name == "fast"]
            assert set(fast[:4]) <= set(whom) if len(fast) <= 4 else set(whom) <= set(fast)
    plain = federate(simulated(tmp_path, **keys))
    assert result.rows[-1]["clock"] < plain.rows[-1]["clock"]
    assert any("enough others were faster" in n for n in result.rows[0]["notices"])
    all_there = federate(simulated(tmp_path, over_select=1.5, dropout=0.9, **keys))
    assert max(row["answered"] for row in all_there.rows) <= 4


def test_who_drops_out_is_drawn_anew_in_every_stage(tmp_path):
    steps = {"score": "wanda", "score_steps": 6, "schedule": "one-shot", "end": 3, "cohort": 8}
    result = federate(simulated(tmp_path, model="mlp", dropout=0.5, **steps))
    (pruned,) = [row for row in result.rows if row["phase"] == "prune"]
    out = Counter(f["partition"] for f in pruned["failures"] if f["phase"] == "score")
    assert len(set(out.values())) > 1
    assert max(out.values()) < 6


@pytest.mark.parametrize(
    ("keys", "bytes_a_weight"),
    [
        ({"momentum": 0.9, "optimizer": "sgd"}, 5 + 4 + 4),
        ({"optimizer": "adam"}, 5 + 4 + 8),
        ({"local_steps": 0}, 5 + 4),
        ({"local_steps": 0, "score": "wanda"}, 5),
        ({"local_steps": 0, "score": "magnitude"}, 5),
    ],
)
def test_memory_is_what_a_client_does(keys, bytes_a_weight, monkeypatch):
    config = tiny(model="vit", **keys)
    state, plan = opening_of(config, None, None)
    assert bytes_needed(state.model, plan) == bytes_a_weight * plan.layout.parameters
    monkeypatch.setattr(RunConfig, "streamed", True)
    blocks = [sum(plan.layout.shapes[n].numel() for n in s) for s in stages_of(plan.layout)]
    gone = sum(blocks) - max(blocks)
    if keys.get("local_steps") == 0:
        left = plan.layout.parameters - gone
        assert bytes_needed(state.model, plan) == bytes_a_weight * left


@pytest.mark.slow
def test_profiles_change_the_clock_alone_and_cut_models_are_faster(tmp_path):
    plain, there = played(tiny(clients=8, cohort=4)), federate(simulated(tmp_path))
    assert plain.summary["weights_digest"] == there.summary["weights_digest"]
    kinds = {"unit": "channel", "sparsity": 0.5, "model": "cnn"}
    masked = federate(simulated(tmp_path, **kinds))
    cut = federate(simulated(tmp_path, shrink="every", **kinds))
    assert cut.rows[0]["clock"] == masked.rows[0]["clock"]
    assert cut.rows[-1]["clock"] < masked.rows[-1]["clock"]


@pytest.mark.slow
def test_who_is_away_or_too_small_is_not_asked_and_is_measured_on(tmp_path):
    config = simulated(tmp_path, memory=10.0, rounds=5)
    fleet, result = fleet_of(config), federate(config)
    asked = {p for row in result.rows for p in row["cohort"]}
    assert {fleet[p].name for p in asked} == {"fast"}
    full = played(tiny(clients=8, cohort=4)).summary["quality"]["final"]["count"]
    assert result.summary["quality"]["final"]["count"] == full
    quick = {"model": "mlp", "local_steps": 1, "agreement": False, "measure_every": 30}
    config = simulated(tmp_path, availability=0.3, rounds=30, end=4, cohort=8, **quick)
    there = [sum(fleet[p].name == "slow" for p in r["cohort"]) for r in federate(config).rows]
    assert 0.15 < sum(there) / (4 * 30) < 0.45
    assert len(set(there)) > 1


@pytest.mark.slow
def test_who_drops_out_is_a_failure_and_the_run_resumes_to_the_same_bits(tmp_path):
    config = simulated(tmp_path, dropout=0.5, rounds=5, model="mlp")
    whole = federate(config)
    failures = [f for row in whole.rows for f in row["failures"]]
    assert {f["reason"] for f in failures} == {"dropped out, as its class slow does"}
    assert whole.summary["failures"] == len(failures) > 0

    cut_short(config, tmp_path / "run", 3)
    again = federate(config, folder=tmp_path / "run", resume=True)
    assert again.rows == json.loads(json.dumps(whole.rows))
    (tmp_path / "fleet.toml").write_text((tmp_path / "fleet.toml").read_text() + "\n# other\n")
    with pytest.raises(ValueError, match=r"the file of profiles=\.\.\. is not as it was"):
        federate(config, folder=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_who_would_miss_the_deadline_is_a_failure_that_the_round_waits_for(tmp_path):
    free = federate(simulated(tmp_path, model="mlp"))
    config = simulated(tmp_path, model="mlp", deadline=free.rows[0]["clock"] / 3)
    fleet, result = fleet_of(config), federate(config)
    late = {f["partition"] for row in result.rows for f in row["failures"]}
    asked = {p for row in result.rows for p in row["cohort"]}
    assert late == {p for p in asked if fleet[p].name == "slow"}
    assert all("late: its class slow would take" in f["reason"] for f in result.rows[0]["failures"])
    phases = 2 + 5  # two prunings, five rounds of tuning
    assert 0 < result.rows[-1]["clock"] <= phases * config.deadline


def test_what_cannot_be_counted_takes_what_its_prunable_layers_do(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr("fedprune.server.work.passes_of", fails)
    state, plan = opening_of(simulated(tmp_path), None, None)
    shapes = {n: torch.empty(s) for n, s in plan.layout.shapes.items()}
    whole = flops(full_masks(shapes, plan.layout.prunable), plan.positions)
    question = Question("inputs", 1, state.weights, state.masks)
    assert work_for(question, 10, plan) == 10 * whole
    assert work_for(replace(question, kind="score"), 10, plan) == 30 * whole
    assert work_for(question, 10, replace(plan, dummy=None)) == 0.0
    assert work_for(question, 10, opening_of(tiny(), None, None)[1]) == 0.0
    assert work_for(replace(question, kind="tokens"), 10, plan) == 0.0


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no classes of devices"),
        ("flops = 3", "no classes of devices"),
        ("[a", "cannot be read"),
        ("[a]\nshare = 1", r"\[a\] has no flops"),
        ("[a]\nspeed = 1", r"\[a\] speed: no such field; allowed: share, flops"),
        ("[a]\nshare = -1", r"share = -1; allowed: a number above 0"),
        ("[a]\nshare = true", "share = True"),
        ("[a]\nshare = inf", "share = inf; allowed: a number above 0"),
        (f"[a]\nflops = 1{'0' * 400}", "a number above 0"),
        ("[a]\navailability = 1.5", "above 0, up to 1"),
        ("[a]\ndropout = 1", "from 0 and below 1"),
        ("[a]\nshare=1\nflops=1\nup=1\ndown=1\nmemory=5", "0 clients of 8 have"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_line(tmp_path, text, says):
    (tmp_path / "f.toml").write_text(text)
    config = tiny(clients=8, cohort=4, profiles=str(tmp_path / "f.toml"))
    with pytest.raises(ConfigError, match=says) as error:
        federate(config)
    assert "allowed: " in str(error.value)


PARTS = {
    "heterofl": {"method_options": {"tiers": (1.0, 0.5, 0.25)}, "unit": "row"},
    "fjord": {"method_options": {"widths": (1.0, 0.5, 0.25)}, "unit": "row"},
    "flash": {"method_options": {"tiers": (1.0, 0.5, 0.25)}},
    "dispfl": {"method_options": {"tiers": (1.0, 0.5, 0.25)}},
    "depthfl": {"method_options": {"depths": (1.0, 0.5)}, "model": "vit"},  # of two blocks
    "fedpruner": {"method_options": {"depths": (1.0, 0.5)}, "model": "vit"},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("method", "budget"),
    [*((method, "memory") for method in PARTS), ("heterofl", "flops"), ("heterofl", "bytes")],
)
def test_a_device_has_the_largest_part_that_its_budget_allows(tmp_path, method, budget):
    keys = {"model": "mlp", "sparsity": 0.2, "rounds": 2, "end": 2, "agreement": False}
    keys |= {"warmup": 0 if method in ("flash", "dispfl") else 1, "local_steps": 1}
    keys |= {"end": 1, "sparsity": None} if method == "dispfl" else {}
    keys |= {"method": method, "budget": budget, "cohort": 8, **PARTS[method]}
    state, plan = opening_of(tiny(model=keys["model"]), None, None)
    slow = {"memory": {"memory": 0.7 * bytes_needed(state.model, plan)}}.get(budget, {})
    slow |= {"flops": {"flops": 1.2e9}, "bytes": {"up": 3e6}}.get(budget, {})
    given = {**TINY, "profiles": file_of(tmp_path, **slow), **keys, "clients": 8}
    config = configure({k: v for k, v in given.items() if v is not None})
    fleet = fleet_of(config)
    result, asked, _ = overheard(config)
    kept: dict[str, set[int]] = {"fast": set(), "slow": set()}
    for question, whom, _ in asked:
        if question.kind == "tune" and question.round == 2:
            for p in whom:
                kept[fleet[p].name].add(sum(int(m.sum()) for m in question.masks.values()))
    assert max(kept["slow"]) < 0.7 * max(kept["fast"])
    told = result.summary["devices"]["classes"]
    assert (told["fast"]["part"], told["slow"]["part"]) == (1.0, 0.5)
    assert told["slow"]["fits"]
    assert result.summary["failures"] == 0


@pytest.mark.parametrize(("budget", "slow"), [("flops", {"flops": 1.2e9}), ("bytes", {"up": 3e6})])
def test_slower_devices_prune_fewer_layers_of_the_whole_model(tmp_path, budget, slow):
    keys = {"model": "mlp", "cohort": 8, "clients": 8, "rounds": 1, "warmup": 0, "end": 1}
    keys |= {"method": "fedspallm", "method_options": {"layers": (1.0, 0.5)}, "local_steps": 1}
    keys |= {"agreement": False, "budget": budget}
    given = {**TINY, **keys, "profiles": file_of(tmp_path, **slow)}
    config = configure({k: v for k, v in given.items() if k != "schedule"})
    fleet, (result, asked, _) = fleet_of(config), overheard(config)
    pruned = {(fleet[who[0]].name, len(q.names)) for q, who, _ in asked if q.kind == "own"}
    assert pruned == {("fast", 2), ("slow", 1)}
    told = result.summary["devices"]["classes"]
    assert (told["fast"]["part"], told["slow"]["part"]) == (1.0, 0.5)
    with pytest.raises(ConfigError, match="budget='memory': clients hold the whole model"):
        federate(config.model_copy(update={"budget": "memory"}))


def test_of_one_part_for_all_the_budget_decides_on_steps_and_is_refused_where_on_nothing(tmp_path):
    keys = {"method": "heterofl", "method_options": {"tiers": (1.0,)}, "unit": "row"}
    config = simulated(tmp_path, flops=1e9, budget="flops", model="mlp", local_steps=2, **keys)
    assert set(opening_of(config, None, None)[1].steps) == {1.0, 0.5}
    with pytest.raises(ConfigError, match="no parts or ranks that differ; allowed: none, method="):
        federate(simulated(tmp_path, budget="memory"))


@pytest.mark.slow
def test_ranks_follow_a_budget_and_who_fits_no_rank_is_not_asked(tmp_path):
    keys = {"model": "mlp", "adapters": "lora", "ranks": (1, 2, 4), "cohort": 8, "rounds": 2}
    keys |= {"clients": 8, "warmup": 1, "end": 2, "agreement": False}
    config = tiny(profiles=file_of(tmp_path, flops=1.1e9), budget="flops", **keys)
    fleet, (result, asked, _) = fleet_of(config), overheard(config)
    tuned = [(q, whom) for q, whom, _ in asked if q.kind == "tune"]
    smallest = [min(next(iter(q.adapters.values())).shape) for q, _ in tuned]
    ranks = {(fleet[p].name, n) for n, (_, whom) in zip(smallest, tuned, strict=True) for p in whom}
    assert ranks == {("fast", 4), ("slow", 2)}
    assert result.summary["devices"]["classes"]["slow"]["rank"] == 2
    config = tiny(profiles=file_of(tmp_path, memory=100), budget="memory", **keys)
    asked = {p for row in federate(config).rows for p in row["cohort"]}
    assert {fleet_of(config)[p].name for p in asked} == {"fast"}


@pytest.mark.slow
def test_slower_devices_take_fewer_steps(tmp_path):
    """Half as many as the fastest: what they send is what they would with so many steps asked."""
    keys = {"model": "mlp", "clients": 8, "cohort": 8, "rounds": 2, "agreement": False}
    keys |= {"warmup": 1, "end": 2}
    config = tiny(profiles=file_of(tmp_path, flops=1.1e9), budget="flops", local_steps=4, **keys)
    fleet, (result, asked, _) = fleet_of(config), overheard(config)
    tuned = [(q, whom, total) for q, whom, total in asked if q.kind == "tune"]
    assert len(tuned) == 4
    for question, whom, total in tuned:
        (name,) = {fleet[p].name for p in whom}
        alone = tiny(local_steps={"fast": 4, "slow": 2}[name], **keys)
        plain = replace(question, regime=PLAIN_REGIME, known=frozenset())
        wanted = inline_port(house_of(alone)).ask(plain, whom)
        assert torch.equal(total.total, wanted.total)
        assert total.totals == wanted.totals
    assert result.rows[0]["answered"] == 8
    free = federate(simulated(tmp_path, flops=1.1e9, **keys | {"local_steps": 4}))
    assert result.rows[-1]["clock"] < free.rows[-1]["clock"]


MANY = {"model": "mlp", "method": "heterofl", "method_options": {"tiers": (1.0, 0.5, 0.25)}}
MANY |= {"unit": "row", "clients": 8, "cohort": 5, "warmup": 1, "rounds": 3, "end": 3}
OTHER = {"share": 3, "flops": 9e8, "up": 2e5, "down": 9e5, "memory": 1e3, "watts": 5}
OTHER |= {"availability": 0.3, "dropout": 0.7}
"""Another value of each field of the slow class."""


def outcome(folder, keys=MappingProxyType({}), **slow):
    """What there is to say of a run: its rows, and what each class of devices did."""
    config = tiny(**{**MANY, "profiles": file_of(folder, **slow), **keys})
    result, asked, _ = overheard(config)
    told = [{k: v for k, v in row.items() if k != "seconds"} for row in result.rows]
    state, plan = opening_of(config, None, None)
    for question, whom, _ in asked:
        fits = [plan.fleet[p].memory >= bytes_needed(state.model, plan, p) for p in whom]
        assert all(fits) or KINDS[question.kind].asks != "cohort", "nobody gets what does not fit"
    return str((told, result.summary["devices"]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return outcome(tmp_path_factory.mktemp("plain"))


def test_every_field_is_here():
    assert OTHER.keys() | {"name"} == {f.name for f in fields(DeviceClass)}


@pytest.mark.slow
@pytest.mark.parametrize("field", OTHER)
def test_a_field_changes_what_comes_of_a_run(tmp_path, plain, field):
    assert outcome(tmp_path, **{field: OTHER[field]}) != plain


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"deadline": 0.5}, {"over_select": 1.6}], ids=str)
def test_an_option_changes_what_comes_of_a_run(tmp_path, plain, keys):
    assert outcome(tmp_path, keys) != plain


@pytest.mark.slow
def test_budgets_give_other_parts_and_never_what_does_not_fit(tmp_path, plain):
    state, plan = opening_of(tiny(model="mlp"), None, None)
    whole = bytes_needed(state.model, plan)
    slow = {"flops": 2e9, "up": 1.5e6, "memory": 0.55 * whole}
    found = [outcome(tmp_path, {"budget": b}, **slow) for b in ("none", "memory", "flops", "bytes")]
    assert len({plain, *found}) == 5

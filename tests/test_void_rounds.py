"""State follows what happened: whatever answers are lost, in whichever round and phase.

Every method is played whole once, then again and again with one of its questions unanswered.
"""

import json
from dataclasses import is_dataclass, replace

import pytest
import torch

from fedprune import NoRoundCompleted, federate
from fedprune.client.answers import ANSWERS
from fedprune.client.host import build_host
from fedprune.engines.inline import inline_port
from fedprune.methods.acting import begun, done
from fedprune.methods.catalog import memories_of, riders_of
from fedprune.methods.reduce import Memory as Reduced
from fedprune.methods.reduce import reduced
from fedprune.opening import opening_of
from fedprune.records.checkpoint import load_state, save_state
from fedprune.rounds import one_round
from fedprune.server.ask import conversed
from fedprune.server.round import Round
from fedprune.server.shrink import fitted
from fedprune.tensors.models import state_of
from fedprune.tensors.named import count_kept, digest
from tests.runs import Spy, house_of, tiny

BASE = {
    **{"model": "mlp", "clients": 3, "cohort": 2, "hosts": 1, "rounds": 4, "warmup": 1, "end": 3},
    **{"local_steps": 1, "agreement": False},
}
ONCE = {"schedule": "one-shot", "end": 2}
LOW_RANK = {"reduce": ("low-rank",), "reduce_round": 3}
RARE = {"frequency": 2, "rounds": 5, "end": 4}
METHODS = {
    "one-shot": ONCE,
    "linear, ema": {"schedule": "linear", **RARE, "moving": "ema"},
    "cubic": {"schedule": "cubic"},
    "exponential, votes": {"schedule": "exponential", "combine": "votes"},
    "regrow": {"schedule": "regrow"},
    "regrow-rare": {"schedule": "regrow", **RARE, "scope": "layer"},
    "adaptive": {"schedule": "adaptive", "tolerance": 5.0},
    "adaptive-layer": {"schedule": "adaptive", "tolerance": 5.0, "adaptive": "layer"},
    "threshold": {"sparsity": None, "threshold": 0.02, "score": "magnitude", "end": 2},
    "bytes": {"sparsity": None, "target_bytes": 6000},
    "flops, swa": {"sparsity": None, "target_flops": 0.4, "moving": "swa"},
    "steps": {**ONCE, "score_steps": 3, "score": "snip", "warmup": 0, "end": 1},
    "sequential": {**ONCE, "calibration": "sequential", "score": "wanda", "scope": "row"},
    "sparsegpt": {**ONCE, "score": "sparsegpt", "calibration": "sequential"},
    "union": {"masks": "union"},
    "intersection": {"masks": "intersection"},
    "tune": {"score_during": "tune"},
    "inputs": {**ONCE, "reconstruct": "inputs"},
    "outputs": {"reconstruct": "outputs"},
    "shrink": {"unit": "channel", "shrink": "every", "model": "cnn", "sparsity": 0.4},
    "rewind": {"rewind": 1},
    "distil": {"distil": 0.5, "distil_schedule": "linear"},
    "blend": {"blend": "layer"},
    "feedback": {"uplink": "int8", "error_feedback": True},
    "low-rank": {**LOW_RANK, "rank_budget": 0.5, **ONCE, "sparsity": 0.2},
    "tolerance": {**LOW_RANK, "rank_tolerance": 0.5, **ONCE, "sparsity": 0.2},
    "both": {**LOW_RANK, "reduce_round": 2, "rank_budget": 0.5, **ONCE, "sparsity": 0.2},
    "merge": {"reduce": ("dead", "merge"), **ONCE, "sparsity": 0.2},
}


def kind_of(question):
    """Of those that measure, with their part."""
    return f"{question.kind} {question.part}".strip()


def without_nth(port, kind, n):
    """A port that loses all answers to the n-th question of a kind, from 1."""

    def lost(question, _):
        before = sum(kind_of(asked) == kind for asked, _, _ in spy.asked)
        return kind_of(question) == kind and before == n - 1

    spy = Spy(port, lost)
    return spy.port


def played(state, plan, port):
    while state.round < plan.config.rounds:
        state, plan, row = one_round(state, fitted(plan, state.edits), port)
        yield state, plan, row


def same(left, right):
    """Equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if is_dataclass(left):
        return type(left) is type(right) and same(vars(left), vars(right))
    return bool(left == right)


FREE = {"round", "pending", "model", "book", "memories"}


def parts(state):
    """What a state holds, but for what asking changes; memories by the names of their owners."""
    apart = {"counted": state.book.counted, **vars(state.model), **state.memories}
    return {n: v for n, v in vars(state).items() if n not in FREE} | apart


def changed(before, after):
    """The parts that differ, but for what asking changes."""
    left, right = parts(before), parts(after)
    return {n for n in left | right if not same(left.get(n), right.get(n))}


def opening(config):
    """The state before round one, and its plan."""
    state, plan = opening_of(config, None, None)
    return begun(state, Round(0, plan)), plan


def has_reduced(state):
    return bool(state.memories.get("reduce") == Reduced(done=True))


def done_with(method, plan, state):
    """All is done: as sparse as asked, or reduced."""
    c = plan.config
    assert done(state, plan), method
    gone = plan.layout.whole - count_kept(state.masks)
    if c.sparsity and not c.reduce and c.unit == "weight" and c.schedule != "adaptive":
        assert abs(gone - c.sparsity * plan.layout.whole) <= len(state.masks)
    assert gone > 0
    assert has_reduced(state) == bool(c.reduce)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("method", METHODS)
def test_what_nobody_answered_is_pending_and_changes_nothing(method):
    config = tiny(**{**BASE, **METHODS[method]})
    port = inline_port(house_of(config))
    state, plan = opening(config)
    before = [(state, plan), *((s, p) for s, p, _ in played(state, plan, port))]
    done_with(method, before[-1][1], before[-1][0])
    due = [r for r in range(1, config.rounds) if work_in(before, r)]
    for round_ in (due[0], due[-1]):
        state, plan = before[round_ - 1]
        spy = Spy(port)
        whole, _, _ = one_round(state, fitted(plan, state.edits), spy.port)
        kinds = [kind_of(q) for q, _, _ in spy.asked]
        for kind in dict.fromkeys(kinds):
            for n in {1, kinds.count(kind)}:
                lost(kind, n, (state, plan), whole, port)


def work_in(before, round_):
    state, plan = before[round_ - 1]
    state = replace(state, round=round_)
    riders = riders_of(plan.config).items()
    r = Round(round_, plan)
    return plan.due(state) or any(v.due(state.memories[n], r) for n, v in riders)


def lost(kind, n, at, whole, port):
    """Play a round without the answers to one question, and the rest of the run after it."""
    state, plan = at
    short = without_nth(port, kind, n)
    after, smaller, row = one_round(state, fitted(plan, state.edits), short)
    assert after.book.traffic != state.book.traffic
    if kind == "tune":
        assert changed(state, after) == set(), "a void round changes nothing"
        assert after.pending == plan.due(replace(state, round=after.round))
        assert row["undone"].startswith("void, nothing changes: 0 of 2")
        assert smaller.edits == state.edits
    elif kind.startswith("evaluate") and not (kind.endswith("validation") and row["undone"]):
        apart = changed(whole, after)
        assert apart <= {"dense_at_pruning"}, "what only measures decides nothing"
        if not apart and after.pending == whole.pending:
            return  # what follows is what follows the whole round
    elif row["undone"] is None:
        assert kind == "compare validation", "of a blend: the whole change is kept"
        assert not changed(whole, after) - {"weights"}
    elif "pruned" in row["undone"]:
        left = {"rewind", "adaptive", "distil", "dense_at_pruning", "prunings"}
        left |= set() if has_reduced(after) else {"masks", "edits"}
        assert not changed(state, after) & left, "a pruning happens as a whole or not at all"
        assert after.pending
    else:
        assert "not reduced" in row["undone"]
        assert not has_reduced(after)
        assert after.edits == state.edits
    fit = fitted(plan, after.edits)
    *_, (end, last, _) = [(after, fit, row), *played(after, fit, port)]
    done_with(kind, last, end)


@pytest.mark.parametrize("schedule", ["one-shot", "cubic", "regrow", "adaptive"])
def test_a_run_that_was_never_pruned_says_so(schedule):
    config = tiny(**{**BASE, **(ONCE if schedule == "one-shot" else {}), "schedule": schedule})
    result = federate(
        config, Spy(inline_port(house_of(config)), lambda q, _: q.kind == "score").port
    )
    told = result.summary
    assert (told["reached"], told["sparsity"], told["rounds_completed"]) == (False, 0.0, 4)
    assert told["short"] == (0.0 if schedule == "adaptive" else 0.7)
    assert told["quality"]["dense_at_pruning"] is None, "pruning never began"


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_a_run_of_void_rounds_raises_with_all_there_is(tmp_path):
    config = tiny(**{**BASE, "lr": 1e30, "local_steps": 3, "baselines": ("dense",)})
    host, folder = house_of(config), tmp_path / "run"
    with pytest.raises(NoRoundCompleted, match=r"phase tune: .*(finite|NaN)") as told:
        federate(config, inline_port(host), folder=folder)
    result = told.value.result
    assert {row["sparsity"] for row in result.rows} == {0.0}
    assert json.loads((folder / "summary.json").read_text())["failed"] == str(told.value)
    assert "No round was completed: too few" in (folder / "report.html").read_text()
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == config.rounds
    assert digest(result.state.weights) == digest(state_of(build_host(config).model))


def test_a_void_round_is_the_checkpoint_of_the_one_before(tmp_path):
    """What is pending and who counts comes back, so that a resumed run is not behind."""
    config = tiny(**{**BASE, "uplink": "int8", "error_feedback": True})
    port = without_nth(inline_port(house_of(config)), "tune", 2)
    states = [s for s, _, _ in played(*opening(config), port)]
    for state in states:
        save_state(state, tmp_path / "s.safetensors")
        back = load_state(tmp_path / "s.safetensors", memories_of(""))
        assert not changed(state, back)
        assert (back.book, back.pending, back.round) == (state.book, state.pending, state.round)
    assert [s.pending for s in states] == [False, True, False, False]


def test_who_was_in_the_sum_of_a_model_that_is_not_taken_is_remembered():
    """A sum in which one client less took part than in the one before gives that client away."""
    config = tiny(**{**BASE, **METHODS["tolerance"], "rank_tolerance": 0.0, "cohort": 3})
    port, asked = inline_port(house_of(config)), []

    def ask(question, partitions):
        measures = kind_of(question) == "evaluate validation" and len(partitions) == 3
        asked.extend([1] * measures)
        there = [p for p in partitions if not (measures and len(asked) == 2 and p == 1)]
        return replace(port.ask(question, there), tries=1)

    state, plan = opening(config)
    talk = reduced(state.model, Reduced(), Round(3, plan, [0, 1, 2]))
    step, book = conversed(talk, state.book, plan, replace(port, ask=ask))
    assert step.undone == "not reduced: too few answered", "others judged than the model before"
    assert set(book.sums) == {frozenset({0, 1, 2}), frozenset({0, 2})}
    assert any("differ by one client alone: 1" in text for text in book.notices)


def test_a_pruning_that_came_to_nothing_stays_due_where_the_same_round_reduces():
    config = tiny(**{**BASE, **METHODS["both"], "sparsity": 0.7})
    port = without_nth(inline_port(house_of(config)), "score", 1)
    states, _, rows = zip(*played(*opening(config), port), strict=True)
    assert rows[1]["undone"] == "not pruned: too few answered"
    assert rows[1]["reduced"] is not None
    assert [s.pending for s in states] == [False, True, False, False]
    assert [s.prunings for s in states] == [0, 0, 1, 1]
    assert rows[2]["sparsity"] > rows[1]["sparsity"]


def test_where_no_client_counts_its_labels_the_run_says_what_it_lacks(monkeypatch, caplog):
    def unable(*_):
        raise ValueError("no labels here")

    monkeypatch.setitem(ANSWERS, "describe", unable)
    result = federate(tiny(**BASE))
    assert result.summary["naive"] == {}
    assert "no client counted its labels: ValueError: no labels here" in caplog.text

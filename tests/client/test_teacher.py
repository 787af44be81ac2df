import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedprune import TASKS, ConfigError, Result, Shard, federate
from fedprune.client.host import build_host, dense_model
from fedprune.client.teacher import check_distillation, teacher_in, teacher_model
from fedprune.codec.coded_file import CODED_NAME, from_coded
from fedprune.codec.wire import digest_of
from fedprune.engines.inline import inline_port
from fedprune.export.saved import load_saved
from fedprune.methods.distil import factor
from fedprune.protocol.broadcast import broadcast, decode_question, encode_question
from fedprune.server.state import State
from fedprune.tasks.language import windows
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.token_rows import encode
from fedprune.tensors.models import state_of
from tests.runs import Asked, Spy, house_of, overheard, played, same, tiny

LEARNS = {"distil": 0.9}


def teacher_of(state: State) -> bytes:
    return bytes(state.memories["distil"].teacher)


@pytest.fixture(scope="module")
def learnt() -> tuple[Result, Asked, list[State]]:
    return overheard(tiny(**LEARNS))


def test_the_teacher_is_the_model_before_it_is_pruned(learnt):
    result, asked, states = learnt
    assert [bool(teacher_of(s)) for s in states] == [False, False, True, True, True]
    _, weights, masks = from_coded(teacher_of(states[2]))
    assert all(m.all() for m in masks.values())
    assert same(weights, states[1].weights), "those at the end of the warm-up"
    taught = state_of(teacher_model(teacher_of(states[-1]), tiny()).requires_grad_(True))
    assert same(taught, states[1].weights)
    tuning = [q for q, _, _ in asked if q.kind == "tune"]
    assert [(bool(q.teacher), q.distil) for q in tuning] == [(False, 0.0)] * 2 + [(True, 1.0)] * 3
    assert [row["divergence"] is None for row in result.rows] == [True, True, False, False, False]
    assert all(row["divergence"] > 0 for row in result.rows[2:])


def test_a_teacher_changes_the_result_and_nothing_before_it(learnt):
    plain, taught = played(tiny()), learnt[0]
    dense = played(tiny(**LEARNS, baselines=("dense",), rounds=3, end=3)).rows[-1]
    assert (dense["arm"], dense["divergence"]) == ("dense", None), "nothing is pruned there"
    digests = [[row["weights_digest"] for row in r.rows] for r in (plain, taught)]
    assert digests[0][:2] == digests[1][:2]
    assert all(a != b for a, b in zip(digests[0][2:], digests[1][2:], strict=True))
    masks = [result.rows[2]["mask_digest"] for result in (plain, taught)]
    assert masks[0] == masks[1], "it is learned from after the pruning"


def test_a_partition_receives_a_teacher_once(learnt):
    _, asked, states = learnt
    taught: set[int] = set()
    for question, partitions, aggregate in asked:
        sent = broadcast(replace(question, taught=frozenset(partitions)), "fp32")
        new = set(partitions) - taught if question.teacher else set()
        assert aggregate.bytes_down == sent.size(partitions) + len(new) * len(question.teacher)
        if question.teacher:
            assert question.taught == taught
            taught |= set(aggregate.answered)
    assert taught == set(states[-1].book.taught)
    assert set(states[-1].book.taught.values()) == {digest_of(teacher_of(states[-1]))}


def test_a_question_with_another_teacher_is_refused(cnn):
    host, question = cnn
    assert not {"teacher", "distil"} & json.loads(encode_question(question, "fp32").head).keys()
    taught = replace(question, kind="tune", teacher=b"a" * 40, distil=0.5)
    packet = encode_question(taught, "fp32")
    seen = decode_question(packet, host.layout)
    assert (seen.teacher, seen.distil) == (b"a" * 40, 0.5)
    other = replace(packet, buffers={**packet.buffers, "teacher": b"b" * 40})
    with pytest.raises(ValueError, match="the teacher is not the one"):
        decode_question(other, host.layout)
    port = inline_port(build_host(tiny(), dict(host.shards)))
    aggregate = port.ask(replace(taught, teacher=b"FEDPRUN1" * 9), [0])
    assert "teacher: damaged" in aggregate.failures[0].reason


def test_weights_may_fall_over_rounds():
    config = tiny(**LEARNS, distil_schedule="linear")  # pruning begins in round 3 of 5
    assert [factor(config, r) for r in (3, 4, 5)] == pytest.approx([1, 2 / 3, 1 / 3])
    keys = {"sparsity": 0.0, "reduce": ("dead",), "reduce_round": 4}
    reducing = tiny(**LEARNS, **keys, distil_schedule="linear")
    assert [factor(reducing, r) for r in (4, 5)] == pytest.approx([1, 1 / 2])
    other = tiny(**LEARNS, distil_schedule="linear", teacher="somewhere")
    assert [factor(other, r) for r in (1, 5)] == pytest.approx([1, 1 / 5])
    assert factor(tiny(**LEARNS), 5) == 1.0


def shards() -> dict[int, Shard]:
    texts = ["To be, or not to be: that is the question.\n" * 8, "O Romeo!\n" * 7]
    texts += ["Exit, with a bear?\n" * 6]
    parts = [[windows(encode(t)) for t in (text, text[:40], text[-50:])] for text in texts]
    return {p: Shard(*three) for p, three in enumerate(parts)}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A finished run of a LLaMA with two blocks of width 32, pruned."""
    folder = tmp_path_factory.mktemp("runs") / "large"
    config = tiny(task="shakespeare", clients=3, cohort=3, rounds=2, warmup=1, end=2, width=32)
    federate(config, inline_port(build_host(config, shards())), folder=folder)
    return folder


SMALL = {
    "task": "shakespeare", "clients": 3, "cohort": 3, "rounds": 2, "warmup": 0, "end": 1,
    "sparsity": 0.0, "depth": 1, "width": 16, "optimizer": "adamw", "lr": 1e-2,
}  # fmt: skip
KINDS = [
    {"distil": 1.0},
    {"distil_hidden": 1.0},
    {"distil_attention": 1.0},
    {"distil": 0.5, "distil_hidden": 0.5, "distil_attention": 0.5, "model": "gpt2"},
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", KINDS, ids=str)
def test_a_smaller_student_learns_from_another_run(keys, large):
    runs = {}
    for teacher in ("", str(large)):
        given = {**SMALL, **keys} if teacher else {**SMALL, "model": keys.get("model", "llama")}
        config = tiny(**given, teacher=teacher)
        eye = Spy(inline_port(build_host(config, shards())))
        runs[teacher] = federate(config, eye.port)
    rows = [r.rows for r in runs.values()]
    assert rows[0][0]["divergence"] is None
    assert rows[1][0]["divergence"] > 0
    assert rows[0][-1]["weights_digest"] != rows[1][-1]["weights_digest"]
    sent = {digest_of(q.teacher) for q, _, _ in eye.asked if q.kind == "tune"}
    assert sent == {digest_of(teacher_in(str(large)))}
    assert teacher_of(runs[str(large)].state) == b"", "it is in its own folder already"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("unit", ["neuron", "sublayer", "layer"])
def test_a_student_that_shrinks_learns_from_what_it_was(unit):
    """Also with layers fitted to the model before, which has the shapes of the round."""
    keys = {"distil": 0.5, "distil_hidden": 0.5, "distil_attention": 0.5, "reconstruct": "outputs"}
    keys |= {"depth": 3, "sparsity": 0.4, "rounds": 3, "warmup": 1, "end": 2, "shrink": "every"}
    config = tiny(**{**SMALL, **keys}, unit=unit)
    result = federate(config, inline_port(build_host(config, shards())))
    assert result.state.edits
    assert not any(row["failures"] for row in result.rows)
    assert result.rows[-1]["divergence"] > 0
    assert any(0 < (row["refit"] or 0) < 1 for row in result.rows)
    _, weights, _ = from_coded(teacher_of(result.state))
    dense = state_of(dense_model(config))
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in dense.items()}


def test_what_teaches_is_the_model_of_that_run_or_is_refused(large, tmp_path):
    model = teacher_model(teacher_in(str(large)), tiny())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert same(dict(model.named_parameters()), dict(load_saved(large).named_parameters()))
    with pytest.raises(ValueError, match=r"^teacher='.*none': no model.fedprune there; allowed: t"):
        teacher_in(str(tmp_path / "none"))
    (tmp_path / CODED_NAME).write_bytes((large / CODED_NAME).read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        teacher_in(str(tmp_path))


def test_what_cannot_be_compared_is_refused_before_anything_starts(large, monkeypatch):
    config = tiny(distil_hidden=0.5)
    with pytest.raises(ConfigError, match=r"^distil-hidden: 0 stacks of blocks"):
        federate(config, inline_port(house_of(config)))
    digits = tiny(**LEARNS, teacher=str(large))
    with pytest.raises(ValueError, match=r"^teacher='.*large': it is of task shakespeare; allowed"):
        check_distillation(digits, dense_model(digits), teacher_in(str(large)))

    def loss(model: Any, batch: Any) -> Any:
        return replace(classification_loss(model, batch), logits=None)

    config = tiny(**LEARNS)
    student = dense_model(config).train()
    check_distillation(config, student, b"")
    assert student.training, "a model is in the mode it was"
    monkeypatch.setitem(TASKS, "digits", replace(TASKS["digits"], loss=loss))
    with pytest.raises(ValueError, match="does not give its logits; allowed: 0"):
        check_distillation(config, student, b"")

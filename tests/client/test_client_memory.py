import pytest
import torch

from fedprune.client.carried_memory import disclosed, enclosed, returned, take_back
from fedprune.client.kept_back import RESIDUAL, _by_name, with_kept_back
from fedprune.client.memory import RUNS, ClientMemory, Recollection, keep, on_device, recall
from fedprune.codec.stochastic_rounding import decode_rounded, encode_rounded
from fedprune.codec.wire import Packet
from fedprune.protocol.messages import Answer, Question
from tests.filled import alike

WEIGHTS = {"w": torch.zeros(2, 3), "free": torch.zeros(2)}
MASKS = {"w": torch.tensor([[True, False, True], [True, True, True]])}
KEPT = {
    "one": {"a/b": torch.arange(6).reshape(2, 3), "flag": torch.tensor(True)},
    "other": {"c": torch.tensor([1e-45, -0.0, torch.inf]), "none": torch.empty(0, 4)},
}


@pytest.fixture(params=["memory", "folder"])
def memory(request, tmp_path) -> ClientMemory:
    return ClientMemory(tmp_path / "remembered" if request.param == "folder" else None)


def at(value: float) -> dict:
    return {"name": {"t": torch.tensor(value)}}


def value(memory: ClientMemory, of: str, partition: int, round_: int) -> float:
    return float(recall(memory, of, partition, round_)["name"]["t"])


def test_what_was_kept_is_recalled_bit_for_bit_by_who_kept_it(memory):
    keep(memory, "score a b", 4, 2, 0, KEPT)
    found = recall(memory, "score a b", 4, 2)
    assert found.keys() == KEPT.keys()
    for name, tensors in KEPT.items():
        assert alike(dict(sorted(found[name].items())), dict(sorted(tensors.items())))
    assert recall(memory, "score a b", 4, 0) == {}
    for of, partition, round_ in (("tune", 4, 2), *(("score a b", p, 2) for p in (0, 40))):
        with pytest.raises(ValueError, match=f"kept in round {round_} is not in"):
            recall(memory, of, partition, round_)


def test_what_counted_last_stays_whatever_is_lost_after_it(memory):
    for partition in (1, 12):
        for round_, since in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 2)):  # 3, 4 and 5 were lost
            keep(memory, "tune", partition, round_, since, at(round_))
            keep(memory, "score", partition, round_, since, at(-round_))
        assert value(memory, "tune", partition, 2) == 2
        assert value(memory, "score", partition, 5) == -5
    if memory.folder is None:
        assert {r for kept in memory.held.values() for r in kept} == {2, 5}
        assert len(memory.held) == 4
    else:
        names = sorted(p.name for p in (memory.folder / "tune").glob("*/*"))
        assert names == sorted(f"{p}-{r}.safetensors" for p in (1, 12) for r in (2, 5))


def test_it_travels_with_the_question_and_comes_back_with_the_answer(memory):
    counted = {1: 2, 2: 0, 3: 1}
    keep(memory, "tune", 1, 2, 0, at(12))
    keep(memory, "tune", 3, 1, 0, at(31))
    keep(memory, "tune", 3, 2, 1, at(32))  # was lost
    there = disclosed(Packet({}, {"values": b"...", **enclosed(memory, "tune", counted)}))
    assert value(there, "tune", 1, 2) == 12
    assert value(there, "tune", 3, 1) == 31
    assert set(there.held) == {("tune", 1), ("tune", 3)}
    for partition, since in counted.items():
        keep(there, "tune", partition, 3, since, at(partition * 10 + 3))
    reply = Packet({}, {"total": b"...", **returned(there, 3)})
    assert len(reply.buffers) == 4, "what was sent is not sent back"
    take_back(memory, reply, counted)
    assert [value(memory, "tune", p, 3) for p in counted] == [13, 23, 33]
    assert value(memory, "tune", 3, 1) == 31, "a resumed run goes on from it"
    with pytest.raises(ValueError, match="round 2"):
        recall(memory, "tune", 3, 2)


def test_what_is_damaged_is_not_taken_for_something_else(tmp_path):
    memory = ClientMemory(tmp_path)
    keep(memory, "tune", 7, 1, 0, at(1))
    (path,) = tmp_path.glob("tune/7/*")
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    with pytest.raises(ValueError, match=r"7-1\.safetensors: damaged"):
        recall(memory, "tune", 7, 1)
    assert enclosed(memory, "tune", {7: 1}) == {}
    with pytest.raises(ValueError, match="kept in round 1 is not in"):
        recall(disclosed(Packet({})), "tune", 7, 1)


def test_a_device_remembers_so_many_runs(tmp_path):
    for i in range(RUNS + 3):
        keep(on_device(tmp_path, f"run {i}"), "tune", 0, 1, 0, at(i))
        on_device(tmp_path, "run 0")  # is still asked
    there = {p.name for p in tmp_path.iterdir()}
    assert "run 0" in there
    assert f"run {RUNS + 2}" in there
    assert len(there) == RUNS


def test_what_is_kept_is_a_copy_and_the_rest_stays():
    mine = torch.zeros(2)
    own = Recollection({"old": {"t": torch.ones(1)}, "new": {"u": torch.ones(1)}})
    own.keep("new", {"t": mine})
    mine += 1
    assert own.whole["new"]["t"].tolist() == [0, 0]
    assert own.whole["old"]["t"].tolist() == [1]
    assert "t" not in own.recall("new"), "it is recalled from the next round on"
    with pytest.raises(TypeError, match="no dictionary of tensors"):
        own.keep("new", {"t": 1.0})
    for name in ("", "a/b"):
        with pytest.raises(ValueError, match="allowed: a name without /"):
            own.keep(name, {})


def test_what_was_removed_since_is_no_part_of_what_was_by_name():
    own = Recollection()
    question = Question("tune", 2, WEIGHTS, MASKS)
    own.keep(RESIDUAL, _by_name(question, torch.tensor([1.0, 2, 3, 4, 5, 6, 7])))
    fewer = {"w": torch.tensor([[False, False, True], [True, False, True]])}
    zeros, then = Answer(torch.zeros(5), 1.0, {}), Question("tune", 3, WEIGHTS, fewer)
    answer = with_kept_back(zeros, then, Recollection(own.whole))
    assert answer.values.tolist() == [1, 2, 4, 5, 7]


@pytest.mark.parametrize("bits", [4, 8])
def test_all_that_was_sent_and_what_is_left_is_all_that_was_meant(memory, bits):
    gen = torch.Generator().manual_seed(3)
    meant = sent = torch.zeros(7, dtype=torch.float64)
    question = Question("tune", 1, WEIGHTS, MASKS)
    for round_ in range(1, 30):
        change = torch.randn(7, generator=gen)
        meant = meant + change.double()
        own = Recollection(recall(memory, "tune", 0, round_ - 1))
        whole = with_kept_back(Answer(change, 1.0, {}), question, own).values
        arrives = decode_rounded(encode_rounded(whole, bits, gen), bits, 7)
        own.keep(RESIDUAL, _by_name(question, whole - arrives))
        keep(memory, "tune", 0, round_, round_ - 1, own.whole)
        sent = sent + arrives.double()
    own = Recollection(recall(memory, "tune", 0, 29))
    left = with_kept_back(Answer(torch.zeros(7), 1.0, {}), question, own).values
    assert torch.allclose(sent + left, meant, atol=1e-5)
    assert left.any()

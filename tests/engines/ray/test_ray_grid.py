"""The grid's own decisions, with workers that are made up: no Ray starts here."""

import itertools
import logging

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.codec.wire import Packet
from fedprune.engines.flower.exchange import WORKER_KILLED, WORKER_LOST, Outgoing, exchange
from fedprune.engines.flower.messages import packet_in
from fedprune.engines.ray import grid as module
from fedprune.engines.ray.grid import RayGrid
from fedprune.engines.ray.identity import OURSELVES, as_a_task
from fedprune.engines.ray.jobs import LostJob
from fedprune.engines.ray.message_parts import joined, parted
from fedprune.engines.ray.node_health import NodeHealth
from fedprune.engines.ray.nodes import Node, Unserved
from fedprune.engines.ray.worker_pool import PoolMember
from fedprune.options.refusal import ConfigError

STAGES = ("query.shares", "query.unmask")
GONE, MEMORY, DEAD = LostJob("gone", gone=True), LostJob("memory", memory=True), LostJob("dead")


class WorkerPool:
    """Workers on two nodes whose jobs end one a look, as `fates` says by the first partition."""

    def __init__(self, members="aab", **fates):
        self.nodes = {n: Node(n, n, 2, 0, 0) for n in sorted(set(members))}
        self.members = [PoolMember(self.nodes[n], None, "idle", None) for n in members]
        self.fates = {int(name[1:]): fate for name, fate in fates.items()}
        self.given, self.beside = [], []
        self.health = NodeHealth(here="a")

    def look(self, *, now=False): ...

    def idle(self):
        return [s for s in self.members if s.step == "idle"]

    def busy(self):
        return [s for s in self.members if s.step == "busy"]

    def give(self, member, job):
        member.step, member.job = "busy", job
        self.given.append(job.partitions)
        others = [s for s in self.busy() if s is not member and s.node is member.node]
        self.beside.append([s.job.partitions for s in others if s.job])

    def dismiss(self, member):
        self.members.remove(member)

    def wait(self, _):
        for member in self.busy()[:1]:
            job, member.step, member.job = member.job, "idle", None
            assert job is not None
            if fate := self.fates.get(job.partitions[0]):
                return [(job, fate.pop(0))]
            asked = joined(job.head, job.buffers)
            return [(job, (*parted(Message(asked.content, reply_to=asked)), 1.0))]
        return []


@pytest.fixture(autouse=True)
def store(monkeypatch):
    put = []
    monkeypatch.setattr("ray.put", lambda data: put.append(data) or data)
    with as_a_task():
        yield put


def ask(grid, *groups, size=0, kind="train.tune"):
    """What comes back of each group, as the port sees it."""
    data = bytes(size)
    mail = {
        (0, k): Outgoing(OURSELVES, kind, Packet({"partitions": group}, {"values": data}))
        for k, group in enumerate(groups)
    }
    return {k: reply for (_, k), reply in exchange(grid, mail, 5.0, (9.0, 9.0))}


def made(pool, labels=None, patience=5.0):
    return RayGrid(pool, labels or {}, patience)


def test_every_message_is_answered_and_says_what_it_said():
    groups = [[0, 1], [2], [3], [4, 5], [6]]
    found = ask(made(WorkerPool()), *groups)
    assert {k: list(p.fields["partitions"]) for k, p in found.items()} == dict(enumerate(groups))


def test_a_small_round_is_a_message_a_host_and_nobody_polls(monkeypatch):
    """Twenty clients of eight hosts, two workers: what is there is taken in without a pause."""

    def slept(seconds):
        raise AssertionError(f"slept for {seconds:g} s")

    monkeypatch.setattr("fedprune.engines.flower.exchange.time.sleep", slept)
    pool = WorkerPool("aa")
    grid, hosts = made(pool), [[h, h + 8, h + 16][: 3 if h < 4 else 2] for h in range(8)]
    found = ask(grid, *hosts)
    assert len(found) == len(pool.given) == 8
    assert grid._place == 8, "one message a host, none of them twice"


def test_a_buffer_that_all_are_sent_is_put_into_the_store_once(store):
    grid = made(WorkerPool())
    found = ask(grid, [0], [1], [2], size=2**17)
    assert len(store) == 1
    assert all(len(p.buffers["values"]) == 2**17 for p in found.values())
    ask(grid, [0], [1], size=2**17)
    assert len(store) == 2


def test_the_longest_work_goes_first_by_labels_and_then_by_what_it_took():
    pool = WorkerPool("aabb")
    grid = made(pool, {0: 5, 1: 50, 2: 20, 3: 7})
    ask(grid, [0], [1], [2], [3])
    assert pool.given == [(1,), (2,), (3,), (0,)]
    pool.given.clear()
    grid.pace.seconds["train.tune"] = {0: 9.0, 1: 1.0, 2: 2.0}
    ask(grid, [0], [1], [2], [3])  # nobody knows of 3: as long as the others on average
    assert pool.given == [(0,), (3,), (2,), (1,)]


@pytest.mark.parametrize(("held", "first", "reach"), [(2**28, 9, 9), (2**20, 4, 8), (2**10, 4, 4)])
def test_of_large_replies_none_comes_long_before_its_turn(monkeypatch, held, first, reach):
    """Two workers, nine messages, the last of them the longest: how far ahead work is given.

    Before a reply is there it is taken to be twice as large as the question.
    """
    monkeypatch.setattr("fedprune.engines.ray.jobs.AHEAD", held)
    pool, left = WorkerPool("ab"), set(range(9))
    usual, give = pool.wait, pool.give

    def wait(seconds):
        came = usual(seconds)
        left.difference_update(p for job, _ in came for p in job.partitions)
        return came

    def given(member, job):
        assert job.partitions[0] < min(left) + reach
        give(member, job)

    pool.wait, pool.give = wait, given
    ask(made(pool, {k: k for k in range(9)}), *([k] for k in range(9)), size=2**17)
    assert sorted(k for (k,) in pool.given) == list(range(9))
    assert pool.given[0] == (first - 1,), "the longest of those within reach"


@pytest.mark.parametrize("kind", ["train.score", "train.tune", "evaluate", *STAGES])
@pytest.mark.parametrize(
    ("fate", "code", "tries"),
    [
        ([GONE], None, 2),
        ([GONE, GONE], WORKER_LOST, 2),
        ([DEAD], WORKER_LOST, 1),
        ([MEMORY], None, 2),
        ([MEMORY, MEMORY], WORKER_KILLED, 2),
        ([MEMORY, DEAD], WORKER_LOST, 2),
        ([GONE, MEMORY], WORKER_LOST, 2),
    ],
)
def test_what_was_lost_is_asked_again_once_where_that_is_of_use(fate, code, tries, kind):
    pool = WorkerPool(p3=list(fate))
    found = ask(made(pool), [0], [3], [5], kind=kind)
    assert pool.given.count((3,)) == tries
    assert isinstance(found[1], Packet) == (code is None)
    if code is not None:
        assert found[1].reason == fate[-1].reason
        assert found[1].alone == (code == WORKER_KILLED)
    assert isinstance(found[0], Packet)
    assert isinstance(found[2], Packet)


def test_who_was_killed_for_memory_is_alone_on_its_node_the_second_time():
    pool = WorkerPool("aa", p0=[MEMORY])
    found = ask(made(pool, {0: 9}), [0], [1], [2], [3], [4])
    at = [i for i, partitions in enumerate(pool.given) if partitions == (0,)]
    assert pool.beside[at[0]] == []  # the first of all
    assert any(pool.beside)
    assert pool.beside[at[1]] == []
    later = range(at[1] + 1, len(pool.given))
    assert all((0,) not in pool.beside[i] for i in later)
    assert all(isinstance(p, Packet) for p in found.values())


def test_who_does_not_answer_in_time_is_given_up_and_its_worker_replaced():
    pool = WorkerPool("a")
    pool.wait = lambda _: []
    grid = made(pool)
    packets = Packet({"partitions": [0]}), Packet({})
    mail = {(0, k): Outgoing(OURSELVES, "train.tune", p) for k, p in enumerate(packets)}
    found = dict(exchange(grid, mail, 0.05, (9.0, 9.0)))
    assert all(reply.late for reply in found.values())
    assert pool.members == []
    assert not grid._jobs
    assert not grid._waiting


def without_a_node(monkeypatch, looks):
    """A pool of nobody, each look at which takes a second; after so many of them somebody comes."""
    pool, fresh, now = WorkerPool(""), WorkerPool("c"), itertools.count(100.0)
    time, usual = [100.0], pool.wait
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])

    def wait(seconds):
        time[0] = next(now)
        if time[0] == 100.0 + looks:
            pool.nodes, pool.members = fresh.nodes, fresh.members
        return usual(seconds)

    pool.wait = wait
    return pool


def test_without_a_node_it_waits_says_so_and_goes_on_when_one_comes(monkeypatch, caplog):
    grid = made(without_a_node(monkeypatch, 34), patience=60)
    with caplog.at_level(logging.WARNING, "fedprune"):
        found = ask(grid, [0], [1])  # its own 5 seconds do not run while nobody is there
    assert all(isinstance(p, Packet) for p in found.values())
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 3
    assert all(line.startswith("no node is there: waiting for one, ") for line in lines)
    assert lines[0].endswith("of 60 s")


def test_without_a_node_for_too_long_the_run_ends(monkeypatch):
    pool = without_a_node(monkeypatch, 1e9)
    with pytest.raises(Unserved, match="no node with a processor was there for 60 s"):
        ask(made(pool, patience=60), [0])
    with pytest.raises(ConfigError, match=r"engine='ray': no node .* allowed: --engine inline"):
        made(pool, patience=60).gather()


def test_a_node_that_lacks_something_before_round_one_is_an_error_and_later_a_line(caplog):
    pool = WorkerPool("ab")
    grid = made(pool)
    grid.gather()
    pool.health.refused["c"] = "node 10.0.0.9: flwr is 2, 1 is wanted"
    with caplog.at_level(logging.WARNING, "fedprune"):
        ask(grid, [0], [1])
    assert [r.getMessage() for r in caplog.records] == ["node 10.0.0.9: flwr is 2, 1 is wanted"]
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.9: flwr is 2"):
        made(pool).gather()


def test_flowers_own_ways_of_asking_work_too():
    grid = made(WorkerPool())
    buffers = ArrayRecord({"x": Array("uint8", (1,), "bytes", b"7")})
    content = RecordDict({"fields": ConfigRecord({"partitions": [1]}), "buffers": buffers})
    (node,) = grid.get_node_ids()
    sent = [grid.create_message(content, "train", node, "g") for _ in range(3)]
    replies = list(grid.send_and_receive(sent, timeout=5))
    assert len({r.metadata.reply_to_message_id for r in replies}) == 3
    assert all(bytes(packet_in(r).buffers["x"]) == b"7" for r in replies)
    assert grid.run is None

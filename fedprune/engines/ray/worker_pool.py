"""The workers of a run on Ray: started where there is room, looked after, and replaced."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedprune.engines.ray import worker as worker_module
from fedprune.engines.ray.jobs import Job, LostJob
from fedprune.engines.ray.node_files import NodeFiles
from fedprune.engines.ray.node_health import NodeHealth, of_memory
from fedprune.engines.ray.nodes import Node, NodeWorkers, nodes_of
from fedprune.options.refusal import counted

LOOK = 1.0
"""Seconds between looks at which nodes are there."""

VERDICT = 3.0
"""Seconds in which the next worker of another machine has to say what the last one died of."""

MEMORY = "its worker was killed for want of memory"

log = logging.getLogger("fedprune")

# By value: a node that lacks this package can make one all the same.
ray.cloudpickle.register_pickle_by_value(worker_module)
_WORKER: Any = ray.remote(worker_module.Worker)


@dataclass(eq=False)
class PoolMember:
    """One worker.

    Attributes:
        node: where it is.
        actor: its handle.
        step: "looking" at what its node lacks, "beginning", "idle" or "busy".
        pending: what Ray will give of the step, where it is not idle.
        job: what it is busy with.
    """

    node: Node
    actor: Any
    step: str
    pending: Any
    job: Job | None = None


@dataclass(eq=False)
class WorkerPool:
    """All workers, by node.

    Attributes:
        node_files: what they need.
        workers_of: how many a node gets.
        most: how many there may be in all: each phase has so many messages.
        members: who is there.
        nodes: the machines as of the last look.
        health: what deaths of workers told of the nodes.
    """

    node_files: NodeFiles
    workers_of: Callable[[Node], NodeWorkers]
    most: int
    members: list[PoolMember] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    health: NodeHealth = field(default_factory=NodeHealth)
    _looked: float = -LOOK
    _unclear: list[tuple[float, PoolMember, str]] = field(default_factory=list)

    def look(self, *, now: bool = False) -> None:
        """See which nodes are there, and start the workers that are missing."""
        if not now and time.monotonic() < self._looked + LOOK:
            return
        self._looked = time.monotonic()
        self.nodes = {node.id: node for node in nodes_of(ray.nodes())}
        # A worker whose node is gone says so itself, if it was busy; an idle one is forgotten.
        self.members = [s for s in self.members if s.node.id in self.nodes or s.pending]
        there = Counter(member.node.id for member in self.members)
        places = [n for n in self.nodes.values() if self.health.takes(n)]
        wanted = {n.id: self.workers_of(n).workers for n in places}
        for place in range(max(wanted.values(), default=0)):  # a first one everywhere, then more
            for node in places:
                if there[node.id] <= place < wanted[node.id] and len(self.members) < self.most:
                    self._start(node)

    def told(self) -> str:
        """How many workers there are on how many nodes, and why not more."""
        fitting = [self.workers_of(node) for node in self.nodes.values()]
        fit, members, nodes = sum(s.workers for s in fitting), len(self.members), len(fitting)
        why = "; ".join(dict.fromkeys(s.why for s in fitting))
        where = (
            "this machine"
            if [n.name for n in self.nodes.values()] == [self.health.here]
            else "a node"
        )
        why = f"{why} on {where}" if fit <= self.most else f"{self.most} hosts"
        return f"{counted(members, 'worker')} on {counted(nodes, 'node')}: {why}"

    def _start(self, node: Node) -> None:
        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        share = {"num_cpus": 1, "num_gpus": self.workers_of(node).gpus}
        options = {**share, "max_restarts": 0, "max_task_retries": 0}
        made = _WORKER.options(**options, scheduling_strategy=where)
        actor = made.remote(self.node_files.needs, self.node_files.run)
        self.members.append(PoolMember(node, actor, "looking", actor.lacks.remote()))

    def idle(self) -> list[PoolMember]:
        """Those that wait for work."""
        return [member for member in self.members if member.step == "idle"]

    def busy(self) -> list[PoolMember]:
        """Those that are at work."""
        return [member for member in self.members if member.step == "busy"]

    def give(self, member: PoolMember, job: Job) -> None:
        """Let an idle worker do a job."""
        member.step, member.job = "busy", job
        member.pending = member.actor.answer.remote(job.head, *job.buffers)

    def wait(self, seconds: float) -> list[tuple[Job, Any]]:
        """What has come of jobs by then, or as soon as anything has: a worker's reply, or a `Loss`.

        Workers that have looked around, or have begun, go a step further.
        """
        pending = {member.pending: member for member in self.members if member.pending is not None}
        if not pending:
            time.sleep(seconds)
            return self._clear()
        some, _ = ray.wait([*pending], num_returns=1, timeout=seconds, fetch_local=True)
        done, _ = ray.wait([*pending], num_returns=len(pending), timeout=0) if some else ([], [])
        came: list[tuple[Job, Any]] = []
        for ref in done:
            came += self._ended(pending[ref], ref)
        return [*came, *self._clear()]

    def _ended(self, member: PoolMember, ref: Any) -> list[tuple[Job, Any]]:
        step, job = member.step, member.job
        member.pending, member.job = None, None
        try:
            value = ray.get(ref, timeout=60)
        except GetTimeoutError:  # its node went while the reply was fetched
            return self._died(member, job, "the reply did not arrive")
        except RayError as error:
            return self._died(member, job, str(error))
        member.step = "idle"
        if step == "looking":
            self._looked_around(member, *value)
        elif step == "beginning" and value:
            self._refuse(member.node, value)
        elif step == "beginning":
            self.health.served(member.node)
        return [] if job is None else [(job, value)]

    def _looked_around(
        self, member: PoolMember, lacking: list[str], wrong: list[str], kills: int
    ) -> None:
        killed = self.health.killed_since(member.node, kills)
        for i, (since, dead, reason) in enumerate(self._unclear):
            if dead.node.id == member.node.id and since:
                said = MEMORY if killed else reason
                self._unclear[i] = (0.0, dead, said)
        if wrong or (wrong := self.node_files.missing(lacking)):
            self._refuse(member.node, "; ".join(wrong))
            return
        names, contents = self.node_files.sent(lacking)
        member.step = "beginning"
        member.pending = member.actor.begin.remote(names, self.node_files.shards, *contents)

    def _refuse(self, node: Node, why: str) -> None:
        self.health.refused[node.id] = f"node {node.name}: {why}"
        for member in [s for s in self.members if s.node.id == node.id]:
            self.dismiss(member)

    def _died(self, member: PoolMember, job: Job | None, error: str) -> list[tuple[Job, Any]]:
        """A worker is gone: with its node, for want of memory, or by itself."""
        self.dismiss(member)
        if job is None:
            why = self.health.died_at_start(member.node, error)
            if why and member.node.id in self.nodes:
                self._refuse(member.node, f"workers die as they start: {why}")
            return []
        self.look(now=True)
        if member.node.id not in self.nodes or "node has died" in error:
            return [(job, LostJob("its node is gone", gone=True))]
        if of_memory(error) or self.health.killed_here(member.node):
            return [(job, LostJob(MEMORY, memory=True))]
        if member.node.name == self.health.here:
            return [(job, LostJob("its worker died"))]
        member.job = job
        self._unclear.append((time.monotonic(), member, error))
        return []

    def _clear(self) -> list[tuple[Job, Any]]:
        """Jobs of dead workers of which it is known by now what they died of."""
        now, out = time.monotonic(), []
        for entry in list(self._unclear):
            since, member, reason = entry
            gone = member.node.id not in self.nodes
            if since and not gone and now < since + VERDICT:
                continue
            self._unclear.remove(entry)
            assert member.job is not None
            memory = reason == MEMORY
            why = MEMORY if memory else "its node is gone" if gone else "its worker died"
            out.append((member.job, LostJob(why, gone=gone, memory=memory)))
        return out

    def dismiss(self, member: PoolMember) -> None:
        """End a worker, whatever it does."""
        if member in self.members:
            self.members.remove(member)
        ray.kill(member.actor, no_restart=True)

    def end(self) -> None:
        """End all workers, and remove what was unpacked for them."""
        used = (
            {member.node.id: member for member in self.idle()} if self.node_files.unpacked else {}
        )
        leaving = [member.actor.leave.remote() for member in used.values()]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=5)
        for member in list(self.members):
            self.dismiss(member)

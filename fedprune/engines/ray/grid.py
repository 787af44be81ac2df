"""Flower's `Grid` over workers on Ray: a message goes to whichever worker is free.

All workers are one node to who asks: any of them serves any host, so who comes and goes among them
is this grid's affair. A message whose worker's node is gone is given to another worker, once; what
is lost again, or whose worker died by itself, comes back as an error, and the port asks again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedprune.engines.flower.exchange import WORKER_KILLED, WORKER_LOST
from fedprune.engines.flower.fleet import JOIN
from fedprune.engines.ray.identity import OURSELVES, name_message
from fedprune.engines.ray.jobs import Job, LostJob, Pace
from fedprune.engines.ray.message_parts import joined, parted
from fedprune.engines.ray.nodes import Unserved
from fedprune.engines.ray.worker_pool import WorkerPool
from fedprune.options.refusal import ConfigError

PULL = 1.0
"""Seconds that a look for replies waits for one."""

SAID = 10.0
"""Seconds of waiting for a node between lines that say so."""

log = logging.getLogger("fedprune")


class RayGrid(Grid):
    """Messages to workers on Ray, and their replies.

    `patience` is in seconds: to wait for a node where none is left.
    """

    def __init__(self, pool: WorkerPool, labels: dict[int, int], patience: float) -> None:
        self.pool, self.pace, self.patience = pool, Pace(labels), patience
        self._run: Any = None
        self._waiting: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._replies: dict[str, Message] = {}
        self._put: dict[int, tuple[bytes, Any]] = {}
        self._place = 0
        self._stood, self._since, self._said = 0.0, 0.0, 0.0
        self._told: set[str] = set()

    def gather(self) -> None:
        """Wait until every node has a worker that is ready.

        Raises:
            ConfigError: a node lacks what it needs; or there is none in time.
        """
        while True:
            self.pool.look()
            if self.pool.health.refused:
                raise ConfigError("; ".join(self.pool.health.refused.values()), "engine")
            ready = {member.node.id for member in self.pool.idle()}
            if ready and ready == self.pool.nodes.keys():
                return
            try:
                self._stand(standing=not ready)
            except Unserved as error:
                allowed = "--engine inline, fewer --workers, or another --ray-address"
                raise ConfigError(f"engine='ray': {error}; allowed: {allowed}") from None
            self.pool.wait(0.2)

    def set_run(self, run: Any) -> None:
        """What Flower says of the run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Any:
        """What `set_run` was given, or None: no SuperLink knows of this run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as `flwr.app.Message` makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The one node that stands for all workers, whether any is there or not."""
        return [OURSELVES]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they go to workers when replies are looked for, the longest first."""
        names = []
        if not self._jobs:
            self._put.clear()
            self.pool.look(now=True)
        for message in messages:
            name = uuid.uuid4().hex
            name_message(message, name)
            head, large = parted(message)
            fields: Any = message.content.config_records.get("fields", {})
            about = tuple(fields.get("partitions", ()))
            size, self._place = 2 * sum(map(len, large)), self._place + 1
            refs = [self._in_store(each) for each in large]
            job = Job(message, head, refs, about, size, self._place)
            self._jobs[name] = job
            self._waiting.append(job)
            names.append(name)
        return names

    def _in_store(self, data: bytes) -> Any:
        """A buffer in Ray's object store; one that many messages share is put there once."""
        if id(data) not in self._put:
            self._put[id(data)] = data, ray.put(np.frombuffer(data, np.uint8))
        return self._put[id(data)][1]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there to these messages; waits a second for one.

        Raises:
            Unserved: no node is left, and none has come for `patience` seconds.
        """
        wanted = list(message_ids)
        self._step(0.0 if self._replies.keys() & set(wanted) else PULL)
        return [self._replies.pop(name) for name in wanted if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and wait for the replies; of those that came in time."""
        names, found = set(self.push_messages(messages)), list[Message]()
        began = self.clock()
        while names and (timeout is None or self.clock() < began + timeout):
            for reply in self.pull_messages(names):
                names.remove(reply.metadata.reply_to_message_id)
                found.append(reply)
        self.forget(names)
        return found

    def clock(self) -> float:
        """Seconds, of which those do not count in which no worker was there."""
        standing = time.monotonic() - self._since if self._since else 0.0
        return time.monotonic() - self._stood - standing

    def forget(self, message_ids: Iterable[str]) -> None:
        """Want no reply to these any longer: whoever is still at work on one is replaced."""
        for name in list(message_ids):
            job = self._jobs.pop(name, None)
            self._replies.pop(name, None)
            self._waiting = [other for other in self._waiting if other is not job]
            for member in [s for s in self.pool.busy() if s.job is job]:
                self.pool.dismiss(member)

    def _step(self, seconds: float) -> None:
        """Hand out work, wait for news, and take them in."""
        self.pool.look()
        self._hand_out()
        self._stand(standing=not self.pool.busy() and not self.pool.idle())
        for job, came in self.pool.wait(seconds):
            if isinstance(came, LostJob):
                self._lost(job, came)
            else:
                head, buffers, took = came
                self.pace.took(job, took, sum(map(len, buffers)))
                self._reply(job, joined(head, buffers))
        for why in self.pool.health.refused.values():
            if why not in self._told:
                self._told.add(why)
                log.warning("%s", why)

    def _hand_out(self) -> None:
        """Give idle workers the longest work that may go to them.

        Replies are added up in the order in which messages came. What is large must not be there
        long before its turn: it would wait in memory.
        """
        self._waiting.sort(key=self.pace.expected, reverse=True)
        turn = min((job.place for job in self._jobs.values()), default=0)
        beside = 2 * len(self.pool.members)
        reserved = {
            member.node.id for member in self.pool.busy() if member.job and member.job.alone
        }
        at_work = {member.node.id for member in self.pool.busy()}
        for job in list(self._waiting):
            if job.place >= turn + max(beside, self.pace.ahead(job)):
                continue
            taken = at_work if job.alone else reserved
            member = next((s for s in self.pool.idle() if s.node.id not in taken), None)
            if member is None:
                continue
            self._waiting.remove(job)
            self.pool.give(member, job)
            at_work.add(member.node.id)
            if job.alone:
                reserved.add(member.node.id)

    def _lost(self, job: Job, loss: LostJob) -> None:
        name = job.message.metadata.message_id
        if name not in self._jobs:
            return
        first = not job.tries
        if first and (loss.gone or loss.memory):
            again = replace(job, tries=1, alone=loss.memory)
            self._jobs[name] = again
            self._waiting.append(again)
            return
        code = WORKER_KILLED if loss.memory and job.alone else WORKER_LOST
        self._reply(job, Message(Error(code, loss.reason), reply_to=job.message))

    def _reply(self, job: Job, reply: Message) -> None:
        name = job.message.metadata.message_id
        if self._jobs.pop(name, None) is not None:
            self._replies[name] = reply

    def _stand(self, *, standing: bool) -> None:
        """Note how long no worker has been there, and say so."""
        now = time.monotonic()
        if not standing:
            self._stood += now - self._since if self._since else 0.0
            self._since = 0.0
            return
        if not self._since:
            self._since = self._said = now
        nodes = [n for n in self.pool.nodes if n not in self.pool.health.refused]
        most = max(self.patience, JOIN) if nodes else self.patience
        waited = now - self._since
        if waited > most:
            what = "no worker was ready" if nodes else "no node with a processor was there"
            raise Unserved(f"{what} for {most:g} s")
        if now > self._said + SAID and not nodes:
            self._said = now
            log.warning("no node is there: waiting for one, %.0f of %g s", waited, most)

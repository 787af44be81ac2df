"""The one place that touches what Flower keeps to itself: who a process is, and a message's name.

Flower makes a `Message` only within a task of its own runtime, which a run on our own actors is
not; and only its own grids give messages their names. `tests/engines/ray/test_message_parts.py`
says so when Flower changes either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message

OURSELVES = 1
"""Run, task and node of the server's half, and the node that stands for all workers."""


@contextmanager
def as_a_task() -> Iterator[None]:
    """Within the block this process may make messages; afterwards it is who it was before."""
    from flwr.supercore.task_identity import TaskIdentity

    names = ("_run_id", "_task_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, OURSELVES)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def name_message(message: Message, name: str) -> None:
    """Give a message the name that its reply will refer to."""
    about: dict[str, Any] = vars(message.metadata)
    about["_message_id"] = name

"""The tasks by name. A new one is a module with a `Task` and a line here."""

from __future__ import annotations

from fedprune.tasks import images, shakespeare
from fedprune.tasks.task import Task

TASKS: dict[str, Task] = {
    "shakespeare": shakespeare.TASK,
    "digits": images.DIGITS,
    "fashion-mnist": images.FASHION_MNIST,
}

"""What lies in the object stores of Ray's nodes while messages are on their way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched_stores(grid: Any) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Bytes at most in the object store of each node, and bytes that each exchange put.

    That is until the first exchange with a large question is over, and the next one begins.
    """
    import ray
    from ray._private.internal_api import node_stats

    most: dict[str, int] = {}
    put, over, usual = [0], threading.Event(), grid.push_messages
    places = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]

    def push(messages: Any) -> Any:
        if any(put) and not grid._jobs:  # all have answered
            over.set()
        names = usual(messages)
        put.append(sum(len(data) for data, _ in grid._put.values() if not over.is_set()))
        return names

    def look() -> None:
        while not over.wait(0.05):
            for n in places:
                where = n["NodeManagerAddress"], n["NodeManagerPort"]
                stats = node_stats(*where, include_memory_info=False).store_stats
                used = stats.object_store_bytes_used
                most[n["NodeID"]] = max(used, most.get(n["NodeID"], 0))

    watcher = threading.Thread(target=look)
    grid.push_messages = push
    watcher.start()
    try:
        yield most, put
    finally:
        over.set()
        watcher.join()
        grid.push_messages = usual

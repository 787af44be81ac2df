"""Peak memory of the server app alone: its devices answer one after the other, without a network.

    python benchmarks/server_peaks.py [--sizes small,23M,109M,135M] [--more '{"dp": "client"}']

One process is the server app over Flower's own `HttpGrid`; what that would send to a SuperLink lies
as files in a folder. Another reads them as `flwr-clientapp` does, has the client app answer and
writes the reply. The run is that of `devices.py`, with two devices, and a size of which that takes
12 GB takes 5. Given is Linux's peak of the server app's process (VmHWM), and what is above the same
with the first size in multiples of the float32 weights; below it where it had most: what it was
doing, read every few milliseconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

from at_start import apart, parser_of
from devices import RUN, SIZES
from flwr.app import Context, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2 as wire_messages
from flwr.proto import runtime_pb2 as calls
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from wire import folders, received

from fedprune.runtime.process import resident

NODES = (7, 8)


class Link:
    """What `HttpGrid` calls: a SuperLink whose devices answer when somebody looks for it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        words = [sys.executable, __file__, "--devices", str(place)]
        both = subprocess.PIPE
        self.devices = subprocess.Popen(words, stdin=both, stdout=both, text=True)
        self.asked: list[str] = []

    def GetNodes(self, _: Any) -> Any:
        return calls.GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in NODES])

    def PushMessages(self, request: Any) -> Any:
        trees = request.message_object_trees
        for message, tree in zip(request.messages_list, trees, strict=True):
            self.asked.append(tree.object_id)
            (self.place / f"{tree.object_id}.tree").write_bytes(tree.SerializeToString())
            (self.place / f"{tree.object_id}.to").write_text(str(message.metadata.dst_node_id))
        every = {each.object_id for tree in trees for each in iterate_object_tree(tree)}
        names = [tree.object_id for tree in trees]
        said = {"message_ids": names, "objects_to_push": every, "session_id": "one"}
        return calls.PushAppMessagesResponse(**said)

    def PushObject(self, request: Any) -> Any:
        (self.place / request.object_id).write_bytes(request.object_content)
        return wire_messages.PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> Any:
        name = next((each for each in request.message_ids if each in self.asked), "")
        if not name:
            return calls.PullAppMessagesResponse()
        self.asked.remove(name)
        assert self.devices.stdout is not None
        print(name, file=self.devices.stdin, flush=True)
        if self.devices.stdout.readline().strip() != name:
            raise SystemExit("the devices' process has failed")
        reply = wire_messages.Message.FromString((self.place / f"{name}.reply").read_bytes())
        tree = (self.place / f"{name}.reply-tree").read_bytes()
        trees = [wire_messages.ObjectTree.FromString(tree)]
        return calls.PullAppMessagesResponse(messages_list=[reply], message_object_trees=trees)

    def PullObject(self, request: Any) -> Any:
        content = (self.place / request.object_id).read_bytes()
        found = {"object_found": True, "object_available": True}
        return wire_messages.PullObjectResponse(object_content=content, **found)

    def ConfirmMessageReceived(self, _: Any) -> Any:
        return wire_messages.ConfirmMessageReceivedResponse()


def answer_all(place: Path) -> None:
    """Answer every message that is named on a line, as the device that it is to."""
    from clients.app import app

    shown, sys.stdout = sys.stdout, sys.stderr
    data = sorted((place / "data").iterdir())
    contexts = {
        node: Context(1, node, {"partition-id": p, "data": str(data[p])}, RecordDict(), {})
        for p, node in enumerate(NODES)
    }
    for line in sys.stdin:
        name = line.strip()
        message = received(place, f"{name}.tree")
        TaskIdentity.node_id = int((place / f"{name}.to").read_text())
        reply = app(message=message, context=contexts[TaskIdentity.node_id])
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            bare = message_to_proto(remove_content_from_message(reply))
            (place / f"{name}.reply").write_bytes(bare.SerializeToString())
            (place / f"{name}.reply-tree").write_bytes(get_object_tree(reply).SerializeToString())
            push_objects(get_all_nested_objects(reply), lambda n, data: _kept(place / n, data))
        print(name, file=shown, flush=True)


def _kept(path: Path, data: bytes) -> None:
    path.write_bytes(data)


class Looking(threading.Thread):
    """The most that this process has had, and the newest functions of fedprune it was in then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.most, self.where = threading.Event(), 0, ""

    def run(self) -> None:
        main = threading.main_thread().ident or 0
        while not self.over.wait(0.003):
            frame, names = sys._current_frames().get(main), list[str]()
            while frame is not None:
                if "fedprune" in frame.f_code.co_filename:
                    names.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
                frame = frame.f_back
            if (now := resident()) > self.most:
                self.most, self.where = now, " < ".join(names[:5])


def serve(size: str, place: Path, more: str) -> None:
    """Run the server app; its last line: bytes of its weights, its peak and where that was."""
    from fedprune.engines.flower.server_app import run_app

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    grid, link, looking = HttpGrid(token="none"), Link(place), Looking()
    grid._client = link  # type: ignore[assignment]
    empty: dict[str, Any] = dict.fromkeys((each.name for each in fields(Run)), "")
    grid.set_run(Run(**{**empty, "run_id": 1}))
    looking.start()
    given = {**RUN, **SIZES[size], **json.loads(more), "out": str(place / "o")}
    run_app(grid, Context(1, 1, {}, RecordDict(), given), {})
    looking.over.set()
    assert link.devices.stdin is not None
    link.devices.stdin.close()
    link.devices.wait()
    parameters = json.loads((place / "o" / "summary.json").read_text())["parameters"]
    print(json.dumps([4 * parameters, resident("VmHWM"), looking.where]))


def peaks(size: str, more: str) -> tuple[int, int, str]:
    """What `serve` says of a size, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "data").mkdir()
        folders(Path(place) / "data")
        said = apart(__file__, "--serve", size, "--place", place, "--more", more)
        weights, peak, where = json.loads(said)
        return weights, peak, where


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="small,23M,109M,135M")
    parser.add_argument("--more", default="{}", help="more of the run config, in JSON")
    for name in ("--serve", "--devices", "--place"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.devices:
        answer_all(Path(given.devices))
    elif given.serve:
        serve(given.serve, Path(given.place), given.more)
    else:
        show(given.sizes.split(","), given.more)


def show(sizes: list[str], more: str) -> None:
    """The table, a row as soon as it is there."""
    print(
        "| size | weights, MB | server app, MB (times) | where it had most |\n|---|---:|---:|---|"
    )
    base = 0
    for size in sizes:
        weights, peak, where = peaks(size, more)
        base = base or peak
        times = (peak - base) / weights
        print(f"| {size} | {weights / 1e6:,.1f} | {peak / 1e6:,.0f} ({times:.1f}) | {where} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

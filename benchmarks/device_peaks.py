"""Peak memory of a device's client app for each question, one program at a time, without a network.

    python benchmarks/device_peaks.py [--sizes small,23M,109M,135M]

One process writes the questions of a run of `devices.py` as the objects in which Flower sends them;
another reads them as `flwr-clientapp` does, has the app answer, and hands the reply's objects on.
So a size of which a whole run takes 12 GB takes 3. Given is Linux's peak of that process (VmHWM),
and what is above the same with the first size in multiples of the float32 weights. "tune, pruned"
is under a mask that keeps a fifth. SGD has momentum: one of the multiples of tuning is its state.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from pathlib import Path

from at_start import apart, parser_of
from devices import RUN, SIZES
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.task_identity import TaskIdentity
from wire import folders, received

from fedprune.codec.wire import Packet
from fedprune.config import configure, to_toml
from fedprune.engines.flower.announced import greeting
from fedprune.engines.flower.messages import records
from fedprune.protocol.broadcast import broadcast
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.protocol.replies import identity
from fedprune.runtime.process import resident
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks, laid_out_copies, masked

KINDS = {
    "hello": "query.hello",
    "score": "train.score",
    "tune": "train.tune",
    "tune, pruned": "train.tune",
}


def asked(size: str) -> tuple[int, dict[str, Packet]]:
    """The parameters of a size, and a packet of each kind."""
    given = {**RUN, **SIZES[size], "clients": 1, "min-clients": 1, "engine": "flower"}
    config = configure({key.replace("-", "_"): value for key, value in given.items()})
    model = dense_model(config)
    layout, text = layout_for(config, model), to_toml(config)
    weights = laid_out_copies(state_of(model))
    whole = full_masks(weights, layout.prunable)
    cut = {n: weights[n].abs() > weights[n].flatten()[:4096].abs().quantile(0.8) for n in whole}

    def packet(question: Question) -> Packet:
        sent = broadcast(question, config.wire, here=True).packet([0])
        named = {"config": text, "config_id": identity(text), "partitions": [0], "sum": False}
        return Packet({**sent.fields, **named}, sent.buffers)

    score = {"score": config.score, "names": layout.prunable, "sparsity": config.sparsity}
    return layout.parameters, {
        "hello": greeting(text),
        "score": packet(Question("score", 1, weights, whole, **score)),
        "tune": packet(Question("tune", 1, weights, whole, lr=0.01)),
        "tune, pruned": packet(Question("tune", 1, masked(weights, cut), cut, lr=0.01)),
    }


def write(size: str, place: Path) -> None:
    """Every question's objects, each in a file of its name."""
    parameters, packets = asked(size)
    for kind, packet in packets.items():
        (place / kind).mkdir()
        message = Message(records(packet), 7, KINDS[kind])
        with no_object_id_recompute():
            (place / kind / "tree").write_bytes(get_object_tree(message).SerializeToString())
            for name, each in get_all_nested_objects(message).items():
                (place / kind / name).write_bytes(each.deflate())
    print(4 * parameters)


def answer(kind: str, place: Path) -> None:
    """Answer a question and print this process's peak."""
    from clients.app import app

    message = received(place / kind, "tree")
    kept = place / "kept"
    before = pickle.loads(kept.read_bytes()) if kept.exists() else {}
    state = RecordDict({name: ConfigRecord(record) for name, record in before.items()})
    context = Context(1, 7, {"partition-id": 0, "data": str(place / "data" / "0")}, state, {})
    reply = app(message=message, context=context)
    kept.write_bytes(pickle.dumps({n: dict(r) for n, r in context.state.config_records.items()}))
    said = str(reply.content.config_records["fields"])
    assert '"failure": {' not in said, said
    assert '"failures": [{' not in said, said
    with no_object_id_recompute():
        get_object_tree(reply)
        push_objects(get_all_nested_objects(reply), lambda _name, _content: None)
    print(resident("VmHWM"))


def peaks(size: str) -> tuple[int, dict[str, int]]:
    """Bytes of a size's weights, and the peak of each kind."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "data").mkdir()
        folders(Path(place) / "data")
        weights = int(apart(__file__, "--write", size, "--place", place))
        found = {k: int(apart(__file__, "--answer", k, "--place", place)) for k in KINDS}
        return weights, found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="small,23M,109M,135M")
    for name in ("--write", "--answer", "--place"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    if given.write:
        write(given.write, Path(given.place))
    elif given.answer:
        answer(given.answer, Path(given.place))
    else:
        show(given.sizes.split(","))


def show(sizes: list[str]) -> None:
    """The table, a row as soon as it is there."""
    print(f"| size | weights, MB | {' | '.join(f'{kind}, MB (times)' for kind in KINDS)} |")
    print("|---|---:|" + "---:|" * len(KINDS))
    base: dict[str, int] = {}
    for size in sizes:
        weights, found = peaks(size)
        base = base or found
        each = [f"{found[k] / 1e6:,.0f} ({(found[k] - base[k]) / weights:.1f})" for k in KINDS]
        print(f"| {size} | {weights / 1e6:,.1f} | {' | '.join(each)} |", flush=True)


if __name__ == "__main__":
    main()

"""The ClientApp, called as Flower calls it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from fedprune.codec.coded_file import to_coded
from fedprune.codec.wire import Packet, head_of
from fedprune.config import configure, to_toml
from fedprune.engines.flower import client_hosts
from fedprune.engines.flower.announced import greeting
from fedprune.engines.flower.client_app import app
from fedprune.engines.flower.client_hosts import _device_host
from fedprune.engines.inline import inline_port
from fedprune.learning.local_training import tune
from fedprune.protocol.broadcast import broadcast, encode_question
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.protocol.origin import origin_of
from fedprune.protocol.replies import folded_of, identity, parts_in
from fedprune.protocol.versions import OWN_VERSION
from fedprune.tasks.catalog import TASKS
from tests.runs import tiny
from tests.tasks.rows import write_rows


@pytest.fixture(autouse=True)
def _identity():
    """Flower 1.41 makes no Message outside a task of its own."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def folder(tmp_path):
    """A device's data: sixty images that are nowhere else."""
    numbers = np.random.default_rng(5)
    np.savez(tmp_path / "a.npz", images=numbers.random((60, 8, 8)), labels=np.arange(60) % 10)
    return tmp_path


def node(**node_config):
    return Context(1, 7, node_config, RecordDict(), {})


def device(folder, partition=2):
    return node(**{"data": str(folder), "partition-id": partition})


def call(context, kind, packet):
    arrays = {n: Array("uint8", (len(b),), "bytes", b) for n, b in packet.buffers.items()}
    content = RecordDict({"fields": ConfigRecord(packet.fields), "buffers": ArrayRecord(arrays)})
    reply = app(Message(content, 7, kind), context).content
    buffers = {n: a.data for n, a in reply.array_records["buffers"].items()}
    return Packet(dict(reply.config_records["fields"]), buffers)


def hello(context, config):
    packet = call(context, "query.hello", greeting(to_toml(config)))
    about = json.loads(packet.fields["about"])
    assert about.items() >= OWN_VERSION.items()
    assert about["device"] or not about["place"]
    return {key: value for key, value in about.items() if key not in {*OWN_VERSION, "place"}}


def ask(context, config, question, partitions, *, whole=True, teacher=True):
    kind = {"score": "train.score", "tune": "train.tune", "evaluate": "evaluate"}[question.kind]
    packet = encode_question(question, config.wire)
    lacking = [] if whole and teacher else ["teacher"] if whole else ["teacher", "bits"]
    buffers = {n: data for n, data in packet.buffers.items() if n not in lacking}
    text = to_toml(config)
    fields = {"config": text if whole else "", "config_id": identity(text)}
    fields |= {"partitions": partitions}
    return call(context, kind, Packet({**packet.fields, **fields}, buffers))


def parts(packet, partitions):
    """A device's parts, every packet of them to be decoded."""
    found = parts_in(packet, partitions, "score")
    assert all((part.packet is None) != (part.failure is None) for part in found)
    return found


def test_a_worker_announces_every_partition_and_keeps_nothing(cnn):
    host, _ = cnn
    context = node(**{"partition-id": 1, "num-partitions": 4})
    about = hello(context, host.config)
    assert about == {
        "device": False,
        "labels": {str(p): host.task.labels(s.train) for p, s in host.shards.items()},
    }
    assert not context.state


def test_a_device_announces_its_own_or_that_it_has_none(cnn, folder, tmp_path):
    assert hello(device(folder), cnn[0].config) == {"device": True, "labels": {"2": 48}}
    about = hello(device(tmp_path / "none", 4), cnn[0].config)
    assert (about["device"], about["labels"], about["failure"]["partition"]) == (True, {}, 4)
    wanted = "no *.npz there; allowed: files with arrays images and labels"
    assert wanted in about["failure"]["reason"]


@pytest.mark.parametrize("kind", ["score", "tune", "evaluate"])
def test_a_worker_answers_as_this_process_does(cnn, kind):
    host, about = cnn
    more = {"score": "taylor", "lr": 0.1, "part": "validation"}
    question = Question(kind, 4, about.weights, about.masks, **more)
    seen = folded_of(ask(node(), host.config, question, [0, 1]), [0, 1])
    right = inline_port(host).ask(question, [0, 1])
    assert seen.totals == right.totals
    assert seen.weight == right.weight
    assert kind == "evaluate" or seen.total.equal(right.total)


def test_a_device_keeps_the_mask_and_the_configuration(cnn, folder):
    host, question = cnn
    context = device(folder)
    first = parts(ask(context, host.config, score(question), [2]), [2])
    again = parts(ask(context, host.config, score(question), [2], whole=False), [2])
    assert first == again
    assert first[0].packet is not None
    known = replace(question, known=frozenset({2}))
    assert broadcast(known, "fp32").size([2]) < broadcast(question, "fp32").size([2])


def score(question):
    return Question("score", 4, question.weights, question.masks, score="taylor")


def is_missing(packet):
    return bool(packet.fields.get("missing"))


def test_a_device_that_lacks_either_says_missing(cnn, folder):
    host, question = cnn
    context = device(folder)
    assert is_missing(ask(context, host.config, score(question), [2], whole=False))
    ask(context, host.config, score(question), [2])
    other = host.config.model_copy(update={"lr": 0.7})
    assert is_missing(ask(context, other, score(question), [2], whole=False)), "another run's"
    dense = Question("tune", 1, question.weights, {n: m | True for n, m in question.masks.items()})
    assert is_missing(ask(context, host.config, dense, [2], whole=False)), "another mask"
    assert not is_missing(ask(context, host.config, score(question), [2], whole=False))


def test_a_device_keeps_the_teacher(cnn, folder):
    host, question = cnn
    config, context = tiny(distil=0.5), device(folder)
    coded = to_coded(origin_of(config), question.weights, question.masks)
    taught = replace(question, kind="tune", lr=0.1, teacher=coded, distil=1.0)
    assert is_missing(ask(context, config, taught, [2], teacher=False)), "it never came"
    first = parts(ask(context, config, taught, [2]), [2])
    again = parts(ask(context, config, taught, [2], whole=False, teacher=False), [2])
    assert first == again
    assert first[0].packet is not None
    assert head_of(first[0].packet)["totals"]["divergence"] > 0
    other = replace(taught, teacher=to_coded(origin_of(config), question.weights, {}))
    assert is_missing(ask(context, config, other, [2], teacher=False)), "another teacher"
    plain = replace(taught, teacher=b"", distil=0.0)
    assert parts(ask(context, config, plain, [2], teacher=False), [2])[0].packet is not None
    assert host.teachers == {}


def test_a_device_answers_for_nobody_else(cnn, folder):
    host, question = cnn
    first, second = parts(ask(device(folder), host.config, score(question), [1, 2]), [1, 2])
    assert first.failure == Failure(1, "score", "", "KeyError: 1")
    assert second.packet is not None


def test_a_folder_that_is_gone_is_a_failure_not_a_crash(cnn, folder):
    host, question = cnn
    context = device(folder, 3)
    hello(context, host.config)
    (folder / "a.npz").unlink()
    _device_host.cache_clear()  # on a device every message is answered in a process of its own
    (seen,) = parts(ask(context, host.config, score(question), [3]), [3])
    assert (seen.failure.partition, seen.failure.phase) == (3, "score")
    assert "no *.npz there" in seen.failure.reason


def test_a_device_tries_its_data_once_and_other_data_again(cnn, folder, monkeypatch):
    host, question = cnn
    tried = []
    monkeypatch.setattr(client_hosts, "try_out", lambda *given: tried.append(given))
    context = device(folder)
    for _ in range(2):
        _device_host.cache_clear()  # as if another process answered
        ask(context, host.config, score(question), [2])
    assert len(tried) == 1
    np.savez(folder / "b.npz", images=np.ones((30, 8, 8)), labels=np.arange(30) % 10)
    _device_host.cache_clear()
    ask(context, host.config, score(question), [2])
    assert len(tried) == 2


OWN_ROWS = {
    "text-classification": {"class_names": ("10", "bad", "good")},
    "text-regression": {"label_column": "value"},
    "multi-label": {"class_names": ("love", "sea", "war"), "label_column": "topics"},
    "token-classification": {"class_names": ("B-X", "O")},
    "language-modelling": {},
    "masked-language-modelling": {},
    "text-to-text": {},
    "image-classification": {"class_names": ("a", "b", "c")},
}


def own_data(task, folder, colours=(0, 1, 2)):
    """What a device has: rows in a file, or images in a folder a class."""
    if task != "image-classification":
        return write_rows(folder / "rows.jsonl")
    for colour in colours:
        (folder / "abc"[colour]).mkdir(exist_ok=True)
        for i in range(12):
            image = Image.new("L", (8, 8), 80 * colour + i)
            image.save(folder / "abc"[colour] / f"{i}.png")
    return folder


def of_rows(task, **keys):
    small = {"task": task, "clients": 2, "length": 16, "seed": 4, "split": "iid"}
    if task != "image-classification":
        small |= {"depth": 1, "width": 16}
    return configure({**small, **OWN_ROWS[task], **keys})


@pytest.mark.parametrize("task", OWN_ROWS)
def test_a_device_brings_rows_of_its_own(task, tmp_path):
    """The device has all rows of its file, cut as those of a simulation's one client."""
    config, data = of_rows(task), own_data(task, tmp_path)
    host, _ = _device_host(to_toml(config), str(data), (1,), tune)
    simulated = TASKS[task].shards(of_rows(task, clients=1, data=str(data)))[0]
    for name, part in vars(host.shards[1]).items():
        right = getattr(simulated, name)
        assert part.keys() == right.keys()
        assert all(t.equal(right[n]) for n, t in part.items() if n not in {"labels", "scaling"})
        assert task == "text-regression" or part["labels"].equal(right["labels"])
    about = hello(device(data, 1), config)
    assert about == {"device": True, "labels": {"1": host.task.labels(host.shards[1].train)}}


@pytest.mark.parametrize("task", [t for t, keys in OWN_ROWS.items() if "class_names" in keys])
def test_devices_share_the_names_of_classes(task, tmp_path):
    """Also where a device has rows of one of them; without names it takes no part."""
    config, data = of_rows(task), own_data(task, tmp_path, (2,))
    if task == "image-classification":
        host, _ = _device_host(to_toml(config), str(data), (1,), tune)
        assert host.shards[1].train["labels"].unique().tolist() == [2]
    reason = hello(device(data, 1), of_rows(task, class_names=()))["failure"]["reason"]
    assert "class-names=[]: a device knows the labels of its own rows only; allowed" in reason


def test_a_device_cannot_know_by_which_labels_a_server_scaled(tmp_path):
    config = of_rows("text-regression", data=str(own_data("text-regression", tmp_path)))
    reason = hello(device(tmp_path / "rows.jsonl", 1), config)["failure"]["reason"]
    assert "cannot see by which labels the server scaled; allowed: no data at the server" in reason

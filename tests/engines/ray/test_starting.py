"""Ray that cannot start is refused before it is tried; how many workers a machine gets."""

import math
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedprune.client.footprint import Footprint
from fedprune.config import configure
from fedprune.engines.ray import starting
from fedprune.engines.ray.nodes import Node, nodes_of, workers_that_fit
from fedprune.engines.ray.own import _reason, ray_ahead, start_ray
from fedprune.engines.ray.starting import require_ray
from fedprune.options.refusal import ConfigError


def refused(**keys):
    with pytest.raises(ConfigError) as error:
        require_ray(configure({"task": "digits", "engine": "ray", **keys}))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def port():
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert refused(gpus=1.0) == "gpus=1: this machine has 0; allowed: 0, or -1"


def test_a_dead_address(port):
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"localhost:{port}"):
        line = refused(ray_address=address)
        target = address.removeprefix("ray://")
        assert line.startswith(f"ray-address='{address}': no Ray answers at {target} (")


@pytest.mark.parametrize(
    "address",
    ["nowhere", "127.0.0.1:99999", "no-such-host.invalid:6379", "127.0.0.1:", ":6379x", "1.2.3.4"],
)
def test_what_is_no_address(address):
    assert refused(ray_address=address).startswith(f"ray-address='{address}': no")


def test_a_note_that_a_dead_cluster_left(port, tmp_path, monkeypatch):
    (tmp_path / "note").write_text(f"127.0.0.1:{port}")
    monkeypatch.setattr(starting, "note_path", lambda: tmp_path / "note")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert refused(ray_address="auto").startswith("ray-address='auto': no Ray answers at")
    (tmp_path / "note").unlink()
    assert "no Ray has been started on this machine" in refused(ray_address="auto")


def test_something_that_is_silent_at_the_address(monkeypatch):
    monkeypatch.setattr(starting, "ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert "no Ray answers at" in refused(ray_address=address)


def test_something_else_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk():
            other, _ = server.accept()
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            other.close()

        threading.Thread(target=talk).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert "no Ray answers at" in refused(ray_address=address)


def test_another_server_of_grpc_may_be_rays_client_server_and_no_cluster():
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    require_ray(configure({"task": "digits", "ray_address": f"ray://{address}"}))
    assert "no Ray answers at" in refused(ray_address=address)
    server.stop(None)


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert refused().startswith("engine='ray': flwr is not installed; allowed: pip install")


def test_the_first_error_of_a_chain_is_the_reason():
    crashed = RuntimeError("crashed")
    crashed.__cause__ = ValueError("no\nGPU\nTraceback (most recent call last): ...")
    assert _reason(crashed) == "ValueError: no GPU"


def started(monkeypatch, **keys):
    """What Ray is started with."""
    given = {}
    monkeypatch.setattr("ray.init", lambda **keys: given.update(keys))
    start_ray(configure({"task": "digits", "engine": "ray", **keys}))
    return given


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_no_cluster_is_joined_by_accident(address, monkeypatch):
    """Neither the one that the environment names nor one whose note lies about."""
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    assert started(monkeypatch, ray_address=address)["address"] == (address or "local")


@pytest.mark.parametrize(("workers", "ahead"), [(2, True), (8, True), (9, False), (64, False)])
def test_workers_import_ahead_where_they_are_few(workers, ahead, monkeypatch):
    """Ray starts as many processes as it is told of processors, also those that find no room."""
    given = started(monkeypatch, workers=workers, clients=64, hosts=64)
    assert given["num_cpus"] == workers
    assert ("_system_config" in given) == ahead


def test_a_ray_that_is_begun_ahead_tells_what_went_wrong_and_leaves_the_environment(monkeypatch):
    def broken(**_):
        raise OSError("no room")

    monkeypatch.setattr("ray.init", broken)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    before = dict(os.environ)
    assert ray_ahead(configure({"task": "digits", "engine": "inline"})) is None
    assert ray_ahead(configure({"engine": "ray", "ray_address": "10.0.0.1:6379"})) is None
    ahead = ray_ahead(configure({"task": "digits", "engine": "ray"}))
    assert ahead is not None
    with pytest.raises(ConfigError, match="engine='ray': OSError: no room; allowed"):
        ahead.wait()
    assert "RAY_USAGE_STATS_ENABLED" in os.environ
    ahead.end()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "given", [{}, {"TMPDIR": "/a"}, {"RAY_TMPDIR": "/b"}, {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}]
)
def test_the_note_is_looked_for_where_ray_writes_it(given, monkeypatch):
    from ray._common.utils import get_ray_address_file

    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert str(starting.note_path()) == get_ray_address_file(None)


GIB = 2**30


@pytest.mark.parametrize(
    ("cpus", "cards", "memory", "needs", "gpus", "most", "workers", "share", "why"),
    [
        (2, 0, math.inf, Footprint(), -1, 0, 2, 0, "2 processors"),
        (1, 0, math.inf, Footprint(), -1, 0, 1, 0, "1 processor"),
        (64, 0, 20 * GIB, Footprint(memory=4 * GIB), -1, 0, 4, 0, "16.0 GiB of memory, 4.0"),
        (64, 0, 2 * GIB, Footprint(memory=4 * GIB), -1, 0, 1, 0, "1.6 GiB of memory, 4.0"),
        (4, 0, 900 * GIB, Footprint(memory=4 * GIB), -1, 0, 4, 0, "4 processors"),
        # 64 processors and one card: as many as fit on the card
        (64, 1, math.inf, Footprint(card=20 * GIB, card_room=78 * GIB), -1, 0, 3, 1 / 3, "1 of"),
        (64, 4, math.inf, Footprint(card=20 * GIB, card_room=78 * GIB), -1, 0, 12, 1 / 3, "4 of"),
        (64, 1, math.inf, Footprint(card=90 * GIB, card_room=78 * GIB), -1, 0, 1, 1, "1 of"),
        (2, 4, math.inf, Footprint(card=GIB, card_room=78 * GIB), -1, 0, 2, 1, "2 processors"),
        (8, 1, math.inf, Footprint(), -1, 0, 1, 1, "1 of"),
        (8, 1, math.inf, Footprint(), 0.25, 0, 4, 0.25, "1 of"),
        (8, 1, math.inf, Footprint(card=GIB, card_room=2 * GIB), 0, 0, 8, 0, "8 processors"),
        (8, 0, math.inf, Footprint(), -1, 3, 3, 0, "as asked"),
    ],
)
def test_as_many_workers_as_fit(cpus, cards, memory, needs, gpus, most, workers, share, why):
    found = workers_that_fit(Node("id", "10.0.0.1", cpus, cards, memory), needs, gpus, most)
    assert (found.workers, found.gpus) == (workers, pytest.approx(share))
    assert found.why.startswith(why)
    assert found.workers * found.gpus <= max(cards, 0) + 1e-9


def test_nodes_are_those_that_live_and_have_a_processor():
    def said(name: str, **has: float) -> dict[str, object]:
        about = {"NodeID": name, "NodeManagerAddress": f"at {name}", "Alive": name != "dead"}
        return {**about, "Resources": has}

    found = nodes_of([said("b", CPU=2, memory=5), said("head", CPU=0), said("dead", CPU=1)])
    assert found == [Node("b", "at b", 2, 0, 5)]

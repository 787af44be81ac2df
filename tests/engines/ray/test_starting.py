"""Ray that cannot start is refused before it is tried."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedprune.config import configure
from fedprune.engines.ray import starting
from fedprune.engines.ray.own import _reason, ray_ahead, start_ray
from fedprune.engines.ray.starting import require_ray
from fedprune.options.refusal import ConfigError


def refused(**keys: object) -> str:
    with pytest.raises(ConfigError) as error:
        require_ray(configure({"task": "digits", "engine": "ray", **keys}))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
    return found


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

        def talk() -> None:
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


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_no_cluster_is_joined_by_accident(address, monkeypatch):
    """Neither the one that the environment names nor one whose note lies about."""
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    given: dict[str, object] = {}
    monkeypatch.setattr("ray.init", lambda **keys: given.update(keys))
    start_ray(configure({"task": "digits", "engine": "ray", "ray_address": address}))
    assert given["address"] == (address or "local")


@pytest.mark.parametrize(("workers", "ahead"), [(2, True), (8, True), (9, False), (64, False)])
def test_workers_import_ahead_where_they_are_few(workers, ahead, monkeypatch):
    """Ray starts as many processes as it is told of processors, also those that find no room."""
    given: dict[str, object] = {}
    monkeypatch.setattr("ray.init", lambda **keys: given.update(keys))
    start_ray(
        configure(
            {"task": "digits", "engine": "ray", "workers": workers, "clients": 64, "hosts": 64}
        )
    )
    assert given["num_cpus"] == workers
    assert ("_system_config" in given) == ahead


def test_a_ray_that_is_begun_ahead_tells_what_went_wrong_and_leaves_the_environment(monkeypatch):
    def broken(**_: object) -> None:
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

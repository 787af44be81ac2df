"""Ray that cannot start is refused before it is tried."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedprune.config import configure
from fedprune.engines.ray import starting
from fedprune.engines.ray.own import _reason
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
    monkeypatch.setattr(starting, "_NOTE", tmp_path / "note")
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

"""Bytes on the socket between two devices and a SuperLink, against the bytes that a run reports.

    python benchmarks/wire.py

Starts a SuperLink and two SuperNodes on 127.0.0.1, the SuperNodes by way of a proxy that counts
what passes, and runs three rounds of digits for each codec. What a waiting SuperNode says by the
minute is measured before a run, and given beside it.
"""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from at_start import ROOT
from flower import Flower, answers, free_port, wait_until
from sklearn.datasets import load_digits

RUN = "task='digits' clients=2 min-clients=2 rounds=3 warmup=1 end=2 local-steps=3 timeout=120"
CODECS = ("", "uplink='int8'", "uplink='int4' score-wire='log8'")


class Unsecured(Flower):
    """The same programs without TLS or keys, so that bytes on the socket are those of messages."""

    def unsecured_superlink(self) -> int:
        """Start a SuperLink; its port, once it answers, which `flwr run` goes to by default."""
        port = free_port()
        names = ("fedprune", "devices", "superlink", str(self.folder), "--insecure")
        self.start("superlink.log", *names, "--port", str(port))
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 60, "the SuperLink")
        entry = f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        text = f'[superlink]\ndefault = "devices"\n\n[superlink.devices]\n{entry}'
        (self.home / "config.toml").write_text(text)
        return port

    def unsecured_supernode(self, port: int, partition: int, data: Path) -> None:
        """Start a device that has its own data."""
        names = ("fedprune", "devices", "node", str(self.folder), "--insecure")
        where = ("--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
        config = f'partition-id={partition} data="{data}"'
        self.start(f"device-{partition}.log", *names, *where, "--config", config)


class Proxy:
    """Passes connections on to a port of this machine and counts the bytes both ways."""

    def __init__(self, target: int) -> None:
        self.target, self.up, self.down = target, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self.listener.accept()
            try:
                theirs = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the target is not there: so is nobody for who called
                ours.close()
                continue
            for one, other, way in ((ours, theirs, "up"), (theirs, ours, "down")):
                threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        try:
            while data := one.recv(65536):
                setattr(self, way, getattr(self, way) + len(data))
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:  # the other side has closed: nothing more passes
            return


def folders(root: Path) -> list[Path]:
    data = load_digits()
    for p, (first, last) in enumerate([(0, 60), (60, 120)]):
        (root / str(p)).mkdir()
        images, labels = data.images[first:last] / 16, data.target[first:last]
        np.savez(root / str(p) / "own.npz", images=images, labels=labels)
    return [root / "0", root / "1"]


def received(place: Path, name: str) -> Any:
    """The message whose objects lie in a folder, as `flwr-clientapp` reads it."""
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree

    tree = ObjectTree.FromString((place / name).read_bytes())
    message: Any = pull_and_inflate_object_from_tree(
        tree, lambda each: (place / each).read_bytes(), lambda _: None, return_type=Message
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def measured(flower: Flower, proxy: Proxy, codec: str, out: str) -> str:
    before, began = (proxy.up, proxy.down), time.monotonic()
    config = f"{RUN} {codec} out='{out}'".replace("'", '"')
    flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    seconds = time.monotonic() - began
    summary = json.loads((flower.folder / out / "summary.json").read_text())
    row = json.loads((flower.folder / out / "rounds.jsonl").read_text().splitlines()[-1])
    reported = row["bytes_up"] + row["bytes_down"] + summary["bytes_evaluation"]
    up, down = proxy.up - before[0], proxy.down - before[1]
    return (
        f"| `{codec or 'defaults'}` | {row['bytes_up']:,} | {reported:,} | {up:,} | {down:,} | "
        f"{(up + down) / reported:.2f} | {seconds:.0f} |"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        flower = Unsecured(Path(place) / "flower")
        try:
            proxy = Proxy(flower.unsecured_superlink())
            for p, folder in enumerate(folders(Path(place))):
                flower.unsecured_supernode(proxy.port, p, folder)
            time.sleep(20)
            idle = proxy.up + proxy.down
            time.sleep(30)
            print(f"idle: {(proxy.up + proxy.down - idle) * 2:,} bytes a minute, two SuperNodes")
            print("| codec | answers up | all reported | socket up | socket down | ratio | s |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for i, codec in enumerate(CODECS):
                print(measured(flower, proxy, codec, f"runs/{i}"), flush=True)
        finally:
            flower.stop()


if __name__ == "__main__":
    main()

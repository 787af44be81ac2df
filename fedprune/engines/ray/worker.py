"""An actor on Ray: a process that answers for hosts, one message after the other.

It is sent to nodes by value, also to those that lack this package: nothing but Python's own
library is imported before `Worker.lacks` has looked at what is there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "fedprune"


def sources_digest(folder: Path) -> str:
    """SHA-256 (hex) of the Python files in a folder, by name and content; "" where it is none."""
    sha = hashlib.sha256()
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else []
    for path in files:
        sha.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return sha.hexdigest() if files else ""


def look_of(path: Path) -> list[tuple[str, int, int, int]]:
    """By what a file, or each file of a folder, is known again on a disk that nodes share."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        s = file.stat()
        name = str(file.relative_to(path)) if file != path else ""
        found.append((name, s.st_size, s.st_mtime_ns, s.st_ino))
    return found


class Worker:
    """Serves Flower's ClientApp of this project: any worker can serve any host.

    Attributes:
        needs: what has to be there: "versions" of packages, the "package" as a digest of its
            sources, and "files": by option, the path and what it looks like at the driver's.
    """

    def __init__(self, needs: dict[str, Any], run: str) -> None:
        self.needs = needs
        self.place = Path(tempfile.gettempdir()) / f"{PACKAGE}-{run}"
        self.app: Any = None
        self.context: Any = None

    def lacks(self) -> tuple[list[str], list[str], int]:
        """What this node does not have.

        Returns:
            What of it can be sent; what cannot be mended, in words; and how many processes the
            node's kernel has killed for want of memory so far.
        """
        wrong = []
        for name, version in self.needs["versions"].items():
            try:
                here = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                wrong.append(f"{name} is not installed, {version} is wanted")
                continue
            if here.partition("+")[0] != version.partition("+")[0]:
                wrong.append(f"{name} is {here}, {version} is wanted")
        return self._lacking(), wrong, kills_for_memory()

    def _lacking(self) -> list[str]:
        spec = importlib.util.find_spec(PACKAGE)
        folder = Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")
        lacking = [] if sources_digest(folder) == self.needs["package"] else [PACKAGE]
        for key, (path, look) in self.needs["files"].items():
            try:
                there = look_of(Path(path)) == look
            except OSError:
                there = False
            lacking += [] if there else [key]
        return lacking

    def begin(self, names: list[tuple[str, str]], shards: Any, *contents: Any) -> str:
        """Unpack what was sent and be ready; "" or why that is not possible.

        `names` are of what was lacking, and the name of each; `contents` zip files, in their order;
        of `shards` see `fedprune.engines.ray.serving`.
        """
        try:
            each = zip(names, contents, strict=True)
            paths = {key: str(self._unpacked(key, n, bytes(c))) for (key, n), c in each}
        except OSError as error:
            return f"{self.place}: {error}"
        if PACKAGE in paths:
            sys.path.insert(0, str(Path(paths.pop(PACKAGE)).parent))
        if "plugin" in paths:
            sys.path.append(str(Path(paths["plugin"]).parent))
        from fedprune.engines.ray.serving import serving_app

        self.app, self.context = serving_app(shards, paths)
        return ""

    def _unpacked(self, key: str, name: str, content: bytes) -> Path:
        """Where a zip file is unpacked: once on a node, for all of its workers."""
        place = self.place / hashlib.sha256(content).hexdigest()[:16] / key
        if not place.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=place.parent))
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                file.extractall(fresh)
            try:
                fresh.rename(place)
            except OSError:  # another worker was here first
                shutil.rmtree(fresh)
        return place / name

    def answer(self, head: bytes, *buffers: Any) -> tuple[bytes, list[Any], float]:
        """What the ClientApp replies to a message of the parts that `message_parts.parted` gives.

        Returns:
            The reply as head and arrays, and the seconds that it took.
        """
        import numpy as np

        from fedprune.engines.flower.messages import let_go
        from fedprune.engines.ray.message_parts import joined, parted

        began = time.perf_counter()
        asked = joined(head, buffers)
        reply = self.app(asked, self.context)
        said, large = parted(reply)
        let_go(asked)
        let_go(reply)
        views = [np.frombuffer(each, np.uint8) for each in large]
        return said, views, time.perf_counter() - began

    def leave(self) -> None:
        """Remove what was unpacked on this node."""
        shutil.rmtree(self.place, ignore_errors=True)


def kills_for_memory() -> int:
    """How many processes this machine's kernel has killed for want of memory; 0 if it says not."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

"""What a client remembers from round to round: named tensors, its own, which never leave it.

Four things do so: error feedback (`fedprune.client.kept_back`), the control variates of SCAFFOLD
(`fedprune.learning.variates`), parts of the model that are a client's own
(`fedprune.client.personal`), and a score that says it remembers (`fedprune.scores.score.Score`).
What is kept with an answer counts when the answer does. An answer that was lost or refused, or came
in a void round, was never given: the server says with every question which round of this client
counted last, and the client goes on from what it kept in that one. So what is recalled was kept
before the round, and a resumed run recalls what an unbroken one would.

On a device it lies beside its data. In simulation it belongs to the run, not to a machine: it goes
to whoever serves the client with the question, comes back with the answer, is no part of either's
bytes, and lies in the run's folder meanwhile.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from safetensors.torch import load, save
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.protocol.messages import Question
from fedprune.runtime.files import read_verified, write_verified
from fedprune.scores.catalog import scores_of
from fedprune.tensors.named import Tensors

log = logging.getLogger("fedprune")

FOLDER_NAME = "remembered"

RUNS = 8  # Runs of which a device remembers something: the newest
Remembered = dict[str, Tensors]  # Named tensors, by the name under which they were kept
Key = tuple[str, int, int]  # With which question, by whom and in which round something was kept

Held = dict[tuple[str, int], dict[int, bytes]]
"""What was kept with a question by a client, by its round."""


@dataclass(frozen=True)
class ClientMemory:
    """What clients remember: a file for a client and round, or in this process alone.

    Attributes:
        folder: where files are; None: there are none.
        held: in this process, as files hold it; unbounded, so for a host that serves one question,
            and a run without a folder.
    """

    folder: Path | None = None
    held: Held = field(default_factory=dict)


@dataclass
class Recollection:
    """What one client remembers while it answers a question.

    Attributes:
        before: what it kept before this round.
        now: what it keeps in this one; what it does not name stays as it was.
    """

    before: Remembered = field(default_factory=dict)
    now: Remembered = field(default_factory=dict)

    def recall(self, name: str) -> Tensors:
        """What was kept under a name before this round; nothing, if nothing was."""
        return self.before.get(name, {})

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep named tensors under a name, in place of what was kept under it.

        Raises:
            ValueError: it is no name.
            TypeError: these are no named tensors.
        """
        if not name or "/" in name:
            raise ValueError(f"remembered under {name!r}; allowed: a name without /")
        if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
            raise TypeError("what is remembered is no dictionary of tensors by name")
        self.now[name] = {n: t.detach().cpu().clone() for n, t in tensors.items()}

    @property
    def whole(self) -> Remembered:
        """What it remembers after this round."""
        return {**self.before, **self.now}


def memory_of(question: Question, config: RunConfig) -> str:
    """With which question what is recalled for this one was kept; "": clients remember nothing."""
    if question.regime.personal:
        return "tune"
    if question.kind == "tune":
        return "tune" if config.error_feedback or config.scaffold else ""
    if question.kind != "score" or not scores_of(config.plugin)[question.score].remembers:
        return ""
    return f"score {question.score}"


def keeps(question: Question, config: RunConfig) -> bool:
    """Whether clients keep something with their answer: of a score's asks the last one is it."""
    if question.kind == "score":
        score = scores_of(config.plugin)[question.score]
        return score.remembers and question.ask == len(score.asks) - 1
    return question.kind != "evaluate" and memory_of(question, config) != ""


def recall(memory: ClientMemory, of: str, partition: int, at: int) -> Remembered:
    """What a client kept with a question in round `at`; nothing for round 0.

    Raises:
        ValueError: nothing of that round is there, or it is damaged.
    """
    if not at:
        return {}
    content = kept_content(memory, (of, partition, at))
    if content is None:
        where = memory.folder or "this process"
        raise ValueError(f"what was kept in round {at} is not in {where}")
    out: Remembered = {}
    for key, tensor in _loaded(content, partition, at).items():
        name, _, its = key.partition("/")
        out.setdefault(name, {})[its] = tensor
    return out


def _loaded(content: bytes, partition: int, at: int) -> Tensors:
    try:
        return load(content)
    except Exception as error:  # sound bytes of something else: safetensors raises what it likes
        what = f"client {partition}, round {at}: nothing that was kept: {error!r}"
        raise ValueError(what[:300]) from None


def keep(
    memory: ClientMemory,
    of: str,
    partition: int,
    at: int,
    since: int,
    remembered: Mapping[str, Tensors],
) -> None:
    """Keep what a client remembers after round `at`, and forget what nobody can ask for any more.

    That is all but this and what was kept in round `since`, from which the client went on: whether
    this counts is not known yet, and after a resume `since` is what counted last.
    """
    flat = {f"{n}/{k}": t.contiguous() for n, ts in remembered.items() for k, t in ts.items()}
    keep_content(memory, (of, partition, at), since, save(flat))


def keep_content(memory: ClientMemory, key: Key, since: int, content: bytes) -> None:
    """Keep bytes, and of earlier rounds what was kept in round `since` alone."""
    of, partition, at = key
    if memory.folder is None:
        kept = memory.held.get((of, partition), {})
        before = {r: c for r, c in kept.items() if r == since}
        memory.held[of, partition] = {**before, at: content}
        return
    path = _path(memory.folder, key)
    write_verified(path, content)
    those = {path.name, _path(memory.folder, (of, partition, since)).name}
    for file in path.parent.iterdir():
        if file.name not in those:
            file.unlink()


def kept_content(memory: ClientMemory, key: Key) -> bytes | None:
    """What was kept, as a file holds it; None: nothing."""
    if memory.folder is None:
        return memory.held.get(key[:2], {}).get(key[2])
    path = _path(memory.folder, key)
    return read_verified(path) if path.is_file() else None


def _path(folder: Path, key: Key) -> Path:
    of, partition, at = key
    return folder / quote(of, safe="") / str(partition) / f"{partition}-{at}.safetensors"


def in_run(folder: Path | None) -> ClientMemory:
    """What the clients of a simulation remember, in their run's folder; in this process without."""
    return ClientMemory(None if folder is None else folder / FOLDER_NAME)


def on_device(folder: Path, run: str) -> ClientMemory:
    """What a device remembers of a run, in a folder beside its data; of other runs, the newest."""
    own = folder / run
    if own.is_dir():
        os.utime(own)
    runs = [p for p in folder.iterdir() if p != own] if folder.is_dir() else []
    runs.sort(key=lambda p: p.stat().st_mtime)
    for old in runs[: max(0, len(runs) + 1 - RUNS)]:
        shutil.rmtree(old, ignore_errors=True)
    return ClientMemory(own)

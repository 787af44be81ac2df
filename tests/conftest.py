"""What many tests share: tiny configurations, data that is loaded once, runs that are played once.

What a session fixture gives back is shared: tests read it and do not write to it.
"""

import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from fedprune import Shard, federate, select
from fedprune.client.host import Host, build_host
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Question
from fedprune.tasks.language import windows
from fedprune.tasks.token_rows import encode
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, copied, masked
from tests.runs import house_of, played, tiny, with_pages

# With more threads than one, results depend on the machine; the library sets this for itself.
torch.set_num_threads(1)
# How long an example takes says nothing on a machine that others use too.
settings.register_profile("fedprune", deadline=None)
settings.load_profile("fedprune")

# Ray's workers give way to everybody (15), so that beside other tests they would hardly move.
os.environ |= {"RAY_worker_niceness": "0"}

# Processes that tests start would each spend a second on compiling what was compiled before.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What is imported and collected stays: it is made, and left, without a look at what can go.
gc.disable()

LINES = ["To be, or not to be: that is the question.\n", "O Romeo!\n", "Exit, with a bear?\n"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``sampled(n)`` all but n of its cases, at even distances, are slow.

    Files of mostly slow tests come first, then those beside this one, which play whole runs: no
    process is left alone with a long file at the end.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        mark = group[0].get_closest_marker("sampled")
        if mark is None:
            continue
        kept = {round((i + 0.5) * len(group) / mark.args[0] - 0.5) for i in range(mark.args[0])}
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker(pytest.mark.slow)
    balance = Counter[Path]()
    for item in items:
        balance[item.path] += 1 if item.get_closest_marker("slow") is None else -1
    beside = Path(__file__).parent
    items.sort(key=lambda item: (balance[item.path] > 0, item.path.parent != beside))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _free(folder: str) -> int:
    return shutil.disk_usage(folder).free if Path(folder).is_dir() else 0


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """All that is temporary lies in one folder, which goes with the session.

    It is held in memory where there is enough: a run waits for the disk after every round. The
    folders of tests that failed are kept, three sessions long.
    Without slow tests, hypothesis tries 30 examples where a test does not say how many.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker is told by the process that started it
        root = "/dev/shm" if _free("/dev/shm") > 4 << 30 else tempfile.gettempdir()
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", root)
        # A short name: a socket of Ray's is somewhere below, and may have 107 characters.
        place = tempfile.TemporaryDirectory("", "fp-tests-", root, ignore_cleanup_errors=True)
        config.add_cleanup(place.cleanup)
        os.environ["TMPDIR"], tempfile.tempdir = place.name, place.name
    if config.option.markexpr == "not slow":
        settings.register_profile("quick", deadline=None, max_examples=30)
        settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def _fault() -> Iterator[None]:
    """The fault of `tests.faults` that ``FAULT`` names, put into every test."""
    if "FAULT" not in os.environ:
        yield
        return
    from tests.faults import FAULTS, put_in

    with put_in(FAULTS[os.environ["FAULT"]]):
        yield


@pytest.fixture(scope="session", autouse=True)
def _shared_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the processes of one session keep the runs of `tests.runs.played`."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = tmp_path_factory.getbasetemp().parent / "played"  # of all of them
        folder.mkdir(exist_ok=True)
        os.environ["PLAYED"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def _without_pages() -> Iterator[None]:
    """Page, plots and board take longer than most runs: who looks at them asks for `pages`."""
    board = patch("fedprune.report.board.Board.open", lambda *_: None)
    with patch("fedprune.report.page.write_report", lambda _folder: None), board:
        yield


@pytest.fixture
def pages() -> Iterator[None]:
    """Runs write their page, as they do outside of tests."""
    with with_pages():
        yield


@pytest.fixture(scope="session")
def cnn() -> tuple[Host, Question]:
    """Digits' convolutional net, trained and pruned a little, and a question about it."""
    state = played(tiny()).state
    return house_of(tiny()), Question("score", 4, state.weights, state.masks)


@pytest.fixture(scope="session")
def llama() -> tuple[Host, Question]:
    """The small LLaMA on unequal texts of different letters, half pruned, and a question."""
    text = dict(enumerate([LINES[0] * 30, LINES[1] * 7, LINES[2] * 12]))
    shards = {
        p: Shard(windows(encode(t)), windows(encode(t[:40])), windows(encode(t[-50:])))
        for p, t in text.items()
    }
    config = tiny(task="shakespeare", clients=3, cohort=3)
    host = build_host(config, shards)
    weights = copied(state_of(host.model))
    masks = half(host, weights)
    return host, Question("score", 4, masked(weights, masks), masks)


def half(host: Host, weights: Mapping[str, Tensor]) -> Masks:
    return select({name: weights[name].abs() for name in host.layout.prunable}, 0.5)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with both baselines, with all its files."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    config = tiny(baselines=("dense", "random"))
    with with_pages():
        federate(config, inline_port(house_of(config)), folder=folder)
    return folder

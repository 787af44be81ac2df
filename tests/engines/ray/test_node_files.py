"""What is sent to nodes that lack it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from fedprune.engines.ray.node_files import _packed

FILES = {
    "a/own.py": "import beside\nfrom lib.inner import x\nimport json, torch\n",
    "a/beside.py": "import lib.other\n",
    "a/unused.py": "",
    "b/lib/__init__.py": "",
    "b/lib/inner.py": "x = 1\n",
    "b/lib/other.py": "",
    "b/lib/unused.py": "",
    "b/lib/__pycache__/inner.py": "",
}


def test_a_plug_in_goes_with_what_it_imports_from_wherever_python_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "b")
    name, content = _packed("plugin", tmp_path / "a" / "own.py")
    assert name == "own.py"
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = set(file.namelist())
    wanted = {"own.py", "beside.py", "lib/__init__.py", "lib/inner.py", "lib/other.py"}
    assert names == wanted


@pytest.mark.parametrize("given", ["a", "a/own.py"])
def test_a_file_or_a_folder_goes_under_its_name(tmp_path: Path, given: str):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    name, content = _packed("data", tmp_path / given)
    assert name == Path(given).name
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = set(file.namelist())
    folder = {"a/own.py", "a/beside.py", "a/unused.py"}
    assert names == (folder if given == "a" else {"own.py"})

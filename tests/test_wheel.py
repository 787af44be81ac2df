"""The wheel as a user gets it: what is in it, and that it works where no repository is."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from fedprune.runtime.version import RELEASE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("fedprune", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that what an earlier build left in the repository is not in it."""
    place = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        path, to = ROOT / name, place / "source" / name
        if path.is_dir():
            shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            to.parent.mkdir(exist_ok=True)
            shutil.copy(path, to)
    build = [*("wheel", "-q", "--no-deps", "--no-build-isolation"), "-w", place, place / "source"]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (made,) = place.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A fresh virtual environment with the wheel; what it depends on is seen in this one.

    pip resolves ``fedprune[flower,data]`` there without an index: all that these extras name, in
    the versions they name, is then there.
    """
    place = wheel.parent / "venv"
    venv.create(place, symlinks=True)
    packages = next(place.glob("lib/*/site-packages"))
    (packages / "of_the_tests.pth").write_text("\n".join(site.getsitepackages()))
    for what in (["--no-deps", "--ignore-installed", wheel], ["fedprune[flower,data]"]):
        pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python"]
        subprocess.run([*pip, "install", "-q", "--no-index", *what], check=True, env=_clean())
    return place


def _clean() -> dict[str, str]:
    """This environment without a path to the repository."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def _done(environment: Path, folder: Path, *command: str) -> str:
    """What a command of the environment prints."""
    program, *rest = command
    line = [environment / "bin" / program, *rest]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=_clean())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "fedprune").rglob("*.py")}
    assert names == ours | {"fedprune/py.typed"}


def test_it_runs_from_a_fresh_environment(environment, tmp_path):
    where = "import fedprune; print(fedprune.__file__)"
    assert _done(environment, tmp_path, "python", "-c", where).startswith(str(environment))
    assert _done(environment, tmp_path, "fedprune", "--version") == f"fedprune {RELEASE}\n"
    tiny = "--task digits --clients 3 --cohort 2 --rounds 2 --warmup 1 --local-steps 1 --out one"
    said = _done(environment, tmp_path, "fedprune", "run", *tiny.split(), "--engine", "inline")
    assert "results     one" in said
    assert (tmp_path / "one" / "report.html").is_file()

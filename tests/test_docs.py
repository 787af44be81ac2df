"""What is written about the code is what the code says."""

import html
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fedprune
from fedprune import SCORES, TASKS, RunConfig
from fedprune.commands.main import COMMANDS
from fedprune.commands.main import parser as commands
from fedprune.commands.run_options import run_parser
from fedprune.methods.catalog import METHODS
from fedprune.options.conditions import in_words
from fedprune.options.option import declared
from fedprune.scores.combine import COMBINES
from fedprune.selection.schedules import SCHEDULES
from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_catalogue_is_what_its_script_writes():
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == script("methods").document(), "run: python docs/methods.py"


def test_options_and_flower_s_keys_are_what_the_declarations_say():
    made, project = script("options"), (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == made.page(), "run: python docs/options.py"
    assert project == made.with_flower_keys(project), "run: python docs/options.py"


def test_the_readme_counts_what_there_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = {"scores": SCORES, "ways": COMBINES, "units": UNITS, "scopes": SCOPES}
    tables |= {"schedules": SCHEDULES, "methods": METHODS}
    assert {t: re.findall(rf"(\d+) {t}\b", text) for t in tables} == {
        name: [str(len(table))] for name, table in tables.items()
    }


def test_help_says_beside_what_an_option_is_read():
    actions = {action.dest: action for action in run_parser()._actions}
    for key, field in RunConfig.model_fields.items():
        beside = in_words(declared(field).when)
        assert not beside or f"with {beside}" in str(actions[key].help), key


def test_every_score_is_in_the_catalogue_and_its_code_is_where_it_says():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in SCORES:
        ((path, line),) = re.findall(rf"^\| `{name}` \|.*\[`([^:]+):(\d+)`\]", text, re.M)
        assert (ROOT / path).read_text().splitlines()[int(line) - 1].startswith("def "), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_can_be_typed(page):
    text = page.read_text(encoding="utf-8")
    options = set(run_parser()._option_string_actions)
    found = re.findall(r"run\.py ((?:[^`\n\\])*)", text)
    used = {word for line in found for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", line)}
    assert used <= options, used - options
    for line in re.findall(r"^fedprune (?! )(.*?)(?:  #.*)?$", text, re.M):
        assert vars(commands().parse_args(shlex.split(line)))["command"] in COMMANDS


def test_every_task_is_described():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in TASKS if f"`{name}`" not in text] == []


def test_the_page_of_the_api_has_all_that_is_offered():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.M)
    assert {name for _, name in shown} >= {*fedprune.__all__}
    assert all(hasattr(importlib.import_module(module), name) for module, name in shown)


@pytest.mark.slow
def test_the_site_is_built_and_no_link_or_anchor_of_it_leads_nowhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert str(fedprune.federate.__doc__).partition("\n")[0] in html.unescape(page)

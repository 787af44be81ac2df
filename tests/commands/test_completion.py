"""What a shell is offered after a tab, asked as argcomplete's shell function asks."""

import json
import subprocess
import sys
from pathlib import Path

from fedprune.commands.completion import names_taken
from fedprune.config.sections import AllOptions
from fedprune.options.option import declared
from fedprune.scores.catalog import SCORES
from fedprune.tasks.catalog import TASKS

CODE = """
import io, json, os, sys
from unittest.mock import patch
from fedprune.commands.main import script
from fedprune.commands import completion

class Ended(Exception): ...

def end(code): raise Ended

ask, answers = completion.complete, {}
for line in json.load(sys.stdin):
    os.environ |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|", "COMP_TYPE": "9"}
    os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    said = io.StringIO()
    with patch.object(completion, "complete", lambda: ask(output_stream=said, exit_method=end)):
        try:
            script()
        except Ended:
            answers[line] = [word.strip() for word in said.getvalue().split("|")]
print(json.dumps([answers, sorted(sys.modules)]))
"""

LINES = {
    "fedprune ex": {"export"},
    "fedprune run --score fis": {name for name in SCORES if name.startswith("fis")},
    "fedprune run --task digits --score ": {*SCORES},
    "fedprune run --task ": {*TASKS},
    "fedprune run --engine r": {"ray"},
    "fedprune run --agreement t": {"true"},
    "fedprune run --baselines dense,rand": {"dense,random"},
    "fedprune run --sparsi": {"--sparsity"},
    "fedprune devices sup": {"superlink"},
    "fedprune export x --to saf": {"safetensors"},
}


def test_commands_options_and_names_are_offered_and_nothing_that_takes_long_is_loaded():
    command, root = [sys.executable, "-c", CODE], Path(__file__).parents[2]
    asked = json.dumps([*LINES])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=root)
    answers, loaded = json.loads(done.stdout)
    assert {line: {*words} for line, words in answers.items()} == LINES
    assert not {"torch", "numpy", "flwr", "ray"} & {*loaded}


def test_every_table_of_names_is_what_is_offered():
    for field in AllOptions.model_fields.values():
        if (table := declared(field).names) is not None:
            assert names_taken(field) == tuple(table.keys())

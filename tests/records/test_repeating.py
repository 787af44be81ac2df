"""What is said to repeat a run, and to go on with it, does."""

import shlex
from pathlib import Path

from fedprune.engines.inline import inline_port
from fedprune.records.provenance import commands_for
from tests.runs import house_of, tiny


def test_a_folder_is_one_word_of_the_command():
    config = tiny()
    told = commands_for(config, Path("my runs/it's"), inline_port(house_of(config)))
    go_on = ["fedprune", "run", "--resume", "my runs/it's"]
    again = ["--config", "my runs/it's/config.toml", "--out", "my runs/it's-again"]
    assert shlex.split(told["resume"]) == go_on
    assert shlex.split(told["command"]) == [*go_on[:2], *again]

"""What of a study is spread over a cluster, and what is refused; the nodes: `test_machines`."""

import socket
from pathlib import Path

import pytest

from fedprune.commands.main import main
from tests.runs import STUDY


@pytest.fixture
def asked(tmp_path):
    """The file, where it goes, and the command without an address."""
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(STUDY)
    return file, out, ["study", str(file), "--out", str(out), "--ray-address"]


def test_nodes_are_given_a_whole_path_and_the_hint_the_address(asked, monkeypatch):
    given = list[tuple[object, ...]]()
    monkeypatch.setattr("fedprune.commands.study.played", lambda *each: given.append(each) or 0)
    monkeypatch.chdir(asked[1].parent)
    for more in ([], ["--ray-address", "10.0.0.1:6379", "--jobs", "3"]):
        assert main(["study", "s.toml", "--out", "out", *more]) == 0
    hint = "fedprune study s.toml --out out"
    assert given[0][1:] == (Path("out"), hint, None, "")
    address = "10.0.0.1:6379"
    assert given[1][1:] == (asked[1], f"{hint} --ray-address {address}", 3, address)


def test_an_address_at_which_nobody_answers_is_one_line(asked, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert main([*asked[2], address]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"fedprune: error: ray-address='{address}': no Ray answers at")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("engine", ["ray", "auto"])
def test_a_run_that_may_want_a_ray_of_its_own_is_refused_before_a_cluster_is_looked_for(
    asked, engine, capsys
):
    file, out, command = asked
    file.write_text(STUDY.replace("[grid]", f'engine = "{engine}"\n[grid]'))
    assert main([*command, "127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedprune: error: engine='{engine}': of cell ")
    assert said.endswith("allowed beside --ray-address: inline\n")
    assert not list(out.glob("cells/*"))

"""A study on the nodes of a cluster comes to what it comes to on one machine."""

import csv
import socket
import time
from pathlib import Path

import pytest

from fedprune import federate
from fedprune.commands.main import main
from fedprune.study.design import read_design
from fedprune.study.playing import cell_folder
from tests.machines import impossible, machines
from tests.runs import STUDY


@pytest.fixture
def asked(tmp_path):
    """The file, where it goes, and the command without an address."""
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(STUDY)
    return file, out, ["study", str(file), "--out", str(out), "--ray-address"]


def rows(out):
    with (out / "results.csv").open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.skipif(bool(impossible()), reason=impossible())
def test_a_study_on_nodes_has_the_results_of_one_machine(asked, capsys):
    import ray

    file, out, command = asked
    cells = read_design(file).cells
    (out / "cells").mkdir(parents=True)
    broken = cell_folder(cells[1], out)
    broken.write_text("a file where the run's folder would be")
    with machines(2) as made:
        _wait_for_nodes(made.address, 2)
        assert main([*command, made.address]) == 1
        assert "3 runs, 2 at once on 2 nodes of the cluster at " in capsys.readouterr().out
        assert not ray.is_initialized()
        found = rows(out)
        for cell in cells[::2]:
            digest = federate(cell.config).summary["weights_digest"]
            assert found[cell.name]["weights_digest"] == digest
        assert found[cells[1].name]["status"] == "failed"
        assert found[cells[1].name]["reason"].startswith("out=")
        made.join([out])
        _wait_for_nodes(made.address, 3)
        assert main([*command, made.address]) == 2
    line = f"out={str(out)!r} is not the driver's there; allowed: --out in a folder that all nodes"
    assert line in capsys.readouterr().err
    assert not list(out.glob(".seen-*"))


def _wait_for_nodes(address: str, count: int) -> None:
    import ray

    until = time.monotonic() + 60
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    try:
        while sum(n["Alive"] and n["Resources"].get("CPU", 0) >= 1 for n in ray.nodes()) < count:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        ray.shutdown()


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

import errno
import resource
import signal

import pytest

from fedprune import load
from fedprune.commands.main import main
from fedprune.tensors.models import state_of
from tests.runs import same


def test_a_run_is_exported_into_its_own_folder(run_folder, capsys):
    assert main(["export", str(run_folder), "--to", "sparse"]) == 0
    said = capsys.readouterr().out
    assert "bit for bit" in said
    assert "model.fedprune" in said
    folder = run_folder / "export" / "sparse"
    assert same(state_of(load(folder)), state_of(load(run_folder)))
    assert main(["export", str(run_folder), "--to", "sparse"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_quantised_export_is_measured_like_any_model(run_folder, tmp_path, capsys):
    out = tmp_path / "four"
    options = ["--quantise", "int4", "--group", "32", "--asymmetric", "--out", str(out)]
    assert main(["export", str(run_folder), *options]) == 0
    quick = ["--no-memory", "--repeats", "2", "--batch", "2", "--baseline", str(run_folder)]
    capsys.readouterr()
    assert main(["measure", str(out), *quick]) == 0
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert "sparse file" in said


@pytest.mark.parametrize("form", ["safetensors", "sparse"])
def test_a_disk_that_takes_no_more_is_one_line(run_folder, tmp_path, capsys, form):
    """A limit on the size of files stands in; safetensors reports it in its own way."""
    load(run_folder)  # what this compiles is not under the limit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        code = main(["export", str(run_folder), "--to", form, "--out", str(tmp_path / "x")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert line.startswith(f"fedprune: error: out: [Errno {errno.EFBIG}]")
    assert line.endswith("allowed: a folder on a disk with room to write")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--group", "32"], "group: only of --quantise int8 or int4"),
        (["RUN", "--quantise", "int8-dynamic", "--asymmetric"], "asymmetric: only of"),
        (["RUN", "--to", "hf"], "to='hf': ConvNet is no model whose config"),
        (["RUN", "--to", "gguf"], r"ConvNet (no model of transformers) is no language model of"),
        (["RUN", "--type", "Q8_0"], "type='q8_0': not with --to safetensors; allowed: --to gguf"),
        (["RUN", "--to", "pickle"], "to='pickle': no such choice; allowed: safetensors, "),
        (["RUN/model", "--to", "sparse"], "out: has no default"),
        (["RUN", "--quantise", "int4", "--group", "7"], "group=7: two codes make a byte"),
    ],
)
def test_bad_input_is_a_line(run_folder, arguments, words, capsys):
    arguments[0] = arguments[0].replace("RUN", str(run_folder))
    assert main(["export", *arguments]) == 2
    assert words in capsys.readouterr().err

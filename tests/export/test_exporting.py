import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune import load, select
from fedprune.client.host import layout_for
from fedprune.export import brought
from fedprune.export.exported_model import ExportedModel, probe_of, ties_of
from fedprune.export.exporting import EXPORT_FORMATS, export
from fedprune.export.folders import model_outputs
from fedprune.export.manifest import read_manifest
from fedprune.export.measure import size_of
from fedprune.export.offered import EXPORT_SUMMARIES, PRECISIONS
from fedprune.export.quantise import Precision
from fedprune.protocol.models import dense_model
from fedprune.structure.edits import Edit
from fedprune.structure.groups import structure_of
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import state_of
from tests.runs import same, tiny

ROOT = Path(__file__).resolve().parents[2]
TASKS = {
    "llama": "shakespeare",
    "llama-gqa": "shakespeare",
    "gpt2": "shakespeare",
    "bert": "shakespeare-masked",
    "t5": "shakespeare-restore",
}


@pytest.fixture
def to_export() -> Callable[..., ExportedModel]:
    """A family that lost heads and neurons (none, if not cut), and 60 % of the weights left."""

    def made(
        family: str, *, heads: bool = True, uneven: bool = True, cut: bool = True, **keys: Any
    ) -> ExportedModel:
        config = tiny(task=TASKS[family], model=family, **keys)
        model = dense_model(config).eval()
        groups = structure_of(model, layout_for(config, model).prunable).groups
        edits = tuple(
            Edit(g.kind, g.path, (0, 1) if g.kind == "head" else tuple(range(9 + uneven * i)))
            for i, g in enumerate(groups)
            if cut and (g.kind == "neuron" or heads)
        )
        model = reshaped(model, edits)
        weights = {n: w for n, w in state_of(model).items() if w.dim() > 1 and "embed" not in n}
        names = [n for n in weights if n.split(".")[-1] == "weight" and "wte" not in n]
        masks = select({n: weights[n].abs() for n in names if "head" not in n}, 0.6)
        for name, mask in masks.items():
            state_of(model)[name].mul_(mask)
        return ExportedModel(model, config, edits, masks)

    return made


@pytest.mark.parametrize("family", TASKS)
def test_any_shape_comes_back_bit_for_bit(family, to_export, tmp_path):
    exported = to_export(family, heads=family != "llama-gqa")  # it has the two groups that are kept
    checked = export(exported, "safetensors", tmp_path / "out")
    assert "bit for bit" in checked
    back = load(tmp_path / "out")
    assert same(back.state_dict(), exported.model.state_dict())
    probe = probe_of(exported)
    assert torch.equal(model_outputs(back, probe), model_outputs(exported.model, probe))
    about = read_manifest(tmp_path / "out")
    assert len(about["edits"]) == len(exported.edits) > 0
    assert about["ties"] == ties_of(exported.model)
    if family == "gpt2":
        assert about["ties"] == {"lm_head.weight": "transformer.wte.weight"}
        assert back.lm_head.weight is back.transformer.wte.weight
    assert about["config"]["task"] == TASKS[family]
    assert set(about["files"]) >= {"model.safetensors", "tokenizer.json"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_what_a_plain_config_says_is_loaded_by_transformers(family, to_export, tmp_path):
    import transformers

    exported = to_export(family, uneven=False, heads=family != "bert")
    checked = export(exported, "hf", tmp_path / "out")
    assert "read again by from_pretrained" in checked
    theirs = getattr(transformers, type(exported.model).__name__).from_pretrained(tmp_path / "out")
    models = (theirs.eval(), exported.model, load(tmp_path / "out"))
    said, here, back = (model_outputs(m, probe_of(exported)) for m in models)
    assert torch.allclose(said, here, atol=1e-5)
    assert torch.equal(said, back)


def test_what_it_does_not_say_is_refused_with_what_works(to_export, tmp_path):
    with pytest.raises(ValueError, match=r"to='hf': its blocks keep .*allowed: --to safetensors"):
        export(to_export("llama"), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [], "nothing half done stays"


def test_the_sparse_file_comes_back_bit_for_bit(to_export, tmp_path):
    exported = to_export("llama", cut=False)
    export(exported, "sparse", tmp_path / "out")
    assert same(load(tmp_path / "out").state_dict(), exported.model.state_dict())
    files = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert files.keys() >= {"fedprune.json", "model.fedprune", "README.md", "config.json"}
    assert files["model.fedprune"] < 0.6 * size_of(exported.model).bytes_dense
    with pytest.raises(FileExistsError, match="is there already"):
        export(exported, "sparse", tmp_path / "out")
    # Without masks what is 0.0 counts as removed: the same values come back.
    export(replace(exported, masks=None), "sparse", tmp_path / "again")
    assert same(load(tmp_path / "again").state_dict(), exported.model.state_dict())


@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_quantised_model_comes_back_quantised(kind, to_export, tmp_path):
    exported = replace(to_export("gpt2", heads=False), precision=Precision(kind, 16))
    export(exported, "safetensors", tmp_path / "out")
    back = load(tmp_path / "out")
    assert size_of(back).bytes_held < size_of(exported.model).bytes_held
    probe = probe_of(exported)
    here, there = model_outputs(exported.model, probe), model_outputs(back, probe)
    assert 0 < (here - there).norm() < 0.3 * here.norm()
    with pytest.raises(ValueError, match="is quantised already"):
        export(replace(exported, model=back, precision=None), "sparse", tmp_path / "again")


def test_bits_are_for_safetensors_only(to_export, tmp_path):
    exported = replace(to_export("llama", cut=False), precision=Precision("int8"))
    for to in EXPORT_FORMATS.keys() - {"safetensors"}:
        with pytest.raises(ValueError, match=f"not with --to {to}; allowed: --to safetensors"):
            export(exported, to, tmp_path / "out")


def test_a_model_without_a_config_is_refused(tmp_path):
    config = tiny()
    with pytest.raises(ValueError, match="ConvNet is no model whose config"):
        export(ExportedModel(dense_model(config).eval(), config), "hf", tmp_path / "out")


@pytest.mark.slow
def test_nothing_is_pickled_anywhere():
    """But for what goes to workers of the same run, as all does that Ray is given."""
    to_workers = ROOT / "fedprune/engines/ray/message_parts.py"
    for path in (p for d in ("fedprune", "clients", "server") for p in (ROOT / d).rglob("*.py")):
        if path == to_workers:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", None)}
                if names == {"pickle", "UnpicklingError"}:  # to say that a foreign file is one
                    continue
                assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "torch.save"}, path


@pytest.mark.slow
@pytest.mark.parametrize(("family", "depth"), [("gpt2", 2), ("t5", 1)])
def test_onnxruntime_says_the_same(family, depth, to_export, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = to_export(family, depth=depth)
    checked = export(exported, "onnx", tmp_path / "out")
    assert "run by onnxruntime" in checked
    assert "inputs: input_ids [batch, length]" in checked
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    probe = probe_of(exported, examples=3)  # another batch than it was traced with
    tensors = [t for t in probe.kwargs.values() if isinstance(t, torch.Tensor)]
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    out = torch.from_numpy(session.run(None, given)[0])
    assert torch.allclose(out, model_outputs(exported.model, probe), atol=1e-4)
    with pytest.raises(ValueError, match="an ONNX graph, for onnxruntime"):
        load(tmp_path / "out")


def test_every_form_is_described():
    assert list(EXPORT_FORMATS) == list(EXPORT_SUMMARIES)


def test_large_weights_are_in_several_files(to_export, tmp_path, monkeypatch):
    monkeypatch.setattr(brought, "LARGEST_FILE", "100KB")
    exported = to_export("llama", cut=False)
    export(exported, "hf", tmp_path / "out")
    assert len([*(tmp_path / "out").glob("model-*.safetensors")]) > 1
    assert same(load(tmp_path / "out").state_dict(), exported.model.state_dict())

import sys

import pytest
import torch
from torch import nn

from fedprune.export import onnx as onnx_export
from fedprune.export.measure import Forward
from fedprune.export.onnx import Logits, write_onnx
from tests.modules import module


def test_logits_are_called_by_position_and_by_name():
    model = module(lambda _, a, b=None, c=None: a + 10 * b + 100 * c)
    one, two, three = (torch.tensor([float(i)]) for i in (1, 2, 3))
    assert Logits(model, ["c", "b"])(one, three, two).item() == 321.0


@pytest.mark.slow
def test_a_graph_that_says_something_else_is_refused_and_removed(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"onnxruntime is .* off"):
        write_onnx(nn.Linear(3, 2).eval(), Forward((torch.ones(2, 3),), {}), path)
    assert not path.exists()


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'fedprune\[onnx\]'"):
        write_onnx(nn.Linear(3, 2), Forward((torch.ones(2, 3),), {}), tmp_path / "x.onnx")

"""A model as an ONNX graph, held against onnxruntime before anybody is told that it is one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.export.measure import Forward
from fedprune.structure.attention import eager

TOLERANCE = 1e-4
"""Largest difference, as a part of the largest output."""


SIZES = ((2, 1.0), (1, 1.0), (3, 0.5), (1, 0.0))
"""Batches and parts of the length (one token at least) that a graph is tried at, where free."""


@dataclass(frozen=True)
class Agreement:
    """How a graph compares.

    Attributes:
        difference: largest difference between an output and the model's, at any of `SIZES`.
        largest: the model's largest output.
        inputs: each input's shape; names stand for lengths that are free.
    """

    difference: float
    largest: float
    inputs: Mapping[str, list[int | str]]


class Logits(nn.Module):
    """The model as a function of tensors in a fixed order that gives back one tensor."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """The logits."""
        unnamed = len(tensors) - len(self.names)
        named = dict(zip(self.names, tensors[unnamed:], strict=True))
        said: Any = self.model(*tensors[:unnamed], **named)
        logits: Tensor = said if isinstance(said, Tensor) else said.logits
        return logits


def write_onnx(model: nn.Module, forward: Forward, path: Path) -> Agreement:
    """Write the graph of a model and compare it with onnxruntime.

    Batch and length are free where torch finds that nothing depends on them. Attention is written
    out: torch's exporter stumbles over the fused one of T5. The model is in eval mode, float32; its
    task calls it for two examples or more.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: at one of `SIZES` onnxruntime says something else than the model; there is no
            file then.
    """
    runtime = _runtime()
    names = [name for name, value in forward.kwargs.items() if isinstance(value, Tensor)]
    tensors = (*forward.args, *(forward.kwargs[name] for name in names))
    called = [*(f"input_{i}" for i in range(len(forward.args))), *names]
    logits = Logits(model, names).eval()
    with _silent(), eager(model), torch.no_grad():
        program = torch.onnx.export(
            logits,
            tensors,
            input_names=called,
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(tuple(_free(n, t) for n, t in zip(called, tensors, strict=True)),),
            verbose=False,
        )
        assert program is not None  # what the dynamo exporter gives back
        program.save(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    difference = largest = 0.0
    for batch, part in SIZES:
        given = [_sized(t, i.shape, batch, part) for t, i in zip(tensors, inputs, strict=True)]
        off, most = _compared(
            session, logits, dict(zip([i.name for i in inputs], given, strict=True))
        )
        if not off <= TOLERANCE * max(most, 1e-6):
            path.unlink()
            shapes = ", ".join(str(tuple(t.shape)) for t in given)
            raise ValueError(
                f"to='onnx': onnxruntime is {off:.3g} off for {shapes}, outputs are up to "
                f"{most:.3g}"
            )
        difference, largest = max(difference, off), max(largest, most)
    return Agreement(difference, largest, {i.name: i.shape for i in session.get_inputs()})


def _sized(tensor: Tensor, shape: list[int | str], batch: int, part: float) -> Tensor:
    """A tensor of another size, in the dimensions that a graph has names for."""
    if isinstance(shape[0], str):
        tensor = tensor[torch.arange(batch) % len(tensor)]
    if len(shape) > 1 and isinstance(shape[1], str):
        tensor = tensor[:, : max(1, int(part * tensor.shape[1]))]
    return tensor.contiguous()


def _compared(session: Any, logits: nn.Module, given: Mapping[str, Tensor]) -> tuple[float, float]:
    """How far onnxruntime is off, and the largest output."""
    with torch.no_grad():
        expected = logits(*given.values())
    said = torch.from_numpy(session.run(None, {n: t.numpy() for n, t in given.items()})[0])
    return float((said - expected).abs().max()), float(expected.abs().max())


def _free(name: str, tensor: Tensor) -> dict[int, str]:
    """Batch, and of ids the length too, as far as the graph allows, by their names.

    What a model is to say may be longer than what it reads.
    """
    free = {0: "batch"}
    if tensor.dim() == 2 and not tensor.is_floating_point():
        free[1] = "labels_length" if name == "labels" else "length"
    return free


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter asks for it, with a longer complaint)
    except ImportError as error:
        raise ImportError(
            f"to='onnx': {error.name} is not installed; allowed: pip install 'fedprune[onnx]'"
        ) from None
    return onnxruntime


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's notes, such as that torchvision's operators are not to be had."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

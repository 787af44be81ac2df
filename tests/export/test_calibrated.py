"""GPTQ and AWQ against their definitions in numpy, and on held-out text against rounding."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedprune
from fedprune.commands.main import main
from fedprune.engines.inline import inline_port
from fedprune.export.calibrated import awq, gptq
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.redundancy.calibration import CALIBRATIONS, LayerSums, linear_of
from fedprune.tasks.task import Part
from fedprune.tensors.codes import restored
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks
from tests.runs import house_of, tiny


def inputs(rows: int = 60, columns: int = 10) -> Tensor:
    """Rows of inputs that go together, some much larger than others."""
    gen = torch.Generator().manual_seed(3)
    mixed = torch.randn(rows, columns, generator=gen) @ torch.randn(columns, columns, generator=gen)
    return (mixed * torch.linspace(0.1, 4.0, columns)).double()


def weights(columns: int = 10) -> Tensor:
    w = torch.randn(6, columns, generator=torch.Generator().manual_seed(4))
    w[:, 1::4], w[2] = 0.0, 0.0
    return w


def steps(values: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale, rounded up to bfloat16, and zero point of every row of a group."""
    top = 2**bits - 1
    low, high = np.minimum(values.min(1), 0.0), np.maximum(values.max(1), 0.0)
    exact = np.maximum(-low, high) / (top // 2) if symmetric else (high - low) / top
    near = torch.tensor(exact, dtype=torch.float32)
    up = (near.view(torch.int32) + 0xFFFF & ~0xFFFF).view(torch.float32).double().numpy()
    up[exact == 0] = 1.0
    zero = np.full(len(up), top // 2 + 1) if symmetric else np.round(-low / up).clip(0, top)
    return up, zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 4), (8, 10)])
def test_gptq_is_optimal_brain_quantisation_one_column_after_the_other(bits, group, symmetric):
    """Of the columns that are left the inverse is taken anew: no Cholesky factor."""
    x, w = inputs(), weights().double().numpy()
    alive, hessian = w != 0, (x.t() @ x).numpy()
    hessian += 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    for j in range(w.shape[1]):
        if j % group == 0:
            now = (w * alive)[:, j : j + group].astype(np.float32)
            scale, zero = steps(now, bits, symmetric)
        code = np.round(w[:, j].astype(np.float32) / scale.astype(np.float32)) + zero
        rounded = np.where(alive[:, j], (code.clip(0, 2**bits - 1) - zero) * scale, 0.0)
        inverse = np.linalg.inv(hessian[j:, j:])
        w[:, j:] -= np.outer((w[:, j] - rounded) / inverse[0, 0], inverse[0])
        w[:, j] = rounded
    sums = LayerSums(x.t() @ x, None, len(x))
    codes = gptq(weights(), sums, bits, group, symmetric=symmetric)
    np.testing.assert_allclose(restored(codes, bits, 10), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_scales_what_reads_large_inputs_by_the_power_with_the_least_error(symmetric):
    x, w, errors, backs = inputs(), weights().double().numpy(), [], []
    size, squared = x.abs().mean(0).numpy(), (x**2).sum(0).numpy()
    for power in range(20):
        s = np.maximum(size ** (power / 20), 1e-4)
        s = torch.tensor(s / np.sqrt(s.max() * s.min())).bfloat16().double().numpy()
        scaled, back = (w * s).astype(np.float32), np.zeros_like(w)
        for start in range(0, 10, 4):
            part = scaled[:, start : start + 4]
            scale, zero = (v[:, None] for v in steps(part, 4, symmetric))
            code = (np.round(part / scale.astype(np.float32)) + zero).clip(0, 15)
            back[:, start : start + 4] = (code - zero) * scale
        errors.append((((w - back / s) ** 2) * squared).sum())
        backs.append(back / s)
    sums = LayerSums((x**2).sum(0), x.abs().sum(0), len(x))
    codes, factor = awq(weights(), sums, 4, 4, symmetric=symmetric)
    found = restored(codes, 4, 10).double() / factor.double()
    best = int(np.argmin(errors))
    assert best > 0 or not symmetric
    np.testing.assert_allclose(found, backs[best], rtol=1e-5, atol=1e-7)


RUN = {
    **{"task": "shakespeare", "length": 16, "clients": 3, "cohort": 3, "rounds": 1, "warmup": 0},
    **{"end": 1, "local_steps": 0, "unit": "neuron", "sparsity": 0.2, "shrink": "end"},
    **{"score": "magnitude", "depth": 1, "width": 32},
}


def few(part: Part) -> Part:
    return {name: t[:60] for name, t in part.items()}


def outlying(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model a few of whose inputs are large, as those of large models are."""
    state = {name: t.clone() for name, t in state_of(model).items()}
    for name in state:
        if "layernorm" in name:
            state[name][::8] *= 20
    return state


@pytest.mark.parametrize("by", list(CALIBRATIONS))
def test_what_several_layers_read_is_sent_once_and_all_of_them_have_its_sums(by):
    config = tiny(**RUN, quantise_by=by)
    host = house_of(config)
    model, layout, kind = host.model, host.layout, CALIBRATIONS[by].kind
    names = tuple(linear_of(model, layout.prunable))
    question = Question(kind, 1, state_of(model), full_masks(state_of(model), names), names=names)
    form = form_of(question, config, layout)
    sums = form.named(inline_port(host).ask(question, [0]).total)
    assert len([n for n in form.shapes if n.endswith("/inputs")]) == 4, "q, o, gate and down"
    ends = {n.rpartition("/")[2] for n in form.shapes}
    for alike in (names[:3], names[4:6]):
        for name, end in product(alike, ends):
            assert torch.equal(sums[f"{name}/{end}"], sums[f"{alike[0]}/{end}"])


@pytest.mark.slow
@pytest.mark.parametrize("by", list(CALIBRATIONS))
def test_a_run_with_sums_is_quantised_with_less_error_on_held_out_text(by, tmp_path, capsys):
    config = tiny(**RUN, quantise_by=by)
    host = house_of(config)
    shards = {p: fedprune.Shard(*map(few, vars(s).values())) for p, s in host.shards.items()}
    run, port = tmp_path / "run", inline_port(replace(host, shards=shards))
    fedprune.federate(config, port, folder=run, weights=outlying(host.model))
    whole = fedprune.load(run)
    tokens = torch.cat([s.test["inputs"] for s in shards.values()])
    errors = {}
    for way in ("rounding", by):
        out = str(tmp_path / way)
        more = ["--quantise", "int4", "--quantise-by", way, "--out", out]
        assert main(["export", str(run), *more]) == 0
        small = fedprune.load(out)
        with torch.no_grad():
            errors[way] = (small(tokens).logits - whole(tokens).logits).square().mean().item()
        for name, module in small.named_modules():
            if hasattr(module, "dense"):
                own: nn.Module = whole.get_submodule(name)
                assert not module.dense()[own.weight == 0].any()
    assert errors[by] < 0.9 * errors["rounding"]
    kinds = (run / "privacy.jsonl").read_text().splitlines()
    asked = [line for line in kinds if f'"kind": "{CALIBRATIONS[by].kind}"' in line]
    assert any('"quantity": "moments"' in line for line in asked), "booked"
    capsys.readouterr()

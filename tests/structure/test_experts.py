import copy
from collections import ChainMap
from dataclasses import replace

import pytest
import torch
from cutting import Cut, cut, every
from families import EXPERTS, FACTS, family, forward, plain
from torch import nn

from fedprune.export.config_keys import Unplain
from fedprune.export.hf_config import plain_model
from fedprune.protocol.models import dense_model, layout_for
from fedprune.scores.catalog import SCORES
from fedprune.scores.inputs import inputs_of, rows_of
from fedprune.scores.score import Probe
from fedprune.selection.select import Unreachable, select
from fedprune.selection.units import removable, unit_labels
from fedprune.streaming.files import MappedFolder, tensors_in
from fedprune.structure.edits import Edit
from fedprune.structure.experts import Expert, named_as_modules, with_experts
from fedprune.structure.surgery import reshaped
from fedprune.tasks.task import Loss
from fedprune.tensors.named import full_masks
from tests.runs import tiny

NAMES = list(EXPERTS)
each = pytest.mark.parametrize("name", NAMES)


def without(name: str, *numbers: int) -> Cut:
    """The family without some experts of its last block."""
    its = family(name)
    experts = its.layout.structure.mixtures[-1].experts
    paths = [f"{experts[n].path}." for n in numbers]
    return cut(its.model, its.layout, dict(ChainMap(*(every(its.layout, p) for p in paths))))


@each
def test_experts_as_modules_say_what_the_stacks_of_transformers_say(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stacks = plain(name).double().eval()
    stacks.set_experts_implementation("eager")
    want = forward(name, stacks)
    assert torch.equal(forward(name, with_experts(stacks)), want)
    assert sum(isinstance(m, Expert) for m in stacks.modules()) >= EXPERTS[name]
    assert with_experts(stacks) is stacks


@pytest.mark.parametrize("gone", [(0,), (2,), (0, 1), (0, 1, 2)])
@each
def test_tokens_of_an_expert_that_is_gone_go_to_others(name, gone):
    its, it = family(name), without(name, *gone)
    kept = tuple(n for n in range(3) if n not in gone)
    assert it.edits == (Edit("expert", its.layout.structure.mixtures[-1].path, kept),)
    said = forward(name, it.silent)
    assert torch.equal(forward(name, it.small), said)
    # As if the router had never heard of it.
    deaf = copy.deepcopy(its.model)
    router = deaf.get_submodule(its.layout.structure.mixtures[-1].path).gate
    router.register_forward_hook(lambda r, x, _y: turned(r, x[0], kept))
    if kept:
        torch.testing.assert_close(forward(name, deaf), said, atol=1e-6, rtol=0)


@each
def test_a_bias_alone_makes_no_expert(name):
    """FLAP gives one to what reads the neurons that went; the expert is cut out all the same."""
    it = without(name, 0)
    reader = it.silent.get_submodule(
        family(name).layout.structure.mixtures[-1].experts[0].path
    ).down_proj
    reader.bias = torch.nn.Parameter(torch.ones_like(reader.weight[:, 0]))
    assert torch.equal(forward(name, it.small), forward(name, it.silent))


def turned(router, states, kept):
    logits = states.reshape(-1, states.shape[-1]) @ router.weight.t()
    chances = torch.stack([logits[:, n].exp() for n in kept], 1)
    chances = chances / chances.sum(1, keepdim=True)
    shares, places = chances.sort(1, descending=True)
    shares, places = shares[:, :2], places[:, :2]
    if getattr(router, "norm_topk_prob", True):
        shares = shares / shares.sum(1, keepdim=True)
    return logits, shares.to(states.dtype), torch.tensor(kept)[places]


@each
def test_sums_of_inputs_are_of_the_tokens_that_an_expert_has(name):
    its = family(name)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _m, x, _y, n=n: seen.__setitem__(n, x[0]))
        for n, m in its.model.named_modules()
        if isinstance(m, Expert)
    ]
    probe = Probe(
        its.model, its.layout, its.layout.prunable, [{"labels": torch.zeros(2)}],
        lambda m, _: Loss(forward(name, m).sum(), 0, 1), full_masks(its.layout.shapes, ()),
    )  # fmt: skip
    sums = SCORES["wanda"].asks[0].collect(probe)
    for hook in hooks:
        hook.remove()
    assert sum(len(x) for x in seen.values()) == 2 * 14 * len(its.layout.structure.mixtures)
    for path, x in seen.items():
        weight = f"{path}.gate_proj.weight"
        assert float(sums[rows_of(weight)]) == len(x)
        torch.testing.assert_close(sums[inputs_of(weight)], (x**2).sum(0))


@each
def test_as_many_experts_stay_as_a_token_is_sent_to(name):
    layout = family(name).layout
    gen = torch.Generator().manual_seed(3)
    scores = {n: torch.rand(layout.shapes[n], generator=gen) for n in layout.prunable}
    whole = sum(layout.shapes[n].numel() for n in layout.prunable)
    most = removable(layout, "expert") / whole
    for scope in ("global", "layer"):
        masks = select(scores, most, unit="expert", layout=layout, scope=scope, pool="mean")
        labels = unit_labels(layout, "expert")
        left = {int(labels[n].max()) for n, m in masks.items() if m.any()} - {-1}
        for i in range(len(layout.structure.mixtures)):
            mean = {
                e: torch.cat([scores[n].flatten() for n, x in labels.items() if (x == e).all()])
                for e in range(3 * i, 3 * i + 3)
            }
            best = sorted(mean, key=lambda e: float(mean[e].mean()))[1:]
            assert left & {3 * i, 3 * i + 1, 3 * i + 2} == set(best)
    with pytest.raises(Unreachable):
        select(scores, 0.9, unit="expert", layout=layout)


@each
def test_experts_go_to_transformers_where_all_blocks_keep_as_many(name, tmp_path):
    its = family(name)
    fewer = [Edit("expert", m.path, (0, 2)) for m in its.layout.structure.mixtures]
    small = reshaped(copy.deepcopy(its.model), fewer).float()
    written = plain_model(small, its.model, fewer)
    written.save_pretrained(tmp_path)
    back = type(written).from_pretrained(tmp_path, experts_implementation="eager")
    assert (forward(name, back) - forward(name, small)).abs().max() < 1e-5
    assert (forward(name, back) - forward(name, its.model)).abs().max() > 1e-3
    # Of two blocks one keeps fewer; or all keep fewer than a token is sent to.
    for few in (fewer[:1] if len(fewer) == 2 else [], [replace(e, kept=(1,)) for e in fewer]):
        if few:
            with pytest.raises(Unplain, match="experts"):
                plain_model(reshaped(copy.deepcopy(its.model), few), its.model, few)
    with pytest.raises(Unplain, match="no weight left"):
        plain_model(without(name, 1).silent, its.model, ())


def test_files_of_mixtral_have_names_of_their_own():
    named = named_as_modules({
        "m.0.block_sparse_moe.experts.3.w2.weight": 1, "m.0.block_sparse_moe.gate.weight": 2,
        "m.0.mlp.experts.3.up_proj.weight": 3, "m.w1.weight": 4,
    }, nn.Linear(1, 1))  # fmt: skip
    assert named == {
        "m.0.mlp.experts.3.down_proj.weight": 1, "m.0.mlp.gate.weight": 2,
        "m.0.mlp.experts.3.up_proj.weight": 3, "m.w1.weight": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_what_transformers_writes_is_found_under_the_names_of_the_modules(name, tmp_path):
    model = family(name).model
    model.save_pretrained(tmp_path)
    files = MappedFolder(named_as_modules(tensors_in(tmp_path), model))
    own = dict(model.named_parameters())  # ties once, of which files hold one name
    if name not in EXPERTS:  # on disk they are stacked
        assert all(torch.equal(files.tensor(n), p) for n, p in own.items())
    assert files.places.keys() <= model.state_dict().keys()


def test_an_edit_that_is_none_is_refused():
    its = family("mixtral")
    for edit in (Edit("expert", "model.layers.0.mlp", (0, 7)), Edit("expert", "model", (0,))):
        with pytest.raises(ValueError, match=r"^edit 'expert' of .*; allowed: "):
            reshaped(copy.deepcopy(its.model), [edit])


def test_outputs_of_experts_are_not_fitted_since_tokens_go_elsewhere():
    config = tiny(task="shakespeare", model="mixtral", reconstruct="outputs", end=4)
    with pytest.raises(ValueError, match=r"reconstruct='outputs'.*allowed: inputs"):
        layout_for(config, dense_model(config))

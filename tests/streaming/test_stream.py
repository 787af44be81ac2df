"""A model of which one block at a time is in memory: the same bits as of the whole model."""

import shutil
import threading
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

import fedprune
from fedprune import federate
from fedprune.client.host import build_host
from fedprune.codec.masks import decode_mask, encode_mask, mask_digest
from fedprune.commands.main import main
from fedprune.config.streamed import is_to_stream, only_reads
from fedprune.engines.flower.server_app import run_on
from fedprune.options.refusal import ConfigError
from fedprune.report.screen import Screen
from fedprune.runtime.sums import SUMMARY_NAME
from fedprune.streaming.blocks import is_streamed, send_through, through
from fedprune.streaming.files import tensors_in
from fedprune.streaming.lockstep import Lockstep
from fedprune.streaming.packed import PackedMasks
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.pretrained import weights_of
from fedprune.tasks.shards import shards_of
from fedprune.tensors.lazy import LazyTensors
from fedprune.tensors.named import digest, full_masks
from tests.server import grids
from tests.streaming.saved import (
    assert_same_model,
    packed_masks,
    reference,
    saved,
    saved_model,
    untrained,
)

UNITS = {"scope": "global", "shrink": "never"}
SPARSEGPT = {"score": "sparsegpt", "scope": "layer"}
GRADUAL = {"schedule": "cubic", "rounds": 3, "end": 2}
FORWARD_ONLY = [
    ("llama", {"score": "wanda"}),
    ("gpt2", {"score": "activation", "scope": "layer", "sparsity": 0.37}),
    ("tied", {"score": "activity", "unit": "n:m", "scope": None}),
    ("llama", {"combine": "votes", "vote_scope": "row", "scope": "layer"}),
    ("tied", {"calibration": "sequential", "sparsity": 0.6}),
    ("llama", {"score": "magnitude", "scope": "erk", **GRADUAL}),
    ("llama", {"score": "block_influence", "unit": "layer", **UNITS}),
    ("llama", {"score": "flap", "unit": "head-neuron", **UNITS, **GRADUAL}),
    ("gpt2", {"score": "flap", "unit": "neuron", **UNITS, "scope": "layer"}),
    ("tied", {"unit": "head-neuron", **UNITS, "pool": "l2", "combine": "votes"}),
    ("llama", {**SPARSEGPT, "calibration": "dense"}),
    ("llama", {**SPARSEGPT, "calibration": "sequential"}),
]


def rows_of(result: fedprune.Result, *without: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in x.items() if k not in ("seconds", *without)} for x in result.rows]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("family", "changes"), FORWARD_ONLY, ids=str)
def test_masks_weights_and_losses_are_those_of_the_whole_model(family, changes):
    whole = reference(untrained(saved(family), **changes, agreement=False, stream="off"))
    streamed = federate(untrained(saved(family), **changes, stream="on"))
    assert is_streamed(streamed.model)
    assert not is_streamed(whole.model)
    # Blocks are asked about one by one, where each of them needs matrices of its own.
    without = ("bytes_up", "bytes_down") if changes.get("calibration") == "dense" else ()
    assert rows_of(streamed, *without) == rows_of(whole, *without)
    assert_same_model(streamed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("secure", ["none", "secagg"])
def test_sparsegpt_asks_a_large_model_in_parts_and_makes_the_same_weights(monkeypatch, secure):
    changes = {**SPARSEGPT, **GRADUAL, "rounds": 2, "end": 1, "secure": secure, "stream": "off"}
    config = untrained(saved("llama"), **changes)
    whole = reference(config)
    monkeypatch.setattr("fedprune.protocol.parts_asked.IN_PARTS_FROM", 0)
    assert_same_model(federate(config), whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_what_is_written_is_read_again_and_a_run_goes_on(tmp_path, monkeypatch):
    def not_to_write(self, name):
        """Flags as they are in masks that came over a wire."""
        flags = bits(self, name)
        return None if flags is None else np.frombuffer(flags.tobytes(), flags.dtype)

    bits = PackedMasks.bits
    monkeypatch.setattr(PackedMasks, "bits", not_to_write)
    config = untrained(saved("llama"), stream="on")
    result = federate(config, folder=tmp_path / "run")
    for of in ("", "model"):
        back = fedprune.load(tmp_path / "run" / of)
        assert all(torch.equal(back.get_parameter(n), w) for n, w in result.state.weights.items())
    command = ["export", str(tmp_path / "run"), "--to", "safetensors"]
    assert main([*command, "--out", str(tmp_path / "exported")]) == 0
    (tmp_path / "run" / SUMMARY_NAME).unlink()
    again = federate(config, folder=tmp_path / "run", resume=True)
    assert digest(again.state.weights) == digest(result.state.weights)
    assert again.rows == result.rows


@pytest.mark.slow
def test_who_serves_a_streamed_run_never_has_the_whole_model(tmp_path, monkeypatch):
    """Of server and worker each a block at most, and the tensors that are written or sent."""
    folder = saved_model(tmp_path / "base", "llama", torch.float32, blocks=8)
    alive, most, make = dict[StorageWeakRef, int](), [0], LazyTensors.__getitem__

    def made(self, name):
        t = make(self, name)
        if ".layers." in name and t.dtype != torch.bool and bool((t == 0).any()):  # not a file's
            alive[StorageWeakRef(t.untyped_storage())] = t.nbytes
            for gone in [s for s in alive if s.expired()]:
                del alive[gone]
            most[0] = max(most[0], sum(alive.values()))
        return t

    monkeypatch.setattr(LazyTensors, "__getitem__", made)
    with grids.in_one_process():
        run_on(grids.workers(1), untrained(folder, stream="on"), tmp_path / "run", Screen())
    places = tensors_in(folder).items()
    size = sum(4 * place.shape.numel() for name, place in places if ".layers." in name)
    assert 0 < most[0] <= size / 3


def test_one_block_is_there_at_a_time():
    host = build_host(untrained(saved("llama", torch.float32), stream="on"))
    blocks = [b.path for b in host.layout.structure.blocks]
    seen: list[tuple[str, set[str]]] = []

    def held() -> set[str]:
        real = {n for n, p in host.model.named_parameters() if 0 not in p.stride()}
        return {b for b in blocks if any(n.startswith(f"{b}.") for n in real)}

    for path in blocks:
        host.model.get_submodule(path).register_forward_hook(
            lambda *_, path=path: seen.append((path, held()))
        )
    batch = {"inputs": torch.arange(8).view(1, 8), "labels": torch.arange(8).view(1, 8)}
    found = list(
        through(host.model, [batch] * 3, lambda b: host.task.loss(host.model, b).total.item())
    )
    assert seen == [(path, {path}) for path in blocks for _ in range(3)]
    assert len(set(found)) == 1
    assert not held()
    seen.clear()
    send_through(host.model, [batch], host.task.loss, host.layout.structure.blocks[1].tensors[:1])
    assert [path for path, _ in seen] == blocks[:2], "nobody looks at what is behind"


def test_works_in_step_see_each_place_in_their_order_and_end_together():
    present, order = [""], []
    steps = Lockstep(lambda block: present.__setitem__(0, block))

    def work(i: int, places: str) -> int:
        for place in places:
            assert steps.arrive(place, present[0])
            order.append((place, i))
        if places == "bad":
            raise KeyError("d")
        return i

    assert steps.run([lambda: work(0, "abc"), lambda: work(1, "ac"), lambda: work(2, "abc")]) == [
        *range(3)
    ]
    assert order == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 2), ("c", 0), ("c", 1), ("c", 2)]
    before = threading.active_count()
    with pytest.raises(KeyError):
        steps.run([lambda: work(0, "abc"), lambda: work(1, "bad")])
    assert threading.active_count() == before


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"local_steps": 1}, "allowed: auto, off"),
    ({"score": "taylor"}, "allowed: auto, off"),
    ({"scope": "global"}, "allowed: auto, off"),
    ({"combine": "mean"}, "allowed: auto, off"),
    ({"agreement": True}, "allowed: auto, off"),
    ({"model": "llama"}, "allowed: auto, off"),
    ({"base": "sent"}, "not with --base sent, only with --base auto, held"),
    ({"secure": "secagg"}, "not with --secure secagg, only with --secure none"),
    ({"reduce": ("dead",)}, "only without it"),
]


@pytest.mark.parametrize(("given", "says"), REFUSED, ids=str)
def test_what_cannot_be_streamed_is_one_line_that_names_what_can(given, says):
    with pytest.raises(ConfigError, match=f"stream='on': .*{says}"):
        untrained(saved("llama"), **given, stream="on")
    if not given.keys() & {"model", "reduce"}:  # the one of a name, the other of gradual pruning
        assert not is_to_stream(untrained(saved("llama"), **given))


@pytest.mark.parametrize(("name", "value"), [("free_memory", lambda: 0), ("STREAMED_FROM", 1)])
def test_auto_goes_by_size_and_by_the_memory_that_is_free(monkeypatch, name, value):
    config = untrained(saved("tied", torch.float32))
    assert not is_to_stream(config)
    monkeypatch.setattr(f"fedprune.config.streamed.{name}", value)
    assert is_to_stream(config)


def test_auto_streams_sparsegpt_with_more_memory_free_than_wanda(monkeypatch):
    folder = saved("tied", torch.float32)
    configs = [untrained(folder, score=score, scope="layer") for score in ("wanda", "sparsegpt")]
    weights = weights_of(str(folder))
    monkeypatch.setattr("fedprune.config.streamed.free_memory", lambda: 2 * 10 * weights)
    assert [is_to_stream(c) for c in configs] == [False, True]


def test_a_streamed_model_of_a_worker_is_not_held_against_the_memory_to_hold_it(monkeypatch):
    monkeypatch.setattr("fedprune.tasks.claims.SCORING", 2**60)
    monkeypatch.setattr("fedprune.tasks.claims.FREE_VALUES", 0)
    config = untrained(saved("tied"), stream="on")
    shards = shards_of(tasks_of(())[config.task], config)
    assert is_streamed(build_host(config, shards).model)


def test_a_folder_whose_tensors_have_other_names_is_refused(tmp_path):
    folder = shutil.copytree(saved("gpt2", torch.float32), tmp_path / "base")
    for file in folder.glob("*.safetensors"):
        renamed = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
        save_file(renamed, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"transformer.', '"'))
    with pytest.raises(ValueError, match="stream='on': its files hold no"):
        build_host(untrained(folder, stream="on"))
    assert federate(untrained(folder)).summary["reached"]


def test_packed_masks_are_the_same_masks():
    gen = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(3, s, generator=gen) < 0.5 for n, s in (("b", 5), ("a", 8))}
    masks |= full_masks({"c": torch.empty(3, 3)}, ["c"])
    packed = packed_masks(masks)
    assert list(packed) == list(masks)
    assert all(torch.equal(packed[n], m) for n, m in masks.items())
    assert packed.kept == sum(int(m.sum()) for m in masks.values())
    assert mask_digest(packed) == mask_digest(masks)
    assert encode_mask(packed) == encode_mask(masks)
    back = decode_mask(encode_mask(masks), packed=True)
    assert mask_digest(back) == mask_digest(masks)


FEW = {"score_examples": 8, "clients": 2, "stream": "off"}
READ: list[dict[str, Any]] = [
    {"score": "wanda", **GRADUAL},
    {"score": "wanda", "scope": "global"},
    {"score": "ria", "scope": "global", **GRADUAL},
    {"score": "magnitude", "scope": "global", "score_examples": None},
    {"score": "activation", "scope": "owl"},
    {"score": "wanda", "scope": "global", "combine": "votes"},
    {"score": "wanda", "scope": "global", "unit": "head-neuron", "shrink": "end"},
    {"score": "flap", "scope": "global", "unit": "head-neuron", "shrink": "end"},
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("changes", READ, ids=str)
@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_weights_read_from_files_make_the_same_model(tmp_path, monkeypatch, family, changes):
    config = untrained(saved(family), **{**FEW, **changes})
    assert only_reads(config)
    lazy = federate(config, folder=tmp_path / "lazy")
    for place in ("run", "opening", "protocol.held_weights"):
        monkeypatch.setattr(f"fedprune.{place}.only_reads", lambda _: False)
    copied = reference(config, folder=tmp_path / "copied")
    assert isinstance(lazy.state.weights, LazyTensors)
    assert isinstance(lazy.state.masks, LazyTensors if "shrink" in changes else PackedMasks)
    assert not isinstance(copied.state.weights, LazyTensors)
    assert rows_of(lazy) == rows_of(copied)
    assert_same_model(lazy, copied)
    for name in ("model.fedprune", "model/model.safetensors"):
        assert (tmp_path / "lazy" / name).read_bytes() == (tmp_path / "copied" / name).read_bytes()

"""A base model that clients hold: what is not sent, and that nothing else changes."""

import json
from dataclasses import replace

import pytest
import torch

from fedprune import federate
from fedprune.client import host as hosts
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.flower import client_hosts
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from fedprune.protocol.held_weights import BaseModel
from fedprune.randomness import seeded
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.tokenization import characters
from tests.runs import same
from tests.server.grids import FakeGrid, context, honest, run_on

CLIENTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small LLaMA with its tokenizer, saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("saved")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    with seeded(1, "init"):
        about = LlamaConfig(vocab_size=98, num_hidden_layers=2, num_key_value_heads=1, **sizes)
        LlamaForCausalLM(about).save_pretrained(path)
    characters("causal").tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folders of three devices."""
    root = tmp_path_factory.mktemp("texts")
    for p in range(CLIENTS):
        (root / str(p)).mkdir()
        said = f"Now I, number {p}, speak to you of {p * 7} things. "
        (root / str(p) / "a.txt").write_text(said * 20)
    return [root / str(p) for p in range(CLIENTS)]


def config_of(folder, **changes):
    few = {"rounds": 2, "warmup": 0, "schedule": "one-shot", "local_steps": 0, "cohort": CLIENTS}
    few |= {"sparsity": 0.5, "score": "wanda", "scope": "row", "length": 16, "engine": "inline"}
    few |= {"task": "shakespeare", "model": str(folder), "clients": CLIENTS, "hosts": CLIENTS}
    return configure({**few, **changes})


def on_devices(config, texts, meddle=honest):
    about = {79 - p: {"partition-id": p, "data": str(texts[p])} for p in range(CLIENTS)}
    client_hosts._device_host.cache_clear()
    return run_on(FakeGrid({n: context(n, **a) for n, a in about.items()}, meddle), config)


def here(config, texts):
    own = {p: TASKS["shakespeare"].local(where, config) for p, where in enumerate(texts)}
    return federate(config, inline_port(build_host(config, own)))


def same_model(a, b):
    return same(a.state.weights, b.state.weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"local_steps": 2, "rounds": 3, "exclude": ("model.layers.0.*",)}, {"secure": "secagg"}],
    ids=["pruned only", "tuned", "in secure sums"],
)
def test_held_weights_change_nothing_but_what_is_sent(folder, texts, changes):
    held, sent = (here(config_of(folder, base=b, **changes), texts) for b in ("held", "sent"))
    assert same_model(held, sent)
    assert same_model(held, on_devices(config_of(folder, **changes), texts))
    for mine, theirs in zip(held.rows, sent.rows, strict=True):
        assert mine["bytes_down"] < theirs["bytes_down"]
        drop = {"bytes_down": 0, "bytes_evaluation": 0}
        assert {**mine, **drop} == {**theirs, **drop}


def test_a_pruning_without_training_sends_a_digest_and_masks_from_the_first_question_on(
    folder, texts
):
    sent = []

    def weigh(_, question, reply):
        content = question.content
        size = sum(len(a.data) for a in content.array_records["buffers"].values())
        if "head" in content.config_records["fields"]:
            head = json.loads(content.config_records["fields"]["head"])
            sent.append((head.get("base", ""), size))
        return reply

    result = on_devices(config_of(folder), texts, weigh)
    weights = sum(w.numel() for w in result.state.weights.values())
    named = [size for base, size in sent if base]
    assert len({base for base, _ in sent if base}) == 1
    assert named[:CLIENTS] == [named[0]] * CLIENTS, "the first question is the same to all"
    assert named[0] < 4 * weights / 100, "of a mask that keeps everything and of no weights"
    assert max(size for _, size in sent) < weights, "a bit a weight, and names"
    assert result.state.book.traffic.down < 4 * weights / 10  # not a tenth of the weights, once
    assert result.state.book.traffic.evaluation < CLIENTS * weights


@pytest.mark.slow
@pytest.mark.parametrize("secure", ["none", "secagg"])
def test_a_device_that_lacks_it_is_sent_everything(folder, texts, monkeypatch, secure):
    config = config_of(folder, secure=secure)
    expected = here(config, texts)
    full = on_devices(config_of(folder, secure=secure, base="sent"), texts)
    built = hosts.base_of

    monkeypatch.setattr(hosts, "base_of", lambda *given: replace(built(*given), digest="0" * 64))
    lacking = on_devices(config, texts)
    assert same_model(lacking, expected)
    assert not lacking.state.book.failed
    down = [r.state.book.traffic.down + r.state.book.traffic.evaluation for r in (lacking, full)]
    assert down[1] < down[0] < 1.1 * down[1]


def test_where_nothing_is_held_that_is_said(folder):
    with pytest.raises(ConfigError, match="come from no file"):
        config_of(folder, model="llama", base="sent")


def test_what_is_like_it_is_found_under_a_mask():
    a, b = torch.arange(6.0).view(2, 3), torch.ones(3)
    base, masks = BaseModel("", {"a": a, "b": b}), {"a": a > 2}
    assert base.like({"a": a * (a > 2), "b": b}, masks) == ("a", "b")
    assert base.like({"a": a * (a > 3), "b": b + 1, "c": b}, masks) == ()

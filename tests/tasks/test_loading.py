import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune.pruning.layout import layout_of
from fedprune.randomness import seeded
from fedprune.tasks import loading
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.families import Need, heads_of
from fedprune.tasks.loading import build
from fedprune.tasks.symbols import characters
from fedprune.tasks.task import output_of
from fedprune.tensors import state_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 in bfloat16 with its tokenizer of characters, saved by transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("saved")
    config = GPT2Config(vocab_size=99, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    with seeded(1, "init"):
        model = GPT2LMHeadModel(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    characters("masked").tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_brings_its_weights_and_its_tokenizer(
    saved: Path, asked: Any, capfd: pytest.CaptureFixture[str]
):
    from transformers import GPT2LMHeadModel

    config = asked("shakespeare", model=str(saved), length=32)
    model = TASKS["shakespeare"].model(config)
    there = state_of(GPT2LMHeadModel.from_pretrained(saved, dtype=torch.float32))
    here = state_of(model)
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert {t.dtype for t in here.values()} == {torch.float32}
    settings: Any = model.config
    assert settings.use_cache is False
    assert TASKS["shakespeare"].tokenizer is not None
    assert len(TASKS["shakespeare"].tokenizer(config)) == 99
    assert TASKS["shakespeare"].classes is not None
    assert TASKS["shakespeare"].classes(config) == 99
    layout = layout_of(model, output=output_of(TASKS["shakespeare"], model))
    assert set(layout.kinds.values()) == {"conv1d"}
    assert "warn" not in "".join(capfd.readouterr()).lower()


def test_a_head_that_a_folder_lacks_is_initialised_quietly(
    saved: Path, asked: Any, capfd: pytest.CaptureFixture[str]
):
    config = asked("text-classification", model=str(saved))
    models = []
    for _ in range(2):
        with seeded(0, "init"):
            models.append(build(config, Need("classify", 99, 32, 0, None, 3)))
    one, two = (state_of(m) for m in models)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one[f"{heads_of(models[0])[0]}.weight"].shape == (3, 16)
    assert capfd.readouterr() == ("", "")
    settings: Any = models[0].config
    assert settings.pad_token_id == 0


def test_what_is_nowhere_is_one_line(asked: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "reachable", lambda: False)
    config = asked("shakespeare", model="nobody/nothing")
    for make in (TASKS["shakespeare"].model, TASKS["shakespeare"].tokenizer):
        assert make is not None
        with pytest.raises(FileNotFoundError) as caught:
            make(config)
        message = str(caught.value)
        assert re.match(
            r"model='nobody/nothing': neither a family of task shakespeare nor a folder, and the "
            r"hub is not reachable or has no such model; allowed: ",
            message,
        )
        assert "\n" not in message


def test_a_hub_that_is_not_reachable_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    import httpx
    from huggingface_hub import constants
    from transformers import AutoModelForCausalLM

    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(loading, "reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", sent)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        loading.from_pretrained(AutoModelForCausalLM, "nobody/nothing", "shakespeare")
    assert constants.HF_HUB_OFFLINE is False
    assert capfd.readouterr() == ("", "")


def test_the_hub_s_client_is_quiet_within_the_block_only():
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    with loading.quiet():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == before


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, asked: Any):
    config = asked("shakespeare", model=str(tmp_path))
    need = Need("causal", 98, 32)
    with pytest.raises(FileNotFoundError, match=r"^model=.*cannot load it: .*; allowed: a folder"):
        build(config, need)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileNotFoundError) as caught:
        build(config, need)
    assert "\n" not in str(caught.value)


def test_a_family_for_something_else_is_refused(asked: Any):
    config = asked("shakespeare-masked", model="gpt2")
    with pytest.raises(
        ValueError, match="model='gpt2': no model for task shakespeare-masked; allowed: bert"
    ):
        build(config, Need("masked", 99, 32))


def test_more_positions_than_a_model_has_are_refused(saved: Path, asked: Any):
    config = asked("shakespeare", model=str(saved))
    with pytest.raises(ValueError, match=r"length=33: .* reads 32 tokens; allowed: 8 to 32"):
        build(config, Need("causal", 99, 33))


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def asked_anyway() -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", asked_anyway)
    loading.reachable.cache_clear()
    assert loading.reachable() is False
    loading.reachable.cache_clear()

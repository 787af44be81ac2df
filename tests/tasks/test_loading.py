import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune.randomness import seeded
from fedprune.structure.families.family import Need
from fedprune.structure.layout import layout_of
from fedprune.tasks import fetching
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.loading import build
from fedprune.tasks.task import output_of
from fedprune.tasks.token_rows import token_rows
from fedprune.tasks.tokenization import characters, own_symbols
from fedprune.tasks.zoo import heads_of
from fedprune.tensors.models import state_of

GPT2 = {"vocab_size": 99, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A GPT-2 in bfloat16 with its tokenizer of characters, saved by transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("saved")
    with seeded(1, "init"):
        model = GPT2LMHeadModel(GPT2Config(**GPT2)).to(torch.bfloat16)
    model.save_pretrained(folder)
    characters("masked").tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_brings_its_weights_and_its_tokenizer(saved, asked, capfd):
    from transformers import GPT2LMHeadModel

    config = asked("shakespeare", model=str(saved), length=32)
    model = TASKS["shakespeare"].model(config)
    there = state_of(GPT2LMHeadModel.from_pretrained(saved, dtype=torch.float32))
    here = state_of(model)
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert {t.dtype for t in here.values()} == {torch.float32}
    settings: Any = model.config
    assert settings.use_cache is False
    assert len(TASKS["shakespeare"].tokenizer(config)) == 99
    assert TASKS["shakespeare"].classes is not None
    assert TASKS["shakespeare"].classes(config) == 99
    layout = layout_of(model, output=output_of(TASKS["shakespeare"], model))
    assert set(layout.kinds.values()) == {"conv1d"}
    assert "warn" not in "".join(capfd.readouterr()).lower()


def test_a_head_that_a_folder_lacks_is_initialised_quietly(saved, asked, capfd):
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


def test_what_is_nowhere_is_one_line(asked, monkeypatch):
    monkeypatch.setattr(fetching, "reachable", lambda: False)
    config = asked("shakespeare", model="nobody/nothing")
    for make in (TASKS["shakespeare"].model, TASKS["shakespeare"].tokenizer):
        assert make is not None
        with pytest.raises(FileNotFoundError) as caught:
            make(config)
        assert re.match(
            r"model='nobody/nothing': neither a family of task shakespeare nor a folder, and the "
            r"hub is not reachable or has no such model; allowed: [^\n]+$",
            str(caught.value),
        )


def test_a_hub_that_is_not_reachable_is_not_asked_again(monkeypatch, capfd):
    import httpx
    from huggingface_hub import constants
    from transformers import AutoModelForCausalLM

    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(fetching, "reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", sent)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        fetching.from_pretrained(AutoModelForCausalLM, "nobody/nothing", "shakespeare")
    assert constants.HF_HUB_OFFLINE is False
    assert capfd.readouterr() == ("", "")


def test_the_hub_s_client_is_quiet_within_the_block_only():
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    with fetching.quiet():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == before


def test_a_folder_without_a_model_is_one_line(tmp_path, asked):
    from transformers import AutoTokenizer

    config = asked("shakespeare", model=str(tmp_path))
    need = Need("causal", 98, 32)
    with pytest.raises(ValueError, match=r"load it: there is no config\.json in it; allowed"):
        build(config, need)
    with pytest.raises(ValueError, match=r"AutoTokenizer cannot load it: there is no config\.json"):
        fetching.from_pretrained(AutoTokenizer, str(tmp_path), "shakespeare")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged") as caught:
        build(config, need)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "bert"])  # of bert transformers makes an empty one
def test_a_model_without_a_tokenizer_is_one_line(tmp_path, family):
    from transformers import AutoConfig, AutoTokenizer

    AutoConfig.for_model(family).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    what = f"model='{tmp_path}': AutoTokenizer cannot load it: there is no tokenizer in it, such as"
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        fetching.from_pretrained(AutoTokenizer, str(tmp_path), "shakespeare")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_bytes_has_no_file_of_words(tmp_path):
    from transformers import AutoConfig, AutoTokenizer, ByT5Tokenizer

    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    found = fetching.from_pretrained(AutoTokenizer, str(tmp_path), "shakespeare-restore")
    assert found("é").input_ids == [byte + 3 for byte in "é".encode()] + [1], "3 marks come first"


def test_a_family_for_something_else_is_refused(asked):
    config = asked("shakespeare-masked", model="gpt2")
    with pytest.raises(ValueError, match="no model for task shakespeare-masked; allowed: bert"):
        build(config, Need("masked", 99, 32))


def test_offline_nobody_is_asked(monkeypatch):
    import huggingface_hub

    def asked_anyway() -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", asked_anyway)
    fetching.reachable.cache_clear()
    assert fetching.reachable() is False
    fetching.reachable.cache_clear()


def small(kind: str, folder: Path, **changes: Any) -> Path:
    """A model for sequences saved with a tokenizer of characters that has no padding."""
    import transformers

    sizes = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = GPT2 if kind == "GPT2" else {**sizes, "intermediate_size": 32}
    settings = getattr(transformers, f"{kind}Config")(**{**sizes, **changes})
    purpose = "CausalLM" if kind in ("Llama", "GPT2") else "MaskedLM"
    auto = getattr(transformers, f"AutoModelFor{purpose}")
    with seeded(1, "init"):
        auto.from_config(settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Roberta", {"pad_token_id": 1}),
        ("Roberta", {"pad_token_id": 0}),
        ("XLMRoberta", {"pad_token_id": 5}),
        ("MPNet", {}),
        ("Bert", {"pad_token_id": 0}),
        ("GPT2", {}),
    ],
    ids=str,
)
def test_the_longest_length_is_the_one_that_works(kind, changes, tmp_path, asked):
    """Found by trying rows without padding, of growing length, on the model itself."""
    positions = {"n_positions": 24} if kind == "GPT2" else {"max_position_embeddings": 24}
    folder = small(kind, tmp_path, **positions, **changes)
    config = asked("text-classification", model=str(folder))
    model: Any = build(config, Need("classify", 99, 8, 98, None, 2)).eval()

    def works(length: int) -> bool:
        try:
            model(input_ids=torch.full((1, length), 7))
        except (IndexError, RuntimeError):
            return False
        return True

    longest = max(length for length in range(8, 30) if works(length))
    build(config, Need("classify", 99, longest, 98, None, 2))
    line = f"^length='?{longest + 1}'?: .* reads {longest} tokens; allowed: 8 to {longest}$"
    with pytest.raises(ValueError, match=line):
        build(config, Need("classify", 99, longest + 1, 98, None, 2))


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("own", [0, 7, None], ids=str)
def test_a_padded_batch_classifies_as_single_texts_do(own, side, kind, tmp_path, asked):
    """Whatever the model's configuration takes for padding, and the tokenizer's side."""
    config = asked("text-classification", model=str(small(kind, tmp_path, pad_token_id=own)))
    tokenizer = copy.deepcopy(characters("seq2seq").tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = None, side
    tokenizer.save_pretrained(tmp_path)
    symbols = own_symbols(str(tmp_path), "text-classification")
    model: Any = build(config, Need("classify", 99, 12, symbols.pad, None, 3)).eval()
    rows = token_rows(symbols, ["to be", "or", "not to be that is", "   is"], 12)
    ids, attention = rows.ids, rows.attention
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=attention).logits
        for row, seen, found in zip(ids, attention.bool(), padded, strict=True):
            alone = model(input_ids=row[seen][None]).logits[0]
            assert torch.allclose(found, alone, atol=1e-6, rtol=0)
    words = model.get_input_embeddings()
    assert words.padding_idx in (None, symbols.pad), "a token that is no padding learns"


def test_a_head_of_other_classes_begins_afresh_and_that_is_said(tmp_path, asked):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    trained = GPT2ForSequenceClassification(GPT2Config(num_labels=5, **GPT2))
    trained.save_pretrained(tmp_path)
    config = asked("text-classification", model=str(tmp_path))
    five, two = (build(config, Need("classify", 99, 32, 0, None, n)) for n in (5, 2))
    assert layout_of(five).notes == ()
    assert torch.equal(state_of(five)["score.weight"], trained.score.weight)
    (text,) = layout_of(two).notes
    assert "was saved with 5 classes, the data has 2: it begins afresh" in text
    assert state_of(two).pop("score.weight").shape == (2, 16)
    body = {n: t for n, t in state_of(two).items() if n != "score.weight"}
    assert all(torch.equal(t, state_of(trained)[n]) for n, t in body.items())


@pytest.fixture
def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
    model.config.id2label = {0: "no", 1: "maybe"}
    return model


def test_what_the_files_of_a_folder_lack_and_have_too_much_is_said(bert, tmp_path, asked):
    config = asked("text-classification", model=str(tmp_path))
    need = Need("classify", 99, 16, 0, None, 2, ("no", "maybe"))
    whole = bert.state_dict()
    for gone, added, says in (
        ("classifier.bias", "", "have no classifier.bias: begun at random"),
        ("bert.pooler.dense.bias", "", "have no bert.pooler.dense.bias: begun at random"),
        ("", "bert.encoder.layer.1.output.dense.bias", "layer.1.output.dense.bias: left out"),
        ("", "cls.predictions.bias", None),
    ):
        state = {**whole, **({added: torch.zeros(2)} if added else {})}
        bert.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if k != gone})
        notes = layout_of(build(config, need)).notes
        assert [says in note for note in notes] == [True] if says else notes == ()
    lost = "bert.encoder.layer.0.output.dense.bias"
    bert.save_pretrained(tmp_path, state_dict={k: v for k, v in whole.items() if k != lost})
    with pytest.raises(ValueError, match=f"its files have no {lost}; allowed"):
        build(config, need)


def test_a_trained_head_keeps_the_order_of_its_classes_or_says_what_they_are(bert, tmp_path, asked):
    """The sorted labels of the data are another order than that of most heads of three classes."""
    bert.save_pretrained(tmp_path)
    config = asked("text-classification", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"order no, maybe, .* --class-names no,maybe"):
        build(config, Need("classify", 99, 16, 0, None, 2, ("maybe", "no")))
    (note,) = layout_of(build(config, Need("classify", 99, 16, 0, None, 2, ("a", "b")))).notes
    assert "saved for the classes no, maybe, which are a, b now" in note


def test_a_folder_whose_weights_do_not_fit_its_config_is_one_line(tmp_path, asked):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    GPT2ForSequenceClassification(GPT2Config(**GPT2)).save_pretrained(tmp_path)
    GPT2Config(**{**GPT2, "n_embd": 8}).save_pretrained(tmp_path)
    config = asked("text-classification", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"by its config; allowed: a folder whose config fits"):
        build(config, Need("classify", 99, 32, 0, None, 2))

import copy
import pickle
from typing import Any

import pytest
import torch
from families import SYMBOLS, TEXTS, family
from modules import module
from torch import Tensor, nn

from fedprune.structure.cuts import places
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import reshaped
from fedprune.structure.tables import embedding_path
from fedprune.structure.vocabulary import cut_vocabulary, translated, used
from fedprune.tensors.models import state_of

KEPT = (0, 1, 3, 4, 7, 8, 12, 15)
GONE = [i for i in range(SYMBOLS) if i not in KEPT]


def edit_for(model: nn.Module) -> Edit:
    return Edit("vocab", embedding_path(model) or "", KEPT, "3")


def logits(name: str, model: nn.Module, ids: Tensor) -> Tensor:
    more = {"decoder_input_ids": ids.flip(1)} if name.startswith("t5") else {}
    return model(input_ids=ids, **more).logits


def texts(rows: int = 3) -> Tensor:
    gen = torch.Generator().manual_seed(rows)
    return torch.tensor(KEPT)[torch.randint(len(KEPT), (rows, 6), generator=gen)]


def cut(name: str) -> tuple[nn.Module, nn.Module]:
    dense = copy.deepcopy(family(name).model)
    return dense, reshaped(copy.deepcopy(dense), [edit_for(dense)])


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_kept_tokens_have_the_same_logits_and_gone_tokens_the_least(name):
    dense, small = cut(name)
    with torch.no_grad():
        want, got = logits(name, dense, texts()), logits(name, small, texts())
    # Gemma 2 caps what comes of it at 30, either way.
    want[..., GONE] = -30.0 if name == "gemma2" else torch.finfo(want.dtype).min
    assert got.shape == want.shape
    assert (got[..., KEPT] - want[..., KEPT]).abs().max() <= 1e-9
    assert torch.equal(got[..., GONE], want[..., GONE])
    single = logits(name, small.float(), texts())[..., KEPT]
    assert (single - want[..., KEPT]).abs().max() <= 1e-5 * want[..., KEPT].abs().max()


@pytest.mark.parametrize("name", TEXTS)
def test_only_rows_of_the_vocabulary_go_and_ties_stay(name):
    dense, small = cut(name)
    before, after = dict(dense.named_parameters()), dict(small.named_parameters())
    assert list(after) == list(before)
    for n, p in before.items():
        tokens = p.shape[0] == SYMBOLS
        assert torch.equal(after[n], p[list(KEPT)] if tokens else p)
    rows = sum(p.numel() // SYMBOLS for p in before.values() if p.shape[0] == SYMBOLS)
    fell = sum(p.numel() for p in before.values()) - sum(p.numel() for p in after.values())
    assert fell == (SYMBOLS - len(KEPT)) * rows > 0
    if name.startswith("t5"):
        tables = (small.encoder.embed_tokens, small.decoder.embed_tokens, small.lm_head)
        assert all(m.weight is small.shared.weight for m in tables)
    if name == "bert":
        head = small.cls.predictions
        assert head.decoder.bias is head.bias
        assert head.decoder.weight is small.bert.embeddings.word_embeddings.weight
    small.tie_weights()
    assert list(dict(small.named_parameters())) == list(before)
    assert {n: t.shape for n, t in state_of(small).items()} == {
        n: p.shape for n, p in after.items()
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", TEXTS)
def test_a_step_of_training_is_the_same_on_what_stays(name):
    dense, small = cut(name)
    for model in (dense, small):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        out = logits(name, model, texts())
        if model is dense:
            out = out.index_fill(-1, torch.tensor(GONE), torch.finfo(out.dtype).min)
        nn.functional.cross_entropy(out.flatten(0, 1), texts().flatten()).backward()
        opt.step()
    restricted = places(family(name).model, [edit_for(dense)]).restrict(state_of(dense))
    before = state_of(cut(name)[1])
    for n, t in state_of(small).items():
        assert torch.allclose(t, restricted[n], rtol=0, atol=1e-10), n
    assert sum(not torch.equal(t, before[n]) for n, t in state_of(small).items()) > 5


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", TEXTS)
def test_cutting_heads_and_tokens_goes_together_and_a_cut_model_is_an_ordinary_one(name):
    # A model of its own: transformers leaves hooks that nobody can pickle in one that another test
    # has asked for its hidden states.
    dense = family.__wrapped__(name).model
    groups = family(name).layout.structure.groups
    edits = [Edit(g.kind, g.path, (1,)) for g in groups]
    both = reshaped(copy.deepcopy(dense), [edit_for(dense), *edits])
    heads = reshaped(copy.deepcopy(dense), edits)
    with torch.no_grad():
        want, got = logits(name, heads, texts()), logits(name, both, texts())
        again = logits(name, pickle.loads(pickle.dumps(copy.deepcopy(both))), texts())
    assert (got - want)[..., KEPT].abs().max() <= 1e-9
    assert torch.equal(again, got)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_only_kept_tokens_are_written_and_they_are_the_likeliest(name):
    dense, small = cut(name)
    more = {"max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    more["min_new_tokens"] = 5  # the end of a text is a token that is gone
    want = dense.generate(texts(), bad_words_ids=[[i] for i in GONE], **more)
    assert torch.equal(small.generate(texts(), **more), want)
    beams = small.generate(texts(), num_beams=2, **more)
    assert set(beams.flatten().tolist()) <= set(KEPT)


def test_gone_tokens_are_read_as_the_one_that_stands_for_them():
    dense, small = cut("llama")
    strange = torch.tensor([[0, 2, 5, 18, 7, -100]])
    edit = edit_for(dense)
    plain = translated(strange, edit)
    assert plain.tolist() == [[0, 3, 3, 3, 7, -100]]
    seen = strange[:, :-1]
    assert torch.equal(logits("llama", small, seen), logits("llama", small, plain[:, :-1]))
    bare = reshaped(copy.deepcopy(dense), [Edit("vocab", edit.path, KEPT)])
    with pytest.raises(IndexError):
        logits("llama", bare, seen)


def test_a_frozen_table_stays_frozen_and_padding_keeps_its_row():
    table = nn.Embedding(9, 3, padding_idx=4)
    table.weight.requires_grad_(False)

    reader = module(lambda self, x: self.out(self.table(x)), table=table, out=nn.Linear(3, 9))
    reader.get_input_embeddings = lambda: table
    assert embedding_path(reader) == "table"
    cut_vocabulary(reader, Edit("vocab", "table", (1, 4, 8)))
    assert (reader.table.padding_idx, reader.table.weight.shape) == (1, (3, 3))
    assert not reader.table.weight.requires_grad
    assert reader.out.weight.shape == (9, 3)  # no head of output: a classifier of nine classes


def test_used_is_what_occurs_and_what_is_spared():
    counts = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0, 0.0])
    assert used(counts, {5, 0}) == (0, 1, 4, 5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("vocab", "nowhere", (0,)), "there is nothing; allowed: Embedding"),
        (Edit("vocab", "lm_head", (0,)), "there is Linear; allowed: Embedding"),
        (Edit("vocab", "model.embed_tokens", ()), r"keeps \[\]; allowed: ascending ids below 19"),
        (Edit("vocab", "model.embed_tokens", (3, 2)), r"keeps \[3, 2\]; allowed: ascending"),
        (Edit("vocab", "model.embed_tokens", (0, 19)), r"keeps \[0, 19\]; allowed: ascending"),
        (Edit("vocab", "model.embed_tokens", (0, 1), "2"), "like='2' is gone; allowed: an id"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        reshaped(copy.deepcopy(family("llama").model), [edit])


def test_a_table_that_something_else_shares_is_refused():
    model = copy.deepcopy(family("llama").model)
    model.extra = nn.Bilinear(1, 1, 1)
    model.extra.bias = model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="Bilinear shares the embeddings"):
        reshaped(model, [edit_for(model)])


class Scaled(nn.Embedding):
    """As Gemma's and BART's: a subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.0


class Named(nn.Embedding):
    """A subclass that changes nothing."""


class Lookup(nn.Module):
    """No embedding at all, but it looks rows up."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].tanh()


class Cold(nn.Linear):
    """A head with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2.0


class Speaker(nn.Module):
    """Reads tokens and says logits; the head may be tied."""

    def __init__(self, table: Any, head: Any, *, tied: bool) -> None:
        super().__init__()
        self.table, self.head = table(SYMBOLS, 6), head(6, SYMBOLS)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


@pytest.mark.parametrize("table", [Scaled, Named, Lookup, nn.Embedding])
@pytest.mark.parametrize("head", [Cold, nn.Linear])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_and_heads_of_other_classes_are_cut_and_say_the_same(table, head, tied):
    torch.manual_seed(4)
    dense = Speaker(table, head, tied=tied).double()
    edit = edit_for(dense)
    assert edit.path == "table"
    rows = places(dense, [edit]).axes["table.weight"][0]
    assert rows.tolist() == list(KEPT)
    small = reshaped(copy.deepcopy(dense), [edit])
    assert small.table.weight.shape == (len(KEPT), 6)
    with torch.no_grad():
        want, got = dense(texts()), small(texts())
        assert torch.equal(got, copy.deepcopy(small)(texts()))
    assert torch.allclose(got[..., KEPT], want[..., KEPT], atol=1e-12)
    if tied:
        assert small.head.weight is small.table.weight
        assert (got[..., GONE] == torch.finfo(got.dtype).min).all()


def test_of_several_tables_the_model_says_which_is_of_tokens():
    model = nn.ModuleDict({"tokens": Scaled(9, 3), "places": nn.Embedding(9, 3)})
    with pytest.raises(ValueError, match=r"has 2 tables \(places, tokens\).* which") as caught:
        embedding_path(model)
    assert "\n" not in str(caught.value)
    model.get_input_embeddings = lambda: model["tokens"]  # type: ignore[assignment]
    assert embedding_path(model) == "tokens"
    with pytest.raises(ValueError, match="has no table of tokens to cut; allowed: full"):
        embedding_path(nn.Linear(3, 3))

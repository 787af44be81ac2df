"""What a task, a model and data say of each other before round one: each kind with an oracle."""

import copy
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedprune import SCORES, TASKS, Loss, RunConfig, Score, Shard, Task, federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from fedprune.protocol.port import Port
from fedprune.tasks.losses import class_loss, classification_loss, label_tokens, token_loss
from fedprune.tasks.task import Part
from fedprune.tasks.tokenization import characters
from fedprune.tensors.named import digest


def part(n: int, seed: int = 0) -> Part:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return {"images": x, "labels": (x[:, 0] > 0).long() + (x[:, 1] > 0).long()}


def shards(config: RunConfig) -> list[Shard]:
    return [Shard(part(20, p), part(5, p + 50), part(5, p + 90)) for p in range(config.clients)]


def net(_config: object = None) -> nn.Module:
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(8, 3))


MINE = Task("mine", "accuracy", "rows", net, classification_loss, shards, output=("5",))
KEYS: dict[str, Any] = {
    "engine": "inline", "task": "mine", "clients": 3, "rounds": 2, "warmup": 1, "sparsity": 0.5,
    "local_steps": 1, "cohort": 2,
}  # fmt: skip

Play = Callable[..., Any]


@pytest.fixture
def play(monkeypatch) -> Play:
    """A run of a task with these attributes; further keys are of the configuration."""

    def made(port: bool = False, score: Score | None = None, keys: Any = (), **task: Any) -> Any:
        monkeypatch.setitem(TASKS, "mine", replace(MINE, **task))
        if score is not None:
            monkeypatch.setitem(SCORES, "own", score)
        config = configure({**KEYS, **dict(keys)})
        return federate(config, Port(never, lambda: {0: 1}) if port else None)

    return made


def never(*_: object) -> Any:
    raise AssertionError("asked before the rehearsal")


def refused(play: Play, line: str, **what: Any) -> None:
    """In the library, with the port of the host and with one's own, nothing was asked."""
    for port in (False, True):
        with pytest.raises(ValueError, match=line) as caught:
            play(port=port, **what)
        assert "; allowed: " in str(caught.value)
        assert "\n" not in str(caught.value)


def few(change: Callable[[Part], Any], everybody: bool = False) -> Callable[..., list[Any]]:
    """Shards whose second train part, or all of everybody's, are changed."""

    def made(config: RunConfig) -> list[Any]:
        found = shards(config)
        if everybody:
            return [Shard(*map(change, (s.train, s.validation, s.test))) for s in found]
        return [found[0], replace(found[1], train=change(found[1].train)), *found[2:]]

    return made


SHARDS: dict[str, tuple[Callable[[RunConfig], Any], str]] = {
    "fewer": (lambda c: shards(c)[:2], "^clients=3: task mine brings 2 shards"),
    "none": (lambda _: [], "^clients=3: .* brings 0 shards"),
    "no list": (lambda _: None, "^task='mine': its shards are a NoneType"),
    "no shard": (lambda c: [vars(s) for s in shards(c)], "shard 0 is a dict; allowed: fedprune.Sh"),
    "loader": (few(lambda p: DataLoader([p])), "shard 1's train is a DataLoader"),  # type: ignore
    "examples": (few(lambda p: [{"images": p["images"][0]}]), "shard 1's train is a list"),
    "nothing": (few(lambda _: {}), "shard 1's train is empty"),
    "lengths": (few(lambda p: p | {"labels": p["labels"][1:]}), "images 20, labels 19"),
    "values": (few(lambda p: p | {"labels": p["labels"].tolist()}), "'labels' is a list"),
    "scalar": (few(lambda p: p | {"labels": torch.tensor(1)}), "without dimensions"),
    "empty": (few(lambda p: {n: t[:0] for n, t in p.items()}), "shard 1 has no train examples"),
    "names": (few(lambda p: p | {"more": p["labels"]}), r"1's train has .*'more'\], shard 0's t"),
    "no test": (
        lambda c: [replace(s, test={n: t[:0] for n, t in s.test.items()}) for s in shards(c)],
        "no partition has any test examples",
    ),
    "label": (few(lambda p: p | {"labels": p["labels"] + 1}), "shard 1's train are 1 to 3; .*2"),
    "negative": (few(lambda p: p | {"labels": p["labels"] - 1}), "shard 1's train are -1 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_are_a_list_of_dictionaries_of_tensors_of_one_length(kind, play):
    refused(play, SHARDS[kind][1], shards=SHARDS[kind][0])


def test_arrays_are_tensors_and_one_partition_may_lack_held_out_examples(play):
    def arrays(config: RunConfig) -> list[Any]:
        return [Shard(*({n: t.numpy() for n, t in p.items()} for p in vars(s).values()))
                for s in shards(config)]  # fmt: skip

    assert play(shards=arrays).rows == play(shards=shards).rows

    def lacking(config: RunConfig) -> list[Shard]:
        first, *rest = shards(config)
        return [replace(first, test={n: t[:0] for n, t in first.test.items()}), *rest]

    assert play(shards=lacking).summary["failures"] == 0


class Net(nn.Module):
    """A model of some modules, and of what it does with them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.does = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *given: Tensor) -> Any:
        return self.does(self, *given)


def wrapped(within: Callable[[Tensor], Any]) -> nn.Module:
    """Gives its logits back within something."""
    return Net(lambda m, images: within(m.net(images)), net=net())


def test_logits_may_be_in_a_dictionary_and_else_it_is_said_what_the_loss_reads(play):
    named = {"model": lambda _: wrapped(lambda x: {"logits": x}), "output": ("net.5",)}
    assert play(**named).rows == play(model=lambda _: wrapped(lambda x: x), output=("net.5",)).rows
    for within in (lambda x: (x, x), lambda x: {"scores": x}):
        found = {"model": lambda _, within=within: wrapped(within), "output": ("net.5",)}
        refused(play, "gives back a (tuple|dict), and classification_loss reads a tensor", **found)
    refused(play, "allowed: none, the model is one", model=lambda _: nn.Linear(6, 3), output=("x",))


def loss(change: Callable[..., Any]) -> Callable[[nn.Module, Part], Any]:
    return lambda model, batch: change(classification_loss(model, batch), batch)


def fields(**changes: Any) -> Callable[[nn.Module, Part], Any]:
    return loss(lambda found, _: replace(found, **changes))


LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "keys": ({"loss": lambda m, b: classification_loss(m, {"images": b["x"]})}, "KeyError: 'x'"),
    "type": ({"loss": loss(lambda found, _: found.total)}, "its loss gives a Tensor"),
    "total": ({"loss": fields(total=1.5)}, "Loss.total is float"),
    "shape": ({"loss": loss(lambda f, _: replace(f, total=f.each))}, r"Loss.total is \(4,\)"),
    "gradient": ({"loss": loss(lambda f, _: replace(f, total=f.total.detach()))}, "no gradient"),
    "of nothing": ({"loss": fields(total=torch.ones((), requires_grad=True))}, "no gradient"),
    "infinite": ({"loss": loss(lambda f, _: replace(f, total=f.total / 0))}, "Loss.total is inf"),
    "mean": (
        {"loss": loss(lambda f, _: replace(f, total=f.total / f.count, each=None))},
        "a mean over the batch; allowed: a sum",
    ),
    "count": ({"loss": fields(count=torch.tensor(4))}, "Loss.count is a Tensor"),
    "correct": ({"loss": fields(correct=5)}, "Loss.correct is 5 and Loss.count 4"),
    "negative": ({"loss": fields(correct=-1)}, "Loss.correct is -1"),
    "labels": ({"labels": lambda p: 2 * len(p["labels"])}, "counts 8 and Loss.count 4"),
    "each": ({"loss": fields(each=torch.ones(3))}, r"Loss.each is \(3,\)"),
    "each sum": ({"loss": fields(each=torch.ones(4))}, "Loss.each sums to 4"),
    "metric": ({"metric": "msr"}, "its metric is 'msr'; allowed: .*accuracy"),
    "sums": ({"metric": "r2"}, "its metric r2 needs sums in Loss.extra"),
    "squares of classes": (
        {"metric": "rmse"},
        "its metric rmse is of numbers, its labels are classes of 3 outputs; allowed: .*numbers",
    ),
    "likelihood of numbers": (
        {
            "metric": "perplexity",
            "loss": lambda m, b: Loss((m(b["images"])[:, 0] - b["labels"]).square().sum(), 4, 0),
            "shards": few(lambda p: {**p, "labels": p["labels"].float()}, everybody=True),
        },
        "its metric is perplexity, and its labels are numbers",
    ),
    "unit": ({"unit": ""}, "its unit is ''"),
    "extra": ({"extra": ("bytes",)}, "its extra names 'bytes'"),
    "sums of the test part": ({"test_sum_names": ("exact",)}, "totals|exact"),
    "names of sums of the test part": (
        {"test_sum_names": ("exact",), "test_sums": lambda *_: {"inexact": 1.0}},
        "inexact.*expected.*exact",
    ),
    "tokens": ({"tokens": ("ids",)}, "its tokens name 'ids'"),
    "output": ({"output": ("head",)}, "its output names 'head'.*; allowed: 0, 1"),
    "classes": ({"classes": lambda _: 4}, "its classes are 4, its model gives 3"),
    "too few": ({"classes": lambda _: 2}, "its classes are 2, its model gives 3"),
    "dummy": ({"dummy": lambda _: {"x": torch.ones(1)}}, "KeyError"),
    "model": ({"model": lambda _: nn.Sequential(nn.Linear(7, 3)), "output": ()}, "mat1 and mat2"),
    "exit": ({"loss": loss(lambda *_: (_ for _ in ()).throw(SystemExit(3)))}, "SystemExit: 3"),
}  # fmt: skip


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", LOSSES)
def test_what_a_task_declares_is_what_its_loss_gives(kind, play):
    refused(play, LOSSES[kind][1], **LOSSES[kind][0])


def test_a_label_that_does_not_count_is_left_out_everywhere(play):
    """With examples of -100 in every part it is as without these examples, in bits."""

    def more(p: Part) -> Part:
        blank = torch.full((3,), -100)
        images = torch.cat([p["images"], torch.ones(3, 6)])
        return {"images": images, "labels": torch.cat([p["labels"], blank])}

    keys = {"local_steps": 0, "local_epochs": 1, "lr": 1e-9, "batch_size": 64}
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    task: dict[str, Any] = {"model": lambda _: copy.deepcopy(plain), "output": ("2",)}
    both = [play(keys=keys, shards=how, **task) for how in (shards, few(more, everybody=True))]
    (a, b), names = (end.summary["quality"]["final"] for end in both), ("accuracy", "macro_f1")
    assert {n: a[n] for n in names if n in a} == {n: b[n] for n in names if n in a}
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert not both[1].summary["failures"]


def test_a_classifier_that_reads_its_padding_is_refused(play):
    """Pooling over what the mask hides is seen; over what it shows it is not suspected."""

    def texts(p: Part) -> Part:
        ids = (p["images"] > 0).long() + 1
        seen = (torch.arange(6) < 3 + torch.arange(len(ids))[:, None] % 4).long()
        return {"inputs": ids * seen, "attention": seen, "labels": p["labels"]}

    def pooled(hidden: bool) -> nn.Module:
        def forward(m: Any, ids: Tensor, seen: Tensor) -> Tensor:
            counted = (torch.ones_like(seen) if hidden else seen)[..., None]
            return m.head((m.body(m.words(ids)) * counted).sum(1) / counted.sum(1))

        return Net(forward, words=nn.Embedding(3, 8), body=nn.Linear(8, 8), head=nn.Linear(8, 3))

    def its_loss(model: nn.Module, batch: Part) -> Loss:
        return class_loss(model(batch["inputs"], batch["attention"]), batch["labels"])

    task = {"loss": its_loss, "shards": few(texts, everybody=True), "output": ("head",)}
    refused(play, "padding moves what it says of a text", model=lambda _: pooled(True), **task)
    assert play(model=lambda _: pooled(False), **task).summary["sparsity"] == 0.5


def test_a_metric_of_values_is_had_from_a_loss_of_squares(play):
    def squares(model: nn.Module, batch: Part) -> Loss:
        error = model(batch["images"])[:, 0] - batch["images"][:, 0]
        return Loss(error.square().sum(), len(error), 0)

    end = play(metric="mse", loss=squares, keys={"lr": 1e-9, "lr_schedule": "constant"})
    with torch.no_grad():
        totals = [squares(end.model, s.test).total for s in shards(configure(KEYS))]
    assert end.summary["quality"]["final"]["mse"] == pytest.approx(
        float(sum(totals)) / 15, rel=1e-5
    )


def test_whole_numbers_are_no_classes_under_a_metric_of_numbers(play):
    def counts(m: nn.Module, b: Part) -> Loss:
        guess = m(b["images"])[:, :1]
        each = (guess[:, 0] - b["labels"]).square()
        return Loss(each.sum(), len(each), 0, each, {"squared": float(each.sum())}, guess)

    shifted = few(lambda p: {**p, "labels": 7 * p["labels"]}, everybody=True)
    run = play(metric="rmse", loss=counts, shards=shifted, extra=("squared",), output=())
    assert run.summary["failures"] == 0


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.GLU])
def test_a_layer_that_fails_is_named(kind, play):
    layer = nn.GLU(dim=1) if kind is nn.GLU else nn.Sequential(nn.Unflatten(1, (15, 1)), kind(15))
    body = nn.Sequential(nn.Linear(6, 15), layer, nn.Flatten(), nn.Linear(15, 3))
    path = "1" if kind is nn.GLU else r"1\.1"
    refused(play, rf"fails in {path} \({kind.__name__}\): .*; allowed", model=lambda _: body,
            output=("3",))  # fmt: skip


def test_a_partition_that_fails_by_itself_costs_itself_only(play, monkeypatch):
    monkeypatch.setattr("fedprune.client.rehearsal.REHEARSAL_SECONDS", 1.0)  # a minute is long here

    def failing(how: Callable[[], object]) -> Callable[[nn.Module, Part], Loss]:
        def of(model: nn.Module, batch: Part) -> Loss:
            if (batch["images"] == 7).any():
                how()
            return classification_loss(model, batch)

        return of

    def spoilt(config: RunConfig) -> list[Shard]:
        first, *rest = shards(config)
        return [replace(first, train=first.train | {"images": torch.full((20, 6), 7.0)}), *rest]

    once = {"cohort": 3, "timeout": 1.0, "rounds": 1, "warmup": 0, "end": 1}
    for how in (lambda: 1 / 0, lambda: time.sleep(1e6)):
        end = play(loss=failing(how), shards=spoilt, keys=once)
        assert {f["partition"] for row in end.rows for f in row["failures"]} == {0}


def test_a_rehearsal_changes_nothing(monkeypatch):
    """Model, statistics of BatchNorm and the generators of torch, NumPy and Python."""

    def drawing(model: nn.Module, batch: Part) -> Loss:
        random.random(), np.random.rand(), torch.rand(1)
        return classification_loss(model, batch)

    monkeypatch.setitem(TASKS, "mine", replace(MINE, loss=drawing))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    host = build_host(configure(KEYS))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    with torch.random.fork_rng():
        fresh = build_host(configure({**KEYS, "score": "magnitude"}))
    assert digest(dict(host.model.state_dict())) == digest(dict(fresh.model.state_dict()))
    assert int(host.model.state_dict()["1.num_batches_tracked"]) == 0
    assert host.model.training


def test_one_s_own_score_is_tried_from_its_asks_to_what_it_makes(play):
    flat = Score("flat", "here", lambda e: {n: w.flatten() for n, w in e.weights.items()})
    refused(play, r"^score='own': its finalise gives .*3.*; allowed", score=flat,
            keys={"score": "own"})  # fmt: skip
    lost = Score("lost", "here", lambda e: {"nothing": e.weights["missing"]})
    refused(play, "KeyError.*missing", score=lost, keys={"score": "own"})


# Causality


VOCABULARY, LENGTH = 11, 8


def mixing(ahead: int) -> nn.Module:
    """Logits of every position from a mean over those up to so many positions ahead."""
    sees = torch.ones(LENGTH, LENGTH).tril(ahead)
    sees = sees / sees.sum(-1, keepdim=True)
    parts = {"table": nn.Embedding(VOCABULARY, 12), "inner": nn.Linear(12, 12)}
    return Net(
        lambda m, ids: m.head(m.inner(sees @ m.table(ids)).tanh()),
        **parts, head=nn.Linear(12, VOCABULARY),
    )  # fmt: skip


def ids(rows: int, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, LENGTH + 1), generator=gen)


def shifted(tokens: Tensor) -> Part:
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}


def unshifted(tokens: Tensor) -> Part:
    return {"ids": tokens[:, :-1], "labels": tokens[:, :-1]}


def hidden(tokens: Tensor) -> Part:
    """Masked: label where a token was replaced by 0."""
    gone = torch.zeros(tokens[:, 1:].shape, dtype=torch.bool)
    gone[:, ::3] = True
    return {
        "inputs": tokens[:, 1:].masked_fill(gone, 0),
        "labels": tokens[:, 1:].masked_fill(~gone, -100),
    }


def of_shifted(model: nn.Module, batch: Part) -> Loss:
    return token_loss(model(batch["inputs"]), batch)


def without_logits(model: nn.Module, batch: Part) -> Loss:
    return replace(of_shifted(model, batch), logits=None)


def in_train_mode(model: nn.Module, batch: Part) -> Loss:
    return of_shifted(model.train(), batch)


def of_unshifted(model: nn.Module, batch: Part) -> Loss:
    logits, labels = model(batch["ids"])[:, :-1], batch["labels"][:, 1:]
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return Loss(total, labels.numel(), int((logits.argmax(-1) == labels).sum()))


NEXT = {
    "shifted": (shifted, of_shifted),
    "no logits": (shifted, without_logits),
    "train mode": (shifted, in_train_mode),
    "unshifted": (unshifted, of_unshifted),
}


def next_token(
    made: Callable[[Tensor], Part], of: Callable[..., Loss], ahead: int, drop: float = 0.0
) -> dict[str, Any]:
    def model(_config: object) -> nn.Module:
        made = mixing(ahead)
        if drop:
            made.inner = nn.Sequential(made.inner, nn.Dropout(drop))
        return made

    def dealt(config: RunConfig) -> list[Shard]:
        return [Shard(*(made(ids(6, 3 * p + i)) for i in range(3))) for p in range(config.clients)]

    counts = label_tokens if of is not of_unshifted else lambda p: p["labels"][:, 1:].numel()
    return {"metric": "perplexity", "unit": "tokens", "model": model, "loss": of, "shards": dealt,
            "labels": counts, "output": ("head",)}  # fmt: skip


@pytest.mark.parametrize("ahead", [1, LENGTH])
@pytest.mark.parametrize("kind", NEXT)
def test_a_model_that_sees_later_tokens_cannot_foretell_the_next(kind, ahead, play):
    refused(play, "a later token moves the logits", **next_token(*NEXT[kind], ahead))


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("kind", NEXT)
def test_a_causal_model_is_not_suspected(kind, drop, play):
    assert play(**next_token(*NEXT[kind], 0, drop)).summary["failures"] == 0


def test_hidden_tokens_may_be_foretold_from_both_sides(play):
    assert play(**next_token(hidden, of_shifted, LENGTH)).summary["failures"] == 0


def test_labels_that_go_into_the_model_must_not_reach_their_own_logits(play):
    """A decoder that is fed the labels themselves, and one that is fed those before."""

    def fed(lag: int) -> Callable[..., Loss]:
        def of(model: nn.Module, batch: Part) -> Loss:
            read = nn.functional.pad(batch["labels"], (lag, 0))[:, :LENGTH]
            return token_loss(model(read), batch)

        return of

    def unrelated(tokens: Tensor) -> Part:
        return {"source": tokens.flip(1)[:, 1:].float(), "labels": tokens[:, 1:]}

    refused(play, "a later label moves", **next_token(unrelated, fed(0), 0))
    assert play(**next_token(unrelated, fed(1), 0)).summary["failures"] == 0


# What scores need


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "called": lambda m, h: m.b(h),
    "typed": lambda m, h: m.b(h.to(m.b.weight.dtype)),
    "by hand": lambda m, h: nn.functional.linear(h, m.b.weight),
    "transposed": lambda m, h: h @ m.b.weight.t(),
    "einsum": lambda m, h: torch.einsum("bi,oi->bo", h, m.b.weight),
    "both": lambda m, h: m.b(h) + nn.functional.linear(h, m.b.weight),
    "never": lambda _, h: h,
}
"""How the weight of a linear layer is used."""


def used(how: str) -> nn.Module:
    a, b, head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
    return Net(lambda m, x: m.head(WAYS[how](m, m.a(x).relu()).relu()), a=a, b=b, head=head)


def grouped() -> nn.Module:
    a, b, head = nn.Linear(6, 8), nn.Conv1d(4, 4, 1, groups=2), nn.Linear(8, 3)
    return Net(
        lambda m, x: m.head(m.b(m.a(x).unflatten(1, (4, 2))).flatten(1).relu()), a=a, b=b, head=head
    )


def sequential(b: nn.Module, does: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    """Six numbers one after the other through a layer of sequences."""
    a, head = nn.Linear(1, 8), nn.Linear(8, 3)
    return Net(lambda m, x: m.head(does(m.b, m.a(x.unsqueeze(-1)))), a=a, b=b, head=head)


def attending(encoder: bool) -> nn.Module:
    if encoder:
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, batch_first=True)
        return sequential(layer, lambda b, h: b(h).mean(1))
    return sequential(
        nn.MultiheadAttention(8, 2, batch_first=True), lambda b, h: b(h, h, h)[0].mean(1)
    )


def recurrent() -> nn.Module:
    return sequential(nn.LSTM(8, 8, batch_first=True), lambda b, h: b(h)[0][:, -1])


def routed(whole: bool) -> nn.Module:
    """Two layers: an example goes through one of them, or a whole batch as its first one does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        rare = x[:, 0] > 1.2
        rare = rare[:1].expand_as(rare) if whole else rare
        h = x.new_zeros(len(x), 12)
        for layer, those in ((m.a, ~rare), (m.b, rare)):
            if those.any():
                h = h.index_put((those,), layer(x[those]))
        return m.head(h.relu())

    return Net(forward, a=nn.Linear(6, 12), b=nn.Linear(6, 12), head=nn.Linear(12, 3))


USES: list[tuple[str, Any]] = [
    ("score", {"score": "wanda"}),
    *[("score", {"score": name}) for name in ("activation", "activity", "sparsegpt")],
    *[
        ("score", {"score": "wanda", **how})
        for how in ({"score_during": "tune"}, {"masks": "union"})
    ],
    *[("reconstruct", {"reconstruct": how}) for how in ("inputs", "outputs")],
]
REDUCES = [{"reduce": (how,), "score": "magnitude"} for how in ("dead", "merge", "low-rank")]
UNSEEN: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    **{how: (lambda how=how: used(how), "b.weight", "without calling")
       for how in ("by hand", "transposed", "einsum", "both")},
    "never": (lambda: used("never"), "b.weight", "called for no example"),
    "grouped": (grouped, "b.weight", "grouped"),
    "attention": (lambda: attending(encoder=False), "b.out_proj.weight", "without calling"),
    "encoder": (lambda: attending(encoder=True), "b.self_attn.out_proj.weight", "without calling"),
}  # fmt: skip


def refused_inputs(play: Play, key: str, keys: Any, kind: str) -> None:
    made, name, why = UNSEEN[kind]
    line = rf"^{key}=.*inputs of {name} cannot be summed: .*{why}.*; allowed: exclude=..{name}"
    refused(play, line, model=lambda _: made(), output=("head",), keys=keys)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", UNSEEN)
def test_a_weight_whose_inputs_cannot_be_seen_is_refused(kind, play):
    refused_inputs(play, *USES[0], kind)


@pytest.mark.parametrize(("key", "keys"), USES[1:], ids=str)
def test_whatever_sums_inputs_refuses_alike(key, keys, play):
    refused_inputs(play, key, keys, "by hand")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keys", REDUCES, ids=str)
def test_redundancy_is_not_measured_on_inputs_that_were_not_seen(keys, play):
    for kind in ("by hand", "both", "never"):
        refused_inputs(play, "reduce", {**keys, "rounds": 4, "warmup": 1}, kind)


@pytest.mark.parametrize("how", ["called", "typed"])
@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_a_layer_that_is_called_keeps_the_pooled_choice(how, score, play):
    end = play(model=lambda _: used(how), output=("head",), keys={"score": score})
    assert end.summary["failures"] == 0
    assert end.summary["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_excluded_or_scored_by_gradients_it_may_be_used_by_hand(play):
    task = {"model": lambda _: used("by hand"), "output": ("head",)}
    for keys in ({"score": "wanda", "exclude": ("b.weight",)}, {"score": "taylor"}):
        assert play(**task, keys=keys).summary["failures"] == 0


def test_weights_of_an_lstm_have_no_inputs_to_sum(play):
    task = {"model": lambda _: recurrent(), "output": ("head",)}
    assert play(**task, keys={"score": "wanda"}).summary["failures"] == 0
    with pytest.raises(ValueError, match=r"b\.weight_ih_l0 has no inputs"):
        play(**task, keys={"score": "wanda", "include": ("b.weight*",)})


def test_layers_that_few_examples_reach_are_waited_for(play):
    end = play(
        model=lambda _: routed(False), output=("head",), keys={"score": "wanda", "cohort": 3}
    )
    assert end.summary["failures"] == 0


def test_a_layer_that_a_cohort_did_not_reach_is_named_when_it_is_scored(play):
    line = r"^score='wanda': no row went through the layer of [ab]\..*; allowed: exclude="
    with pytest.raises(ConfigError, match=line):
        play(model=lambda _: routed(True), output=("head",), keys={"score": "wanda", "cohort": 1})


def test_the_port_of_a_house_is_not_rehearsed_twice(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", MINE)
    config = configure(KEYS)
    port = inline_port(build_host(config))
    monkeypatch.setitem(TASKS, "mine", replace(MINE, shards=never))
    assert federate(config, port).summary["failures"] == 0


def test_an_encoder_is_no_language_model_unless_it_is_a_decoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "rows.txt").write_text("to be or not to be that is the question\n" * 30)
    keys = {"engine": "inline", "task": "language-modelling", "data": str(tmp_path / "rows.txt"),
            "clients": 2, "length": 16, "model": str(tmp_path / "model")}  # fmt: skip
    characters("causal").tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 98, "intermediate_size": 32}
    for decoder in (False, True):
        torch.manual_seed(0)
        config = transformers.BertConfig(is_decoder=decoder, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / "model")
        if decoder:
            assert build_host(configure(keys)).model.config.is_decoder
        else:
            with pytest.raises(ConfigError, match=r"^model='.*': a later token moves the logits"):
                build_host(configure(keys))


@pytest.mark.parametrize("by_hand", [False, True])
def test_logits_by_hand_would_be_of_other_tokens_in_a_smaller_vocabulary(by_hand, play):
    symbols = characters("causal")

    def tied() -> nn.Module:
        table, body = nn.Embedding(symbols.size, 8), nn.Linear(8, 8)
        head = nn.Linear(8, symbols.size, bias=False)
        head.weight = table.weight

        def forward(m: Any, tokens: Tensor) -> Tensor:
            hidden = m.body(m.table(tokens))
            return hidden @ m.table.weight.T if by_hand else m.head(hidden)

        return Net(forward, table=table, body=body, head=head)

    def texts(p: Part) -> Part:
        return shifted(7 + (p["images"] > 0).long())

    def its_loss(model: nn.Module, batch: Part) -> Loss:
        return token_loss(model(batch["inputs"]), batch)

    task = {"model": lambda _: tied(), "loss": its_loss, "shards": few(texts, everybody=True)}
    task |= {"labels": label_tokens, "metric": "loss", "output": ("head",), "unit": "tokens"}
    task |= {"tokens": ("inputs", "labels"), "tokenizer": lambda _: symbols.tokenizer}
    keys = {"vocabulary": "used"}
    if by_hand:
        refused(play, "without the rows of table that nobody uses its logits", keys=keys, **task)
    else:
        assert play(keys=keys, **task).summary["sparsity"] == 0.5

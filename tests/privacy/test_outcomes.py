"""Whether a client answers does not depend on what noise hides, and a bound holds at the client."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedprune import RunConfig, Shard, federate
from fedprune.client.dp_sgd import whatever_fails
from fedprune.client.host import Host, build_host
from fedprune.client.partition_answers import answered
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.protocol.client_privacy import leaving
from fedprune.protocol.messages import Answer, Question
from fedprune.secagg.vectors import widened
from fedprune.tasks.task import Loss, Part
from tests.runs import Spy

DIGITS = {"task": "digits", "model": "mlp", "clients": 4, "cohort": 4, "rounds": 2, "warmup": 0}
DIGITS |= {"engine": "inline", "hosts": 1, "local_steps": 1, "sparsity": 0.5}


PARTS = ("train", "validation", "test")


def small_host(config: RunConfig, rows: int = 40) -> Host:
    """With the first so many rows of each part of every client."""
    host = build_host(config)
    shards = {
        p: Shard(*({n: t[:rows] for n, t in getattr(s, part).items()} for part in PARTS))
        for p, s in host.shards.items()
    }
    return replace(host, shards=shards)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "keys",
    [
        {"dp": "client", "dp_noise": 1.0},
        {"dp": "client", "dp_noise": 1.0, "combine": "votes"},
        {"dp": "client", "dp_noise": 1.0, "combine": "mean", "score": "wanda"},
        {"dp": "example", "dp_noise": 1.0},
        {"dp": "example", "dp_noise": 1.0, "secure": "secagg"},
    ],
    ids=str,
)
def test_an_example_that_is_not_finite_makes_no_failure(keys):
    """In whichever part: here in all of them."""
    config = configure({**DIGITS, **keys})
    host = small_host(config)
    own = {part: dict(getattr(host.shards[0], part)) for part in PARTS}
    for rows in own.values():
        rows["images"] = rows["images"].clone()
        rows["images"][0], rows["images"][1] = float("nan"), float("inf")
    shards = {**host.shards, 0: replace(host.shards[0], **own)}
    result = federate(config, inline_port(replace(host, shards=shards)))
    assert result.summary["failures"] == 0
    assert all(torch.isfinite(w).all() for w in result.state.weights.values())


CLIENT, EXAMPLE = ({"dp": unit, "dp_noise": 1.0} for unit in ("client", "example"))
HIDING = [
    *(CLIENT, {**CLIENT, "combine": "votes", "score": "wanda"}, {**CLIENT, "score": "movement"}),
    *(EXAMPLE, {**EXAMPLE, "secure": "secagg", "score": "wanda"}),
]


def test_what_raises_moves_no_other_example_of_a_sum():
    rows = {"x": torch.arange(6.0)}

    def of(batch: Part) -> tuple[float]:
        if 2.0 in batch["x"].tolist():
            raise ValueError
        return (float(batch["x"].sum()),)

    assert sum(s for (s,) in whatever_fails(of, rows, set())) == 0 + 1 + 3 + 4 + 5


MARKS = {RuntimeError: 2.0**-20, KeyError: 2.0**-21, SystemExit: 2.0**-22}
"""Of the pictures on which the loss raises: their first number."""


def with_marked(host: Host, error: type[BaseException], part: str, which: slice = slice(1)) -> Host:
    """The same host, where the loss raises on the first pictures of a part of client 0."""

    def loss(model: nn.Module, batch: Part) -> Loss:
        if bool((batch["images"][..., 0, 0] == MARKS[error]).any()):
            raise error("it is private that this is here")
        return host.task.loss(model, batch)

    images = getattr(host.shards[0], part)["images"].clone()
    images[which, ..., 0, 0] = MARKS[error]
    marked = {**getattr(host.shards[0], part), "images": images}
    shards = {**host.shards, 0: replace(host.shards[0], **{part: marked})}
    return replace(host, shards=shards, task=replace(host.task, loss=loss))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("trained", [RuntimeError, SystemExit])
@pytest.mark.parametrize("keys", HIDING, ids=str)
def test_a_loss_that_raises_on_an_example_makes_no_failure(keys, trained, caplog):
    """Not even as `sys.exit` does, which is no `Exception`; what it says stays with the client.

    In training one of the two, in both parts that measure the other.
    """
    config = configure({**DIGITS, **keys})
    measured = SystemExit if trained is RuntimeError else RuntimeError
    host = small_host(config)
    for part in PARTS:
        error = trained if part == "train" else measured
        which = slice(None) if error is RuntimeError and config.dp == "client" else slice(1)
        host = with_marked(host, error, part, which)
    result = federate(config, inline_port(host))
    assert [f for row in result.rows for f in row["failures"]] == []
    assert result.summary["failures"] == 0
    assert "private" not in caplog.text
    said = [record.message for record in caplog.records]
    assert all(text.startswith("clients' code raised ") for text in said)
    assert len(said) == len(set(said)), "where the clients are it is said, once each"
    assert 1 <= sum(text.startswith("clients' code raised RuntimeError: ") for text in said) <= 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("error", [KeyError, SystemExit])
@pytest.mark.parametrize("keys", [{}, {"score": "random"}, {"score": "wanda"}], ids=str)
def test_an_example_whose_loss_raises_moves_no_other(keys, error):
    """All but without noise, what leaves is what leaves a client that lacks the example."""
    given = {**DIGITS, **keys, "dp": "example", "dp_noise": 1.0, "batch_size": 32, "rounds": 1}
    config = configure({**given, "noise_source": "seeded", "dp_rate": 1.0})
    quiet = {"dp_noise": 1e-9, "dp_score_noise": 1e-9 if config.dp_score_noise else None}
    host = replace(small_host(config), config=config.model_copy(update=quiet))
    raises = with_marked(host, error, "train")
    train = {name: rows[1:] for name, rows in raises.shards[0].train.items()}
    fewer = replace(host, shards={0: replace(host.shards[0], train=train)})
    spy = Spy(inline_port(host))
    federate(config, spy.port)
    questions = [q for q, _, _ in spy.asked if q.kind in {"score", "tune"}]
    assert questions
    for question in questions:
        one, other = (answered(h, question, 0).values for h in (raises, fewer))
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_what_is_said_to_be_never_negative_is_not_when_it_leaves(clip):
    """The sensitivity that is booked is that of summands without negative values."""
    config = configure(
        {**DIGITS, "dp": "client", "dp_noise": 1.0, "score": "fisher", "dp_score_clip": clip}
    )
    lying = Answer(torch.tensor([-9.0, 3.0, -1.0, 4.0]), 1.0, {})
    left = leaving(lying, Question("score", 1, {}, {}, score="fisher"), config).values
    assert left.tolist() == pytest.approx([0.0, 0.6 * (clip or 1), 0.0, 0.8 * (clip or 1)])
    signed = leaving(lying, Question("score", 1, {}, {}, score="taylor_signed"), config).values
    assert signed.min() < 0


@pytest.mark.slow
@pytest.mark.parametrize("score", ["wanda", "fisher"])
def test_32_bits_do_at_defaults(score):
    """Statistics as large as 35,000: the ranges are widened until they fit, the sum is right."""
    keys = {**DIGITS, "rounds": 1, "score": score, "agreement": False}
    plain = federate(configure(keys)).state
    sealed = federate(configure({**keys, "secure": "secagg", "secure_bits": 32}))
    assert sealed.summary["failures"] == 0
    same = [(m == sealed.state.masks[n]).float().mean() for n, m in plain.masks.items()]
    assert min(same) > 0.999


def test_a_number_without_room_has_a_public_code():
    keys = {**DIGITS, "rounds": 1, "secure": "secagg", "ranges": {"scores/*": 1e-9}}
    result = federate(configure({**keys, "score": "wanda"}))
    told = {f["reason"] for row in result.rows for f in row["failures"]}
    assert told == {"out-of-range values"}


def test_ranges_are_widened_in_few_steps_and_for_numbers_alone():
    told = ["out-of-range values", "failed"]
    first = widened({}, told, 32)
    assert first == {"values": 1}
    assert widened({"values": 3}, told, 32) is None
    assert widened({}, told, 64) is None
    assert widened({}, ["failed", "out-of-range weight"], 32) is None

"""What an answer consists of, and what of it is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune import SCORES, RunConfig
from fedprune.client.host import Host
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.checks import check_sum, check_summand
from fedprune.protocol.failures import Failure
from fedprune.protocol.form import Form, fitting
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.scores.combine import COMBINES
from fedprune.tensors.named import count_kept
from tests.runs import tiny

Cnn = tuple[Host, Question]
NAN, INF = float("nan"), float("inf")
SHAPES = {n: torch.Size(s) for n, s in {"conv": (2, 3), "bias": (2,), "head": (4,)}.items()}
PRUNABLE = {n: SHAPES[n] for n in ("conv", "head")}
MASKS = {
    "conv": torch.tensor([[True, False, True], [False, False, True]]),
    "head": torch.tensor([False, True, False, False]),
}
COUNTS = {
    "score": {"count": 3.0},
    "tune": {"loss": 2.0, "count": 3.0},
    "evaluate": {"loss": 2.0, "correct": 1, "count": 3},
}
FORMS = {
    "score": Form(PRUNABLE, MASKS, frozenset(COUNTS["score"]), voters=4),
    "tune": Form(SHAPES, MASKS, frozenset(COUNTS["tune"])),
    "evaluate": Form({}, {}, frozenset(COUNTS["evaluate"])),
}
SIZES = {"score": 4, "tune": 6, "evaluate": 0}


@pytest.mark.parametrize("kind", FORMS)
def test_how_many_values_an_answer_carries(kind):
    size = SIZES[kind]
    assert FORMS[kind].values == size
    check_summand(torch.zeros(size), 1.0, COUNTS[kind], FORMS[kind])
    for other in {abs(size - 1), size + 1, size + 100}:
        with pytest.raises(Refused, match=f"wrong shape: {other} values, expected {size}") as e:
            check_summand(torch.zeros(other), 1.0, COUNTS[kind], FORMS[kind])
        assert e.value.field == "values"


# What travels, by sorted name: the flat position of a value, and whose tensor it is.
SPOTS = [
    ("tune", 0, "bias"),
    ("tune", 1, "bias"),
    ("tune", 2, "conv"),
    ("tune", 4, "conv"),
    ("tune", 5, "head"),
    ("score", 0, "conv"),
    ("score", 2, "conv"),
    ("score", 3, "head"),
]


@pytest.mark.parametrize(("kind", "spot", "name"), SPOTS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_tensor_with_the_nan_is_named(kind, spot, name, bad):
    values = torch.zeros(SIZES[kind])
    values[spot] = bad
    with pytest.raises(Refused, match="NaN or infinite") as e:
        check_summand(values, 1.0, COUNTS[kind], FORMS[kind])
    assert e.value.field == name


def test_a_position_is_named_as_it_is_spread():
    named = FORMS["tune"].named(torch.arange(1.0, 7.0))
    assert named["bias"].tolist() == [1.0, 2.0]
    assert named["conv"].tolist() == [[3.0, 0.0, 4.0], [0.0, 0.0, 5.0]]
    assert named["head"].tolist() == [0.0, 6.0, 0.0, 0.0]


EVALUATED = {"loss": 2.0, "correct": 1.0, "count": 3.0}
SPOILT = [
    *[("tune", {"weight": w}, "weight", "not a positive number") for w in (0.0, -1.0, NAN, INF)],
    *[
        ("evaluate", {"totals": EVALUATED | {"loss": bad}}, "loss", "is not finite")
        for bad in (NAN, INF)
    ],
    *[("tune", {"totals": totals}, None, "") for totals in ({}, {"count": 3.0})],
    ("evaluate", {"totals": {"loss": 1.0, "count": 3.0}}, None, ""),
    ("score", {"totals": {"count": 3.0, "smuggled": 1.0}}, None, ""),
    ("score", {"totals": {"count": -1.0}}, None, ""),
    ("evaluate", {"totals": EVALUATED | {"correct": -1.0}}, None, ""),
    # Numbers that nobody can have.
    ("tune", {"values": torch.tensor([0.0, 0, 0, 0, 0, 2e30])}, "head", ""),
    ("tune", {"weight": 1e300}, "weight", ""),
    ("tune", {"totals": {"loss": 1e91, "count": 3.0}}, "loss", ""),
    ("evaluate", {"totals": EVALUATED | {"correct": 4}}, "correct", ""),
    ("evaluate", {"totals": EVALUATED | {"count": 1e18}}, "count", ""),
]


@pytest.mark.parametrize(("kind", "changes", "field", "reason"), SPOILT)
def test_what_the_server_could_not_use_is_refused_by_its_name(kind, changes, field, reason):
    good = {"values": torch.zeros(SIZES[kind]), "weight": 1.0, "totals": COUNTS[kind]}
    check_summand(**good, form=FORMS[kind])
    with pytest.raises(Refused, match=reason or ".") as e:
        check_summand(**{**good, **changes}, form=FORMS[kind])
    assert field in (None, e.value.field)


SUMS = {"head": torch.Size([4]), "inputs": torch.Size([3])}


def test_statistics_are_checked_like_values():
    form = replace(FORMS["tune"], sums=SUMS)
    assert form.statistics == 1 + 3, "the head's where it is alive, the others whole"
    what = (torch.zeros(6), 1.0, COUNTS["tune"], form)
    check_summand(*what, torch.zeros(4))
    for odd in (None, torch.zeros(3), torch.zeros(5)):
        with pytest.raises(Refused, match=r"wrong shape: \d values, expected 4") as e:
            check_summand(*what, odd)
        assert e.value.field == "statistics"
    for spot, name in [(0, "head"), (1, "inputs"), (3, "inputs")]:
        bad = torch.zeros(4)
        bad[spot] = NAN
        with pytest.raises(Refused, match="NaN or infinite") as e:
            check_summand(*what, bad)
        assert e.value.field == name
    with pytest.raises(Refused, match="4 values, expected 0"):
        check_summand(torch.zeros(6), 1.0, COUNTS["tune"], FORMS["tune"], torch.zeros(4))


def test_a_mask_fits_what_has_its_name_and_its_shape():
    shapes = {"conv": torch.Size([3]), "head": torch.Size([4]), "other": torch.Size([4])}
    assert fitting(shapes, MASKS).keys() == {"head"}


FOLDED = Aggregate(
    torch.tensor([1.0, 1e-300, -3.25, 0.0], dtype=torch.float64),
    8.5,
    {"count": 11.0},
    torch.tensor([2, 0, 1, 2]),
    (4, 7),
    (Failure(5, "score", "w", "NaN or infinite"),),
    321,
)


RANKS = replace(FORMS["score"], within=(0.0, 1.0))


def test_a_good_sum_passes():
    check_sum(FOLDED, FORMS["score"])
    check_sum(replace(FOLDED, total=torch.tensor([0.0, 8.5, 1.0, 8.5]).double()), RANKS)
    check_sum(replace(FOLDED, votes=None), FORMS["score"])
    check_sum(Aggregate(failures=FOLDED.failures), FORMS["score"])


NORMED = replace(FORMS["score"], normed=True)
SPOILT_SUMS = [
    ({"total": None}, FORMS["score"], "values"),
    ({"total": torch.zeros(5, dtype=torch.float64)}, FORMS["score"], "values"),
    ({"total": torch.tensor([0.0, NAN, 0.0, 0.0])}, FORMS["score"], "conv"),
    ({"weight": 0.0}, FORMS["score"], "weight"),
    ({"weight": INF}, FORMS["score"], "weight"),
    ({"totals": {"count": NAN}}, FORMS["score"], "count"),
    ({"bytes_up": -1}, FORMS["score"], "bytes_up"),
    ({"votes": torch.tensor([1, 1])}, FORMS["score"], "votes"),
    ({"votes": torch.tensor([1, 1, 1, 1, 1])}, FORMS["score"], "votes"),
    ({"votes": torch.tensor([3, 1, 1, 1])}, FORMS["score"], "votes"),
    ({"votes": torch.tensor([0, -1, 1, 1])}, FORMS["score"], "votes"),
    ({"held": torch.ones(4)}, FORMS["score"], "held"),
    ({"held": torch.ones(4), "votes": None}, FORMS["score"], "held"),
    ({"statistics": torch.zeros(1)}, FORMS["score"], "statistics"),
    ({"singles": torch.zeros(2, 4)}, FORMS["score"], "singles"),
    ({"answered": ()}, FORMS["score"], "answered"),
    ({"answered": (), "weight": 0.0, "totals": {}, "votes": None}, FORMS["score"], "answered"),
    ({"answered": (), "weight": 0.0, "totals": {}, "total": None}, FORMS["score"], "answered"),
    ({"answered": (), "weight": 0.0, "votes": None, "total": None}, FORMS["score"], "answered"),
    # A mean beyond float32 is as bad as an infinite one.
    ({"total": torch.tensor([0.0, 0.0, 0.0, 8e45]).double()}, FORMS["score"], "head"),
    ({"total": torch.tensor([0.0, -1e60, 0.0, 0.0]).double()}, FORMS["score"], "conv"),
    ({"weight": 3e16}, FORMS["score"], "weight"),
    ({"totals": {"count": 1e17}}, FORMS["score"], "count"),
    ({"total": torch.tensor([0.0, 8.5, 9.0, 1.0]).double()}, RANKS, "conv"),
    ({"total": torch.tensor([0.0, 8.5, 1.0, -0.1]).double()}, RANKS, "head"),
    ({"norms": (1.0, 2.0)}, FORMS["score"], "norms"),
    ({"norms": (1.0,)}, NORMED, "norms"),
    ({"norms": (1.0, NAN)}, NORMED, "norms"),
    ({"total": torch.zeros(6), "totals": COUNTS["tune"]}, FORMS["tune"], "votes"),
]


@pytest.mark.parametrize(("changes", "form", "field"), SPOILT_SUMS)
def test_a_sum_that_would_spoil_the_servers_is_refused(changes, form, field):
    with pytest.raises(Refused) as e:
        check_sum(replace(FOLDED, **changes), form)
    assert e.value.field == field


def test_of_several_candidates_none_is_right_more_often_than_there_are_labels():
    totals = {"count": 3.0, "loss_0": 1.0, "loss_1": 1.0, "correct_0": 3.0, "correct_1": 4.0}
    with pytest.raises(Refused) as e:
        check_summand(torch.zeros(0), 1.0, totals, Form({}, {}, frozenset(totals)))
    assert e.value.field == "correct_1"


OWN = replace(FORMS["tune"], voters=4, own=True)
OWN_SUM = replace(
    FOLDED, total=torch.zeros(6), totals=COUNTS["tune"], held=torch.tensor([8.5, 0.0, 3.0, 8.5])
)


def test_under_masks_of_their_own_clients_owe_votes_and_who_held_what():
    check_sum(OWN_SUM, OWN)
    with pytest.raises(Refused, match="none, expected 4") as e:
        check_sum(replace(OWN_SUM, votes=None), OWN)
    assert e.value.field == "votes"
    # It weighs no more than all, and no less than those who voted.
    odd = [[0, -1.0, 3, 8.5], [0, NAN, 3, 8.5], [9.0, 0, 3, 8.5], [8.5, 0, 1e-290, 8.5]]
    odd += [[8.5, 0, 0.5, 8.5], [8.5, 0, 3, 8.5, 1]]
    for bad in (None, *(torch.tensor(each, dtype=torch.float64) for each in odd)):
        with pytest.raises(Refused) as e:
            check_sum(replace(OWN_SUM, held=bad), OWN)
        assert e.value.field == "held"


@pytest.mark.parametrize(
    "singles", [None, torch.zeros(2, 3), torch.zeros(3, 4), torch.full((2, 4), NAN)], ids=str
)
def test_a_rule_that_looks_at_clients_one_by_one_needs_one_row_each(singles):
    form = replace(FORMS["score"], singly=True)
    check_sum(replace(FOLDED, singles=torch.ones(2, 4)), form)
    with pytest.raises(Refused) as e:
        check_sum(replace(FOLDED, singles=singles), form)
    assert e.value.field == "singles"


def form(cnn: Cnn, kind: str, *, config: RunConfig | None = None, **what: Any) -> Form:
    host, about = cnn
    return form_of(replace(about, kind=kind, **what), config or host.config, host.layout)


def test_forms_of_the_default_run(cnn):
    host, about = cnn
    alive = count_kept(about.masks)
    scored = form(cnn, "score", score="taylor", sparsity=0.7)
    assert (scored.values, scored.voters, scored.totals) == (alive, alive, {"count"})
    assert form(cnn, "score", score="taylor").voters == 0
    tuned = form(cnn, "tune")
    everything = sum(s.numel() for s in host.layout.shapes.values())
    removed = sum(m.numel() for m in about.masks.values()) - alive
    assert (tuned.values, tuned.voters, tuned.own) == (everything - removed, 0, False)
    assert tuned.totals == {"loss", "count"}
    measured = form(cnn, "evaluate", part="validation")
    assert measured.values == 0
    assert measured.totals >= {"loss", "correct", "count"}
    assert form(cnn, "describe").shapes == {"test": (10,), "train": (10,)}


def test_asking_about_everything_or_a_part(cnn):
    host, about = cnn
    dense = form(cnn, "score", score="gradient", dense=True)
    assert dense.values == sum(m.numel() for m in about.masks.values())
    first = host.layout.prunable[0]
    one = form(cnn, "score", score="taylor", names=(first,), sparsity=0.7)
    assert one.values == one.voters == int(about.masks[first].sum())


@pytest.mark.parametrize("name", COMBINES)
def test_a_form_says_what_a_combination_needs(name, cnn):
    rule = COMBINES[name]
    alive = count_kept(cnn[1].masks)
    sent = form(cnn, "score", config=tiny(combine=name), score="taylor", sparsity=0.7)
    assert sent.values == (alive if rule.valued else 0)
    assert sent.singly == (rule.merge is not None)
    assert sent.voters == alive


def test_of_wanda_one_number_an_input_travels(cnn):
    """Unless the clients finish their scores themselves."""
    host, about = cnn
    asked: dict[str, Any] = {"score": "wanda"}
    pooled = form(cnn, "score", config=tiny(score="wanda"), **asked)
    kinds = SCORES["wanda"].asks[0].shapes(host.layout, host.layout.prunable, "weight", 0)
    assert pooled.shapes == kinds
    assert pooled.values == sum(s.numel() for s in kinds.values()) < count_kept(about.masks) / 5
    own = form(cnn, "score", config=tiny(score="wanda", combine="mean"), **asked)
    assert own.values == count_kept(about.masks)


@pytest.mark.parametrize("wire", ["fp32", "fp16", "log8"])
def test_what_a_cast_costs_is_told_only_where_there_is_one(wire, cnn):
    sent = form(cnn, "score", config=tiny(score_wire=wire), score="taylor", sparsity=0.7)
    assert sent.totals == ({"count"} if wire == "fp32" else {"count", "overlap", "own"})


def test_forms_of_tuning_with_more_than_the_change(cnn):
    alive = count_kept(cnn[1].masks)
    watched = form(cnn, "tune", config=tiny(score_during="tune"), score="taylor")
    assert (watched.statistics, watched.own) == (alive, False)
    own = form(cnn, "tune", config=tiny(masks="union"), score="taylor", sparsity=0.7)
    assert (own.statistics, own.voters, own.own) == (0, alive, True)
    plain = form(cnn, "tune", config=tiny(masks="union"))
    assert (plain.voters, plain.own) == (0, False), "in a round that does not prune"

"""What methods' files say they do otherwise than their papers, where no oracle of theirs tells."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedprune import methods as departing
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.methods.catalog import METHODS
from fedprune.options.refusal import ConfigError
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.tensors.models import load_into
from fedprune.tensors.named import gathered, scattered
from tests.perceptron import (
    LAYERS,
    SMALL,
    count,
    data,
    flat,
    gradients,
    kept_by,
    labels,
    outputs,
    summed_gradients,
)
from tests.runs import Asked, house_of, overheard, same, tiny

OF_TRAINING = ("local_epochs", "batch_size", "optimizer", "momentum", "clip", "lr", "lr_schedule")
FOLDER = Path(departing.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
TESTS = "".join(f.read_text() for f in Path(__file__).parents[1].rglob("test_*.py"))
ONCE = {"rounds": 1, "warmup": 0, "end": 1}
CNN = {"model": "cnn", "clients": 3, "cohort": 3, "rounds": 2, "sparsity": 0.6, "local_steps": 2}
BIASES = ("features.1.bias", "features.3.bias", "head.bias")


def run(method: str, **keys: Any) -> tuple[Any, Asked, list[Any]]:
    """A run of the perceptron in which every step is on all that a client has."""
    given = {**SMALL, "sparsity": 0.5, "lr_schedule": "constant", **keys, "method": method}
    left_out = {*METHODS[method].sets, *(OF_TRAINING if keys.get("local_steps") == 0 else ())}
    config = configure({n: x for n, x in given.items() if n not in left_out and x is not None})
    return config, *overheard(config)[1:]


def of_kind(asked: Asked, kind: str) -> list[tuple[Question, list[int], Any]]:
    return [each for each in asked if each[0].kind == kind]


@pytest.mark.slow
def test_complement_sparsification_takes_the_servers_rate_for_biases_too():
    config, asked, states = run("complement-sparsification", rounds=2, server_lr=1.5)
    (question, *_), *_ = of_kind(asked, "tune")
    slopes = summed_gradients(config, question.weights)
    for n in BIASES:
        wanted = question.weights[n].double() - 1.5 * 0.1 * slopes[n] / labels(config)
        assert torch.allclose(states[0].weights[n].double(), wanted, atol=1e-6)


@pytest.mark.parametrize("method", ["sparsyfed", "complement-sparsification"])
@pytest.mark.slow
def test_all_weights_compete_and_the_sparsity_is_reached_at_once_or_by_a_schedule(method):
    _, _, states = run(method, rounds=3)
    counts = [int(m.sum()) for m in states[0].masks.values()]
    few = count(flat(states[0].masks), 0.5)
    assert sum(counts) == few
    assert counts != [count(m, 0.5) for m in states[0].masks.values()]
    _, _, slowly = run(method, rounds=3, end=3, schedule="linear")
    kept = [int(flat(s.masks).sum()) for s in slowly]
    assert kept[0] > kept[1] > kept[2] == few


@pytest.mark.parametrize("method", ["depthfl", "fedpruner"])
@pytest.mark.slow
def test_biases_of_a_block_that_is_not_there_stay_and_a_model_without_blocks_is_refused(method):
    with pytest.raises(ConfigError, match="block"):
        run(method, sparsity=0.0)
    keys = {"task": "shakespeare", "model": "gpt2", "depth": 2, "width": 16, "length": 16}
    keys |= {"clients": 2, "cohort": 2, "local_steps": 1, "sparsity": 0.0, **ONCE}
    config = tiny(**keys, method=method, method_options={"depths": (1.0, 0.5)})
    _, asked, _ = overheard(config)
    question, _, answer = next(e for e in of_kind(asked, "tune") if e[1] == [1])
    moved = scattered(answer.total, house_of(config).layout.shapes, question.masks)
    gone = {n.rsplit(".", 1)[0] for n, m in question.masks.items() if not m.any()}
    assert gone
    assert any(moved[f"{n}.bias"].any() for n in gone if f"{n}.bias" in moved)


@pytest.mark.slow
def test_neighbours_of_dispfl_are_of_the_round_and_the_mean_of_those_who_trained_is_measured():
    keys = {"clients": 5, "cohort": 2, "rounds": 1, "sparsity": 0.5}
    config = configure({**SMALL, **keys, "method": "dispfl", "method_options": {"network": "full"}})
    result, _, (state,) = overheard(config)
    assert result.rows[0]["method"]["peer_models"] == 2
    memory, sums, held = state.memories["dispfl"], 0.0, 0.0
    for p in result.rows[0]["cohort"]:
        sums += memory.weights[p][LAYERS[0]].double()
        held += memory.masks[p][LAYERS[0]].double()
    assert torch.allclose(state.weights[LAYERS[0]].double(), sums / held.clamp(min=1), atol=1e-6)


def slopes_of(config: Any, question: Question, client: int) -> dict[str, Tensor]:
    """Gradients of the loss summed over a client's shard, in eval mode, of the matrices."""
    host = house_of(config)
    load_into(host.model, question.weights)
    those = [host.model.get_parameter(n) for n in host.layout.prunable]
    total = host.task.loss(host.model.eval(), host.shards[client].train).total
    return dict(zip(host.layout.prunable, torch.autograd.grad(total, those), strict=True))


@pytest.mark.parametrize("method", ["feddst", "dispfl"])
@pytest.mark.slow
def test_clients_grow_by_their_whole_shards_in_eval_mode(method: str) -> None:
    """Of a model with BatchNorm and a shard of many batches, before any step."""
    keys = {"warmup": 0, "end": 1 if method == "dispfl" else 2, "alpha": 3.0}
    config = tiny(**CNN, **keys, method=method)
    _, asked, _ = overheard(config)
    question = next(q for q, *_ in of_kind(asked, "tune") if q.exchange and q.round == keys["end"])
    answer = inline_port(house_of(config)).ask(replace(question, turn=0.0), [0])
    kept = scattered(answer.votes, {n: m.shape for n, m in question.masks.items()}, {})
    fresh = {n: kept[n].bool() & ~old for n, old in question.masks.items()}
    assert any(m.any() for m in fresh.values())
    for n, slopes in slopes_of(config, question, 0).items():
        free = ~question.masks[n]
        kept_by(fresh[n][free], slopes.abs()[free], int(fresh[n].sum()))


@pytest.mark.parametrize("method", ["fedtiny", "fedmef", "rigl"])
@pytest.mark.slow
def test_the_server_grows_by_whole_shards(method: str) -> None:
    config = tiny(**CNN, warmup=0, end=2, alpha=3.0, method=method)
    _, asked, _ = overheard(config)
    question, who, answer = of_kind(asked, "score")[-1]
    found = form_of(question, config, house_of(config).layout).named(answer.total)
    slopes = [slopes_of(config, question, client) for client in who]
    for n in question.names or slopes[0]:
        total = sum(s[n].double() for s in slopes)
        assert torch.allclose(found[n].double(), total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["feddst", "flash", "dispfl"])
@pytest.mark.slow
def test_momentum_is_forgotten_when_weights_are_exchanged(method: str) -> None:
    """A step before and one after: momentum that began anew changes neither."""
    keys = {"rounds": 2, "local_epochs": 1 if method == "dispfl" else 2}
    keys |= {} if method == "dispfl" else {"end": 2}
    config, asked, _ = run(method, **keys)
    question = next(q for q, *_ in of_kind(asked, "tune") if q.exchange)
    heavy = configure({**config.model_dump(exclude_unset=True), "momentum": 0.9})
    ports = [inline_port(house_of(c)) for c in (config, heavy)]
    plain, other = (port.ask(question, [0]) for port in ports)
    assert torch.equal(plain.total, other.total)


@pytest.mark.parametrize("most", [0.0, 0.8])
@pytest.mark.slow
def test_prunefl_adds_no_weight_beyond_its_density(most):
    """Where a round without weights takes so long that every weight pays."""
    options = {"constant": 1e6, "dec": 0.9, "initial": 1, "most": most}
    _, _, (state, *_) = run("prunefl", sparsity=0.7, rounds=2, end=2, method_options=options)
    kept = flat(state.masks)
    assert int(kept.sum()) == round((most or 0.3) * len(kept))


@pytest.mark.slow
def test_votes_of_feddst_are_numbers_of_clients():
    options = {"votes": 2}
    _, asked, states = run("feddst", rounds=2, end=2, local_epochs=2, method_options=options)
    votes = next(a.votes for *_, a in of_kind(asked, "tune") if a.votes is not None)
    assert set(votes.unique().tolist()) == {0, 1, 2, 3}
    assert votes[gathered(states[1].masks, {})].min() == 2


@pytest.mark.slow
def test_fedmef_keeps_the_rate_and_grows_by_all_gradients_of_whole_shards():
    config, asked, states = run("fedmef", rounds=3, end=3, regrow=0.4)
    assert len({q.lr for q, *_ in of_kind(asked, "tune")}) == 1
    assert all(q.regime.plain for q, *_ in of_kind(asked, "tune")), "all activations count"
    slopes = summed_gradients(config, states[0].weights)
    for n in LAYERS:
        old, new = (state.masks[n] for state in states[:2])
        assert (new & ~old).any()
        kept_by((new & ~old)[~old], slopes[n].abs()[~old], int((new & ~old).sum()))


@pytest.mark.slow
def test_of_fedpai_who_does_not_answer_holds_the_whole_model_and_the_mean_has_no_mask():
    keys = {"method": "fedpai", "score": "snip", "sparsity": 0.7, "cohort": 2, "rounds": 6}
    config = configure({**SMALL, **keys})
    result, asked, states = overheard(config, lambda q, p: q.kind == "own" and p == 1)
    quality = result.summary["quality"]
    assert quality["own"]["loss"] != quality["final"]["loss"]
    assert len(of_kind(asked, "own")) == 3, "once, whoever trains"
    assert states[-1].memories["fedpai"].masks.keys() == {0, 2}
    whole = {who[0]: bool(flat(q.masks).all()) for q, who, _ in of_kind(asked, "tune")}
    assert whole == {0: False, 1: True, 2: False}
    assert flat(states[-1].masks).all()


@pytest.mark.parametrize(("method", "asks"), [("fedprllm", "score"), ("fedspallm", "own")])
@pytest.mark.slow
def test_pruning_alone_moves_nothing_and_sends_masks(method, asks):
    config, asked, (state, *_) = run(method, rounds=1, local_steps=0, score_examples=None)
    start = of_kind(asked, asks)[0][0].weights
    assert not of_kind(asked, "tune")
    assert all(a.total is None or not a.total.numel() for _, _, a in of_kind(asked, asks))
    for n, w in state.weights.items():
        assert torch.equal(w, start[n] * state.masks.get(n, 1))
    if method == "fedprllm":
        (_, _, answer), *_ = of_kind(asked, asks)
        wanted = sum(rows_kept(start[LAYERS[0]], data(config, client)[0]) for client in range(3))
        found = answer.votes[: len(wanted)]
        assert int((wanted != found).sum()) <= 4, "by all examples, but for rounding"


def rows_kept(weight: Tensor, inputs: Tensor) -> Tensor:
    """Flags of the better half of every row by |w|·‖x‖."""
    worth = weight.double().abs() * inputs.square().sum(0).sqrt()
    best = worth.argsort(1, descending=True)[:, : count(worth[0], 0.5)]
    return torch.zeros(worth.shape).scatter_(1, best, 1.0).flatten()


@pytest.mark.slow
def test_fedrts_prunes_further_on_the_way():
    _, _, states = run("fedrts", rounds=3, end=3, schedule="linear")
    kept = [int(flat(s.masks).sum()) for s in states]
    assert kept[0] > kept[1] > kept[2] == count(flat(states[-1].masks), 0.5)


@pytest.mark.slow
def test_of_fedselect_all_weights_are_sent_and_biases_are_everybodys():
    options = {"grows": 0.5, "every": 1}
    keys = {"rounds": 2, "warmup": None, "local_epochs": 2, "method_options": options}
    config, asked, states = run("fedselect", **keys)
    assert len({a.bytes_down for *_, a in of_kind(asked, "tune")}) == 1
    assert all(flat(q.masks).all() for q, *_ in of_kind(asked, "tune"))
    _, (question, _, answer) = of_kind(asked, "tune")
    moved = scattered(answer.total, house_of(config).layout.shapes, {})
    for n in BIASES:
        wanted = question.weights[n].double() + moved[n] / 3  # clients count alike
        assert moved[n].any()
        assert torch.allclose(states[1].weights[n].double(), wanted, atol=1e-6)
    losses = set()
    for shift in (0.0, 1.0):  # who keeps biases of its own would not see it
        port = inline_port(house_of(config))
        port.ask(of_kind(asked, "tune")[0][0], [0])
        weights = {n: w + shift * (n in BIASES[:2]) for n, w in question.weights.items()}
        losses.add(port.ask(replace(question, lr=0.0, weights=weights), [0]).totals["loss"])
    assert len(losses) == 2


@pytest.mark.slow
def test_a_width_of_fjord_trains_the_biases_outside_of_it():
    options = {"widths": (1.0, 0.5)}
    config, asked, _ = run("fjord", rounds=1, unit="row", method_options=options)
    question, _, answer = next(e for e in of_kind(asked, "tune") if e[1] == [1])
    assert question.regime.widths == (1.0,), "of what it was sent"
    moved = scattered(answer.total, house_of(config).layout.shapes, question.masks)
    outside = ~question.masks[LAYERS[0]].any(1)
    assert outside.any()
    assert moved["features.1.bias"][outside].any()


@pytest.mark.parametrize(
    ("method", "options"), [("heterofl", {"tiers": (1.0, 0.5)}), ("fjord", {"widths": (1.0, 0.5)})]
)
@pytest.mark.slow
def test_parts_share_running_statistics_which_are_averaged(method, options):
    config = tiny(**{**CNN, **ONCE}, unit="channel", method=method, method_options=options)
    host = house_of(config)
    _, asked, (state, *_) = overheard(config)
    port, total, labels = inline_port(host), {}, 0.0
    tuned = [(q, p) for q, who, _ in of_kind(asked, "tune") for p in who]
    means = [n for n in host.layout.statistics if n not in host.layout.variances]
    assert means
    for question, p in tuned:
        answer = port.ask(question, [p])
        moved = scattered(answer.total, host.layout.shapes, question.masks)
        total = {n: total.get(n, 0.0) + moved[n] for n in means}
        labels += answer.weight
    for n in means:
        wanted = tuned[0][0].weights[n].double() + total[n] / labels
        assert torch.allclose(state.weights[n].double(), wanted, atol=1e-6)


@pytest.mark.slow
def test_a_tier_of_heterofl_trains_under_a_mask_without_a_scaler_on_all_classes():
    options = {"tiers": (1.0, 0.5)}
    config, asked, states = run("heterofl", rounds=2, end=2, method_options=options)
    narrow = [e for e in of_kind(asked, "tune") if e[1] == [1]]
    for question, _, answer in narrow:
        shapes, (x, y) = house_of(config).layout.shapes, data(config, 1)
        moved = scattered(answer.total / answer.weight, shapes, question.masks)
        assert answer.weight == len(y), "weighted by labels"
        slopes = gradients(question.weights, x, y)
        for n, w in moved.items():
            wanted = -0.1 * slopes[n] * question.masks.get(n, 1)
            assert torch.allclose(w.double(), wanted, atol=1e-6), n
    assert len(narrow) == 2
    alive, part = flat(states[0].masks), flat(narrow[1][0].masks)
    worth = flat(states[0].weights) * flat(summed_gradients(config, states[0].weights))
    kept_by(part[alive], worth.abs()[alive], int(part.sum()))
    for n, m in narrow[1][0].masks.items():
        assert torch.equal(narrow[1][0].weights[n], states[0].weights[n] * m)
    assert (narrow[1][0].masks[LAYERS[0]] != narrow[0][0].masks[LAYERS[0]]).any(), "chosen again"


@pytest.mark.slow
def test_of_spafl_thresholds_are_not_clipped_and_biases_are_trained():
    moved = {}
    for clip in (0.0, 1e-9):
        config, asked, (state,) = run("spafl", rounds=1, warmup=None, clip=clip)
        moved[clip] = state.memories["spafl"].thresholds
        lr = 0.1 if clip == 0.0 else 0.0
        loss = many = 0.0
        for client in range(3):
            slopes = gradients(state.weights, *data(config, client))
            own = {n: w.double() - lr * slopes[n] for n, w in state.weights.items()}
            part = house_of(config).shards[client].test
            logits = outputs(own, part["images"].flatten(1).double())
            loss += float(cross_entropy(logits, part["labels"], reduction="sum"))
            many += len(part["labels"])
        (measured,) = [a for q, _, a in of_kind(asked, "evaluate") if q.part == "test"][-1:]
        found = measured.totals["loss"] / measured.totals["count"]
        assert found == pytest.approx(loss / many, rel=2e-5)
    assert same(moved[0.0], moved[1e-9])
    assert moved[0.0].keys() == {*LAYERS}, "the head has none"


@pytest.mark.slow
def test_the_density_of_spafl_is_by_weights_and_a_layer_of_which_nothing_is_kept_begins_anew():
    """Of layers of unequal size, of which unequal parts of the rows are kept."""
    keys = {"sparsity": 0.0, "warmup": None, "end": None}
    config = tiny(**{**CNN, **keys}, method="spafl", alpha=3.0)
    _, asked, _ = overheard(config)
    question, who, _ = of_kind(asked, "tune")[0]
    names = sorted(house_of(config).layout.prunable)
    given, kept = dict(question.given), 0
    for i, n in enumerate(names):
        rows = question.weights[n].flatten(1)
        per = question.weights[n][0, 0].numel() if question.weights[n].ndim > 2 else rows.shape[1]
        given[f"{n}.moved"] = torch.full((len(rows),), 0.2 * per**0.5)
        pulled = rows - 0.2 * per**-0.5 * rows.sum(1, keepdim=True).sign()
        sizes = pulled.abs().mean(1)
        given[f"{n}.threshold"] = torch.full_like(sizes, float(sizes.quantile(0.2 + 0.3 * (i % 3))))
        kept += int((sizes > given[f"{n}.threshold"]).sum()) * rows.shape[1]
    port, still = inline_port(house_of(config)), replace(question, lr=0.0, given=given)
    answer = port.ask(still, who[:1])
    assert answer.totals["kept"] == kept
    assert not answer.total.any()
    first = len(question.weights[names[0]])
    high = {f"{names[0]}.threshold": torch.full((first,), 9.0)}
    parts = port.ask(replace(still, given={**given, **high}), who[1:2]).total
    assert set(parts[:first].tolist()) == {-9.0}, "it begins at 0 again"
    assert not parts[first:].any()


@pytest.mark.slow
def test_the_mask_of_sparsyfed_stays():
    _, _, states = run("sparsyfed", rounds=3, end=1)
    assert states[0].masks.keys() == {*LAYERS}
    assert same(states[0].masks, states[2].masks)


@pytest.mark.slow
def test_ssfl_scores_in_eval_mode():
    keys = {**CNN, **ONCE, "sparsity": None, "score_examples": 10_000, "alpha": 3.0}
    config = tiny(**keys, method="ssfl")
    _, asked, _ = overheard(config)
    question, who, answer = of_kind(asked, "score")[0]
    total = torch.zeros(len(answer.total)).double()
    for client in who:
        many = len(house_of(config).shards[client].train["labels"])
        slopes = slopes_of(config, question, client)
        each = [(question.weights[n] * slopes[n] / many).abs() for n in sorted(slopes)]
        total += torch.cat([worth.flatten() for worth in each])
    found = answer.total.double() / answer.total.sum()
    assert torch.allclose(found, total / total.sum(), atol=1e-7)


@pytest.mark.slow
def test_zerofl_chooses_within_tensors_and_sends_all_that_is_not_prunable():
    config, asked, states = run("zerofl", rounds=1, sparsity=0.9, method_options={"ratio": 0.0})
    (question, _, answer), *_ = of_kind(asked, "tune")
    shapes = house_of(config).layout.shapes
    moved = scattered(answer.total, shapes, {})
    for m in states[0].masks.values():
        assert int(m.sum()) == count(m, 0.9)
    for n in ("head.weight", *BIASES):
        after = question.weights[n].double() + moved[n] / answer.weight
        assert torch.allclose(states[0].weights[n].double(), after, atol=1e-6)
    part = {n: float((m != 0).double().mean()) for n, m in moved.items()}
    assert part[LAYERS[0]] < 0.4 < 0.5 < part["head.weight"]


HELD = """
complement: test_complement_sparsification_takes: η multiplies
complement: test_all_weights_compete: that of ``--schedule`` | which weights compete
complement: test_it_is_the_papers_loop: masks are exact
depthfl: test_a_client_trains_its_first_blocks: without exits | share the model's one head
depthfl: test_biases_of_a_block_that_is_not_there_stay: the biases of a block
dispfl: test_neighbours_of_dispfl_are_of_the_round: drawn among the round's cohort
dispfl: test_dispfl_is_its_algorithm: under its new mask
dispfl: test_clients_grow_by_their_whole_shards_in_eval_mode: of the whole shard
feddst: test_feddst_is_its_algorithm: does not come back | weighted by labels
feddst: test_clients_grow_by_their_whole_shards_in_eval_mode: whole shard
feddst: test_momentum_is_forgotten: optimizer begins anew
feddst: test_votes_of_feddst_are_numbers_of_clients: a vote is a client's
fedmef: test_fedmef_presses: not scaled | its penalty is the L2 norm
fedmef: nothing is computed otherwise: formula could not be read | takes the usual memory
fedmef: test_fedmef_keeps_the_rate: learning rate stays as it is | prunes no activations
fedmef: test_the_server_grows_by_whole_shards: of their whole shards
fedpai: nothing is computed otherwise: could not be read
fedpai: test_of_fedpai_who_does_not_answer: asked for once | whole model
fedpai: test_of_fedpai_who_does_not_answer: each client's own is measured
fedprllm: test_votes_decide_and_magnitude_breaks_their_ties: ties among votes go by magnitude
fedprllm: test_pruning_alone_moves_nothing: calibrates on all its examples
fedprllm: test_pruning_alone_moves_nothing: may fine-tune afterwards
fedpruner: test_a_client_trains_one_of_each_group: into groups | measured once | weights are trained
fedpruner: nothing is computed otherwise: the finer variant
fedpruner: test_biases_of_a_block_that_is_not_there_stay: biases of a block
fedrts: test_the_mask_is_drawn_from_posteriors: at the global weights | in pruning rounds alone
fedrts: test_the_mask_is_drawn_from_posteriors: are summed over clients | it is constant
fedrts: test_fedrts_prunes_further_on_the_way: Sparsity may rise
fedselect: test_what_moves_most_becomes_a_clients_own: turns change with every step
fedselect: test_what_moves_most_becomes_a_clients_own: all steps are of all | limit is met exactly
fedselect: test_what_moves_most_becomes_a_clients_own: the change is that since
fedselect: test_of_fedselect_all_weights_are_sent: sent all global weights | Biases, norms
fedspallm: test_pruning_alone_moves_nothing: by itself moves no weight | only masks travel up
fedspallm: test_fedspallm_is_its_three_equations: Every block is given | number is exact
fedspine: test_a_reward_is_the_fall_of_the_loss: formulas of its bandit | T_k counts
fedspine: test_clients_train_their_ranks_under_their_masks: importance is that of all
fedspine: test_clients_train_their_ranks_under_their_masks: averaged as in FlexLoRA
fedtiny: test_fedtiny_takes_the_candidate_of_the_lowest_loss: candidates' densities
fedtiny: test_fedtiny_takes_the_candidate_of_the_lowest_loss: all gradients of the block's
fedtiny: test_fedtiny_selects_by_statistics_of_the_clients: learning rate of 0
fedtiny: test_the_server_grows_by_whole_shards: whole shard
fjord: test_a_width_is_drawn_for_every_step: widths are densities | no distillation
fjord: test_a_width_is_drawn_for_every_step: a part is a mask
fjord: test_parts_share_running_statistics: running statistics
fjord: test_a_width_of_fjord_trains_the_biases_outside_of_it: biases of units outside
flash: test_flash_is_its_two_stages: numbers of weights are exact | exchange once
flash: test_flash_is_its_two_stages: which are not used | changes no mask after
flash: test_momentum_is_forgotten: optimizer begins anew
heterofl: test_a_tier_of_heterofl_trains: parts are chosen by | again at every pruning
heterofl: test_a_tier_of_heterofl_trains: under a mask | weighted by labels | is not masked
heterofl: test_parts_share_running_statistics: batch statistics are averaged
lotteryfl: test_a_run_is_the_loop_of_the_paper: kept and decided by the server | for its accuracy
movement_pruning: test_movement_pruning_remembers_all_rounds: stays removed | scores begin at 0
movement_pruning: test_movement_pruning_remembers_all_rounds: no threshold with a penalty
prunefl: test_prunefl_is_its_algorithm: send their squares in every round | divided by its steps
prunefl: test_prunefl_is_its_algorithm: labels trained on | left out of Gamma
prunefl: test_prunefl_adds_no_weight_beyond_its_density: no weight is added beyond
prunefl: test_what_pays_for_its_time_is_kept: stay by size stay even beyond
prunefl: test_the_first_pruning_of_prunefl: if it fails, the lowest
rigl: test_an_exchange_drops_by_score_and_grows_by_gradient: it does not grow again
rigl: test_the_server_grows_by_whole_shards: whole shards
rigl: test_training_begins_at_the_papers_densities: output layer is not
spafl: test_thresholds_alone_travel: begins anew in every round
spafl: test_of_spafl_thresholds_are_not_clipped: of the weights alone
spafl: test_of_spafl_thresholds_are_not_clipped: head of output has no thresholds
spafl: test_of_spafl_thresholds_are_not_clipped: biases are trained
spafl: test_the_density_of_spafl_is_by_weights: density is by weights
sparsyfed: nothing is computed otherwise: a copy of its code | says that masks adapt
sparsyfed: test_it_is_the_papers_loop: weights w travel | cut to the sparsity again
sparsyfed: test_all_weights_compete: that of ``--schedule`` | which weights compete
sparsyfed: test_the_mask_of_sparsyfed_stays: the mask stays
ssfl: test_ssfl_scores_in_eval_mode: in eval mode
ssfl: test_ssfl_keeps_what_the_plain_mean: exactly so many weights | output layer is not pruned
ssfl: test_ssfl_keeps_what_the_plain_mean: takes the plain mean
zerofl: test_zerofl_chooses_within_tensors: decided within tensors | dense and always sent
"""
"""By file: the test that fails where words of its docstring are no longer so."""

BEGINS = r"Where it departs|Departures:|\*\*The paper's text"


@pytest.mark.parametrize(
    "file", sorted({f.stem for f in FILES if re.search(BEGINS, f.read_text())})
)
def test_a_departure_names_the_test_that_holds_it(file):
    text = ast.get_docstring(ast.parse((FOLDER / f"{file}.py").read_text())) or ""
    begin = re.search(BEGINS, text)
    told = " ".join(text[begin.start() :].split())
    lines = [line.split(": ", 2) for line in HELD.strip().splitlines()]
    held = {words: test for of, test, some in lines if of == file for words in some.split(" | ")}
    for clause in told.split("; "):
        assert any(words in clause for words in held), f"no test is named for: {clause}"
    for words, test in held.items():
        assert words in told
        assert test == "nothing is computed otherwise" or f"def {test}" in TESTS, test

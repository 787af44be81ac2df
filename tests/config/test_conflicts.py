"""Every choice that contradicts another is refused in one line, and every refusal has an example.

The lines are compared word for word: they are all that a user sees.
"""

import inspect
from dataclasses import replace
from typing import Any

import pytest

from fedprune import TASKS
from fedprune.config import RunConfig, configure, conflicts, reduction_conflicts, rules
from fedprune.config import learning_conflicts as refusals
from fedprune.config import local_privacy_conflicts as local_conflicts
from fedprune.config import secure_conflicts as secure_conflicts
from fedprune.config.defaults import completed
from fedprune.options.refusal import ConfigError, Conflict, named
from fedprune.scores.catalog import scores_of
from fedprune.tasks.catalog import tasks_of

Keys = dict[str, Any]
DIGITS: Keys = {"task": "digits"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task without an example that stands for any."""
    monkeypatch.setitem(TASKS, "bare", replace(TASKS["digits"], dummy=None))


LATER = [
    (
        {"score": "snip", "schedule": "cubic", "warmup": 0},
        "schedule='cubic'",
        "score snip is taken before any training; allowed: one-shot",
    ),
    (
        {"schedule": "regrow", "rounds": 9, "warmup": 2, "end": 3},
        "end=3",
        "no round is left to exchange in; allowed: 4 to 9",
    ),
    (
        {"score": "random", "score_steps": 3},
        "score-steps=3",
        "score random says the same of what is left; allowed: 1",
    ),
    (
        {"score_wire": "log8", "agreement": False},
        "score-wire='log8'",
        "the overlap it costs is measured on clients' masks; allowed: fp32, or a sparsity and "
        "--agreement",
    ),
    (
        {"score_during": "tune", "score_wire": "fp16"},
        "score-wire='fp16'",
        "its cost is measured in a pass; allowed: fp32",
    ),
    (
        {"task": "text-classification", "data": "x", "client_column": "who", "split": "iid"},
        "client-column='who'",
        "split is iid; allowed: leave it out",
    ),
    (
        {"sparsity": 0.0, "masks": "union"},
        "masks='union'",
        "clients prune to a sparsity; allowed: global",
    ),
]

HOW_MUCH = [
    (
        {"threshold": 0.1, "sparsity": 0.5},
        "threshold=0.1",
        "sparsity and threshold exclude each other; allowed: one of sparsity, threshold, "
        "target-bytes, target-flops",
    ),
    (
        {"target_bytes": 9, "target_flops": 0.5},
        "target-flops=0.5",
        "target-bytes and target-flops exclude each other; allowed: one of sparsity, threshold, "
        "target-bytes, target-flops",
    ),
    (
        {"threshold": 0.1, "schedule": "cubic"},
        "schedule='cubic'",
        "a threshold prunes once; allowed: one-shot",
    ),
    (
        {"threshold": 0.1, "scope": "layer"},
        "scope='layer'",
        "a threshold looks at every weight by itself; allowed: global",
    ),
    (
        {"threshold": 0.1, "unit": "row"},
        "unit='row'",
        "a threshold looks at every weight by itself; allowed: weight",
    ),
    (
        {"threshold": 0.1, "min_density": 0.1},
        "min-density=0.1",
        "a threshold looks at every weight by itself; allowed: 0",
    ),
    (
        {"threshold": 0.1, "max_density": 0.5},
        "max-density=0.5",
        "a threshold looks at every weight by itself; allowed: 1",
    ),
    ({"threshold": 0.1, "score_steps": 2}, "score-steps=2", "steps need a sparsity; allowed: 1"),
    ({"target_bytes": 999, "score_steps": 2}, "score-steps=2", "steps need a sparsity; allowed: 1"),
    (
        {"scope": "patterns", "layers": {"*": 0.3}, "score_steps": 2},
        "score-steps=2",
        "steps need a sparsity; allowed: 1",
    ),
    (
        {"threshold": 0.1, "baselines": ("random",)},
        "baselines=('random',)",
        "random scores mean nothing to a threshold; allowed: dense",
    ),
    (
        {"target_flops": 0.5, "unit": "n:m"},
        "unit='n:m'",
        "the pattern says how much goes; allowed: another unit",
    ),
    (
        {"target_flops": 0.5, "combine": "votes"},
        "combine='votes'",
        "clients vote at a sparsity; allowed: another rule",
    ),
    (
        {"threshold": 0.1, "combine": "votes"},
        "combine='votes'",
        "clients vote at a sparsity; allowed: another rule",
    ),
    (
        {"task": "bare", "target_flops": 0.5},
        "target-flops=0.5",
        "task bare has no example to count FLOPs on; allowed: sparsity",
    ),
]
WHAT = [
    (
        {"unit": "n:m", "unit_shape": (4, 2)},
        "unit-shape=(4, 2)",
        "cannot be; allowed: N,M with 1 <= N < M (N of every M inputs stay)",
    ),
    (
        {"unit": "block", "unit_shape": (0, 2)},
        "unit-shape=(0, 2)",
        "cannot be; allowed: rows,columns, both 1 or more",
    ),
    ({"unit_shape": (2, 4)}, "unit-shape=(2, 4)", "unit weight has none; allowed: leave it out"),
    (
        {"unit": "row", "scope": "row"},
        "scope='row'",
        "unit row cannot be ranked so; allowed: global, layer, er, erk, owl, patterns",
    ),
    (
        {"unit": "n:m", "scope": "layer"},
        "scope='layer'",
        "unit n:m cannot be ranked so; allowed: global",
    ),
    (
        {"unit": "n:m", "min_density": 0.1},
        "min-density=0.1",
        "n:m fixes the density of every tensor, which leaves min-density 0, max-density 1; "
        "allowed: 0",
    ),
    (
        {"unit": "row", "max_density": 0.5},
        "max-density=0.5",
        "unit row has sizes that no max-density can be kept with but 1; allowed: 1",
    ),
    (
        {"scope": "patterns", "layers": {"*": 0.5}, "max_density": 0.9},
        "max-density=0.9",
        "patterns fix the density of every tensor, which leaves min-density 0, max-density 1; "
        "allowed: 1",
    ),
    (
        {"unit": "n:m", "sparsity": 0.6},
        "sparsity=0.6",
        "the pattern says how much goes; allowed: 0.5, or leave it out",
    ),
    ({"pool": "max"}, "pool='max'", "unit weight pools nothing; allowed: leave it out"),
    ({"unit": "n:m", "pool": "max"}, "pool='max'", "unit n:m pools nothing; allowed: leave it out"),
    ({"layers": {"*": 0.5}}, "layers={'*'", "0.5}: scope is global; allowed: leave it out"),
    (
        {"scope": "patterns"},
        "layers={}",
        "scope patterns needs some; allowed: --layers PATTERN DENSITY",
    ),
    (
        {"scope": "patterns", "layers": {"*": 1.5}},
        "layers={'*'",
        "1.5}: not densities; allowed: above 0, up to 1",
    ),
    ({"min_density": 0.3}, "min-density=0.3", "more than the sparsity leaves; allowed: 0 to 0.2"),
    ({"max_density": 0.1}, "max-density=0.1", "less than the sparsity leaves; allowed: 0.2 to 1"),
    (
        {"score": "ablation", "unit": "block"},
        "unit='block'",
        "score ablation is of others; allowed: weight, row, column, head, neuron, "
        "head-neuron, channel, "
        "sublayer, layer",
    ),
    (
        {"score": "block_influence", "unit": "row"},
        "unit='row'",
        "score block_influence is of others; allowed: layer",
    ),
]
BY_ITSELF = [
    (
        {"score": "sparsegpt", "scope": "global"},
        "scope='global'",
        "score sparsegpt selects by itself, tensor by tensor; allowed: layer",
    ),
    (
        {"score": "sparsegpt", "target_bytes": 9},
        "sparsity=None",
        "score sparsegpt needs a sparsity; allowed: a number",
    ),
    (
        {"score": "sparsegpt", "min_density": 0.1},
        "min-density=0.1",
        "score sparsegpt selects by itself, tensor by tensor; allowed: 0",
    ),
    (
        {"score": "sparsegpt", "max_density": 0.5},
        "max-density=0.5",
        "score sparsegpt selects by itself, tensor by tensor; allowed: 1",
    ),
    (
        {"score": "sparsegpt", "combine": "mean"},
        "combine='mean'",
        "score sparsegpt selects by itself, tensor by tensor; allowed: sum",
    ),
    (
        {"score": "sparsegpt", "normalise": "rank"},
        "normalise='rank'",
        "score sparsegpt selects by itself, tensor by tensor; allowed: none",
    ),
    (
        {"score": "sparsegpt", "masks": "union"},
        "masks='union'",
        "score sparsegpt selects by itself, tensor by tensor; allowed: global",
    ),
    (
        {"score": "sparsegpt", "score_wire": "fp16"},
        "score-wire='fp16'",
        "score sparsegpt inverts its sums; allowed: fp32",
    ),
    (
        {"score": "sparsegpt", "rewind": 0},
        "rewind=0",
        "score sparsegpt sets the weights that stay; allowed: leave it out",
    ),
    (
        {"score": "sparsegpt", "schedule": "regrow"},
        "schedule='regrow'",
        "score sparsegpt selects by itself, tensor by tensor; allowed: one-shot, linear, cubic, "
        "exponential",
    ),
]
WHEN = [
    (
        {"schedule": "regrow", "unit": "row"},
        "unit='row'",
        "regrow exchanges single weights at constant sparsity; allowed: weight",
    ),
    (
        {"schedule": "regrow", "scope": "erk"},
        "scope='erk'",
        "regrow exchanges single weights at constant sparsity; allowed: global, layer",
    ),
    (
        {"schedule": "regrow", "min_density": 0.1},
        "min-density=0.1",
        "regrow exchanges single weights at constant sparsity; allowed: 0",
    ),
    (
        {"schedule": "regrow", "max_density": 0.5},
        "max-density=0.5",
        "regrow exchanges single weights at constant sparsity; allowed: 1",
    ),
    (
        {"schedule": "regrow", "rewind": 0},
        "rewind=0",
        "regrow exchanges single weights at constant sparsity; allowed: leave it out",
    ),
    (
        {"schedule": "regrow", "score_steps": 2},
        "score-steps=2",
        "regrow exchanges single weights at constant sparsity; allowed: 1",
    ),
    (
        {"score": "snip", "warmup": 2},
        "warmup=2",
        "score snip is taken before any training; allowed: 0",
    ),
    ({"regrow": 0.5}, "regrow=0.5", "schedule is cubic; allowed: leave it out"),
    ({"rewind": 9}, "rewind=9", "pruning begins before; allowed: 0 to 6"),
    ({"rewind": 0, "sparsity": 0.0}, "rewind=0", "nothing is pruned; allowed: leave it out"),
    ({"probes": 9}, "probes=9", "score taylor takes none; allowed: leave it out"),
]
WHILE_TUNING = [
    (
        {"score": "movement", "score_during": "pass"},
        "score-during='pass'",
        "score movement is collected by tuning; allowed: tune",
    ),
    (
        {"score_during": "tune", "score": "fisher"},
        "score-during='tune'",
        "score fisher needs a pass of its own; allowed: pass",
    ),
    (
        {"score_during": "tune", "score": "magnitude"},
        "score-during='tune'",
        "score magnitude needs a pass of its own; allowed: pass",
    ),
    (
        {"score_during": "tune", "score": "grasp"},
        "score-during='tune'",
        "score grasp needs a pass of its own; allowed: pass",
    ),
    (
        {"score_during": "tune", "combine": "mean"},
        "combine='mean'",
        "what is collected while tuning is summed, once a round; allowed: sum",
    ),
    (
        {"score_during": "tune", "normalise": "l1"},
        "normalise='l1'",
        "what is collected while tuning is summed, once a round; allowed: none",
    ),
    (
        {"score_during": "tune", "score_steps": 2},
        "score-steps=2",
        "what is collected while tuning is summed, once a round; allowed: 1",
    ),
    (
        {"score_during": "tune", "compile": True},
        "compile=True",
        "a compiled model is not watched; allowed: false",
    ),
    (
        {"score_during": "tune", "schedule": "regrow"},
        "schedule='regrow'",
        "what is collected while tuning is summed, once a round; allowed: one-shot, linear, "
        "cubic, exponential",
    ),
]
IN_SEQUENCE = [
    (
        {"calibration": "sequential", "scope": "layer", "score": "magnitude"},
        "calibration='sequential'",
        "score magnitude asks nobody; allowed: dense",
    ),
    (
        {"calibration": "sequential", "scope": "layer", "score_during": "tune"},
        "calibration='sequential'",
        "there is no pass to repeat; allowed: dense",
    ),
    (
        {"calibration": "sequential", "scope": "global"},
        "scope='global'",
        "blocks are pruned one after the other; allowed: layer, row",
    ),
    (
        {"calibration": "sequential", "scope": "layer", "unit": "head"},
        "unit='head'",
        "blocks are pruned one after the other; allowed: weight, n:m, block, row, column",
    ),
    (
        {"calibration": "sequential", "scope": "layer", "target_bytes": 9},
        "sparsity=None",
        "blocks are pruned one after the other; allowed: a number",
    ),
    (
        {"calibration": "sequential", "scope": "layer", "score_steps": 2},
        "score-steps=2",
        "blocks are pruned one after the other; allowed: 1",
    ),
    (
        {"calibration": "sequential", "scope": "layer", "schedule": "regrow"},
        "schedule='regrow'",
        "blocks are pruned one after the other; allowed: one-shot, linear, cubic, exponential",
    ),
    (
        {"calibration": "local", "scope": "layer"},
        "calibration='local'",
        "clients have no masks of their own; allowed: dense, sequential, or --combine votes, or "
        "--masks union, intersection",
    ),
    (
        {"calibration": "local", "scope": "global", "combine": "votes"},
        "scope='global'",
        "blocks are pruned one after the other; allowed: layer, row",
    ),
    (
        {"calibration": "local", "scope": "layer", "combine": "votes", "score_wire": "fp16"},
        "score-wire='fp16'",
        "no statistics travel; allowed: fp32",
    ),
    (
        {"calibration": "local", "scope": "layer", "combine": "votes", "score": "grasp"}
        | {"warmup": 0, "schedule": "one-shot", "end": 1},
        "calibration='local'",
        "score grasp needs two questions; allowed: dense",
    ),
    (
        {"calibration": "local", "scope": "layer", "combine": "votes", "vote_scope": "global"},
        "vote-scope='global'",
        "blocks are pruned one after the other; allowed: layer, row",
    ),
    (
        {"score_cohort": "all", "score": "magnitude"},
        "score-cohort='all'",
        "score magnitude asks nobody; allowed: cohort",
    ),
    (
        {"score_cohort": "all", "masks": "union"},
        "score-cohort='all'",
        "clients prune by themselves, as they tune; allowed: cohort",
    ),
    (
        {"score_examples": 3, "score_during": "tune"},
        "score-examples=3",
        "statistics are collected while tuning; allowed: leave it out",
    ),
    (
        {"weighting": "equal-scores"},
        "weighting='equal-scores'",
        "combine sum weights no client's score; allowed: labels, equal",
    ),
]
WHOSE = [
    (
        {"score": "magnitude", "combine": "mean"},
        "combine='mean'",
        "score magnitude asks nobody; allowed: sum",
    ),
    (
        {"score": "magnitude", "normalise": "l1"},
        "normalise='l1'",
        "score magnitude asks nobody; allowed: none",
    ),
    (
        {"combine": "votes", "normalise": "l1"},
        "normalise='l1'",
        "votes does not depend on the scale; allowed: none",
    ),
    (
        {"combine": "rank-mean", "normalise": "rank"},
        "normalise='rank'",
        "rank-mean does not depend on the scale; allowed: none",
    ),
    (
        {"normalise": "rank"},
        "normalise='rank'",
        "ranks are of clients' own scores; allowed: none, l1, or --combine mean",
    ),
    (
        {"score": "wanda", "normalise": "l1"},
        "normalise='l1'",
        "what score wanda sums are not scores yet; allowed: none, or --combine mean",
    ),
    ({"trim": 0.2}, "trim=0.2", "combine is sum; allowed: leave it out"),
    ({"vote_scope": "row"}, "vote-scope='row'", "combine is sum; allowed: leave it out"),
    (
        {"combine": "votes", "vote_scope": "layer"},
        "vote-scope='layer'",
        "votes of weights that competed per layer do not rank per global (FedPrLLM, arXiv "
        "2505.13547, table 4: perplexity 7.98 became 31.85 with layer against row); allowed: "
        "global",
    ),
    (
        {"score": "random", "score_wire": "fp16"},
        "score-wire='fp16'",
        "score random asks nobody; allowed: fp32",
    ),
]
SHRUNK = [
    (
        {"shrink": "every", "schedule": "regrow", "score": "magnitude"},
        "shrink='every'",
        "what is cut out cannot grow back; allowed: never, end",
    ),
    (
        {"shrink": "end", "sparsity": 0.0},
        "shrink='end'",
        "nothing is pruned; allowed: never",
    ),
    (
        {"init": "runs/one", "baselines": ["random"]},
        "baselines=('random',)",
        "nothing further is pruned, so that they are the run itself; allowed: none, or random with "
        "a further sparsity",
    ),
    (
        {"init": "runs/one", "sparsity": 0.9, "baselines": ["dense"]},
        "baselines=('dense',)",
        "it begins pruned; allowed: random",
    ),
    (
        {"init": "runs/one", "sparsity": 0.9, "rewind": 0},
        "rewind=0",
        "it begins where another run ended; allowed: 1 on",
    ),
]

OWN_MASKS = [
    (
        {"average": "fedavg"},
        "average='fedavg'",
        "all clients keep the same weights; allowed: leave it out, or --masks union, intersection",
    ),
    (
        {"masks": "union", "score": "magnitude"},
        "masks='union'",
        "score magnitude gives every client the same mask; allowed: global",
    ),
    (
        {"masks": "union", "target_bytes": 9},
        "masks='union'",
        "clients prune to a sparsity; allowed: global",
    ),
    (
        {"masks": "union", "combine": "mean"},
        "combine='mean'",
        "clients prune by themselves, before they tune; allowed: sum",
    ),
    (
        {"masks": "union", "normalise": "l1"},
        "normalise='l1'",
        "clients prune by themselves, before they tune; allowed: none",
    ),
    (
        {"masks": "union", "score_during": "tune"},
        "score-during='tune'",
        "clients prune by themselves, before they tune; allowed: pass",
    ),
    (
        {"masks": "union", "calibration": "sequential", "scope": "layer"},
        "calibration='sequential'",
        "clients prune by themselves, before they tune; allowed: dense, local",
    ),
    (
        {"masks": "union", "score_steps": 2},
        "score-steps=2",
        "clients prune by themselves, before they tune; allowed: 1",
    ),
    (
        {"masks": "union", "schedule": "regrow"},
        "schedule='regrow'",
        "clients prune by themselves, before they tune; allowed: one-shot, linear, cubic, "
        "exponential",
    ),
    (
        {"masks": "union", "score_wire": "fp16"},
        "score-wire='fp16'",
        "no statistics travel; allowed: fp32",
    ),
]
OF_THE_TASK = [
    ({"model": "resnet"}, "model='resnet'", "task digits has no such model; allowed: cnn, mlp"),
    ({"length": 9}, "length=9", "no text; allowed: leave it out"),
    ({"data": "x"}, "data='x'", "task digits reads no folder; allowed: leave it out"),
    (
        {"small_owners": "drop"},
        "small-owners='drop'",
        "no --client-column says whose a row is; allowed: leave it out",
    ),
    ({"encoding": "cp1252"}, "encoding='cp1252'", "no table is read; allowed: leave it out"),
    (
        {"task": "shakespeare", "split": "natural", "class_names": ("a", "b")},
        "class-names=('a', 'b')",
        "task shakespeare has no classes; allowed: leave it out",
    ),
    (
        {"task": "digits", "class_names": ("a", "b")},
        "class-names=('a', 'b')",
        "task digits has 10 classes; allowed: 10 names",
    ),
    (
        {"task": "digits", "class_names": tuple("aabcdefghi")},
        f"class-names={tuple('aabcdefghi')}",
        "an entry is there twice; allowed: names that differ, with commas between",
    ),
    (
        {"task": "text-classification", "data": "x", "encoding": "base64"},
        "encoding='base64'",
        "no encoding of text; allowed: utf-8, latin-1, ...",
    ),
    (
        {"text_column": "t"},
        "text-column='t'",
        "task digits reads no such column; allowed: leave it out",
    ),
    (
        {"label_column": "t"},
        "label-column='t'",
        "task digits reads no such column; allowed: leave it out",
    ),
    (
        {"target_column": "t"},
        "target-column='t'",
        "task digits reads no such column; allowed: leave it out",
    ),
    (
        {"client_column": "t"},
        "split='natural'",
        "task digits has no such split; allowed: iid, dirichlet, shards",
    ),
    (
        {"client_column": "t", "split": "iid"},
        "client-column='t'",
        "task digits reads no such column; allowed: leave it out",
    ),
]
OUT_OF_BOUNDS = [
    ({"clients": 4, "cohort": 5}, "cohort=5", "more clients than there are; allowed: 1 to 4"),
    ({"clients": 4, "hosts": 5}, "hosts=5", "more hosts than clients; allowed: 1 to 4"),
    ({"cohort": 3, "min_clients": 4}, "min-clients=4", "more than the cohort; allowed: 1 to 3"),
    ({"rounds": 5, "warmup": 5}, "warmup=5", "no round is left to prune in; allowed: 0 to 4"),
    (
        {"rounds": 9, "warmup": 3, "end": 10},
        "end=10",
        "the last pruning is not between warm-up and the last round; allowed: 4 to 9",
    ),
    (
        {"schedule": "one-shot", "warmup": 3, "rounds": 9, "end": 5},
        "end=5",
        "one-shot prunes once, in round 4; allowed: 4, or leave it out",
    ),
    (
        {"schedule": "one-shot", "frequency": 2},
        "frequency=2",
        "one-shot prunes once, in round 7; allowed: 1, or leave it out",
    ),
    (
        {"local_steps": 0},
        "local-steps=0",
        "steps and epochs exclude each other, and one must be above 0; allowed: one of them",
    ),
    (
        {"baselines": ("dense", "dense")},
        "baselines=('dense', 'dense')",
        "an entry is there twice; allowed: some of dense, random, each once, with commas between",
    ),
]
UNUSED = [
    ({"alpha": 0.5, "split": "iid"}, "alpha=0.5", "split is iid; allowed: leave it out"),
    (
        {"momentum": 0.5, "optimizer": "adam"},
        "momentum=0.5",
        "adam has none; allowed: leave it out",
    ),
    (
        {"engine": "inline", "gpus": 0.5},
        "gpus=0.5",
        "inline runs in this process, nothing is shared out; allowed: -1 (if there), 0",
    ),
    (
        {"engine": "inline", "workers": 2},
        "workers=2",
        "inline runs in this process; allowed: 0 or 1, or --engine ray",
    ),
    (
        {"engine": "flower", "workers": 2},
        "workers=2",
        "under flwr run Flower's own settings decide; allowed: leave it out",
    ),
    (
        {"engine": "flower", "ray_address": "x"},
        "ray-address='x'",
        "under flwr run Flower's own settings decide; allowed: leave it out",
    ),
    (
        {"ray_address": "x", "workers": 2},
        "workers=2",
        "a cluster's own processors are all used; allowed: 0",
    ),
    (
        {"engine": "inline", "ray_address": "x"},
        "ray-address='x'",
        "inline does not use Ray; allowed: leave it out",
    ),
]

HOW_FOUND = [
    (
        {"vocabulary": "used"},
        "vocabulary='used'",
        "task digits reads no tokens; allowed: full",
    ),
    (
        {"task": "shakespeare", "vocabulary": "used", "distil": 0.5, "teacher": "runs/one"},
        "vocabulary='used'",
        "a teacher of another run gives tokens that are gone some probability; "
        "allowed: full, or no --teacher",
    ),
    ({"structure": "depgraph"}, "structure='depgraph'", "unit is weight; allowed: auto"),
    (
        {"task": "bare", "unit": "channel", "structure": "depgraph"},
        "structure='depgraph'",
        "task bare has no example to follow; allowed: auto",
    ),
]

LEARNING = [
    ({"depth": 3}, "depth=3", "cnn has its own; allowed: leave it out"),
    ({"width": 32}, "width=32", "cnn has its own; allowed: leave it out"),
    (
        {"group_lasso": 0.1},
        "group-lasso=0.1",
        "unit weight has no groups of weights; allowed: --l1, or another --unit",
    ),
    (
        {"shrinkage": "proximal"},
        "shrinkage='proximal'",
        "neither l1 nor group-lasso is above 0; allowed: leave it out",
    ),
    (
        {"lr_rewind": True, "lr_schedule": "constant"},
        "lr-rewind=True",
        "the learning rate is constant; allowed: false",
    ),
    (
        {"lr_rewind": True, "sparsity": 0.0},
        "lr-rewind=True",
        "nothing is pruned; allowed: false",
    ),
    (
        {"distil_hidden": 0.5, "sparsity": 0.0},
        "distil-hidden=0.5",
        "nothing is pruned, so that there is no model from before; allowed: --teacher, or 0",
    ),
    (
        {"distil_hidden": 0.5, "compile": True},
        "distil-hidden=0.5",
        "a compiled model is not watched; allowed: 0",
    ),
    (
        {"distil_attention": 0.5, "compile": True},
        "distil-attention=0.5",
        "a compiled model is not watched; allowed: 0",
    ),
    (
        {"distil_attention": 0.5, "checkpointing": True},
        "distil-attention=0.5",
        "attention that is computed twice is not kept; allowed: 0",
    ),
    ({"temperature": 3.0}, "temperature=3.0", "distil is 0; allowed: leave it out"),
    (
        {"distil_schedule": "linear"},
        "distil-schedule='linear'",
        "nothing is distilled; allowed: constant",
    ),
    (
        {"reconstruct": "inputs", "unit": "row"},
        "reconstruct='inputs'",
        "of unit row the outputs go, and what stays reads nothing that is missing; "
        "allowed: outputs",
    ),
    (
        {"reconstruct": "inputs", "sparsity": 0.0},
        "reconstruct='inputs'",
        "nothing is pruned; allowed: leave it out",
    ),
    (
        {"reconstruct": "inputs", "rewind": 0},
        "reconstruct='inputs'",
        "what stays goes back to a round; allowed: leave it out",
    ),
    (
        {"reconstruct": "outputs", "schedule": "regrow"},
        "reconstruct='outputs'",
        "what grows back starts at 0; allowed: leave it out",
    ),
    (
        {"reconstruct": "outputs", "masks": "union"},
        "reconstruct='outputs'",
        "the mask is decided after tuning; allowed: leave it out, or --masks global",
    ),
    (
        {"reconstruct": "inputs", "score_during": "tune"},
        "reconstruct='inputs'",
        "the mask is decided after tuning; allowed: leave it out, or --score-during pass",
    ),
    (
        {"teacher": "runs/one"},
        "teacher='runs/one'",
        "nothing is distilled; allowed: leave it out, or --distil",
    ),
]

TRIED = "several masks are tried before one is taken"
LAYERS: Keys = {"schedule": "adaptive", "adaptive": "layer"}
BY_VALIDATION = [
    ({"tolerance": 0.1}, "tolerance=0.1", "schedule is cubic; allowed: leave it out"),
    ({"candidates": 3}, "candidates=3", "schedule is cubic; allowed: leave it out"),
    ({"adaptive": "layer"}, "adaptive='layer'", "schedule is cubic; allowed: leave it out"),
    (
        {"schedule": "adaptive", "target_bytes": 9},
        "sparsity=None",
        "an adaptive schedule needs an upper bound; allowed: a number",
    ),
    (
        {"schedule": "adaptive", "score": "sparsegpt"},
        "schedule='adaptive'",
        "score sparsegpt selects by itself; allowed: one-shot, linear, cubic, exponential",
    ),
    ({"schedule": "adaptive", "masks": "union"}, "masks='union'", f"{TRIED}; allowed: global"),
    (
        {"schedule": "adaptive", "score_during": "tune"},
        "score-during='tune'",
        f"{TRIED}; allowed: pass",
    ),
    (
        {"schedule": "adaptive", "calibration": "sequential", "scope": "layer"},
        "calibration='sequential'",
        f"{TRIED}; allowed: dense",
    ),
    ({"schedule": "adaptive", "score_steps": 2}, "score-steps=2", f"{TRIED}; allowed: 1"),
    (
        {**LAYERS, "unit": "layer", "scope": "global"},
        "unit='layer'",
        "layer by layer needs parts of layers; allowed: weight, n:m, block, row, column, head, "
        "neuron",
    ),
    (
        {**LAYERS, "unit": "n:m", "scope": "global"},
        "unit='n:m'",
        "the pattern says how much goes in a layer; allowed: block",
    ),
    (
        {**LAYERS, "scope": "global"},
        "scope='global'",
        "layer by layer every one is ranked by itself; allowed: layer",
    ),
    (
        {**LAYERS, "max_density": 0.9},
        "max-density=0.9",
        "losses decide what a layer keeps; allowed: 1",
    ),
    ({"blend_grid": (0.5, 1.0)}, "blend-grid=(0.5, 1.0)", "blend is none; allowed: leave it out"),
    (
        {"blend": "layer", "blend_grid": (0.5, 0.0)},
        "blend-grid=(0.5, 0.0)",
        "the whole change is not in it; allowed: 1 and others",
    ),
    (
        {"blend": "layer", "blend_grid": (1.0, 0.5, 0.5)},
        "blend-grid=(1.0, 0.5, 0.5)",
        "an entry is there twice; allowed: numbers that differ, with commas between",
    ),
    (
        {"blend": "layer", "blend_grid": (1.0, 2.5)},
        "blend-grid=(1.0, 2.5)",
        "not shares; allowed: 0 to 2",
    ),
    (
        {"blend": "layer", "blend_grid": (1.0,)},
        "blend-grid=(1.0,)",
        "there is nothing to choose; allowed: 1 and others",
    ),
    (
        {"blend": "global", "masks": "union"},
        "blend='global'",
        "clients end under masks of their own; allowed: none",
    ),
    (
        {"moving": "swa", "rounds": 9, "end": 9},
        "moving='swa'",
        "the last pruning leaves one round to average; allowed: ema, or an earlier --end",
    ),
    ({"moving_decay": 0.5}, "moving-decay=0.5", "moving is none; allowed: leave it out"),
]

SENT: list[tuple[Keys, str, str]] = [
    (
        {"error_feedback": True},
        "error-feedback=True",
        "nothing is rounded at random; allowed: false, or --uplink int8, int4",
    ),
    (
        {"error_feedback": True, "uplink": "int8", "masks": "union"},
        "masks='union'",
        "residuals of --error-feedback are of one mask for all; allowed: global",
    ),
    (
        {"error_feedback": True, "uplink": "int4", "shrink": "end"},
        "shrink='end'",
        "residuals of --error-feedback are of one shape; allowed: never, or no --error-feedback",
    ),
    (
        {"error_feedback": True, "uplink": "int8", "unit": "neuron", "sparsity": 0.1}
        | {"task": "shakespeare"},
        "shrink='end'",  # a default of the unit
        "residuals of --error-feedback are of one shape; allowed: never, or no --error-feedback",
    ),
    (
        {"error_feedback": True, "uplink": "int4", "baselines": ("dense",)},
        "baselines=('dense',)",
        "with --error-feedback clients keep one residual, not one for each arm; "
        "allowed: none, and a run of their own",
    ),
]
REDUCED = [
    (
        {"reduce": ["low-rank"], "error_feedback": True, "uplink": "int4"},
        "reduce=('low-rank',)",
        "residuals of --error-feedback are of one shape; allowed: leave it out",
    ),
    (
        {"reduce": ["dead", "dead"]},
        "reduce=('dead', 'dead')",
        "an entry is there twice; allowed: some of dead, merge, share, low-rank, each once, "
        "with commas between",
    ),
    ({"reduce_round": 3}, "reduce-round=3", "nothing is reduced; allowed: leave it out"),
    (
        {"reduce": ["dead"], "warmup": 3, "rounds": 9, "reduce_round": 3},
        "reduce-round=3",
        "not between warm-up and the last round; allowed: 4 to 9",
    ),
    (
        {"reduce": ["share"], "unit": "channel", "sparsity": 0.1, "warmup": 1, "rounds": 9}
        | {"end": 5, "reduce_round": 3},
        "reduce-round=3",
        "nothing is cut out of shared matrices; allowed: 6 to 9",
    ),
    (
        {"reduce": ["low-rank"], "rewind": 0, "warmup": 1, "rounds": 9, "end": 9},
        "reduce-round=9",
        "survivors go back to weights of other shapes; allowed: a round after --end",
    ),
    (
        {"reduce": ["dead"], "schedule": "regrow", "warmup": 1, "rounds": 9, "end": 5}
        | {"reduce_round": 3},
        "reduce-round=3",
        "what is gone cannot grow back; allowed: 6 to 9",
    ),
    (
        {"reduce": ["dead"], "scope": "layer", "warmup": 1, "rounds": 9, "end": 5}
        | {"reduce_round": 3},
        "reduce-round=3",
        "a layer may have lost more than its share; allowed: 6 to 9, or --scope global",
    ),
    (
        {"reduce": ["dead"], "reduce_within": 0.1},
        "reduce-within=0.1",
        "nothing is merged or shared; allowed: leave it out",
    ),
    ({"rank_by": "weights"}, "rank-by='weights'", "nothing is factored; allowed: leave it out"),
    ({"rank_energy": 0.9}, "rank-energy=0.9", "nothing is factored; allowed: leave it out"),
    ({"rank_budget": 0.9}, "rank-budget=0.9", "nothing is factored; allowed: leave it out"),
    ({"rank_tolerance": 0.9}, "rank-tolerance=0.9", "nothing is factored; allowed: leave it out"),
    (
        {"reduce": ["low-rank"], "rank_energy": 0.9, "rank_budget": 0.5},
        "rank-energy=0.9",
        "rank-energy and rank-budget exclude each other; allowed: one of them",
    ),
    (
        {"reduce": ["low-rank"], "rank_budget": 0.5, "rank_tolerance": 0.1},
        "rank-budget=0.5",
        "rank-budget and rank-tolerance exclude each other; allowed: one of them",
    ),
]

SECURE = [
    *[
        (
            {key: value},
            f"{key.replace('_', '-')}={value!r}",
            "secure is none; allowed: leave it out",
        )
        for key, value in [
            ("secure_neighbours", 4),
            ("secure_dropout", 0.1),
            ("secure_bits", 32),
            ("secure_minimum", 2),
            ("ranges", {"changes/*": 1.0}),
        ]
    ],
    (
        {"secure": "secagg", "combine": "median"},
        "combine='median'",
        "a secure sum shows no client's own scores; allowed: sum, mean, mean-absolute, "
        "second-moment, votes, rank-mean",
    ),
    (
        {"secure": "secagg", "uplink": "int8"},
        "uplink='int8'",
        "a secure sum is of integers, with a step of its own; allowed: fp32",
    ),
    (
        {"secure": "secagg", "score_wire": "log8"},
        "score-wire='log8'",
        "a secure sum is of integers, with a step of its own; allowed: fp32",
    ),
    (
        {"secure": "secagg", "secure_bits": 48},
        "secure-bits=48",
        "no such width; allowed: 32, 64",
    ),
    (
        {"secure": "secagg", "cohort": 2},
        "secure-minimum=3",
        "the cohort is of 2; allowed: 2 to 2, or a larger --cohort",
    ),
    (
        {"secure": "secagg", "dp": "client", "dp_noise": 1.0, "panel": 2}
        | {"agreement": False, "model": "mlp"},
        "panel=2",
        "its answers are a secure sum as well, of secure-minimum=3 or more; allowed: 0, or 3 or "
        "more",
    ),
    (
        {"secure": "secagg", "cohort": 5, "secure_neighbours": 5},
        "secure-neighbours=5",
        "each has 4 others in its cohort; allowed: 2 to 4",
    ),
    (
        {"secure": "secagg", "secure_dropout": 0.5},
        "secure-dropout=0.5",
        "a majority must be left to restore secrets; allowed: 0 to below 0.5",
    ),
    (
        {"secure": "secagg", "ranges": {"change/*": 1.0}},
        "ranges={'change/*': 1.0}",
        "no quantity is called like ['change/*']; allowed: changes, scores, moments, metrics, "
        "counts, and a slash and a tensor",
    ),
    (
        {"secure": "secagg", "ranges": {"changes/*": 0.0}},
        "ranges={'changes/*': 0.0}",
        "not above 0: ['changes/*']; allowed: largest magnitudes",
    ),
    (
        {"secure": "secagg", "dp": "client", "dp_noise": 1.0, "sampling": "poisson"}
        | {"metrics": "noised", "agreement": False, "model": "mlp"},
        "sampling='poisson'",
        "who is in a secure sum is seen, and too few make none; allowed: fixed, round-robin",
    ),
    (
        {"secure": "secagg", "noise_source": "secret", "engine": "ray"},
        "noise-source='secret'",
        "a worker of a simulation keeps no secret from one stage to the next; allowed: seeded, or "
        "--engine inline",
    ),
]

# Noise by example brings keys of its own, without which something else is refused first.
NOISE: Keys = {"dp": "example", "dp_noise": 1.0, "dp_rate": 0.1, "delta": 1e-5}
NOISE |= {"weighting": "equal", "agreement": False, "metrics": "noised"}
LESSON = "what a teacher adds to the loss is not bounded by example; allowed: 0"
OF_CLIENTS = [
    (
        {**NOISE, "score": "second_moment_per_batch"},
        "score='second_moment_per_batch'",
        "it is no sum over examples; allowed: another",
    ),
    (
        {**NOISE, "score_during": "tune"},
        "score-during='tune'",
        "steps are noise on gradients; allowed: pass",
    ),
    ({**NOISE, "accumulate": 2}, "accumulate=2", "a step is one draw of examples; allowed: 1"),
    (
        {**NOISE, "compile": True},
        "compile=True",
        "gradients are taken of single examples; allowed: false",
    ),
    (
        {**NOISE, "checkpointing": True},
        "checkpointing=True",
        "gradients are taken of single examples; allowed: false",
    ),
    (
        {**NOISE, "precision": "bf16"},
        "precision='bf16'",
        "norms are taken in float32; allowed: fp32",
    ),
    ({**NOISE, "distil": 0.5}, "distil=0.5", LESSON),
    ({**NOISE, "distil_hidden": 0.5}, "distil-hidden=0.5", LESSON),
    ({**NOISE, "distil_attention": 0.5}, "distil-attention=0.5", LESSON),
    ({"response": 1.0, "unit": "row"}, "response=1.0", "nobody votes; allowed: --combine votes"),
    (
        {"response": 1.0, "combine": "votes"},
        "unit='weight'",
        "with a bit for every weight each of them is a coin; allowed: block, row, column, head, "
        "neuron, head-neuron, channel, sublayer, layer",
    ),
    (
        {"model": "mlp", "dp": "example", "dp_noise": 1.0, "score_examples": 9},
        "score-examples=9",
        "which examples are drawn depends on all of them; allowed: leave it out",
    ),
    (
        {"model": "mlp", "dp": "example", "dp_noise": 1.0, "combine": "votes"},
        "combine='votes'",
        "noise is added to sums over examples, before anything is scored; allowed: sum",
    ),
    (
        {"response": 1.0, "combine": "votes", "unit": "row", "pool": "l2"},
        "pool='l2'",
        "it loses the sign of counts, which flips take below 0; allowed: mean, sum, max",
    ),
    (
        {"response": 1.0, "combine": "votes", "unit": "row", "score_wire": "fp16"},
        "score-wire='fp16'",
        "the overlap it costs would tell the client's own mask; allowed: fp32",
    ),
]

ROBUST = [
    (
        {"robust": "median", "masks": "union"},
        "robust='median'",
        "clients end under masks of their own, and their changes are of different weights; "
        "allowed: none, or --masks global",
    ),
    (
        {"robust": "median", "error_feedback": True, "uplink": "int8"},
        "robust='median'",
        "what was kept back is made up for in a mean, and no client's change is sure to count; "
        "allowed: none, or no --error-feedback",
    ),
    (
        {"robust": "median", "weighting": "labels"},
        "weighting='labels'",
        "every client counts alike under --robust: how many labels it has is its own word; "
        "allowed: equal",
    ),
    (
        {"robust": "multi-krum", "clients": 4, "cohort": 4},
        "robust='multi-krum'",
        "a cohort of 4 is too small to leave one out; allowed: another rule, or --cohort 5 or more",
    ),
    ({"byzantine": 2}, "byzantine=2", "robust is none; allowed: leave it out"),
    ({"max_norm": 0.0}, "max-norm=0.0", "no change has such a norm; allowed: above 0, or auto"),
    (
        {"max_norm": "auto", "lr_rewind": True},
        "max-norm='auto'",
        "norms rise again at every pruning; allowed: a number, or no --lr-rewind",
    ),
    (
        {"max_norm": 1.0, "secure": "secagg"},
        "max-norm=1.0",
        "a secure sum shows no client's norm; allowed: leave it out",
    ),
    (
        {"max_norm": 1.0, "dp": "client", "dp_noise": 1.0},
        "max-norm=1.0",
        "dp is client: norms are bounded already; allowed: leave it out",
    ),
    (
        {"strikes": 1, "dp": "client", "dp_noise": 1.0},
        "strikes=1",
        "dp is client: who is left out would depend on the data, and others are drawn more often; "
        "allowed: leave it out",
    ),
    (
        {"robust": "multi-krum", "byzantine": 4, "clients": 10, "cohort": 10},
        "byzantine=4",
        "too many for a cohort of 10; allowed: 1 to 3",
    ),
    (
        {"robust": "nearest-geometric-median", "byzantine": 5, "clients": 10, "cohort": 10},
        "byzantine=5",
        "too many for a cohort of 10; allowed: 1 to 4",
    ),
    (
        {"robust": "nearest-trimmed-mean", "clients": 2, "cohort": 2},
        "robust='nearest-trimmed-mean'",
        "a cohort of 2 is too small to leave one out; allowed: another rule, or --cohort 3 or more",
    ),
    (
        {"robust": "trimmed-mean", "byzantine": 2, "min_clients": 4, "clients": 10, "cohort": 10},
        "min-clients=4",
        "trimmed-mean with byzantine=2 needs more; allowed: 5 to 10",
    ),
    (
        {"robust": "median", "secure": "secagg"},
        "robust='median'",
        "a secure sum shows no client's own change; allowed: none",
    ),
    (
        {"robust": "median", "dp": "client", "dp_noise": 1.0},
        "robust='median'",
        "dp is client: it looks at clients one by one; allowed: none",
    ),
]

EXAMPLES = [
    *(LATER + HOW_MUCH + WHAT + BY_ITSELF + WHEN + WHILE_TUNING + IN_SEQUENCE + WHOSE + OWN_MASKS),
    *(SHRUNK + SENT + SECURE + OF_CLIENTS + ROBUST),
    *(OF_THE_TASK + OUT_OF_BOUNDS + UNUSED + LEARNING + HOW_FOUND + BY_VALIDATION + REDUCED),
]


@pytest.mark.parametrize(("keys", "named_", "rest"), EXAMPLES, ids=str)
def test_a_contradiction_is_refused_word_for_word(keys: Keys, named_: str, rest: str):
    with pytest.raises(ConfigError) as refused:
        configure({**DIGITS, **keys})
    assert str(refused.value) == f"{named_}: {rest}"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("line", [rest for _, _, rest in EXAMPLES])
def test_a_refusal_says_once_what_is_allowed(line: str):
    assert line.count("; allowed: ") == 1
    assert not line.endswith("allowed: ")


def lists_of(keys: Keys) -> dict[tuple[str, int], list[Conflict]]:
    """The conflicts of a configuration that was not checked, by the function that makes them.

    A function may have several lists: they are told apart by their length.
    """
    config = RunConfig.model_construct(**completed({**DIGITS, **keys}))
    score, task = scores_of("")[config.score], tasks_of("")[config.task]
    given = {"c": config, "score": score, "task": task}
    found = {}
    for module in (
        conflicts,
        rules,
        refusals,
        reduction_conflicts,
        secure_conflicts,
        local_conflicts,
    ):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            part = name.startswith("_") or module is local_conflicts
            if part and function.__annotations__.get("return") == "list[Conflict]":
                arguments = [given[p] for p in inspect.signature(function).parameters]
                listed = function(*arguments)
                found[name, len(listed)] = listed
    return found


def test_every_misfit_has_an_example():
    missing: dict[tuple[str, int], set[int]] = {}
    for keys in [{}, *(keys for keys, _, _ in EXAMPLES)]:
        for place, listed in lists_of(keys).items():
            right = {i for i, (_, wrong, _, _) in enumerate(listed) if not wrong}
            missing[place] = missing.get(place, set(range(len(listed)))) & right
    assert len(missing) >= 12
    assert not {place: left for place, left in missing.items() if left}


def test_the_default_configuration_of_every_task_is_no_misfit():
    for listed in lists_of({}).values():
        assert not [m for m in listed if m[1]]


# Whatever type a key has in a file, the answer is one line and no traceback.
ODD: list[Keys] = [
    {"unit": "n:m", "unit_shape": (1, 2, 3)},
    {"unit": "n:m", "unit_shape": 5},
    {"unit": "n:m", "unit_shape": ("a", "b")},
    {"unit": "n:m", "unit_shape": (2, 0)},
    {"unit": "n:m", "unit_shape": "2;4"},
    {"unit": ["row"]},
    {"unit": {}},
    {"masks": ["union"]},
    {"combine": {"a": 1}},
    {"schedule": [1]},
    {"split": ["iid"]},
    {"scope": ["patterns"], "layers": {"a": 0.5}},
    {"layers": {"a": "x"}, "scope": "patterns"},
    {"warmup": "x", "score": "snip"},
    {"client_column": 7},
]


@pytest.mark.parametrize("keys", ODD, ids=str)
def test_a_value_of_a_strange_type_is_refused_in_one_line(keys: Keys):
    with pytest.raises(ConfigError) as refused:
        configure({**DIGITS, **keys})
    line = str(refused.value)
    assert line.startswith(tuple(f"{key.replace('_', '-')}=" for key in keys))
    assert "\n" not in line


def test_a_name_in_no_table_is_refused_with_the_nearest():
    named(("unit", "row"), ["row", "column"])
    with pytest.raises(ValueError, match=r"^unit='colum': no such unit \(did you mean column\?\)"):
        named(("unit", "colum"), ["row", "column"])
    with pytest.raises(ValueError, match=r"^unit='xyz': no such unit; allowed: row, column$"):
        named(("unit", "xyz"), ["row", "column"])

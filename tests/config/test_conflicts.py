"""Every choice that contradicts another is refused in one line, and every refusal has an example.

What is only read beside some values of others is walked from the declarations themselves.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fedprune import TASKS, config
from fedprune.config import RunConfig, configure, overridden
from fedprune.config.defaults import completed
from fedprune.options.conditions import Not, in_words, only, permitted
from fedprune.options.option import declared, unread_value
from fedprune.options.refusal import ConfigError, Conflict, named
from fedprune.options.section import unread
from fedprune.options.values import parsed
from fedprune.scores.catalog import scores_of
from fedprune.tasks.catalog import tasks_of
from tests.choices import value_of, values_of

Keys = dict[str, Any]
FIELDS = RunConfig.model_fields
DIGITS: Keys = {"task": "digits"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task without an example that stands for any."""
    monkeypatch.setitem(TASKS, "bare", replace(TASKS["digits"], dummy=None))


# What is given, the key that is refused, and how what is allowed instead begins.
EXAMPLES = """
save=best reduce=dead | reduce | leave it out
patience=2 quantise-by=gptq | quantise-by | leave it out
patience=2 baselines=local-only | baselines | dense, random, magnitude, lottery
score=snip schedule=cubic warmup=0 | schedule | one-shot
schedule=regrow rounds=9 warmup=2 end=3 | end | 4 to 9
score=random score-steps=3 | score-steps | 1
score-wire=log8 agreement=false | score-wire | fp32, or a sparsity and --agreement
score-during=tune score-wire=fp16 | score-wire | fp32
sparsity=0 masks=union | masks | global
threshold=0.1 sparsity=0.5 | threshold | one of sparsity, threshold, target-bytes, target-flops
target-bytes=9 target-flops=0.5 | target-flops | one of sparsity, threshold, target-bytes, target...
threshold=0.1 schedule=cubic | schedule | one-shot
threshold=0.1 scope=layer | scope | global
threshold=0.1 unit=row | unit | weight
threshold=0.1 min-density=0.1 | min-density | 0
threshold=0.1 max-density=0.5 | max-density | 1
threshold=0.1 score-steps=2 | score-steps | 1
target-bytes=999 score-steps=2 | score-steps | 1
scope=patterns layers=*=0.3 score-steps=2 | score-steps | 1
sparsity=0 baselines=random | baselines | dense, local-only, centralised
threshold=0.1 baselines=random | baselines | dense, local-only, centralised
profiles=f over-select=1.5 sampling=poisson | sampling | fixed
profiles=f over-select=1.5 selector=labels | selector | uniform
engine=flower over-select=1.5 secure=secagg | secure | none
engine=flower over-select=1.5 PANEL | dp | none
profiles=f over-select=1.5 clients=4 cohort=4 | over-select | 1, or a smaller --cohort
robust=median baselines=local-only | robust | none
sparsity=0 baselines=dense-small | sparsity | another --sparsity
baselines=local-only secure=secagg | secure | none
PANEL baselines=centralised | dp | none
combine=votes response=2 baselines=local-only | response | leave it out
baselines=centralised engine=flower | engine | another --engine
threshold=0.1 baselines=dense-small | baselines | dense, local-only, centralised
target-bytes=9 baselines=dense-small | target-bytes | leave it out
target-flops=0.5 baselines=dense-small | target-flops | leave it out
schedule=adaptive baselines=dense-small | schedule | another --schedule
init=runs/one sparsity=0.9 baselines=dense-small | init | leave it out
adapters=lora baselines=dense-small | adapters | none
target-flops=0.5 unit=n:m | unit | another --unit
target-flops=0.5 combine=votes | combine | another --combine
threshold=0.1 combine=votes | combine | another --combine
task=bare target-flops=0.5 | target-flops | sparsity
unit=n:m unit-shape=4,2 | unit-shape | N,M with 1 <= N < M (N of every M inputs stay)
unit=block unit-shape=0,2 | unit-shape | rows,columns, both 1 or more
unit=row scope=row | scope | global, layer, er, erk, owl, patterns
unit=n:m scope=layer | scope | global
unit=n:m min-density=0.1 | min-density | 0
unit=row max-density=0.5 | max-density | 1
scope=patterns layers=*=0.5 max-density=0.9 | max-density | 1
unit=n:m sparsity=0.6 | sparsity | 0.5, or leave it out
scope=patterns | layers | --layers PATTERN DENSITY
scope=patterns layers=*=1.5 | layers | above 0, up to 1
min-density=0.3 | min-density | 0 to 0.2
max-density=0.1 | max-density | 0.2 to 1
score=ablation unit=block | unit | weight, row, column, head, neuron, head-neuron, channel, exper...
score=block_influence unit=row | unit | layer
score=sparsegpt scope=global | scope | layer
score=sparsegpt target-bytes=9 | sparsity | a number
score=sparsegpt min-density=0.1 | min-density | 0
score=sparsegpt max-density=0.5 | max-density | 1
score=sparsegpt combine=mean | combine | sum
FLAP adapters=lora | adapters | two runs: --score flap --local-steps 0 --shrink end...
FLAP combine=mean | combine | sum
FLAP normalise=l1 | normalise | none
FLAP masks=union | masks | global
FLAP rewind=0 | rewind | leave it out
FLAP schedule=adaptive | schedule | one-shot, linear, cubic, exponential
FLAP method=heterofl | method | global
FLAP error-feedback=true uplink=int8 shrink=never | error-feedback | false
FLAP scaffold=true optimizer=sgd | scaffold | false
FLAP blend=global | blend | none
FLAP moving=ema | moving | none
score=sparsegpt normalise=rank | normalise | none
score=sparsegpt masks=union | masks | global
score=sparsegpt score-wire=fp16 | score-wire | fp32
score=sparsegpt rewind=0 | rewind | leave it out
score=sparsegpt schedule=regrow | schedule | another --schedule
schedule=regrow unit=row | unit | weight
schedule=regrow scope=owl | scope | global, layer, er, erk
schedule=regrow min-density=0.1 | min-density | 0
schedule=regrow max-density=0.5 | max-density | 1
schedule=regrow rewind=0 | rewind | leave it out
schedule=regrow score-steps=2 | score-steps | 1
score=snip warmup=2 | warmup | 0
rewind=9 | rewind | 0 to 6
probes=9 | probes | leave it out
score=movement score-during=pass | score-during | tune
score-during=tune score=fisher | score-during | pass
score-during=tune score=magnitude | score-during | pass
score-during=tune score=grasp | score-during | pass
score-during=tune combine=mean | combine | sum
score-during=tune normalise=l1 | normalise | none
score-during=tune score-steps=2 | score-steps | 1
score-during=tune compile=true | compile | false
score-during=tune schedule=regrow | schedule | another --schedule
gradient-blocks=true | gradient-blocks | false
gradient-blocks=true local-steps=0 score=wanda | gradient-blocks | false
calibration=sequential scope=layer score=magnitude | calibration | dense
calibration=sequential scope=layer score-during=tune | calibration | dense
calibration=sequential scope=global | scope | layer, row, column
calibration=sequential scope=layer unit=head | unit | weight, n:m, block, row, column
calibration=sequential scope=layer target-bytes=9 | sparsity | a number
calibration=sequential scope=layer score-steps=2 | score-steps | 1
calibration=sequential scope=layer schedule=regrow | schedule | another --schedule
calibration=local scope=layer | calibration | dense, sequential, or --combine votes, or --masks u...
calibration=local scope=global combine=votes | scope | layer, row, column
calibration=local scope=layer combine=votes score-wire=fp16 | score-wire | fp32
calibration=local scope=layer combine=votes score=grasp | calibration | dense
calibration=local scope=layer combine=votes vote-scope=global | vote-scope | layer, row, column
score-cohort=all score=magnitude | score-cohort | cohort
measure-every=99 rounds=20 | measure-every | 1 to 20
measure-cohort=1 | measure-cohort | 0, or 2 to ...
measure-cohort=10 clients=10 | measure-cohort | 0, or 2 to 9
measure-cohort=3 secure=secagg | measure-cohort | 0
measure-cohort=3 dp=client dp-noise=1 model=mlp | measure-cohort | 0
score-cohort=all masks=union | score-cohort | cohort
score-examples=3 score-during=tune | score-examples | leave it out
score-cohort=9 clients=10 newcomers=2 | score-cohort | cohort, all, 1 to 8
score-cohort=2 secure=secagg | score-cohort | cohort, all, or 3 or more
score-cohort=0 | score-cohort | cohort, all, 1 to ...
score-cohort=2 dp=client dp-noise=1 model=mlp | score-cohort | cohort, all
score-cohort=3 score=random | score-cohort | cohort
score-weighting=equal | score-weighting | labels
robust=median score-weighting=labels combine=mean | score-weighting | equal
score-weighting=labels dp=client dp-noise=1 model=mlp | score-weighting | equal
score=magnitude combine=mean | combine | sum
score=magnitude normalise=l1 | normalise | none
combine=votes normalise=l1 | normalise | none
combine=rank-mean normalise=rank | normalise | none
normalise=rank | normalise | none, l1, or --combine mean
score=wanda normalise=l1 | normalise | none, or --combine mean
combine=votes vote-scope=layer | vote-scope | global
score=random score-wire=fp16 | score-wire | fp32
masks=union score=magnitude | masks | global
masks=union target-bytes=9 | masks | global
masks=union combine=mean | combine | sum
masks=union normalise=l1 | normalise | none
masks=union score-during=tune | score-during | pass
masks=union calibration=sequential scope=layer | calibration | dense, local
masks=union score-steps=2 | score-steps | 1
masks=union schedule=regrow | schedule | another --schedule
masks=union score-wire=fp16 | score-wire | fp32
adapters=lora local-steps=0 | adapters | none, or steps above 0
adapters=lora score=sparsegpt | score | another --score
adapters=lora l1=0.1 | l1 | 0
adapters=lora l2=0.1 | l2 | 0
adapters=lora group-lasso=0.1 unit=row | group-lasso | 0
adapters=lora reconstruct=inputs | reconstruct | leave it out
adapters=lora rewind=0 | rewind | leave it out
adapters=lora score=movement | score-during | pass
adapters=lora masks=union | masks | global
adapters=lora scaffold=true optimizer=sgd | scaffold | false
adapters=lora batched=2 | batched | 1
adapters=lora schedule=regrow | schedule | another --schedule
adapters=lora method=lotteryfl | method | global, adaptive
adapters=lora shrink=every unit=head | shrink | never, end
adapters=lora reduce=dead | reduce | leave it out
adapters=lora vocabulary=used | vocabulary | full
adapters=lora blend=global | blend | none
adapters=lora moving=ema | moving | none
adapters=lora ranks=0,2 | ranks | whole numbers from 1 to 100000
adapters=lora ranks=1,2,3 clients=2 cohort=2 | ranks | at most 2
adapters=lora ranks=1,2 rank=3 | rank | 2, or leave it out
adapters=lora ranks=1,2 adapter-mean=factors | adapter-mean | products, stack
adapters=lora ranks=1,2 secure=secagg | secure | none
adapters=lora ranks=1,2 dp=client dp-noise=1 model=mlp | dp | none, example
adapters=lora adapter-base=int8 adapter-mean=stack | adapter-mean | factors, products
adapters=lora adapter-base=int4 wire=bf16 | wire | fp32
adapters=lora adapter-mean=stack robust=median | robust | none
adapters=lora adapter-mean=stack server-optimizer=adam | server-optimizer | sgd
adapters=lora adapter-mean=stack error-feedback=true uplink=int8 | error-feedback | false
shrink=every schedule=regrow score=magnitude | shrink | never, end
init=runs/one baselines=random | baselines | none, or random with a further sparsity
init=runs/one sparsity=0.9 baselines=dense | baselines | random, magnitude
schedule=regrow rounds=9 warmup=2 baselines=lottery | baselines | dense, random, magnitude
threshold=0.1 baselines=magnitude | baselines | dense, local-only, centralised
init=runs/one sparsity=0.9 rewind=0 | rewind | 1 on
error-feedback=true | error-feedback | false, or --uplink int8, int4
error-feedback=true uplink=int8 masks=union | masks | global
error-feedback=true uplink=int4 shrink=end | shrink | never, or no --error-feedback
error-feedback=true uplink=int8 unit=neuron sparsity=0.1 task=shakespeare | shrink | never, or no...
error-feedback=true uplink=int4 baselines=dense | baselines | none, and a run of their own
secure=secagg combine=median | combine | sum, mean, mean-absolute, second-moment, votes, rank-mean
secure=secagg uplink=int8 | uplink | fp32
secure=secagg score-wire=log8 | score-wire | fp32
secure=secagg secure-bits=48 | secure-bits | 32, 64
secure=secagg cohort=2 | secure-minimum | 2 to 2, or a larger --cohort
secure=secagg dp=client dp-noise=1 panel=2 agreement=false model=mlp | panel | 0, or 3 or more
secure=secagg cohort=5 secure-neighbours=5 | secure-neighbours | 2 to 4
secure=secagg secure-dropout=0.5 | secure-dropout | 0 to below 0.5
secure=secagg ranges=change/*=1 | ranges | changes, scores, moments, metrics, counts, and a slash...
secure=secagg ranges=changes/*=0 | ranges | largest magnitudes
CLIENT secure=secagg sampling=poisson | sampling | fixed, round-robin
secure=secagg noise-source=secret engine=ray | noise-source | seeded, or --engine inline
EXAMPLE score=second_moment_per_batch | score | another
EXAMPLE score-during=tune | score-during | pass
EXAMPLE accumulate=2 | accumulate | 1
EXAMPLE compile=true | compile | false
EXAMPLE checkpointing=true | checkpointing | false
EXAMPLE precision=bf16 | precision | fp32
EXAMPLE distil=0.5 | distil | 0
EXAMPLE distil-hidden=0.5 | distil-hidden | 0
EXAMPLE distil-attention=0.5 | distil-attention | 0
response=1 combine=votes | unit | block, row, column, head, neuron, head-neuron, channel, expert,...
EXAMPLE score-examples=9 | score-examples | leave it out
EXAMPLE combine=votes | combine | sum
response=1 combine=votes unit=row pool=l2 | pool | mean, sum, max
response=1 combine=votes unit=row score-wire=fp16 | score-wire | fp32
robust=median masks=union | robust | none, or --masks global
robust=median error-feedback=true uplink=int8 | robust | none, or no --error-feedback
robust=median weighting=labels | weighting | equal
robust=multi-krum clients=4 cohort=4 | robust | another rule, or --cohort 5 or more
max-norm=0.0 | max-norm | above 0, or auto
lr-rewind=true warmup=0 end=1 | lr-rewind | false
max-norm=auto lr-rewind=true | max-norm | a number, or no --lr-rewind
max-norm=1 secure=secagg | max-norm | leave it out
max-norm=1 dp=client dp-noise=1 | max-norm | leave it out
strikes=1 dp=client dp-noise=1 | strikes | leave it out
robust=multi-krum byzantine=4 clients=10 cohort=10 | byzantine | 1 to 3
robust=nearest-geometric-median byzantine=5 clients=10 cohort=10 | byzantine | 1 to 4
robust=nearest-trimmed-mean clients=2 cohort=2 | robust | another rule, or --cohort 3 or more
robust=trimmed-mean byzantine=2 min-clients=4 clients=10 cohort=10 | min-clients | 5 to 10
robust=median secure=secagg | robust | none
robust=median dp=client dp-noise=1 | robust | none
model=resnet | model | cnn, mlp, vit
length=9 | length | leave it out
data=x | data | leave it out, or task presidents, domains, text-classification, ...
encoding=cp1252 | encoding | leave it out
task=shakespeare split=natural class-names=a,b | class-names | leave it out
task=digits class-names=a,b | class-names | 10 names
task=text-classification data=x encoding=base64 | encoding | utf-8, latin-1, ...
text-column=t | text-column | leave it out
label-column=t | label-column | leave it out
target-column=t | target-column | leave it out
client-column=t | split | iid, dirichlet, shards
client-column=t split=iid | client-column | leave it out
clients=4 cohort=5 | cohort | 1 to 4
clients=4 hosts=5 | hosts | 1 to 4
cohort=3 min-clients=4 | min-clients | 1 to 3
rounds=5 warmup=5 | warmup | 0 to 4
rounds=9 warmup=3 end=10 | end | 4 to 9
sampling=round-robin selector=labels | selector | uniform
CLIENT selector=labels | selector | uniform
secure=secagg selector=labels | selector | uniform
profiles=f engine=flower | engine | another --engine
profiles=f dp=client dp-noise=1 | dp | none
profiles=f secure=secagg | secure | none
clients=5 cohort=4 newcomers=2 | newcomers | 0 to 1, or a smaller --cohort
clients=9 cohort=4 secure=secagg newcomers=2 | newcomers | 0, or 3 or more
clients=9 cohort=4 newcomers=2 dp=client dp-noise=1 | dp | none
clients=9 cohort=4 newcomers=2 sampling=round-robin | sampling | fixed
clients=9 cohort=4 newcomers=2 engine=flower | engine | another --engine
CLIENT dp-metric-noise=1 client-percentiles=true | client-percentiles | false, --clients 7072 or ...
CLIENT client-percentiles=true | client-percentiles | false, --clients 7072 or more...
EXAMPLE client-percentiles=true | client-percentiles | false, --clients 5000000...
dp=client epsilon=8 client-percentiles=true | client-percentiles | false, --clients ...
CLIENT dp-metric-noise=1e-4 dp-metric-clip=1 client-percentiles=true | dp-metric-clip | above 1
schedule=one-shot warmup=3 rounds=9 end=5 | end | 4, or leave it out
schedule=one-shot frequency=2 | frequency | 1, or leave it out
local-steps=2 local-epochs=1 | local-steps | one of them
local-steps=0 sparsity=0.0 | local-steps | above 0
local-steps=0 lr=0.3 | lr | leave it out, or steps above 0
base=sent | base | auto
stream=on | stream | auto, off
engine=flower deadline=0.0 | deadline | above 0, or auto
profiles=f deadline=auto | deadline | a number, or left out
engine=inline gpus=0.5 | gpus | -1 (if there), 0
engine=inline workers=2 | workers | 0 or 1, or --engine ray
engine=flower workers=2 | workers | leave it out
ray-address=x workers=2 | workers | 0
depth=3 | depth | leave it out
width=32 | width | leave it out
group-lasso=0.1 | group-lasso | --l1, or another --unit
distil-hidden=0.5 sparsity=0 | distil-hidden | --teacher, or 0
distil-hidden=0.5 compile=true | distil-hidden | 0
distil-attention=0.5 compile=true | distil-attention | 0
distil-attention=0.5 checkpointing=true | distil-attention | 0
reconstruct=inputs unit=row | reconstruct | outputs
reconstruct=inputs rewind=0 | reconstruct | leave it out
reconstruct=outputs schedule=regrow | reconstruct | leave it out
reconstruct=outputs masks=union | reconstruct | leave it out, or --masks global
reconstruct=inputs score-during=tune | reconstruct | leave it out, or --score-during pass
vocabulary=used | vocabulary | full
task=shakespeare vocabulary=used distil=0.5 teacher=runs/one | vocabulary | full, or no --teacher
task=bare unit=channel structure=depgraph | structure | auto
schedule=adaptive target-bytes=9 | sparsity | a number
schedule=adaptive score=sparsegpt | schedule | one-shot, linear, cubic, exponential
schedule=adaptive masks=union | masks | global
schedule=adaptive score-during=tune | score-during | pass
schedule=adaptive calibration=sequential scope=layer | calibration | dense
schedule=adaptive score-steps=2 | score-steps | 1
schedule=adaptive adaptive=layer unit=layer scope=global | unit | weight, n:m, block, row, column...
schedule=adaptive adaptive=layer unit=n:m scope=global | unit | another --unit
schedule=adaptive adaptive=layer scope=global | scope | layer
schedule=adaptive adaptive=layer max-density=0.9 | max-density | 1
blend=layer blend-grid=0.5,0 | blend-grid | 1 and others
blend=layer blend-grid=1,2.5 | blend-grid | 0 to 2
blend=layer blend-grid=1 | blend-grid | 1 and others
blend=global masks=union | blend | none
moving=swa rounds=9 end=9 | moving | ema, or an earlier --end
reduce=low-rank error-feedback=true uplink=int4 | reduce | leave it out
batched=5 cohort=4 | batched | 1 to 4
batched=2 compile=true | compile | false
batched=2 checkpointing=true | checkpointing | false
batched=2 distil-hidden=0.5 | distil-hidden | 0
batched=2 distil-attention=0.5 | distil-attention | 0
batched=2 score-during=tune | score-during | pass
batched=2 secure=secagg | secure | none
EXAMPLE batched=2 | dp | none, client
reduce=dead warmup=3 rounds=9 reduce-round=3 | reduce-round | 4 to 9
reduce=share unit=channel sparsity=0.1 warmup=1 rounds=9 end=5 reduce-round=3 | reduce-round | 6 ...
reduce=low-rank rewind=0 warmup=1 rounds=9 end=9 | reduce-round | a round after --end
reduce=dead schedule=regrow warmup=1 rounds=9 end=5 reduce-round=3 | reduce-round | 6 to 9
reduce=dead scope=layer warmup=1 rounds=9 end=5 reduce-round=3 | reduce-round | 6 to 9, or --scop...
reduce=low-rank rank-energy=0.9 rank-budget=0.5 | rank-energy | one of them
reduce=low-rank rank-budget=0.5 rank-tolerance=0.1 | rank-budget | one of them
reduce=slice sparsity=0.5 | unit | head, neuron, head-neuron, sublayer, layer
reduce=slice,share sparsity=0 | reduce | slice without share
reduce=slice sparsity=0 distil=0 distil-hidden=0.5 | distil-hidden | 0
sampling=poisson | sampling | fixed, round-robin
PANEL metrics=noised | panel | 0, or exact metrics
EXAMPLE sampling=poisson | sampling | fixed, round-robin
PANEL score=random dp-score-clip=1 | dp-score-clip | leave it out
PANEL weighting=labels | weighting | equal
PANEL combine=median | combine | sum, mean, mean-absolute, second-moment, rank-mean, votes
PANEL max-norm=1 | max-norm | leave it out
PANEL strikes=2 | strikes | leave it out
PANEL robust=median | robust | none
PANEL normalise=l1 | normalise | none
PANEL agreement=true | agreement | false
PANEL masks=union | masks | global
PANEL wire=bf16 | wire | fp32
PANEL uplink=int8 | uplink | fp32
PANEL threshold=0.1 score=magnitude | threshold | a sparsity, or --dp-score-clip
PANEL score=sparsegpt | score | a score that selects by ranking
PANEL score=flap | score | a score that selects by ranking
PANEL reconstruct=inputs | reconstruct | leave it out
PANEL reduce=dead | reduce | leave it out
PANEL quantise-by=gptq | quantise-by | leave it out
CLIENT task=shakespeare-restore model=t5 vocabulary=used | vocabulary | full
PANEL teacher=somewhere distil=0.5 | teacher | leave it out
PANEL init=somewhere | init | leave it out
PANEL response=1 combine=votes unit=row | response | leave it out, or --dp none
PANEL epsilon=8 baselines=random | baselines | none, and a run of their own
dp=client dp-noise=0 panel=2 cohort=4 | dp-noise | more than 0, or --allow-uncovered
PANEL dp-score-noise=0 | dp-score-noise | more than 0, or --allow-uncovered
CLIENT dp-metric-noise=0 | dp-metric-noise | more than 0, or --allow-uncovered
CLIENT metrics=exact | metrics | noised, or --panel N, or --allow-uncovered
CLIENT panel=10 cohort=4 | panel | 0 to 9
CLIENT panel=2 cohort=9 | cohort | 1 to 8
PANEL delta=0.2 | delta | below 0.125
CLIENT sampling=poisson min-clients=2 | min-clients | 1
dp=client | dp-noise | --dp-noise Z or --epsilon E
EXAMPLE local-epochs=1 | local-steps | --local-steps
dp=client epsilon=8 schedule=adaptive | schedule | another, or --dp-noise Z
dp=client epsilon=8 calibration=sequential | scope | layer, row, column
dp=client epsilon=8 dp-score-noise=1 | dp-score-noise | leave it out, or --dp-noise Z
dp=client epsilon=8 dp-metric-noise=1 | dp-metric-noise | leave it out, or --dp-noise Z
SCAFFOLD momentum=0.5 | momentum | 0
SCAFFOLD clip=1 | clip | 0
SCAFFOLD l1=0.1 | l1 | 0
SCAFFOLD group-lasso=0.1 unit=row | group-lasso | 0
SCAFFOLD local-steps=0 local-epochs=1 | local-epochs | 0
SCAFFOLD weighting=labels | weighting | equal
SCAFFOLD robust=median | robust | none
SCAFFOLD uplink=int8 error-feedback=true | error-feedback | false
SCAFFOLD masks=union | masks | global
SCAFFOLD schedule=regrow warmup=0 | schedule | another --schedule
SCAFFOLD shrink=end | shrink | never
SCAFFOLD reduce=low-rank | reduce | leave it out
SCAFFOLD CLIENT | dp | none
SCAFFOLD secure=secagg | secure | none
SCAFFOLD baselines=dense | baselines | leave it out
SCAFFOLD batched=2 | batched | 1
REMEMBERING CLIENT | dp | none
REMEMBERING secure=secagg | secure | none
REMEMBERING masks=union | masks | global
REMEMBERING calibration=sequential | calibration | dense
REMEMBERING score-during=tune | score-during | pass
REMEMBERING shrink=end | shrink | never
REMEMBERING reduce=low-rank | reduce | leave it out
"""

BASES = {
    "FLAP": "task=shakespeare score=flap",
    "SCAFFOLD": "scaffold=true optimizer=sgd",
    "REMEMBERING": "plugin=tests/remembering.py score=moving",
    "CLIENT": "model=mlp clients=10 dp=client dp-noise=1",
    "PANEL": "model=mlp clients=10 dp=client dp-noise=1 panel=2 cohort=4",
    "EXAMPLE": "model=mlp clients=10 dp=example dp-noise=1",
}


def keys_of(text: str) -> Keys:
    words = [part for word in text.split() for part in BASES.get(word, word).split()]
    given = {k.replace("-", "_"): v for k, _, v in (word.partition("=") for word in words)}
    return DIGITS | {key: parsed(key, v, FIELDS[key].annotation) for key, v in given.items()}


def refused(keys: Keys) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        configure(keys)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{error.value.key}=")
    assert line.count("; allowed: ") == 1
    assert line.endswith(f"; allowed: {error.value.allowed}")
    assert error.value.allowed
    return error.value


ROWS = EXAMPLES.strip().splitlines()


@pytest.mark.sampled(93)
@pytest.mark.parametrize("row", ROWS)
def test_a_contradiction_is_refused(row):
    given, key, allowed = row.split(" | ")
    refusal = refused(keys_of(given))
    assert refusal.key == key
    whole = allowed.removesuffix("...")
    assert refusal.allowed == allowed or (whole != allowed and refusal.allowed.startswith(whole))


@pytest.mark.parametrize(
    "way", ["CLIENT", "EXAMPLE", "CLIENT secure=secagg", "sampling=poisson CLIENT"]
)
def test_as_many_clients_or_as_little_noise_as_a_refusal_says_would_do(way):
    more = {"dp_metric_noise": 0.013, "dp_metric_clip": 3.0, "client_percentiles": True}
    keys = keys_of(f"{way} min-clients=1") | more
    words = refused(keys).allowed.replace(",", "").split()
    clients, noise = int(words[2]), float(words[words.index("--dp-metric-noise") + 1])
    assert configure({**keys, "clients": clients}).clients == clients
    assert refused({**keys, "clients": clients - 1}).key == "client-percentiles"
    assert configure({**keys, "dp_metric_noise": noise}).client_percentiles
    assert refused({**keys, "dp_metric_noise": 1.02 * noise}).key == "client-percentiles"


def lists() -> Iterator[tuple[str, Callable[..., list[Conflict]]]]:
    """The functions of the package that list conflicts, but for those that put lists together."""
    for info in pkgutil.iter_modules(config.__path__):
        module = importlib.import_module(f"fedprune.config.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__
            if own and function.__annotations__.get("return") == "list[Conflict]":
                yield f"{info.name}.{name}", function


def conflicts_of(keys: Keys) -> dict[tuple[str, int], list[Conflict]]:
    """The conflicts of a configuration that was not checked, by the function that makes them.

    A function may have several lists: they are told apart by their length.
    """
    unchecked = RunConfig.model_construct(**completed(keys))
    given: Keys = {
        "c": unchecked,
        "score": scores_of(unchecked.plugin)[unchecked.score],
        "task": tasks_of("")[unchecked.task],
    }
    found = {}
    for name, function in lists():
        listed = function(*[given[p] for p in inspect.signature(function).parameters])
        found[name, len(listed)] = listed
    return found


@pytest.mark.slow
def test_every_conflict_has_an_example():
    missing: dict[tuple[str, int], set[int]] = {}
    for keys in [DIGITS, *(keys_of(row.split(" | ")[0]) for row in ROWS)]:
        for place, listed in conflicts_of(keys).items():
            right = {i for i, (_, wrong, _, _) in enumerate(listed) if not wrong}
            missing[place] = missing.get(place, set(range(len(listed)))) & right
    sums = {name for name, _ in missing if not name.split(".")[1].startswith("_")}
    left = {place: rows for place, rows in missing.items() if rows and place[0] not in sums}
    assert len(missing) >= 25
    assert not left


def test_the_default_configuration_is_in_no_conflict():
    for listed in conflicts_of(DIGITS).values():
        assert not [conflict for conflict in listed if conflict[1]]


# Options that are only read beside others.

DEPENDENT = [key for key, field in FIELDS.items() if in_words(declared(field).when)]


def ways_of(key: str) -> list[Keys]:
    when = declared(FIELDS[key]).when
    return [dict(way) for way in (when if isinstance(when, tuple) else (when,))]


def some(key: str, wanted: Any) -> Any:
    """A value of the key that is permitted."""
    return next(value for value in values_of(key) if permitted(value, wanted))


@pytest.mark.parametrize("key", DEPENDENT)
def test_an_option_is_read_beside_what_it_says_and_refused_beside_anything_else(key):
    field, flag = FIELDS[key], key.replace("_", "-")
    met = {k: some(k, wanted) for k, wanted in ways_of(key)[0].items()}
    for other in ways_of(key)[0]:
        gone = {k: some(k, Not(way[k])) for way in ways_of(key) for k in way if way is not met}
        against = {k: v for k, v in gone.items() if len(ways_of(key)) > 1 or k == other}
        for beside, reads in ((met, True), ({**met, **against}, False)):
            values = RunConfig.model_construct(
                **completed({**DIGITS, **beside, key: value_of(key)})
            )
            found = [refusal for refusal in unread(RunConfig, values) if refusal.key == flag]
            assert bool(found) is not reads
        (refusal,) = found
        assert refusal.allowed == f"leave it out, or {in_words(declared(field).when)}"
        assert f": {other.replace('_', '-')} is " in str(refusal) or len(ways_of(key)) > 1
        refused({**DIGITS, **met, **against, key: value_of(key)})
        silent = completed({**DIGITS, **met, **against})
        assert silent[key] == unread_value(field)
        spoken = completed({**DIGITS, **met})
        assert declared(field).derived or spoken[key] in (field.default, None)


@pytest.mark.parametrize("key", DEPENDENT)
def test_what_nothing_reads_any_more_is_left_out_when_a_file_is_overridden(key):
    met = {k: some(k, wanted) for k, wanted in ways_of(key)[0].items()}
    other, wanted = next(iter(ways_of(key)[0].items()))
    base = {**DIGITS, **met, key: value_of(key)}
    try:
        found: Any = overridden(base, {other: some(other, Not(wanted))})
    except ConfigError as refusal:
        found = refusal
    if isinstance(found, ConfigError):
        assert (found.key, found.idle) != (key.replace("_", "-"), True) or key in LASTING
        return
    assert key not in found[0].given
    assert [line for line in found[1] if line.startswith(f"{key.replace('_', '-')}=")]


LASTING = ("teacher", "reconstruct", "rewind")


def test_a_section_by_itself_fills_in_and_refuses_alike():
    from fedprune.learning.options import Tuning

    keys = {"lr": 0.1, "batch_size": 8, "local_steps": 4}
    assert Tuning(optimizer="sgd", **keys).momentum == 0.9
    assert Tuning(optimizer="adam", **keys).momentum is None
    assert Tuning(optimizer="sgd", l1=0.1, **keys).shrinkage == "proximal"
    with pytest.raises(
        ValueError, match=r"momentum=0\.5: optimizer is adam; allowed: leave it out"
    ):
        Tuning(optimizer="adam", momentum=0.5, **keys)


def test_values_that_are_wanted():
    class Options:
        unit, reduce, clip = "row", ("dead", "merge"), 0.0

    assert [wrong for _, wrong, _, _ in only(Options, True, "", unit=("row", "column"))] == [False]
    assert [wrong for _, wrong, _, _ in only(Options, True, "", unit=Not("row"))] == [True]
    assert [wrong for _, wrong, _, _ in only(Options, False, "", unit="head")] == [False]
    assert permitted(Options.reduce, "merge")
    assert not permitted(Options.reduce, ("share", "low-rank"))
    assert permitted((), ())
    assert not permitted(Options.reduce, ())
    assert permitted(Options.clip, 0)


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
def test_a_value_of_a_strange_type_is_refused_in_one_line(keys):
    assert refused({**DIGITS, **keys}).key.replace("-", "_") in keys


def test_a_name_in_no_table_is_refused_with_the_nearest():
    named(("unit", "row"), ["row", "column"])
    with pytest.raises(ValueError, match=r"^unit='colum': no such unit \(did you mean column\?\)"):
        named(("unit", "colum"), ["row", "column"])
    with pytest.raises(ValueError, match=r"^unit='xyz': no such unit; allowed: row, column$"):
        named(("unit", "xyz"), ["row", "column"])

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


# What is given, first what several are given beside; the last key is the one that is refused.
# Behind the arrow is what is allowed instead, or how that begins: with "..." where it goes on.
EXAMPLES = """
alone: save=best reduce=dead -> leave it out |
  unit=block unit-shape=0,2 -> rows,columns, both 1 or more | min-density=0.3 -> 0 to 0.2 |
  max-density=0.1 -> 0.2 to 1 |
  score=ablation unit=block -> weight, row, column, head, neuron, head-neuron, channel, exper... |
  score=block_influence unit=row -> layer | rewind=9 -> 0 to 6 | probes=9 -> leave it out |
  score=fisher score-during=tune -> pass | score=magnitude score-during=tune -> pass |
  score=grasp score-during=tune -> pass | gradient-blocks=true -> false |
  rounds=20 measure-every=99 -> 1 to 20 | measure-cohort=1 -> 0, or 2 to ... |
  score-cohort=0 -> cohort, all, 1 to ... | score-weighting=equal -> labels |
  combine=rank-mean normalise=rank -> none | normalise=rank -> none, l1, or --combine mean |
  error-feedback=true -> false, or --uplink int8, int4 | max-norm=0.0 -> above 0, or auto |
  lr-rewind=true max-norm=auto -> a number, or no --lr-rewind | model=resnet -> cnn, mlp, vit |
  length=9 -> leave it out |
  data=x -> leave it out, or task presidents, domains, text-classification, ... |
  encoding=cp1252 -> leave it out | task=digits class-names=a,b -> 10 names |
  task=text-classification data=x encoding=base64 -> utf-8, latin-1, ... |
  text-column=t -> leave it out | label-column=t -> leave it out |
  target-column=t -> leave it out | client-column=t split -> iid, dirichlet, shards |
  split=iid client-column=t -> leave it out | cohort=3 min-clients=4 -> 1 to 3 |
  rounds=5 warmup=5 -> 0 to 4 | sampling=round-robin selector=labels -> uniform |
  sparsity=0.0 local-steps=0 -> above 0 | base=sent -> auto | stream=on -> auto, off |
  ray-address=x workers=2 -> 0 | depth=3 -> leave it out | width=32 -> leave it out |
  group-lasso=0.1 -> --l1, or another --unit | checkpointing=true distil-attention=0.5 -> 0 |
  vocabulary=used -> full | sampling=poisson -> fixed, round-robin
patience=2: quantise-by=gptq -> leave it out |
  baselines=local-only -> dense, random, magnitude, lottery
warmup=0: score=snip schedule=cubic -> one-shot | end=1 lr-rewind=true -> false
schedule=regrow: rounds=9 warmup=2 end=3 -> 4 to 9 | unit=row -> weight |
  scope=owl -> global, layer, er, erk | min-density=0.1 -> 0 | max-density=0.5 -> 1 |
  rewind=0 -> leave it out | score-steps=2 -> 1 | score=magnitude shrink=every -> never, end |
  rounds=9 warmup=2 baselines=lottery -> dense, random, magnitude |
  reconstruct=outputs -> leave it out |
  reduce=dead warmup=1 rounds=9 end=5 reduce-round=3 -> 6 to 9
score=random: score-steps=3 -> 1 | score-cohort=3 -> cohort | score-wire=fp16 -> fp32
agreement=false: score-wire=log8 -> fp32, or a sparsity and --agreement
score-during=tune: score-wire=fp16 -> fp32 | combine=mean -> sum | normalise=l1 -> none |
  score-steps=2 -> 1 | compile=true -> false | schedule=regrow -> another --schedule |
  score-examples=3 -> leave it out | reconstruct=inputs -> leave it out, or --score-during pass
sparsity=0: masks=union -> global | baselines=random -> dense, local-only, centralised |
  distil-hidden=0.5 -> --teacher, or 0 | reduce=slice,share -> slice without share |
  reduce=slice distil=0 distil-hidden=0.5 -> 0
sparsity=0.5: threshold=0.1 -> one of sparsity, threshold, target-bytes, target-flops
target-bytes=9: target-flops=0.5 -> one of sparsity, threshold, target-bytes, target... |
  masks=union -> global | score-steps=2 -> 1
threshold=0.1: schedule=cubic -> one-shot | scope=layer -> global | unit=row -> weight |
  min-density=0.1 -> 0 | max-density=0.5 -> 1 | score-steps=2 -> 1 |
  baselines=random -> dense, local-only, centralised |
  baselines=magnitude -> dense, local-only, centralised |
  baselines=dense-small -> dense, local-only, centralised | combine=votes -> another --combine
scope=patterns: layers=*=0.3 score-steps=2 -> 1 | layers=*=0.5 max-density=0.9 -> 1 |
  layers -> --layers PATTERN DENSITY | layers=*=1.5 -> above 0, up to 1
profiles=f: over-select=1.5 sampling=poisson -> fixed |
  over-select=1.5 selector=labels -> uniform | engine=flower -> another --engine |
  secure=secagg -> none | deadline=auto -> a number, or left out
engine=flower: over-select=1.5 secure=secagg -> none | deadline=0.0 -> above 0, or auto |
  workers=2 -> leave it out
PANEL: engine=flower over-select=1.5 dp -> none | baselines=centralised dp -> none |
  metrics=noised panel -> 0, or exact metrics | score=random dp-score-clip=1 -> leave it out |
  weighting=labels -> equal |
  combine=median -> sum, mean, mean-absolute, second-moment, rank-mean, votes |
  max-norm=1 -> leave it out | strikes=2 -> leave it out | robust=median -> none |
  normalise=l1 -> none | agreement=true -> false | masks=union -> global | wire=bf16 -> fp32 |
  uplink=int8 -> fp32 | score=magnitude threshold=0.1 -> a sparsity, or --dp-score-clip |
  score=sparsegpt -> a score that selects by ranking |
  score=flap -> a score that selects by ranking | reconstruct=inputs -> leave it out |
  reduce=dead -> leave it out | quantise-by=gptq -> leave it out |
  distil=0.5 teacher=somewhere -> leave it out | init=somewhere -> leave it out |
  combine=votes unit=row response=1 -> leave it out, or --dp none |
  epsilon=8 baselines=random -> none, and a run of their own |
  dp-score-noise=0 -> more than 0, or --allow-uncovered | delta=0.2 -> below 0.125
cohort=4: profiles=f clients=4 over-select=1.5 -> 1, or a smaller --cohort |
  clients=4 robust=multi-krum -> another rule, or --cohort 5 or more |
  clients=5 newcomers=2 -> 0 to 1, or a smaller --cohort |
  clients=9 newcomers=2 dp-noise=1 dp=client -> none |
  clients=9 newcomers=2 sampling=round-robin -> fixed |
  clients=9 newcomers=2 engine=flower -> another --engine | batched=5 -> 1 to 4
baselines=local-only: robust=median -> none | secure=secagg -> none
baselines=dense-small: sparsity=0 -> another --sparsity | target-bytes=9 -> leave it out |
  target-flops=0.5 -> leave it out | schedule=adaptive -> another --schedule |
  sparsity=0.9 init=runs/one -> leave it out | adapters=lora -> none
combine=votes: baselines=local-only response=2 -> leave it out |
  calibration=local scope=global -> layer, row, column | normalise=l1 -> none |
  vote-scope=layer -> global |
  response=1 unit -> block, row, column, head, neuron, head-neuron, channel, expert,... |
  response=1 unit=row pool=l2 -> mean, sum, max | response=1 unit=row score-wire=fp16 -> fp32
baselines=centralised: engine=flower -> another --engine
target-flops=0.5: unit=n:m -> another --unit | combine=votes -> another --combine
task=bare: target-flops=0.5 -> sparsity | unit=channel structure=depgraph -> auto
unit=n:m: unit-shape=4,2 -> N,M with 1 <= N < M (N of every M inputs stay) |
  scope=layer -> global | min-density=0.1 -> 0 | sparsity=0.6 -> 0.5, or leave it out
unit=row: scope=row -> global, layer, er, erk, owl, patterns | max-density=0.5 -> 1 |
  reconstruct=inputs -> outputs
score=sparsegpt: scope=global -> layer | target-bytes=9 sparsity -> a number |
  min-density=0.1 -> 0 | max-density=0.5 -> 1 | combine=mean -> sum | normalise=rank -> none |
  masks=union -> global | score-wire=fp16 -> fp32 | rewind=0 -> leave it out |
  schedule=regrow -> another --schedule | schedule=adaptive -> one-shot, linear, cubic, exponential
FLAP: adapters=lora -> two runs: --score flap --local-steps 0 --shrink end... |
  combine=mean -> sum | normalise=l1 -> none | masks=union -> global | rewind=0 -> leave it out |
  schedule=adaptive -> one-shot, linear, cubic, exponential | method=heterofl -> global |
  uplink=int8 shrink=never error-feedback=true -> false | optimizer=sgd scaffold=true -> false |
  blend=global -> none | moving=ema -> none
score=snip: warmup=2 -> 0
score=movement: score-during=pass -> tune
local-steps=0: score=wanda gradient-blocks=true -> false |
  adapters=lora -> none, or steps above 0 | lr=0.3 -> leave it out, or steps above 0
scope=layer: score=magnitude calibration=sequential -> dense |
  score-during=tune calibration=sequential -> dense |
  calibration=sequential unit=head -> weight, n:m, block, row, column |
  calibration=sequential target-bytes=9 sparsity -> a number |
  calibration=sequential score-steps=2 -> 1 |
  calibration=sequential schedule=regrow -> another --schedule |
  calibration=local -> dense, sequential, or --combine votes, or --masks u... |
  calibration=local combine=votes score-wire=fp16 -> fp32 |
  combine=votes score=grasp calibration=local -> dense |
  calibration=local combine=votes vote-scope=global -> layer, row, column |
  masks=union calibration=sequential -> dense, local |
  schedule=adaptive calibration=sequential -> dense |
  reduce=dead warmup=1 rounds=9 end=5 reduce-round=3 -> 6 to 9, or --scop...
calibration=sequential: scope=global -> layer, row, column
score=magnitude: score-cohort=all -> cohort | combine=mean -> sum | normalise=l1 -> none |
  masks=union -> global
clients=10: measure-cohort=10 -> 0, or 2 to 9 | newcomers=2 score-cohort=9 -> cohort, all, 1 to 8 |
  robust=multi-krum cohort=10 byzantine=4 -> 1 to 3 |
  robust=nearest-geometric-median cohort=10 byzantine=5 -> 1 to 4 |
  robust=trimmed-mean byzantine=2 cohort=10 min-clients=4 -> 5 to 10
secure=secagg: measure-cohort=3 -> 0 | score-cohort=2 -> cohort, all, or 3 or more |
  combine=median -> sum, mean, mean-absolute, second-moment, votes, rank-mean |
  uplink=int8 -> fp32 | score-wire=log8 -> fp32 | secure-bits=48 -> 32, 64 |
  cohort=2 secure-minimum -> 2 to 2, or a larger --cohort |
  dp=client dp-noise=1 agreement=false model=mlp panel=2 -> 0, or 3 or more |
  cohort=5 secure-neighbours=5 -> 2 to 4 | secure-dropout=0.5 -> 0 to below 0.5 |
  ranges=change/*=1 -> changes, scores, moments, metrics, counts, and a slash... |
  ranges=changes/*=0 -> largest magnitudes | CLIENT sampling=poisson -> fixed, round-robin |
  engine=ray noise-source=secret -> seeded, or --engine inline | max-norm=1 -> leave it out |
  robust=median -> none | selector=labels -> uniform |
  clients=9 cohort=4 newcomers=2 -> 0, or 3 or more
dp=client: dp-noise=1 model=mlp measure-cohort=3 -> 0 |
  dp-noise=1 model=mlp score-cohort=2 -> cohort, all |
  dp-noise=1 model=mlp score-weighting=labels -> equal | dp-noise=1 max-norm=1 -> leave it out |
  dp-noise=1 strikes=1 -> leave it out | dp-noise=1 robust=median -> none |
  epsilon=8 client-percentiles=true -> false, --clients ... |
  panel=2 cohort=4 dp-noise=0 -> more than 0, or --allow-uncovered |
  dp-noise -> --dp-noise Z or --epsilon E |
  epsilon=8 schedule=adaptive -> another, or --dp-noise Z |
  epsilon=8 calibration=sequential scope -> layer, row, column |
  epsilon=8 dp-score-noise=1 -> leave it out, or --dp-noise Z |
  epsilon=8 dp-metric-noise=1 -> leave it out, or --dp-noise Z
masks=union: score-cohort=all -> cohort | combine=mean -> sum | normalise=l1 -> none |
  score-during=tune -> pass | score-steps=2 -> 1 | schedule=regrow -> another --schedule |
  score-wire=fp16 -> fp32 | robust=median -> none, or --masks global |
  reconstruct=outputs -> leave it out, or --masks global | blend=global -> none
robust=median: combine=mean score-weighting=labels -> equal | weighting=labels -> equal
score=wanda: normalise=l1 -> none, or --combine mean
adapters=lora: score=sparsegpt -> another --score | l1=0.1 -> 0 | l2=0.1 -> 0 |
  unit=row group-lasso=0.1 -> 0 | reconstruct=inputs -> leave it out | rewind=0 -> leave it out |
  score=movement score-during -> pass | masks=union -> global |
  optimizer=sgd scaffold=true -> false | batched=2 -> 1 | schedule=regrow -> another --schedule |
  method=lotteryfl -> global, adaptive | unit=head shrink=every -> never, end |
  reduce=dead -> leave it out | vocabulary=used -> full | blend=global -> none |
  moving=ema -> none | ranks=0,2 -> whole numbers from 1 to 100000 |
  clients=2 cohort=2 ranks=1,2,3 -> at most 2 | ranks=1,2 rank=3 -> 2, or leave it out |
  ranks=1,2 adapter-mean=factors -> products, stack | ranks=1,2 secure=secagg -> none |
  ranks=1,2 dp-noise=1 model=mlp dp=client -> none, example |
  adapter-base=int8 adapter-mean=stack -> factors, products | adapter-base=int4 wire=bf16 -> fp32 |
  adapter-mean=stack robust=median -> none | adapter-mean=stack server-optimizer=adam -> sgd |
  adapter-mean=stack uplink=int8 error-feedback=true -> false
init=runs/one: baselines=random -> none, or random with a further sparsity |
  sparsity=0.9 baselines=dense -> random, magnitude | sparsity=0.9 rewind=0 -> 1 on
error-feedback=true: uplink=int8 masks=union -> global |
  uplink=int4 shrink=end -> never, or no --error-feedback |
  uplink=int8 unit=neuron sparsity=0.1 task=shakespeare shrink -> never, or no... |
  uplink=int4 baselines=dense -> none, and a run of their own |
  uplink=int8 robust=median -> none, or no --error-feedback |
  uplink=int4 reduce=low-rank -> leave it out
EXAMPLE: score=second_moment_per_batch -> another | score-during=tune -> pass | accumulate=2 -> 1 |
  compile=true -> false | checkpointing=true -> false | precision=bf16 -> fp32 | distil=0.5 -> 0 |
  distil-hidden=0.5 -> 0 | distil-attention=0.5 -> 0 | score-examples=9 -> leave it out |
  combine=votes -> sum | client-percentiles=true -> false, --clients 5000000... |
  batched=2 dp -> none, client | sampling=poisson -> fixed, round-robin |
  local-epochs=1 local-steps -> --local-steps
cohort=2: clients=2 robust=nearest-trimmed-mean -> another rule, or --cohort 3 or more
task=shakespeare: split=natural class-names=a,b -> leave it out |
  distil=0.5 teacher=runs/one vocabulary=used -> full, or no --teacher
clients=4: cohort=5 -> 1 to 4 | hosts=5 -> 1 to 4
rounds=9: warmup=3 end=10 -> 4 to 9 | schedule=one-shot warmup=3 end=5 -> 4, or leave it out |
  end=9 moving=swa -> ema, or an earlier --end | reduce=dead warmup=3 reduce-round=3 -> 4 to 9 |
  reduce=share unit=channel sparsity=0.1 warmup=1 end=5 reduce-round=3 -> 6 ... |
  reduce=low-rank rewind=0 warmup=1 end=9 reduce-round -> a round after --end
CLIENT: selector=labels -> uniform |
  dp-metric-noise=1 client-percentiles=true -> false, --clients 7072 or ... |
  client-percentiles=true -> false, --clients 7072 or more... |
  dp-metric-noise=1e-4 client-percentiles=true dp-metric-clip=1 -> above 1 |
  task=shakespeare-restore model=t5 vocabulary=used -> full |
  dp-metric-noise=0 -> more than 0, or --allow-uncovered |
  metrics=exact -> noised, or --panel N, or --allow-uncovered | cohort=4 panel=10 -> 0 to 9 |
  panel=2 cohort=9 -> 1 to 8 | sampling=poisson min-clients=2 -> 1 | REMEMBERING dp -> none
dp-noise=1: profiles=f dp=client -> none
schedule=one-shot: frequency=2 -> 1, or leave it out
local-epochs=1: local-steps=2 -> one of them
engine=inline: gpus=0.5 -> -1 (if there), 0 | workers=2 -> 0 or 1, or --engine ray
compile=true: distil-hidden=0.5 -> 0 | distil-attention=0.5 -> 0
rewind=0: reconstruct=inputs -> leave it out
schedule=adaptive: target-bytes=9 sparsity -> a number | masks=union -> global |
  score-during=tune -> pass | score-steps=2 -> 1 |
  adaptive=layer scope=global unit=layer -> weight, n:m, block, row, column... |
  adaptive=layer scope=global unit=n:m -> another --unit | adaptive=layer scope=global -> layer |
  adaptive=layer max-density=0.9 -> 1
blend=layer: blend-grid=0.5,0 -> 1 and others | blend-grid=1,2.5 -> 0 to 2 |
  blend-grid=1 -> 1 and others
batched=2: compile=true -> false | checkpointing=true -> false | distil-hidden=0.5 -> 0 |
  distil-attention=0.5 -> 0 | score-during=tune -> pass | secure=secagg -> none
reduce=low-rank: rank-budget=0.5 rank-energy=0.9 -> one of them |
  rank-tolerance=0.1 rank-budget=0.5 -> one of them
reduce=slice: sparsity=0.5 unit -> head, neuron, head-neuron, sublayer, layer
SCAFFOLD: momentum=0.5 -> 0 | clip=1 -> 0 | l1=0.1 -> 0 | unit=row group-lasso=0.1 -> 0 |
  local-steps=0 local-epochs=1 -> 0 | weighting=labels -> equal | robust=median -> none |
  uplink=int8 error-feedback=true -> false | masks=union -> global |
  warmup=0 schedule=regrow -> another --schedule | shrink=end -> never |
  reduce=low-rank -> leave it out | CLIENT dp -> none | secure=secagg -> none |
  baselines=dense -> leave it out | batched=2 -> 1
REMEMBERING: secure=secagg -> none | masks=union -> global | calibration=sequential -> dense |
  score-during=tune -> pass | shrink=end -> never | reduce=low-rank -> leave it out
"""

BASES = {
    "FLAP": "task=shakespeare score=flap",
    "SCAFFOLD": "scaffold=true optimizer=sgd",
    "REMEMBERING": "plugin=tests/remembering.py score=moving",
    "CLIENT": "model=mlp clients=10 dp=client dp-noise=1",
    "PANEL": "model=mlp clients=10 dp=client dp-noise=1 panel=2 cohort=4",
    "EXAMPLE": "model=mlp clients=10 dp=example dp-noise=1",
}


def examples() -> Iterator[tuple[str, str, str]]:
    """What is given, the key that is refused, what is allowed instead."""
    for block in EXAMPLES.strip().replace("\n  ", " ").splitlines():
        beside, _, rows = block.partition(": ")
        for row in rows.split(" | "):
            given, allowed = row.split(" -> ")
            yield f"{beside} {given}", given.split()[-1].partition("=")[0], allowed


ROWS = list(examples())


def keys_of(text: str) -> Keys:
    words = [part for word in text.split() for part in BASES.get(word, word).split()]
    given = {k.replace("-", "_"): v for k, is_, v in (w.partition("=") for w in words) if is_}
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


@pytest.mark.sampled(93)
@pytest.mark.parametrize(("given", "key", "allowed"), ROWS)
def test_a_contradiction_is_refused(given, key, allowed):
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
    for keys in [DIGITS, *(keys_of(given) for given, _, _ in ROWS)]:
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
    {"unit": "n:m", "unit_shape": ("a", "b")},
    {"unit": "n:m", "unit_shape": "2;4"},
    {"unit": ["row"]},
    {"combine": {"a": 1}},
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

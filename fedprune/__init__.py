"""Federated pruning: clients score weights on private shards, a server decides one global mask.

A round in five lines::

    evidence = ask(score(weights), cohort)        # each client's summed statistics, added up
    mask = select(finalise(evidence), sparsity)   # exactly so many weights removed
    changes = ask(tune(weights * mask), cohort)   # masked fine-tuning, one summed change
    weights = average(weights, changes)           # removed weights stay exactly 0.0
    quality = ask(evaluate(weights), everyone)    # loss and counts on held-out parts

Words, used everywhere in this sense and no other:

score       importance of a weight; higher = keep
statistics  the additive sums on the clients that a score is made from
mask        True = kept
sparsity    fraction of prunable weights removed, of the original count; density = 1 - sparsity
alive       kept so far
unit        what is removed together: a weight, N of M, a block, row, column, head, neuron, layer
pool        how the scores of a unit's weights become one
scope       who competes with whom in a selection: all tensors (global), one (layer), a row
combine     how the clients' evidence becomes one score: summed first, or scored first
vote        a client's own mask, counted
regrow      remove some weights and bring as many back that were removed before
partition   one client's share of the data; in simulation, the client itself
shard       a partition's data, cut into train, validation and test
host        what serves partitions and adds their answers up
cohort      the partitions asked in a round
round       score, prune, tune, average, measure; not every round scores and prunes
release     what leaves a client or the server and depends on private data
summand     a release that is only ever added to others
method      how masks are decided and changes averaged; rider: what goes with any method
memory      what a method or a rider keeps from round to round
arm         one of the runs that share a seed and a budget: pruned, and its baselines
quality     loss and what the task measures on test, over all partitions
"""

from typing import TYPE_CHECKING

from fedprune.runtime.later import offered
from fedprune.runtime.version import RELEASE

if TYPE_CHECKING:
    from fedprune.codec.masks import decode_mask, encode_mask
    from fedprune.config import RunConfig
    from fedprune.export.adapter_folder import pruned_base
    from fedprune.export.folders import load
    from fedprune.export.zeros import keep_zeros, zeros_callback
    from fedprune.library.estimating import estimate
    from fedprune.library.federating import federate
    from fedprune.library.own import own_task
    from fedprune.library.pruning import prune
    from fedprune.methods.method import Method
    from fedprune.options.refusal import ConfigError
    from fedprune.report.callback import Callback
    from fedprune.report.result import Result
    from fedprune.run import NoRoundCompleted
    from fedprune.scores.catalog import SCORES
    from fedprune.scores.score import Score
    from fedprune.selection.select import select
    from fedprune.tasks.catalog import TASKS
    from fedprune.tasks.task import Loss, Shard, Task

__version__ = RELEASE

__all__ = [
    "SCORES",
    "TASKS",
    "Callback",
    "ConfigError",
    "Loss",
    "Method",
    "NoRoundCompleted",
    "Result",
    "RunConfig",
    "Score",
    "Shard",
    "Task",
    "decode_mask",
    "encode_mask",
    "estimate",
    "federate",
    "keep_zeros",
    "load",
    "own_task",
    "prune",
    "pruned_base",
    "select",
    "zeros_callback",
]

__getattr__ = offered(
    __name__,
    {
        "Callback": "fedprune.report.callback",
        "ConfigError": "fedprune.options.refusal",
        "Loss": "fedprune.tasks.task",
        "Method": "fedprune.methods.method",
        "NoRoundCompleted": "fedprune.run",
        "Result": "fedprune.report.result",
        "RunConfig": "fedprune.config",
        "SCORES": "fedprune.scores.catalog",
        "Score": "fedprune.scores.score",
        "Shard": "fedprune.tasks.task",
        "TASKS": "fedprune.tasks.catalog",
        "Task": "fedprune.tasks.task",
        "decode_mask": "fedprune.codec.masks",
        "encode_mask": "fedprune.codec.masks",
        "estimate": "fedprune.library.estimating",
        "federate": "fedprune.library.federating",
        "keep_zeros": "fedprune.export.zeros",
        "load": "fedprune.export.folders",
        "own_task": "fedprune.library.own",
        "prune": "fedprune.library.pruning",
        "pruned_base": "fedprune.export.adapter_folder",
        "select": "fedprune.selection.select",
        "zeros_callback": "fedprune.export.zeros",
    },
)

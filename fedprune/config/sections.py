"""All sections together, as they are declared: every option there is, by key."""

from __future__ import annotations

from fedprune.adapters.options import Adapting
from fedprune.codec.options import Wire
from fedprune.config.options import Engine, Federation, Results
from fedprune.learning.options import Averaging, Tuning
from fedprune.privacy.options import Privacy
from fedprune.redundancy.options import Reduction
from fedprune.scores.options import Combining, Scoring
from fedprune.selection.options import Pruning
from fedprune.tasks.options import Data


class AllOptions(
    Results,
    Privacy,
    Reduction,
    Engine,
    Wire,
    Averaging,
    Adapting,
    Tuning,
    Combining,
    Scoring,
    Pruning,
    Federation,
    Data,
):
    """Every option; those of a package can be used by themselves, see `fedprune.options`."""

"""How much noise is on what clients measure, and whether it leaves anything of a histogram."""

from __future__ import annotations

import math

from fedprune.config.sections import AllOptions
from fedprune.options.refusal import Conflict
from fedprune.privacy.clipping import sensitivity
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.client_spread import spread_names

_MOST = 0.02
"""Standard deviation of a rank, in shares of the clients, beyond which tenths say nothing."""


def metric_spread(c: AllOptions) -> float:
    """Standard deviation of the noise on every mean that is measured; 0.0 where there is none."""
    if c.dp == "none" or c.metrics != "noised":
        return 0.0
    z, clip = c.dp_metric_noise or 0.0, c.dp_metric_clip or 10.0
    sampling = "fixed" if c.dp == "example" else c.sampling
    norm = sensitivity(clip, signed=True, sampling=sampling)
    return z * norm / math.pow(c.clients, _power(c))


def _power(c: AllOptions) -> float:
    """Of the number of clients that noise on a mean falls with."""
    # Each client adds its own to hide examples, unless they share it out under a secure sum.
    return 0.5 if c.dp == "example" and c.secure == "none" else 1.0


def rank_spread(c: AllOptions) -> float:
    """Standard deviation of how many clients are below a figure, as a share of all of them.

    Of the last bin's edge, below which the noise of all bins is; of others it is less.
    """
    bins = len(spread_names(tasks_of(c.plugin)[c.task].metric))
    return math.sqrt(bins) * metric_spread(c)


def noised_conflicts(c: AllOptions) -> list[Conflict]:
    """What noise makes nonsense of, once it is known how much there is."""
    noised = c.client_percentiles and c.dp != "none" and c.metrics == "noised"
    sd = rank_spread(c) if noised else 0.0
    times, low = sd / _MOST, noised and (c.dp_metric_clip or 10.0) <= 1.0
    why = f"of {c.clients} clients noise moves ranks by {100 * sd:.2g} points (standard deviation)"
    some = math.ceil(c.clients * max(times, 1.0) ** (1 / _power(c)))
    z = 0.995 * (c.dp_metric_noise or 0.0) / max(times, 1.0)  # three digits of it are not more
    less = f"--dp-metric-noise {z:.3g}, a larger --epsilon, a smaller --dp-metric-clip"
    allowed = f"false, --clients {some} or more, or less noise: {less}"
    alone = "a client is 1 in the histogram, and its other means share what is left"
    return [
        ("client-percentiles", times > 1, f"{why}, {100 * _MOST:g} may be", allowed),
        ("dp-metric-clip", low, alone, "above 1"),
    ]

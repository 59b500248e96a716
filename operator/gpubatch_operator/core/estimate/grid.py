"""Distributions of durations: mass on a logarithmic grid.

One representation for everything that is known of a duration, so that laws can be mixed, cut off at the age of a
running job and multiplied with what its progress says, whatever their form. A law is an array of `BINS` masses that sum
to 1; bin k covers the seconds from `EDGES[k]` to `EDGES[k + 1]`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP = 0.04
"""Width of a bin in log-seconds: values are told apart to 4%, and interpolated in between."""

BINS = 440  # from 1 s to about 500 days
LOG_EDGES: Array = np.linspace(0.0, BINS * STEP, BINS + 1, dtype=np.float64)
LOG_CENTRES: Array = LOG_EDGES[:-1] + np.float64(STEP / 2)
EDGES: Array = np.exp(LOG_EDGES)
_ROUNDING = 1e-12


def bin_of(seconds: float) -> int:
    """The bin of a duration; what lies outside belongs to the first or the last."""
    return min(BINS - 1, max(0, int(math.log(max(seconds, 1.0)) / STEP)))


@lru_cache(maxsize=64)
def _bump(sigma: float) -> Array:
    """A bell of `sigma` log-seconds around the middle of an array twice as long as the grid."""
    offsets = (np.arange(2 * BINS + 1) - BINS) * STEP
    bell = np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(bell / bell.sum())


def bell(seconds: float, sigma: float) -> Array:
    """The law of a duration known to about `sigma` (0.1 is 10%), for one of a few fixed values of `sigma`.

    What would lie outside the grid is left out, which matters at its ends only.
    """
    at = bin_of(seconds)
    return _bump(sigma)[BINS - at : 2 * BINS - at]


def lognormal(log_median: float, sigma: float) -> Array:
    """A log-normal law; its tails are a little heavier than normal, since no model is quite right."""
    z = (LOG_CENTRES - log_median) / max(sigma, STEP / 2)
    law = np.exp(-0.5 * z * z) + 0.02 / (1 + z * z) ** 2
    return np.asarray(law / law.sum())


def beyond(laws: Array, seconds: float) -> Array:
    """The laws (along the last axis), unnormalized, of what lasts longer than `seconds`."""
    if seconds <= 1.0:
        return laws
    at = math.log(seconds) / STEP
    k = min(BINS - 1, int(at))
    out = laws.copy()
    out[..., :k] = 0.0
    out[..., k] *= max(1.0 - (at - k), _ROUNDING)
    return out


def overdue(elapsed: float, late: float) -> Array:
    """The law of what should have ended: it goes on for as long again as it is late, in the median (Lomax, 1).

    Args:
        elapsed: Seconds that it has lasted.
        late: Seconds, positive.
    """
    survives = late / (late + np.maximum(EDGES - elapsed, 0.0))
    return np.asarray(survives[:-1] - survives[1:])


def quantiles(law: Array, levels: Array, above: float = 0.0) -> Array:
    """The durations, seconds, at these levels (0 to 1); none is below `above`."""
    cumulated = np.empty(BINS + 1)
    cumulated[0] = 0.0
    np.cumsum(law, out=cumulated[1:])
    logs = np.interp(levels * cumulated[-1], cumulated, LOG_EDGES)
    return np.asarray(np.maximum(np.exp(logs), above))


@lru_cache(maxsize=1)
def _normal() -> tuple[Array, Array]:
    levels = np.linspace(0.0005, 0.9995, 2000)
    return levels, np.array([NormalDist().inv_cdf(u) for u in levels])


def normal_scores(levels: Array) -> Array:
    """The quantiles of the standard normal law at these levels, cut off at three and a half sigmas."""
    known, scores = _normal()
    return np.interp(levels, known, scores)

"""How long known work takes: start-up, plus requests and tokens at the speed learned for model and GPU.

A linear model, duration = start-up + a x requests + b x input tokens + c x output tokens, fitted by weighted least
squares in relative error (a job of an hour counts as much as one of a minute). The coefficients of a model are shrunk
towards those of all models, and those of a model on one type of GPU towards those of the model: a Gaussian prior around
the coarser level's coefficients (hierarchical ridge regression), scaled by how much faster or slower this level is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpubatch_operator.core.estimate.grid import Array
from gpubatch_operator.core.estimate.task import Work

FADE = 0.995  # what a job still counts after the next one of its level: speeds change with versions and settings
SPREAD = 1.0  # a priori a coefficient lies within this share of the coarser level's
FIRM = 3  # jobs of a level after which its predictions count
NOISE_JOBS = 5.0  # jobs: so much does the coarser level's noise weigh in a finer one's
NOISE = 0.3  # log-seconds: how far off a prediction is a priori
OUTPUT_JOBS = 2.0  # jobs: so much do all models together weigh in one model's length of outputs
OUTPUT_SPREAD = 0.7  # log: the same of the length of outputs, before anything was learned
UNBOUNDED = 1024.0  # output tokens of a request without a bound, before anything was learned
FIRST: Array = np.array([60.0, 0.02, 1e-4, 1e-3])
"""Coefficients before anything was learned: seconds of start-up, and a request, an input token, an output token."""


@dataclass(slots=True)
class _Fit:
    """Sums of one level."""

    xx: Array = field(default_factory=lambda: np.zeros((4, 4)))
    xy: Array = field(default_factory=lambda: np.zeros(4))
    jobs: float = 0.0
    log_ratio: float = 0.0  # sum of logs of duration to the coarser level's prediction
    noise: float = 0.0  # sum of squares of the log error of this level's own predictions
    trials: float = 0.0
    outputs: float = 0.0  # sum of logs of output tokens a request
    outputs_sq: float = 0.0
    counted: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """A log-normal law of the duration."""

    log_median: float
    sigma: float


class Speeds:
    """Learned for each level of speed."""

    def __init__(self) -> None:
        self._fits: dict[Hashable, _Fit] = {}
        self._solved: dict[Hashable, tuple[Array, Array]] = {}
        self._listed: dict[Hashable, tuple[list[float], list[list[float]]]] = {}

    def predict(self, work: Work, speeds: Sequence[Hashable]) -> Prediction:
        """The duration of this work. As `predict_all` for one job, in a tenth of the time."""
        bound = work.max_output_tokens / work.requests if work.requests and work.max_output_tokens else UNBOUNDED
        base, slope, output_sigma = self._output(speeds)
        each = min(math.exp(base + slope * math.log(max(bound / 4, 1.0))), bound)
        x = (1.0, float(work.requests), float(work.input_tokens), each * work.requests)
        coefficients, covariance = self._plain(tuple(speeds))
        seconds = max(sum(a * b for a, b in zip(x, coefficients, strict=True)), 1.0)
        rows = (a * sum(b * c for b, c in zip(x, row, strict=True)) for a, row in zip(x, covariance, strict=True))
        doubt = sum(rows) / seconds**2 + (output_sigma * coefficients[3] * x[3] / seconds) ** 2
        return Prediction(math.log(seconds), math.sqrt(self._noise(speeds) + min(doubt, 4.0)))

    def predict_all(self, works: Sequence[Work], speeds: Sequence[Hashable]) -> tuple[Array, Array]:
        """The same for many jobs of the same levels: logs of medians, sigmas."""
        given = np.array([(w.requests, w.input_tokens, w.max_output_tokens) for w in works], dtype=float)
        bound = np.where((given[:, 0] > 0) & (given[:, 2] > 0), given[:, 2] / np.maximum(given[:, 0], 1.0), UNBOUNDED)
        base, slope, output_sigma = self._output(speeds)
        each = np.minimum(np.exp(base + slope * np.log(np.maximum(bound / 4, 1.0))), bound)
        tokens = each * given[:, 0]
        x = np.column_stack([np.ones(len(works)), given[:, 0], given[:, 1], tokens])
        coefficients, covariance = self._solve(tuple(speeds))
        seconds = np.maximum(x @ coefficients, 1.0)
        doubt = np.einsum("ij,jk,ik->i", x, covariance, x) / seconds**2
        doubt += (output_sigma * coefficients[3] * tokens / seconds) ** 2
        return np.log(seconds), np.sqrt(self._noise(speeds) + np.minimum(doubt, 4.0))

    def learn(self, work: Work, speeds: Sequence[Hashable], duration: float, output_tokens: int | None) -> None:
        """A job that is done."""
        levels: list[Hashable] = [(), *speeds]
        if output_tokens is None:
            bound = work.max_output_tokens / work.requests if work.requests and work.max_output_tokens else UNBOUNDED
            base, slope, _ = self._output(speeds)
            output_tokens = round(min(math.exp(base + slope * math.log(max(bound / 4, 1.0))), bound) * work.requests)
        elif work.requests:
            for level in levels:
                fit = self._fit(level)
                length = math.log(max(output_tokens / work.requests, 0.1))
                fit.outputs = fit.outputs * FADE + length
                fit.outputs_sq = fit.outputs_sq * FADE + length * length
                fit.counted = fit.counted * FADE + 1.0
        x = np.array([1.0, work.requests, work.input_tokens, output_tokens])
        duration = max(duration, 1.0)
        for depth, level in enumerate(levels):
            fit = self._fit(level)
            own, _ = self._solve(tuple(levels[1 : depth + 1]))
            error = math.log(duration / max(float(x @ own), 1.0))
            if fit.jobs >= FIRM:
                fit.noise = fit.noise * FADE + min(error * error, 1.0)
                fit.trials = fit.trials * FADE + 1.0
            if depth:
                coarse, _ = self._solve(tuple(levels[1:depth]))
                fit.log_ratio = fit.log_ratio * FADE + math.log(duration / max(float(x @ coarse), 1.0))
        for depth, level in enumerate(levels):
            fit = self._fit(level)
            # Relative to what was foretold: relative to what came, long runs would count less and all seem faster.
            foretold = float(x @ self._solve(tuple(levels[1 : depth + 1]))[0])
            scale = min(max(foretold, duration / 2), duration * 2) if fit.jobs >= FIRM else duration
            fit.xx = fit.xx * FADE + np.outer(x, x) / scale**2
            fit.xy = fit.xy * FADE + x * duration / scale**2
            fit.jobs = fit.jobs * FADE + 1.0
        self._solved.clear()
        self._listed.clear()

    def _fit(self, level: Hashable) -> _Fit:
        return self._fits.setdefault(level, _Fit())

    def _solve(self, speeds: tuple[Hashable, ...]) -> tuple[Array, Array]:
        """Coefficients and their covariance at the finest of these levels."""
        known = self._solved.get(speeds)
        if known is not None:
            return known
        prior: Array = (FIRST if not speeds else self._solve(speeds[:-1])[0]).copy()
        fit = self._fits.get(speeds[-1] if speeds else ())
        spread = 3.0 if not speeds else SPREAD
        covariance: Array
        if fit is None:
            covariance = np.diag((prior * spread) ** 2)
        else:
            if speeds:
                prior = prior * math.exp(fit.log_ratio / (fit.jobs + 0.5))
            noise = self._noise(speeds)
            precision = np.diag((prior * spread) ** -2.0)
            covariance = np.asarray(np.linalg.inv(precision + fit.xx / noise), dtype=np.float64)
            fitted: Array = covariance @ (precision @ prior + fit.xy / noise)
            least: Array = prior * 0.01
            prior[:] = np.maximum(fitted, least)  # work never saves time
        self._solved[speeds] = (prior, covariance)
        return self._solved[speeds]

    def _noise(self, speeds: Sequence[Hashable]) -> float:
        """Variance of the log error of predictions."""
        variance = NOISE**2
        for level in ((), *speeds):
            if fit := self._fits.get(level):
                if level == () and speeds:
                    continue  # all models together are no measure of one
                variance = (fit.noise + NOISE_JOBS * variance) / (fit.trials + NOISE_JOBS)
        return max(variance, 1e-4)

    def _output(self, speeds: Sequence[Hashable]) -> tuple[float, float, float]:
        """Log of the expected output tokens of a request as base + slope x log(bound / 4), and the log error of that.

        Before anything was learned a quarter of the bound is expected: base 0, slope 1.
        """
        base, slope, sigma = 0.0, 1.0, OUTPUT_SPREAD
        for level in ((), *speeds):
            if (fit := self._fits.get(level)) and fit.counted:
                own = fit.outputs / fit.counted
                spread = max(fit.outputs_sq / fit.counted - own * own, 0.0)
                weight = fit.counted / (fit.counted + OUTPUT_JOBS)
                base, slope = weight * own + (1 - weight) * base, (1 - weight) * slope
                sigma = math.sqrt(weight * spread + (1 - weight) * sigma * sigma)
        return base, slope, sigma

    def _plain(self, speeds: tuple[Hashable, ...]) -> tuple[list[float], list[list[float]]]:
        """`_solve` as plain numbers."""
        known = self._listed.get(speeds)
        if known is None:
            coefficients, covariance = self._solve(speeds)
            known = self._listed[speeds] = (coefficients.tolist(), covariance.tolist())
        return known

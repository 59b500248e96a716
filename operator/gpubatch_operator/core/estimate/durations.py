"""How long jobs take: all that is known of one job, as one law.

The views of the past (`history`), the known work at its learned speed (`speed`) and the user's own estimate with its
learned correction are mixed by weights that are learned from each view's record (`mixture`). Of a running job the law
is cut off at its age, and multiplied with what its progress says (`progress`): Bayes' rule on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpubatch_operator.core.estimate.grid import Array, beyond, bin_of, lognormal, normal_scores, overdue, quantiles
from gpubatch_operator.core.estimate.history import PRIOR, History
from gpubatch_operator.core.estimate.mixture import Context, Mixture
from gpubatch_operator.core.estimate.progress import Track, Unevenness
from gpubatch_operator.core.estimate.speed import Prediction, Speeds
from gpubatch_operator.core.estimate.task import Task

FLOOR = 1e-6  # of the prior in each law: nothing is impossible
HINT_SPREAD = 0.5  # log-seconds: how far off a user's own estimate is a priori
HINT_JOBS = 3.0
TRIALS = 1000  # jobs whose views are kept to learn from


@dataclass(slots=True)
class _Running:
    task: Task
    started: float
    track: Track = field(default_factory=Track)


@dataclass(slots=True)
class _Hint:
    """How durations compare with hints: sums over jobs."""

    jobs: float = 0.0
    log_ratio: float = 0.0
    squares: float = 0.0


class Durations:
    """The law of each job's duration, and all that it is learned from."""

    def __init__(self) -> None:
        self._history, self._speeds, self._mixture = History(), Speeds(), Mixture()
        self._unevenness = Unevenness()
        self._hints: dict[Hashable, _Hint] = {}
        self._running: dict[str, _Running] = {}
        self._laws: dict[str, Array] = {}  # of running jobs, at one moment
        self._laws_at = math.nan
        self._trials: dict[str, list[tuple[Array, Context]]] = {}  # views of a job when it came and when it started

    def submitted(self, task: Task, at: float) -> None:
        """A job joins the queue."""
        self._history.submitted(task)
        self._try(task, at)

    def started(self, task: Task, at: float) -> None:
        """A job begins to run."""
        self._try(task, at)
        self._running[task.uid] = _Running(task, at)
        self._laws.clear()
        self._history.started(task, at)

    def reported(self, uid: str, at: float, fraction: float, lead: float = 0.0) -> None:
        """A running job says which share of its work is done, work that began `lead` seconds after the job."""
        if job := self._running.get(uid):
            self._laws.pop(uid, None)
            job.track.lead = min(max(lead, 0.0), max(at - job.started, 0.0))
            job.track.add(at - job.started - job.track.lead, fraction)

    def ended(self, uid: str, at: float, succeeded: bool = True, output_tokens: int | None = None) -> None:
        """A job ends, whether it ran or not; only one that succeeded says how long its work takes."""
        trials = self._trials.pop(uid, [])
        job = self._running.pop(uid, None)
        self._laws.clear()
        if job is None:
            self._history.left(uid)
            return
        task, duration = job.task, max(at - job.started, 1.0)
        self._history.ended(task, duration if succeeded else None)
        if not succeeded:
            return
        at_bin = bin_of(duration)
        for views, context in trials:
            self._mixture.learn(context, views[:, max(0, at_bin - 1) : at_bin + 2].mean(axis=1).tolist())
        self._unevenness.learn(task.levels[-1], job.track, duration)
        if task.work is not None:
            self._speeds.learn(task.work, task.speeds, duration, output_tokens)
        if task.hint is not None:
            error = math.log(duration / max(task.hint, 1.0))
            for level in ((), task.levels[-1]):
                hint = self._hints.setdefault(level, _Hint())
                hint.jobs, hint.log_ratio, hint.squares = hint.jobs + 1, hint.log_ratio + error, hint.squares + error**2

    def samples(self, tasks: Sequence[Task], levels: Array, now: float) -> Array:
        """Durations of jobs that haven't started, seconds: a row for each task, drawn at its row of `levels` (0 to 1).

        Jobs that history can't tell apart are drawn together. A sample comes from one of the views, by their weights:
        a stratified choice that is independent of the level within the view.
        """
        out = np.empty_like(levels)
        together: dict[Hashable, list[int]] = {}
        laws: dict[Hashable, tuple[list[Array], Context]] = {}
        for i, task in enumerate(tasks):
            views, member, key = self._history.views(task, now)
            same: Hashable = (key, task.speeds, task.work is not None, task.hint is not None)
            laws.setdefault(same, (views, self._context(task, member)))
            together.setdefault(same, []).append(i)
        for same, rows in together.items():
            views, context = laws[same]
            first = tasks[rows[0]]
            known = (first.work is not None) + (first.hint is not None)
            weights = self._mixture.weights(context, len(views) + known)
            past = weights[: len(views)] @ np.array(views) + FLOOR * PRIOR
            u = levels[rows]
            out[rows] = quantiles(past, u)
            if not known:
                continue
            scores, choice = normal_scores(u), np.roll(u, 3, axis=1)
            used = float(weights[: len(views)].sum())
            if first.work is not None:
                works = [t.work for i in rows if (t := tasks[i]).work is not None]
                log_medians, sigmas = self._speeds.predict_all(works, first.speeds)
                drawn = np.exp(log_medians[:, None] + sigmas[:, None] * scores)
                share = float(weights[len(views)])
                out[rows] = np.where((choice >= used) & (choice < used + share), drawn, out[rows])
                used += share
            if first.hint is not None:
                said = [self._hinted(tasks[i]) for i in rows]
                drawn = np.exp(np.array([p.log_median for p in said])[:, None] + said[0].sigma * scores)
                out[rows] = np.where(choice >= used, drawn, out[rows])
        return np.maximum(out, 1.0)

    def law_running(self, uid: str, now: float) -> Array:
        """The law of a running job's duration, given its age and its progress."""
        if self._laws_at != now:
            self._laws.clear()
            self._laws_at = now
        law = self._laws.get(uid)
        if law is None:
            law = self._laws[uid] = self._law_running(self._running[uid], now)
        return law

    def _law_running(self, job: _Running, now: float) -> Array:
        elapsed = now - job.started
        views, context = self._views(job.task, now)
        law = self._mixture.weights(context, len(views)) @ np.array(views) + FLOOR * PRIOR
        if said := self._unevenness.law(job.task.levels[-1], job.track, elapsed):
            law = law * lognormal(*said)
            due, sigma = math.exp(said[0]), said[1]
            if due < elapsed:  # later than it said: it is nearly done, or stalls
                law = law + 1e-3 * law.sum() * overdue(elapsed, max(elapsed - due, sigma * elapsed, 1.0))
        law = beyond(law, elapsed)
        total = law.sum()
        if total < 1e-300:  # older than anything that the views know
            law = beyond(PRIOR, elapsed)
            total = law.sum()
        return np.asarray(law / max(total, 1e-300))

    def running(self, uid: str) -> float | None:
        """When it started, if it runs."""
        job = self._running.get(uid)
        return job.started if job else None

    def _try(self, task: Task, now: float) -> None:
        if task.uid in self._trials or len(self._trials) < TRIALS:
            views, context = self._views(task, now)
            self._trials.setdefault(task.uid, []).append((np.array(views, dtype=np.float32), context))

    def _views(self, task: Task, now: float) -> tuple[list[Array], Context]:
        views, member, _ = self._history.views(task, now)
        if task.work is not None:
            said = self._speeds.predict(task.work, task.speeds)
            views = [*views, lognormal(said.log_median, said.sigma)]
        if task.hint is not None:
            said = self._hinted(task)
            views = [*views, lognormal(said.log_median, said.sigma)]
        return views, self._context(task, member)

    def _context(self, task: Task, member: tuple[bool, Hashable]) -> Context:
        return (member[0], task.work is not None, task.hint is not None), member[1]

    def _hinted(self, task: Task) -> Prediction:
        assert task.hint is not None
        centre, variance = 0.0, HINT_SPREAD**2
        for level in ((), task.levels[-1]):
            if hint := self._hints.get(level):
                weight = hint.jobs / (hint.jobs + HINT_JOBS)
                mean = hint.log_ratio / hint.jobs
                spread = max(hint.squares / hint.jobs - mean * mean, 0.0)
                centre, variance = weight * mean + (1 - weight) * centre, weight * spread + (1 - weight) * variance
        return Prediction(math.log(max(task.hint, 1.0)) + centre, math.sqrt(variance))

"""The estimator: what happens goes in, estimates come out. No I/O and no clock.

Nothing in it is drawn at random from one call to the next: each job has its own fixed levels, so the same facts give
the same estimates, and an estimate changes only with what happens.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from gpubatch_operator.core.estimate.arrivals import Arrivals, Served, future
from gpubatch_operator.core.estimate.calibrate import Calibration
from gpubatch_operator.core.estimate.durations import Durations
from gpubatch_operator.core.estimate.grid import Array, quantiles
from gpubatch_operator.core.estimate.lanes import Lanes
from gpubatch_operator.core.estimate.replay import Arrival, in_line, in_order, overtaken, replay
from gpubatch_operator.core.estimate.task import Estimate, Task, Verdict

WORK = 16_000  # jobs times samples that one replay may cost
DEPTH = 1000  # jobs that are replayed; those behind follow at the pace of the last of these
MOST, FEWEST = 64, 8  # samples
POOL = 1021
WORTH = 60.0  # seconds: waits and lives shorter than this aren't what the bounds are calibrated on
CALM = (0.25, 0.75)
"""What was said last stands while it lies between these quantiles of what is known now: no news, no move."""

TRUST = 0.75
"""How far the future that was drawn moves a start away from that of the queue as it is. Who comes later is foretold
badly, and the mean of two forecasts errs less than either (Bates and Granger 1969). A weight that is learned from the
errors so far, by priority, errs more than this one: what is overtaken shares its fate with all of a busy period, so
there is little to learn from."""

RAW = np.array([0.1, 0.5, 0.9])


@dataclass(slots=True)
class _Promise:
    """What was said of a job, to be compared with what comes."""

    of: tuple[str, Hashable]
    at: float
    low: float
    median: float
    high: float
    shown: float
    bound: float
    known: bool = False  # whether the bound held


@dataclass(slots=True)
class _Job:
    task: Task
    started: float | None = None
    start: _Promise | None = None
    completions: list[_Promise] = field(default_factory=list)
    stages: set[int] = field(default_factory=set)
    shown: float | None = None


@lru_cache(maxsize=8)
def _pool(samples: int) -> Array:
    """Levels that are evenly spread in each row, in orders that are independent of each other."""
    rng = np.random.default_rng(7)
    return np.asarray((np.array([rng.permutation(samples) for _ in range(POOL)]) + 0.5) / samples)


def _levels(uids: Sequence[str], samples: int) -> Array:
    return np.asarray(_pool(samples)[[zlib.crc32(uid.encode()) % POOL for uid in uids]])


class Estimator:
    """Estimates of the jobs of one queue; times in seconds on any one clock."""

    def __init__(self) -> None:
        self._durations, self._arrivals, self._calibration = Durations(), Arrivals(), Calibration()
        self._jobs: dict[str, _Job] = {}
        self._bounds: list[tuple[float, int, _Promise]] = []  # promises by the time at which they are broken
        self._promises = 0
        self._verdicts: list[Verdict] = []

    # --- what happens

    def __contains__(self, uid: str) -> bool:
        return uid in self._jobs

    def uids(self) -> set[str]:
        """Who is known, waiting or running."""
        return set(self._jobs)

    def revise(self, task: Task) -> None:
        """A waiting job is known better, or was changed: its work was counted, its priority edited."""
        job = self._jobs[task.uid]
        if task != job.task:
            job.task = task

    def submitted(self, task: Task) -> None:
        """A job joins the queue, at `task.submitted`."""
        self._jobs[task.uid] = _Job(task)
        self._durations.submitted(task, task.submitted)

    def started(self, uid: str, at: float, speeds: tuple[Hashable, ...] | None = None) -> None:
        """A job gets its slot; `speeds` if where it runs is known better now."""
        job = self._jobs[uid]
        job.started = at
        task = job.task if speeds is None else job.task.at_speed(speeds)
        self._durations.started(task, at)
        self._arrivals.started(job.task, at)
        if job.start:
            self._judge(job.start, at)
            job.start = None

    def reported(self, uid: str, at: float, fraction: float, lead: float = 0.0) -> None:
        """A running job says which share of its work is done, work that began `lead` seconds after the job."""
        self._durations.reported(uid, at, fraction, lead)

    def ended(self, uid: str, at: float, succeeded: bool = True, output_tokens: int | None = None) -> None:
        """A job ends, or leaves the queue. One that didn't succeed teaches only that it hadn't ended before."""
        job = self._jobs.pop(uid)
        self._durations.ended(uid, at, succeeded, output_tokens)
        self._arrivals.ended(uid, at)
        for promise in [*([job.start] if job.start else []), *job.completions]:
            if succeeded:
                self._judge(promise, at)
            promise.known = True

    def requeued(self, uid: str, at: float) -> None:
        """A running job lost its slot and waits again, with all of its work to do."""
        job = self._jobs[uid]
        self._durations.ended(uid, at, succeeded=False)
        self._arrivals.ended(uid, at)
        self._durations.submitted(job.task, at)
        for promise in job.completions:
            promise.known = True
        self._jobs[uid] = _Job(job.task)

    def started_at(self, uid: str) -> float | None:
        """When a job that is known started, if it runs."""
        return self._jobs[uid].started

    def verdicts(self) -> list[Verdict]:
        """How good the promises were that came due since the last call: those made at submission."""
        out, self._verdicts = self._verdicts, []
        return out

    # --- what is foretold

    def running(self, uid: str, now: float) -> Estimate:
        """Of a job that runs."""
        job = self._jobs[uid]
        assert job.started is not None, f"{uid} doesn't run"
        law = self._durations.law_running(uid, now)
        low, median, high = job.started + quantiles(law, RAW, now - job.started)
        stage = min(3, int(4 * (now - job.started) / max(median - job.started, 1.0)))
        promise = self._promise(("running", stage), now, (low, median, high), shift=True)
        if stage not in job.stages:
            job.stages.add(stage)
            job.completions.append(self._keep(promise))
        p50 = max(promise.shown, now + 1.0)
        return Estimate(job.started, job.started, p50, max(promise.bound, p50))

    def waiting(self, queue: Sequence[str], lanes: Lanes, now: float, only: str | None = None) -> dict[str, Estimate]:
        """Of jobs that wait, in their order; one that fits no lane has none.

        Args:
            queue: Who waits, in order.
            lanes: Where they can run.
            now: The present.
            only: If given, nobody else's estimate is wanted.
        """
        self._overdue(now)
        if only is not None:
            queue = queue[: queue.index(only) + 1]
        if not queue:
            return {}
        if only is None and len(queue) > DEPTH:
            near = self.waiting(queue[:DEPTH], lanes, now)
            return near | self._behind(queue, near, lanes, now)
        tasks = [self._jobs[uid].task for uid in queue]
        samples = _samples(len(queue))
        durations = self._durations.samples(tasks, _levels(queue, samples), now)
        past = self._arrivals.above(min(t.priority for t in tasks), now)
        starts = np.maximum(self._starts(tasks, durations, lanes, now, past), now)
        wanted = range(len(queue)) if only is None else [len(queue) - 1]
        fitting = [i for i in wanted if np.isfinite(starts[i, 0])]
        ends = starts + durations
        by_start = np.quantile(starts[fitting], [*RAW, *CALM], axis=1).T.tolist()
        by_end = np.quantile(ends[fitting], RAW, axis=1).T.tolist()
        highest = max((p.task.priority for p in past), default=min(t.priority for t in tasks))
        return {
            queue[i]: self._wait(tasks[i], now, s, e, tasks[i].priority < highest)
            for i, s, e in zip(fitting, by_start, by_end, strict=True)
        }

    def _behind(
        self, queue: Sequence[str], near: Mapping[str, Estimate], lanes: Lanes, now: float
    ) -> dict[str, Estimate]:
        """Of jobs deep in the queue: those of a kind go on starting at the pace of the second half of those before."""
        of_kind: dict[int, list[str]] = {}
        for uid in queue:
            of_kind.setdefault(lanes.kinds.get(self._jobs[uid].task.shape, 0), []).append(uid)
        out: dict[str, Estimate] = {}
        for uids in of_kind.values():
            seen = [e for uid in uids if (e := near.get(uid))]
            if not seen:
                continue
            last, middle = seen[-1], seen[len(seen) // 2]
            steps = max(len(seen) - 1 - len(seen) // 2, 1)
            pace = max(last.start - middle.start, (last.start - now) / len(seen) * steps, 0.0) / steps
            wide = (last.start_p90 - now) / max(last.start - now, 1.0)
            runs = sum(e.completion - e.start for e in seen) / len(seen)
            runs_p90 = sum(e.completion_p90 - e.start_p90 for e in seen) / len(seen)
            for n, uid in enumerate((uid for uid in uids if uid not in near), 1):
                start = last.start + n * pace
                bound = now + (start - now) * wide
                done = start + max(runs, 1.0)
                out[uid] = Estimate(start, max(bound, start), done, max(bound + runs_p90, done))
        return out

    def _wait(self, task: Task, now: float, start: list[float], end: list[float], overtaken: bool) -> Estimate:
        job = self._jobs[task.uid]
        starting = self._promise(("start", task.priority), now, start[:3], overtaken)
        ending = self._promise(("completion", task.priority), now, end, overtaken)
        if job.start is None:
            job.start = self._keep(starting)
            job.completions.append(self._keep(ending))
        p50 = starting.shown
        if job.shown is not None and job.shown > now and start[3] <= job.shown <= start[4]:
            p50 = job.shown
        job.shown = p50
        done = max(ending.shown, p50 + 1.0)
        return Estimate(p50, max(starting.bound, p50), done, max(ending.bound, done))

    def _starts(
        self, tasks: Sequence[Task], durations: Array, lanes: Lanes, now: float, past: Sequence[Served]
    ) -> Array:
        """Sampled starts: a row for each task."""
        samples = durations.shape[1]
        free = np.full((len(lanes.classes), samples), now)
        for i, uid in lanes.busy.items():
            job = self._jobs.get(uid)
            if job is None or job.started is None:
                continue
            law, age = self._durations.law_running(uid, now), now - job.started
            free[i] = job.started + quantiles(law, _levels([uid], samples)[0], age)
        kinds, span = [lanes.kinds.get(t.shape, 0) for t in tasks], self._arrivals.span(now)
        alone = self._undisturbed(free, kinds, durations, lanes)
        if not past or span <= 0 or not lanes.classes:
            return alone
        ranks, priorities = [(-t.priority, 0.0, i) for i, t in enumerate(tasks)], [t.priority for t in tasks]
        later = [lanes.kinds.get(p.task.shape, 0) for p in past]
        rows = []
        for m in range(samples):
            coming = (
                Arrival(at, (-past[i].task.priority, at, i), later[i], past[i].seconds)
                for at, i in future(past, now, span, m)
            )
            if lanes.uniform:
                rows.append(overtaken(free[:, m].tolist(), priorities, durations[:, m].tolist(), coming))
                continue
            lane = list(zip(free[:, m].tolist(), lanes.classes, strict=True))
            rows.append(replay(lane, lanes.fits, ranks, kinds, durations[:, m].tolist(), coming))
        fits = np.isfinite(alone)
        return np.where(fits, alone + TRUST * (np.array(rows).T - np.where(fits, alone, 0.0)), alone)

    @staticmethod
    def _undisturbed(free: Array, kinds: Sequence[int], durations: Array, lanes: Lanes) -> Array:
        """Sampled starts if nobody comes later and overtakes."""
        columns, classes = free.T.tolist(), lanes.classes
        if lanes.uniform and classes:
            rows = [in_line(column, durations[:, m].tolist()) for m, column in enumerate(columns)]
        else:
            rows = [
                in_order(list(zip(column, classes, strict=True)), lanes.fits, kinds, durations[:, m].tolist())
                for m, column in enumerate(columns)
            ]
        return np.array(rows).T

    # --- promises

    def _promise(self, of: tuple[str, Hashable], at: float, raw: Sequence[float], shift: bool) -> _Promise:
        """Calibrated, from raw quantiles.

        The median is shifted where it can be wrong for reasons that no law of durations knows of: who comes later, and
        the pace of a job that runs.
        """
        least = max(1.0, 0.01 * (raw[1] - at))
        low, median, high = min(raw[0], raw[1] - least), raw[1], max(raw[2], raw[1] + least)
        middle = self._calibration.middle(of) if shift else 0.0
        if of[0] != "running":
            middle = min(middle, 0.0)  # what went wrong goes wrong for a busy period, and would be counted twice
        shown = max(median + middle * (high - median if middle > 0 else median - low), low, at)
        bound = max(median + self._calibration.factor(of) * (high - median), shown)
        return _Promise(of, at, low, median, high, shown, bound)

    def _keep(self, promise: _Promise) -> _Promise:
        self._promises += 1
        heapq.heappush(self._bounds, (max(promise.bound, promise.at + WORTH), self._promises, promise))
        return promise

    def _overdue(self, now: float) -> None:
        while self._bounds and self._bounds[0][0] < now:
            promise = heapq.heappop(self._bounds)[2]
            if not promise.known:
                promise.known = True
                self._calibration.outcome(promise.of, missed=True)

    def _judge(self, promise: _Promise, actual: float) -> None:
        known, promise.known = promise.known, True
        if actual - promise.at <= WORTH or (known and actual <= promise.bound):
            return
        missed = actual > promise.bound
        side = promise.high - promise.median if actual > promise.median else promise.median - promise.low
        self._calibration.learn(promise.of, (actual - promise.median) / side)
        if not known:
            self._calibration.outcome(promise.of, missed)
        if promise.of[0] != "running":
            error = abs(promise.shown - actual) / (actual - promise.at)
            self._verdicts.append(Verdict(promise.of[0], error, not missed))


def _samples(jobs: int) -> int:
    """How many samples can be afforded."""
    samples = MOST
    while samples > FEWEST and samples * jobs > WORK:
        samples //= 2
    return samples

"""What the operator sees, told to the estimator: jobs as they are now, and as they ended.

All of it is in the jobs' status, so an operator that starts anew learns again what the one before had learned: finished
jobs are told in the order of their lives, and the promises that would have been made to them are judged by what came.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.estimate.estimator import Estimator
from gpubatch_operator.core.estimate.lanes import lanes_of
from gpubatch_operator.core.estimate.task import Estimate, Task, Verdict, Work
from gpubatch_operator.core.model import Job, Node, Shape
from gpubatch_operator.core.phases import Phase

PRODUCT = "nvidia.com/gpu.product"
"""The label that tells the type of a node's GPUs, put there by NVIDIA's GPU feature discovery."""

BACK_TESTS = 100  # finished jobs, the latest, whose promises are made again after a restart
SHAPES = 64
_SERIAL = re.compile(r"[-._]?(\d+|[0-9a-f]{8,}|[a-z0-9]{5})$")


def series(name: str) -> str:
    """What jobs of one series have in common: the name without its number, hash or generated suffix."""
    return _SERIAL.sub("", name) or name


def task_of(job: Job, product: str = "") -> Task:
    """The job as the estimator sees it; `product` is the type of GPU that it runs on, or will most likely."""
    # How long a live job is wanted tells nothing about how long a file of requests takes.
    kind = "live" if job.live is not None else "inference" if job.inference else "template"
    levels: tuple[Hashable, ...] = (
        (kind,),
        (kind, job.model),
        (kind, job.model, job.namespace, job.shape.resource, job.shape.gpus),
        (kind, job.model, job.namespace, job.shape.resource, job.shape.gpus, series(job.name)),
    )
    inspection = job.status.get("inspection") or {}
    work = None
    if inspection.get("requests"):
        tokens, bound = inspection.get("inputTokens", 0), inspection.get("maxOutputTokens", 0)
        work = Work(inspection["requests"], tokens, bound)
    return Task(job.uid, job.queued_at, job.priority, levels, _speeds(job, product), work, job.hint, job.shape)


def _speeds(job: Job, product: str) -> tuple[Hashable, ...]:
    return (job.model, job.shape.resource, job.shape.gpus), (job.model, job.shape.resource, job.shape.gpus, product)


class Feed:
    """An estimator that follows the operator's jobs."""

    def __init__(self) -> None:
        self._estimator = Estimator()
        self._shapes: dict[Shape, None] = {}  # that were seen lately: jobs to come may ask for them again
        self._fed = False  # whether finished jobs of an earlier life were told

    def finished(self, jobs: Sequence[Job], nodes: Sequence[Node]) -> None:
        """Jobs that ended since the last call; at the first call all that ended before."""
        products = {n.name: str(n.labels.get(PRODUCT, "")) for n in nodes}
        news = [j for j in jobs if j.status.get("completionTime")]
        if self._fed:
            for job in sorted(news, key=lambda j: str(j.status["completionTime"])):
                self._end(job, products)
            return
        self._fed = True
        self._relive(news, nodes, products)

    def estimates(
        self, queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], now: float
    ) -> Mapping[str, Estimate]:
        """By uid, for all active jobs and for each waiting one that fits some node."""
        products = {n.name: str(n.labels.get(PRODUCT, "")) for n in nodes}
        usual = _usual(products.values())
        estimator = self._estimator
        known = {j.uid for j in queue} | {j.uid for j in active}
        for uid in estimator.uids() - known:
            estimator.ended(uid, now, succeeded=False)  # deleted, suspended or held
        for job in sorted((j for j in queue if j.uid not in estimator), key=lambda j: j.queued_at):
            estimator.submitted(task_of(job, usual))
        for job in queue:
            if estimator.started_at(job.uid) is not None:
                estimator.requeued(job.uid, now)
            estimator.revise(task_of(job, usual))
        for job in active:
            self._shapes.pop(job.shape, None)
            self._shapes[job.shape] = None
            self._run(job, products)
        while len(self._shapes) > SHAPES:
            del self._shapes[next(iter(self._shapes))]
        out = {j.uid: estimator.running(j.uid, now) for j in active if j.attempt}
        lanes = lanes_of(nodes, [*dict.fromkeys(j.shape for j in queue), *self._shapes], active)
        return out | estimator.waiting([j.uid for j in queue], lanes, now)

    def verdicts(self) -> list[Verdict]:
        """How good the promises were that came due since the last call."""
        return self._estimator.verdicts()

    def _run(self, job: Job, products: Mapping[str, str]) -> None:
        attempt, estimator = job.attempt, self._estimator
        if attempt is None:
            return
        product = products.get(attempt.node, "")
        if job.uid not in estimator:
            estimator.submitted(task_of(job, product))
        if estimator.started_at(job.uid) not in (None, attempt.started):
            estimator.requeued(job.uid, attempt.started)  # another attempt than the last that was seen
        if estimator.started_at(job.uid) is None:
            estimator.started(job.uid, attempt.started, _speeds(job, product))
        progress = job.status.get("progress") or {}
        at = seconds(progress["lastHeartbeatTime"]) if "lastHeartbeatTime" in progress else None
        if progress.get("stage") != "Processing" or at is None or at <= attempt.started:
            return
        total, done = progress.get("total"), progress.get("completed", 0) + progress.get("failed", 0)
        fraction = done / total if total else progress.get("percent", 0) / 100
        worked = progress.get("processingSeconds")
        lead = at - attempt.started - worked if worked and job.inference else 0.0
        if fraction:
            estimator.reported(job.uid, at, fraction, lead)

    def _end(self, job: Job, products: Mapping[str, str]) -> None:
        at = seconds(job.status["completionTime"])
        attempt, estimator = job.attempt, self._estimator
        if attempt is None or (job.phase is not Phase.SUCCEEDED and job.uid not in estimator):
            if job.uid in estimator:
                estimator.ended(job.uid, at, succeeded=False)
            return
        self._run(job, products)
        usage = (job.status.get("results") or {}).get("usage") or {}
        estimator.ended(job.uid, at, job.phase is Phase.SUCCEEDED, usage.get("outputTokens") or None)

    def _relive(self, jobs: Iterable[Job], nodes: Sequence[Node], products: Mapping[str, str]) -> None:
        """Tell finished jobs' lives from the first to the last, and promise the latest of them what we would have."""
        # A job that was run again may have ended more than once meanwhile: its last run counts.
        lived = [j for j in {j.uid: j for j in jobs}.values() if j.phase is Phase.SUCCEEDED and j.attempt]
        lived.sort(key=lambda j: j.status["completionTime"])
        tested = {j.uid for j in lived[-BACK_TESTS:]}
        events: list[tuple[float, int, int, Job]] = []
        for i, job in enumerate(lived):
            assert job.attempt is not None
            start = max(job.attempt.started, job.queued_at)
            events.append((job.queued_at, 1, i, job))
            events.append((start, 2, i, job))
            events.append((max(seconds(job.status["completionTime"]), start), 3, i, job))
        waiting: dict[str, Job] = {}
        running: dict[str, Job] = {}
        for at, what, _, job in sorted(events, key=lambda e: e[:3]):
            if what == 1:
                assert job.attempt is not None
                self._estimator.submitted(task_of(job, products.get(job.attempt.node, "")))
                waiting[job.uid] = job
                if job.uid in tested and job.attempt.started > at + 1 and len(waiting) <= BACK_TESTS:
                    queue = sorted(waiting.values(), key=lambda j: j.rank)
                    lanes = lanes_of(nodes, [j.shape for j in queue], list(running.values()))
                    self._estimator.waiting([j.uid for j in queue], lanes, at, only=job.uid)
            elif what == 2:
                del waiting[job.uid]
                running[job.uid] = job
                assert job.attempt is not None
                self._estimator.started(job.uid, at, _speeds(job, products.get(job.attempt.node, "")))
            else:
                del running[job.uid]
                usage = (job.status.get("results") or {}).get("usage") or {}
                self._estimator.ended(job.uid, at, output_tokens=usage.get("outputTokens") or None)
        self._estimator.verdicts()  # those of an earlier life have been counted


def _usual(products: Iterable[str]) -> str:
    """The type of GPU that most nodes have."""
    most = Counter(products).most_common(1)
    return most[0][0] if most else ""

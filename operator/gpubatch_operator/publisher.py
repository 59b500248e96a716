"""Keeps positions and estimates in status true enough, off the path of admissions and with bounded writes.

Once a second at most it compares the last plan with what is published, and writes what is stale, nearest first, as far
as the budget goes; at the first positions it looks a little oftener. The patch names the version that it was computed
for: of a job that was admitted meanwhile it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Mapping, Sequence

from gpubatch_operator import metrics
from gpubatch_operator.core import publish
from gpubatch_operator.core.budget import Budget
from gpubatch_operator.core.estimate import Estimate, Feed, later
from gpubatch_operator.core.model import Job, Node, copied
from gpubatch_operator.core.phases import FINISHED, Phase
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.writing import write_status
from gpubatch_operator.reconciler import Reconciler

PAUSE = 0.4  # seconds between two looks at the first positions
FULL = 1.0  # and at all others, and estimates
PARALLEL = 8
PATIENCE = 0.2  # seconds that positions wait for new estimates, to be written with them

log = logging.getLogger(__name__)


class Publisher:
    """Owns what was learned for estimates."""

    def __init__(self, client: Client, store: Store, reconciler: Reconciler) -> None:
        self._client, self._store, self._reconciler = client, store, reconciler
        self._feed = Feed()
        self._estimates: Mapping[str, Estimate] = {}
        self._estimating: asyncio.Task[tuple[Mapping[str, Estimate], float]] | None = None
        self._budget, self._full_at = Budget(), float("-inf")
        self._rested_at = 0.0  # not before then are estimates made anew

    async def run(self) -> None:
        """Publish for ever: after each round, and every few seconds since estimates age."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._reconciler.planned.wait()
            self._reconciler.planned.clear()
            try:
                await self.once(time.time())
            except ApiError as e:
                log.warning("publishing failed, the next one may succeed: %s", e)
            except Exception:  # an estimate that goes wrong mustn't stop the queue
                log.exception("estimating failed; what is known is learned anew")
                self._feed, self._estimates = Feed(), {}
                self._store.finished = [j for j in self._store.jobs.values() if j.phase in FINISHED]
            await asyncio.sleep(PAUSE)

    async def once(self, now: float) -> None:
        """One comparison and its writes."""
        # The jobs as they are now, in the order of the plan: the plan's own values may be a write behind.
        queue = [j for planned in self._reconciler.last_plan.queue if (j := self._store.waiting.get(planned.uid))]
        active, nodes = list(self._store.active.values()), list(self._store.nodes.values())
        if full := now >= self._full_at + FULL:
            self._full_at = now
            if self._estimating is None and now >= self._rested_at:
                finished = self._store.take_finished()
                work = asyncio.to_thread(self._estimate, queue, active, nodes, finished, now)
                self._estimating = asyncio.create_task(work)
        await self._take_estimates(now)
        estimates = {uid: later(e, now) for uid, e in self._estimates.items()}
        blockers = publish.Blockers(nodes, self._store.scope.nodes)
        shares = publish.Shares(self._reconciler.policy.max_slots, self._store.active_in)
        gate = asyncio.Semaphore(PARALLEL)

        def why(job: Job) -> tuple[Reason, str]:
            if job.not_before > now:
                return publish.backoff(job)
            return shares.of(job.namespace) or blockers.of(job.shape)

        async def write(job: Job, position: int | None) -> None:
            status, estimate = copied(dict(job.status)), estimates.get(job.uid)
            if position is None:
                publish.completing(job, status, estimate)
            else:
                publish.waiting(job, status, position, why(job), _shown(job, estimate), now)
            async with gate:
                await write_status(self._client, self._store, job, status)

        self._budget.see(self._reconciler.moves, now)
        exact, others = self._budget.exact(now), self._budget.others() if full else 0
        settled = self._budget.settled(now)
        todo: list[tuple[Job, int | None]] = []
        for position, job in enumerate(queue[: publish.EXACT] if exact else (), 1):
            if publish.stale(job, position, why(job), _shown(job, estimates.get(job.uid)), now):
                todo.append((job, position))
        rest = itertools.chain(
            ((j, None) for j in active if publish.completion_is_stale(j, estimates.get(j.uid), now)),
            (
                (job, position)
                for position, job in enumerate(queue[publish.EXACT :], publish.EXACT + 1)
                if publish.stale(job, position, why(job), _shown(job, estimates.get(job.uid)), now, settled)
            ),
        )
        chosen = list(itertools.islice(rest, others))
        self._budget.spend(len(chosen))
        if not full or not exact or len(chosen) == others or not settled or self._estimating:
            self._reconciler.planned.set()  # there may be more to do, whether or not anything happens
        todo += chosen
        results = await asyncio.gather(*(write(*t) for t in todo), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _take_estimates(self, now: float) -> None:
        """Those that are ready, or will be at once; the positions of a long queue don't wait for its estimates."""
        if (task := self._estimating) is None:
            return
        await asyncio.wait({task}, timeout=PATIENCE)
        if not task.done():
            return
        self._estimating = None
        self._estimates, cost = task.result()
        self._rested_at = now + 10 * cost  # the work shares its processor with the planner: it may use a tenth of it
        for verdict in self._feed.verdicts():
            metrics.ESTIMATE_ERROR.labels(verdict.of).observe(verdict.error)
            metrics.ESTIMATE_BOUNDS.labels(verdict.of, "true" if verdict.held else "false").inc()

    def _estimate(
        self, queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], finished: Sequence[Job], now: float
    ) -> tuple[Mapping[str, Estimate], float]:
        """In a thread of its own: the estimates, and the seconds of CPU that they cost."""
        started = time.thread_time()
        self._feed.finished(finished, nodes)
        estimates = self._feed.estimates(queue, active, nodes, now)
        cost = time.thread_time() - started
        metrics.ESTIMATE_SECONDS.observe(cost)
        return estimates, cost


def _shown(job: Job, estimate: Estimate | None) -> Estimate | None:
    """A job that is still being validated has no estimate: it may have no valid request at all."""
    return None if job.phase is Phase.VALIDATING else estimate

"""The loop: snapshot -> plan -> actions. One round at a time, woken by the store.

A round begins to advance each job that something happened to (one status write each, then its pods), plans the slots
that are free and begins to admit. It waits for none of that: the next round goes on with what is true then, and leaves
alone who is still worked on. Nothing that can wait is done here: positions and estimates are the publisher's,
webhooks the notifier's. A write that fails is no problem: the job is looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from functools import partial
from typing import Any

from gpubatch_operator import logs, metrics
from gpubatch_operator.core import actions, lifecycle
from gpubatch_operator.core.model import Attempt, AttemptState, Job, Pod
from gpubatch_operator.core.order import RANK
from gpubatch_operator.core.phases import ACTIVE, WAITING, Phase
from gpubatch_operator.core.placement import misfit
from gpubatch_operator.core.plan import ANY_NODE, Admission, Plan, plan
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.executor import Executor
from gpubatch_operator.kube import pods
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.events import Recorder
from gpubatch_operator.kube.livekeys import LiveKeys
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.writing import write_status
from gpubatch_operator.observe import Observer
from gpubatch_operator.settings import Settings
from gpubatch_operator.timers import Timers
from gpubatch_operator.workers import Workers

JSON = dict[str, Any]
PARALLEL = {"admit": 32, "advance": 24, "enter": 8}
"""Jobs worked on at a time; those that enter the queue can wait. The client's pool has room for other requests too."""
OUTSIDE = (None, Phase.HELD, Phase.SUSPENDED)
SAYS_WHY = {
    Phase.QUEUED: "Admitted",
    Phase.SUCCEEDED: "Complete",
    Phase.FAILED: "Failed",
    Phase.CANCELLED: "Failed",
}
"""The condition whose message tells why a job came into a phase; else `pending` does."""

ALARMS = frozenset({"Unresponsive", "TTLIgnored"})  # conditions worth an Event of their own when they become true
MOST_REST = 0.05  # seconds between two rounds
REPLAN = 1.0  # seconds after which a round plans anew though nothing changed but the time
TICK = 5.0  # time alone changes some answers: patience runs out

log = logging.getLogger(__name__)


class Reconciler:
    """Owns the decisions of one operator process."""

    def __init__(self, client: Client, store: Store, settings: Settings, events: Recorder, live_keys: LiveKeys) -> None:
        self._client, self._store, self._settings, self._events = client, store, settings, events
        self._executor = Executor(client, store, settings, live_keys, self._announce)
        self._limits = Limits(
            image_pull_seconds=settings.image_pull_seconds,
            start_seconds=settings.start_seconds,
            unschedulable_seconds=settings.unschedulable_seconds,
            engine_restarts=settings.engine_restarts,
            runner_restarts=settings.runner_restarts,
            allow_privileged_pods=settings.allow_privileged_pods,
            scale_up_seconds=settings.scale_up_seconds,
            stop_seconds=settings.stop_seconds,
        )
        self.policy = settings.policy()
        self._observer = Observer()
        self._timers = Timers()
        self._failures: dict[str, int] = {}
        self._to_inspect: set[str] = set()  # wait for one of the few inspect pods
        self._inspecting: set[str] = set()  # theirs are being created
        self._workers = Workers(PARALLEL, self._ended)
        self._admitting: dict[str, tuple[Job, asyncio.Future[None]]] = {}  # that is being written
        self._holding: dict[str, Job] = {}  # it is being written that they may not enter the queue
        self._missed: set[str] = set()  # something happened to them while they were worked on
        self._kept: set[str] = set()  # they get their slot as soon as they aren't worked on
        self.planned = asyncio.Event()  # set after each round; the publisher waits for it
        self.last_plan = Plan((), ())
        self._planned_at = float("-inf")
        self.moves = 0  # jobs that came into the queue or left it for a slot, ever

    async def run(self) -> None:
        """Rounds, for ever."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):  # wait_for may swallow a cancellation
                        await self._store.changed.wait()
                self._store.changed.clear()
                self._store.urgent.clear()
                begin = time.monotonic()
                self._advance_touched()
                self._inspect_some()
                if self._store.take_stirred() or begin >= self._planned_at + REPLAN:
                    self._planned_at = begin
                    self._plan()
                self.planned.set()
                await self._rest(time.monotonic() - begin)
        finally:
            await self._workers.stop()

    async def _rest(self, spent: float) -> None:
        """What happens meanwhile makes one round. Rounds take a sixth of the time at most; half, if GPUs idle."""
        await asyncio.sleep(min(MOST_REST, spent))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(MOST_REST, 5 * spent) - spent):
                await self._store.urgent.wait()

    async def round(self) -> None:
        """One round with all that follows from it, step by step."""
        for step in (self._advance_touched, self._advance_touched, self._inspect_some, self._plan):
            step()
            await self._workers.join()

    def _advance_touched(self) -> None:
        """Begin to advance the jobs that something happened to, and those that the queue has room for again."""
        now = time.time()
        touched = self._store.take_dirty() | self._timers.take(now)
        # Who fails again and again is not tried before its time, whatever happens to it meanwhile.
        touched -= {uid for uid in self._failures if (self._timers.get(uid) or 0.0) > now}
        jobs = self._store.jobs
        for uid in self._in_order(touched.union(j.uid for j in self._store.take_held())):
            if self._workers.busy(uid):
                self._missed.add(uid)
            else:
                enters = (job := jobs.get(uid)) is not None and job.phase in OUTSIDE
                self._workers.start(uid, partial(self._advance, uid), "enter" if enters else "advance")

    def _plan(self) -> None:
        """Plan, and begin to admit. The next plan counts with it."""
        decided = time.monotonic()
        with metrics.PLAN_SECONDS.time():
            snapshot = self._store.snapshot(time.time())
            self.last_plan = plan(snapshot, self.policy)
        self._observer.planned(snapshot, self.last_plan)
        for admission in self.last_plan.admissions:
            if self._workers.busy(uid := admission.job.uid):
                self._kept.add(uid)  # nobody overtakes it meanwhile
            else:
                job, a = admission.job, self._attempt(admission)
                status = lifecycle.admit(job, a.node, a.slot, a.pod_name, a.started)
                self._store.expect(job, status)
                self._admitting[uid] = job, asyncio.get_running_loop().create_future()
                self._workers.start(uid, partial(self._admit, job, a, status, decided), "admit")

    def _in_order(self, touched: set[str]) -> list[str]:
        """Who may enter the queue comes first, in the queue's order: there may not be room for all."""
        jobs = self._store.jobs
        entrants = [j for uid in touched if (j := jobs.get(uid)) and j.phase not in WAITING and j.phase not in ACTIVE]
        entrants.sort(key=RANK)
        first = [j.uid for j in entrants]
        return first + list(touched.difference(first))

    def _pause(self) -> float:
        at = self._timers.next()
        return TICK if at is None else max(0.01, min(TICK, at - time.time()))

    def _ended(self, uid: str, error: Exception | None) -> None:
        """The end of some work on a job. Who fails is tried again later and later."""
        if uid in self._missed:
            self._store.touch(uid)
        if uid in self._kept:
            self._store.stir()
        self._missed.discard(uid)
        self._kept.discard(uid)
        if error is None:
            self._failures.pop(uid, None)
            return
        count = self._failures[uid] = self._failures.get(uid, 0) + 1
        delay = min(30.0, 0.25 * 2 ** min(count, 8))
        self._timers.put(uid, time.time() + delay)
        unforeseen = None if isinstance(error, ApiError) else error
        log.warning("will be tried again in %.1f s: %s: %s", delay, uid, error, exc_info=unforeseen)

    # --- one job

    async def _advance(self, uid: str) -> None:
        store, job, seen = self._store, self._store.jobs.get(uid), time.monotonic()
        family = store.pods_for(uid)
        if job is None:
            self._executor.forget(uid)
            for pod in family:
                for action in lifecycle.orphan(pod):
                    await self._act(None, action)
                if pod.gone:
                    store.forget_pod(pod)
            return
        logs.about(job)
        report = self._report(job, family)
        silent = next((since for p in family if (since := store.silent.get(p.uid)) is not None), None)
        fits = self._node_fits(job)
        step = lifecycle.advance(job, family, report, time.time(), self._limits, fits, silent, store.gate)
        if step.retry_at is not None and step.retry_at < float("inf"):
            self._timers.put(uid, max(step.retry_at, time.time() + 0.05))
        phase = Phase(step.status["phase"])
        enters = phase in WAITING - {job.phase}
        if enters and job.phase in OUTSIDE and self._is_behind_others(job):
            self._timers.put(uid, time.time() + MOST_REST)
            return
        if phase is Phase.HELD and job.phase is not Phase.HELD:
            self._holding[uid] = job
        if enters:  # before anybody else looks at the gate, or is given a slot
            store.expect(job, step.status)
        try:
            if enters:
                await self._written_behind(job)
            if not await write_status(self._client, store, job, step.status):
                return
        finally:
            if enters:
                store.recount(uid)
            self._holding.pop(uid, None)
        self._announce(job, step.status, seen)
        for pod in family:
            if pod.gone:
                store.forget_pod(pod)
        for action in step.actions:
            await self._act(job, action)

    def _is_behind_others(self, job: Job) -> bool:
        """Whether somebody ahead may enter the queue, too, and is just about to: it was full a moment ago."""
        ahead = (j for j in itertools.chain(self._holding.values(), self._store.held.values()) if RANK(j) < RANK(job))
        return any(j.uid not in self._failures and self._store.gate.hold(j, j.requests) is None for j in ahead)

    def _report(self, job: Job, family: list[Pod]) -> ProgressReport | None:
        number = job.attempt.number if job.attempt else None
        return next((self._store.reports.get(p.uid) for p in family if p.kind == "run" and p.attempt == number), None)

    def _node_fits(self, job: Job) -> bool:
        if job.attempt is not None and job.attempt.node == ANY_NODE:
            return True
        node = self._store.nodes.get(job.attempt.node) if job.attempt else None
        return node is not None and misfit(job.shape, node) is None

    def _attempt(self, admission: Admission) -> Attempt:
        job, number = admission.job, admission.job.attempts + 1
        name = pods.pod_name(job.name, job.uid, str(number))
        return Attempt(number, admission.node, admission.slot, name, None, time.time(), AttemptState.ACTIVE)

    async def _admit(self, job: Job, attempt: Attempt, status: JSON, decided: float) -> None:
        logs.about(job, attempt.number)
        try:
            if not await write_status(self._client, self._store, job, status):
                return
        finally:
            self._store.recount(job.uid)
            self._admitting.pop(job.uid)[1].set_result(None)
        metrics.ADMISSIONS.inc()
        self._announce(job, status, decided)
        await self._act(job, actions.Run(attempt))
        self._observer.admitted(job, attempt, decided)

    async def _written_behind(self, job: Job) -> None:
        """Wait for the admissions of jobs behind this one, by plans that didn't know that it enters the queue.

        Else one of them could be written after this job is Queued: out of order, though for milliseconds.
        """
        if behind := [written for other, written in self._admitting.values() if RANK(other) > RANK(job)]:
            await asyncio.wait(behind)

    def _announce(self, job: Job, status: JSON, seen: float) -> None:
        """An Event, a log line and a count, once per change of phase."""
        phase, conditions = Phase(status["phase"]), {c["type"]: c for c in status.get("conditions", [])}
        before = {c["type"] for c in job.status.get("conditions", []) if c["status"] == "True"}
        for alarm in ALARMS - before & conditions.keys():
            if conditions[alarm]["status"] == "True":
                self._events.record(job, alarm, conditions[alarm]["message"], warning=True)
        if phase is job.phase:
            return
        if phase in WAITING or phase is Phase.STARTING:
            self.moves += 1
        condition = conditions.get(SAYS_WHY.get(phase, ""))
        message = condition["message"] if condition else status.get("pending", {}).get("message", "")
        where = f" on {status.get('nodeName', 'a node to come')}" if phase is Phase.STARTING else ""
        note = f"{phase.value}{where}" + (f": {message}" if message else "")
        self._events.record(job, phase.value, note, warning=phase is Phase.FAILED)
        log.info("%s: %s", phase.value, message)
        self._observer.changed(job, status, seen, others_wait=bool(self._store.waiting))

    async def _act(self, job: Job | None, action: actions.Action) -> None:
        if isinstance(action, actions.Inspect):
            assert job is not None
            self._to_inspect.add(job.uid)
            self._store.changed.set()
        else:
            await self._executor.act(job, action)

    def _inspect_some(self) -> None:
        """Begin to create inspect pods for the first in order, as many as may run at a time."""
        if not self._to_inspect:
            return
        running = sum(p.kind == "inspect" and not p.finished for p in self._store.pods.values())
        wanted = [j for uid in self._to_inspect if (j := self._store.waiting.get(uid)) and j.phase is Phase.VALIDATING]
        room = max(0, self._settings.max_inspections - running - len(self._inspecting))
        first = [j for j in heapq.nsmallest(room, wanted, key=RANK) if not self._workers.busy(j.uid)]
        self._to_inspect = {j.uid for j in wanted} - {j.uid for j in first}
        for job in first:
            self._inspecting.add(job.uid)
            self._workers.start(job.uid, partial(self._inspect, job), "advance")

    async def _inspect(self, job: Job) -> None:
        logs.about(job)
        try:
            await self._executor.act(job, actions.Inspect())
        finally:
            self._inspecting.discard(job.uid)

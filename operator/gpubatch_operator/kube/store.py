"""Everything that was last seen of jobs, pods and nodes, in memory; the only state that decisions are made from.

Events only update it and ask for a plan. Any answer of the API server updates it too, so that a plan never waits for
the echo of our own write. Older versions of an object are ignored whatever the order in which they arrive.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from gpubatch_operator import logs
from gpubatch_operator.core.limits import Gate, QueueLimits
from gpubatch_operator.core.model import Job, Node, Occupant, Pod, Shape, Snapshot
from gpubatch_operator.core.order import RANK
from gpubatch_operator.core.phases import ACTIVE, FINISHED, WAITING, Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.manifests import Manifests
from gpubatch_operator.kube.pods import pod_name

JSON = dict[str, Any]
TOMBSTONES = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the cluster an operator may look at.

    Attributes:
        namespaces: Of jobs and pods; empty: all.
        nodes: Whether nodes are known. If not, kube-scheduler chooses them.
    """

    namespaces: tuple[str, ...] = ()
    nodes: bool = True


EVERYTHING = Scope()


class Store:
    """Not thread-safe on purpose: it lives in one event loop."""

    def __init__(
        self,
        slots_per_node: int,
        limits: QueueLimits = QueueLimits(),  # noqa: B008 (immutable)
        scope: Scope = EVERYTHING,
    ) -> None:
        self._slots_per_node = slots_per_node
        self._limits = limits
        self.scope = scope
        self.jobs: dict[str, Job] = {}
        self.raw = Manifests()
        self.waiting: dict[str, Job] = {}  # in the queue
        self.held: dict[str, Job] = {}  # may not enter it yet
        self.active: dict[str, Job] = {}
        self.active_in: Counter[str] = Counter()  # by namespace
        self.gate = Gate(limits)
        self._room = True  # somebody has left the queue since `take_held`; at the start nobody has looked
        self.deliverable: set[str] = set()  # jobs that have webhooks to deliver
        self._to_deliver: set[str] = set()  # those of them that changed since `take_deliverable`
        self.deliveries_changed = asyncio.Event()
        self.fresh: set[str] = set()  # jobs that have no phase yet
        self._leaving: dict[str, Job] = {}  # their end is being written
        self.pods: dict[str, Pod] = {}
        self.pods_of: dict[str, dict[str, Pod]] = {}
        self.nodes: dict[str, Node] = {}
        self.reports: dict[str, ProgressReport] = {}  # by the pod's uid
        self.silent: dict[str, float] = {}  # by the pod's uid: last heard of then, and alarmingly long ago
        self._versions: dict[str, int] = {}  # by uid: the resourceVersion that is held
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._dirty: set[str] = set()
        self.listed_at = float("-inf")  # monotonic: when the last list of everything began
        self.changed = asyncio.Event()
        self.urgent = asyncio.Event()  # the same, and a GPU is idle until it was looked at
        self._stirred = True  # something changed since `take_stirred` that a plan depends on
        self._followers: list[set[str]] = []
        self.finished: list[Job] = []  # jobs seen finished since somebody last took them, to learn from

    # --- what was seen

    def put_job(self, raw: JSON) -> None:
        """A job as the API server has it now."""
        uid = raw["metadata"]["uid"]
        if not self._newer(raw):
            return
        try:
            job = convert.job_of(raw, self._limits.caps(raw["metadata"]["namespace"]).max_priority)
        except (ValidationError, ValueError, KeyError) as e:
            about = logs.subject_of(raw)
            log.error("a stored job can't be read and is left alone: %s: %s", about["job"], e, extra=about)
            return
        old = self.jobs.get(uid)
        self.jobs[uid] = job
        self.raw.put(raw)
        self._place(job)
        if job.phase in FINISHED and (old is None or old.phase not in FINISHED):
            self.finished.append(job)
        pending = any(d["state"] == "Pending" for d in job.status.get("webhookDeliveries") or [])
        (self.deliverable.add if pending else self.deliverable.discard)(uid)
        if pending:
            self._to_deliver.add(uid)
            self.deliveries_changed.set()
        (self.fresh.add if job.phase is None and not job.deleting else self.fresh.discard)(uid)
        self.touch(uid)

    def drop_job(self, uid: str) -> None:
        """A job that is deleted; its pods may live on for their grace period."""
        self._bury(uid)
        self._stirred = True
        self._remove(uid)
        self.jobs.pop(uid, None)
        self.raw.drop(uid)
        self.deliverable.discard(uid)
        self._to_deliver.discard(uid)
        self.fresh.discard(uid)
        self.touch(uid)

    def knows_job(self, uid: str) -> bool:
        """Whether it was ever seen, be it deleted since."""
        return uid in self.jobs or uid in self._deleted

    def put_pod(self, raw: JSON) -> None:
        """A pod of ours as the API server has it now."""
        if self._newer(raw) and (pod := self._pod_of(raw)):
            self._index(pod)

    def drop_pod(self, raw: JSON) -> None:
        """A pod that is deleted: it is kept, as gone, until its job has taken note of its last words."""
        uid = raw["metadata"]["uid"]
        if uid in self._deleted:
            return
        self._bury(uid)
        if pod := self._pod_of(raw, gone=True):
            self._index(pod)

    def lose_pod(self, uid: str) -> None:
        """A pod whose deletion was missed: it is gone with what was last seen of it."""
        if pod := self.pods.get(uid):
            self._bury(uid)
            self._index(replace(pod, gone=True))

    def forget_pod(self, pod: Pod) -> None:
        """Its job has no more use for it."""
        self.pods.pop(pod.uid, None)
        self.reports.pop(pod.uid, None)
        self.silent.pop(pod.uid, None)
        siblings = self.pods_of.get(pod.job_uid, {})
        siblings.pop(pod.uid, None)
        if not siblings:
            self.pods_of.pop(pod.job_uid, None)

    def put_node(self, raw: JSON) -> None:
        """A node; most of its events are heartbeats that change nothing for us."""
        node = convert.node_of(raw, self._slots_per_node)
        if self.nodes.get(node.name) != node:
            self.nodes[node.name] = node
            self._touch_node(node.name)

    def drop_node(self, name: str) -> None:
        """A node that is gone."""
        if self.nodes.pop(name, None):
            self._touch_node(name)

    def put_report(self, pod: Pod, report: ProgressReport) -> None:
        """What a runner said of its progress."""
        self.reports[pod.uid] = report
        self.silent.pop(pod.uid, None)
        self.touch(pod.job_uid)

    def put_silence(self, pod: Pod, since: float) -> None:
        """A runner that hasn't answered for long, though it was asked again and again."""
        self.silent[pod.uid] = since
        self.touch(pod.job_uid)

    # --- what follows from it

    def touch(self, uid: str) -> None:
        """Look at this job in the next round."""
        self._dirty.add(uid)
        for follower in self._followers:
            follower.add(uid)
        self.changed.set()

    def followed(self) -> set[str]:
        """A set that gets each job that something happens to from now on; whoever asked for it empties it."""
        self._followers.append(follower := set[str]())
        return follower

    def take_dirty(self) -> set[str]:
        """The jobs to look at; whoever takes them looks at them."""
        dirty, self._dirty = self._dirty, set()
        return dirty

    def take_deliverable(self) -> set[str]:
        """Jobs with webhooks to deliver that changed since the last call."""
        changed, self._to_deliver = self._to_deliver, set()
        return changed

    def take_finished(self) -> list[Job]:
        """Jobs that finished since the last call."""
        done, self.finished = self.finished, []
        return done

    def pods_for(self, uid: str) -> list[Pod]:
        """The pods of a job, gone ones whose end wasn't looked at yet among them.

        Labels can be copied, a name in the job's namespace can't be used twice: only a pod under the name that we
        derive for it speaks for the job.
        """
        found, job = self.pods_of.get(uid, {}).values(), self.jobs.get(uid)
        return [p for p in found if job is None or _is_ours(p, job)]

    def snapshot(self, now: float) -> Snapshot:
        """What a plan is made of."""
        floating: list[Shape] = []
        occupied = tuple(self._occupied(floating))
        waiting, nodes = tuple(self.waiting.values()), tuple(self.nodes.values())
        return Snapshot(waiting, nodes, occupied, now, floating, self.active_in)

    def _occupied(self, floating: list[Shape]) -> Iterable[Occupant]:
        """Slots of pods that live, and of attempts without one: not there yet, or its end isn't recorded yet.

        Attempts that have no node yet are added to `floating` instead.
        """
        seen: set[tuple[str, int]] = set()
        for p in self.pods.values():
            if p.kind != "run" or p.slot is None or p.finished:
                continue
            job = self.jobs.get(p.job_uid)
            ours = job is not None and _is_ours(p, job)
            if ours:
                seen.add((p.job_uid, p.attempt))
            # Where it is bound, it keeps others out of its slot, whoever made it; unbound, it must be one of ours.
            if node := p.node or (p.target if ours else None):
                yield Occupant(node, p.slot, p.resource, p.gpus)
            elif ours and job is not None:
                floating.append(job.shape)
        for job in (*self.active.values(), *self._leaving.values()):
            if (a := job.attempt) and (job.uid, a.number) not in seen:
                if a.node:
                    yield Occupant(a.node, a.slot, job.shape.resource, job.shape.gpus)
                else:
                    floating.append(job.shape)

    def _touch_node(self, name: str) -> None:
        self._stirred = True
        for job in self.active.values():
            if job.attempt and job.attempt.node == name:
                self.touch(job.uid)
        self.changed.set()

    def expect(self, job: Job, status: JSON) -> None:
        """Count a job as what it will be, if a write of this status succeeds that is on its way; then call `recount`.

        A slot that it gives up is still taken until then.
        """
        if job.phase in ACTIVE:
            self._leaving[job.uid] = job
        raw = {**self.raw[job.uid], "status": status}
        self._place(convert.job_of(raw, self._limits.caps(job.namespace).max_priority))

    def stir(self) -> None:
        """Ask for a plan."""
        self._stirred = True
        self.changed.set()

    def take_stirred(self) -> bool:
        """Whether a plan may say something else than the last one: a slot was freed, a job or a node came or changed.

        That a slot was taken changes nothing: it was planned.
        """
        stirred, self._stirred = self._stirred, False
        return stirred

    def recount(self, uid: str) -> None:
        """Count a job as what it is, as far as we know."""
        if self._leaving.pop(uid, None) is not None:
            self._stirred = True
            self.urgent.set()
        if job := self.jobs.get(uid):
            self._place(job)

    def take_held(self) -> list[Job]:
        """Those that may enter now, the first in order first; nobody if no room has become free since the last call."""
        if not self._room:
            return []
        self._room = False
        return [j for j in sorted(self.held.values(), key=RANK) if self.gate.hold(j, j.requests) is None]

    def _place(self, job: Job) -> None:
        room, was, held = self._room, self.waiting.get(job.uid), self.active.get(job.uid)
        self._stirred |= held is not None and _slot(held) != _slot(job)
        self._remove(job.uid)
        if job.phase in ACTIVE:
            self.active[job.uid] = job
            self.active_in[job.namespace] += 1
        elif job.deleting:
            pass
        elif job.phase in WAITING:
            self.waiting[job.uid] = job
            self._stirred |= was is None or _claim(was) != _claim(job)
            self.gate.enter(job, job.requests)
            self._room = room  # it is still inside
        elif job.phase is Phase.HELD:
            self.held[job.uid] = job

    def _remove(self, uid: str) -> None:
        self.held.pop(uid, None)
        if job := self.active.pop(uid, None):
            self.active_in[job.namespace] -= 1
        self.waiting.pop(uid, None)
        self._room |= self.gate.leave(uid)

    def _index(self, pod: Pod) -> None:
        old = self.pods.get(pod.uid)
        if pod.kind == "run" and (old is None or not old.finished):
            if pod.finished and self._is_open(pod):  # its slot is taken until its end is recorded
                self.urgent.set()
            elif pod.finished or pod.node not in (None, pod.target):
                self._stirred = True
        self.pods[pod.uid] = pod
        self.pods_of.setdefault(pod.job_uid, {})[pod.uid] = pod
        self.touch(pod.job_uid)
        job = self.jobs.get(pod.job_uid)
        if pod.gone and job is not None and not _is_ours(pod, job):
            self.forget_pod(pod)  # nobody will take note of its end

    def _is_open(self, pod: Pod) -> bool:
        """Whether it is of an attempt that its job's status doesn't know to have ended."""
        job = self.active.get(pod.job_uid)
        return job is not None and job.attempt is not None and job.attempt.number == pod.attempt and _is_ours(pod, job)

    def _pod_of(self, raw: JSON, gone: bool = False) -> Pod | None:
        try:
            return convert.pod_of(raw, gone)
        except (ValueError, KeyError) as e:
            name = f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"
            log.error("a pod with our labels isn't one of ours and is left alone: %s: %s", name, e)
            return None

    def _newer(self, raw: JSON) -> bool:
        uid, version = raw["metadata"]["uid"], int(raw["metadata"]["resourceVersion"])
        if uid in self._deleted or self._versions.get(uid, -1) >= version:
            return False
        self._versions[uid] = version
        return True

    def _bury(self, uid: str) -> None:
        self._versions.pop(uid, None)
        self._deleted[uid] = None
        if len(self._deleted) > TOMBSTONES:
            self._deleted.popitem(last=False)


def _claim(job: Job) -> tuple[Any, ...]:
    """What of a waiting job the plan looks at."""
    return job.phase, job.rank, job.shape, job.not_before, job.avoid


def _slot(job: Job) -> tuple[Any, ...]:
    """What a job takes from others."""
    return job.phase in ACTIVE, job.attempt and job.attempt.node, job.attempt and job.attempt.slot


def _is_ours(pod: Pod, job: Job) -> bool:
    suffix = str(pod.attempt) if pod.kind == "run" else pod.kind
    return pod.namespace == job.namespace and pod.name == pod_name(job.name, job.uid, suffix)

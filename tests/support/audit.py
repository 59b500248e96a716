"""What a history of jobs, pods and nodes proves: each promise that was broken in it, and how much was looked at.

A pure function of the events. It goes through them in the order in which etcd stored them and knows at each moment
what was true, so it sees also what lasted for a millisecond.

Whether an admission was out of order is judged by what the operator could know when it planned: a plan is older than
the writes that it leads to, others are under way meanwhile, and what a user has changed it hears from a watch. So a job
counts as waiting once it is Queued, and was left alone by users for `grace` seconds. A plan admits several jobs at
once, and their writes land in any order; so a job ahead that fits the slot is wronged only if there isn't another free
slot for it (and one for each of the others that are ahead).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.phases import ACTIVE, CHANGES, FINISHED, Phase
from gpubatch_operator.kube import convert
from gpubatch_runner.contract import SPEC_ENV
from support.history import Event

JSON = dict[str, Any]
Slot = tuple[str, int]
GPU = "nvidia.com/gpu"
OPEN = ("Active", "Stopping")


@dataclass
class Findings:
    """`broken` holds sentences, by promise; `counts` how much there was to look at."""

    broken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class _Job:
    raw: JSON
    edited_at: float = float("-inf")  # by a user
    queued_at: float = float("-inf")  # when it became Queued

    @property
    def phase(self) -> Phase | None:
        phase = self.status.get("phase")
        return Phase(phase) if phase else None

    @property
    def status(self) -> JSON:
        return self.raw.get("status") or {}

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def run(self) -> tuple[str, str]:
        return self.raw["metadata"]["uid"], self.status.get("runId", "")

    @property
    def attempt(self) -> JSON | None:
        attempts = self.status.get("attempts")
        return attempts[-1] if attempts else None

    @property
    def gpus(self) -> int:
        return int(self.raw["spec"].get("gpus", 1))

    @property
    def rank(self) -> tuple[int, float, int, str]:
        status = self.status
        place = seconds(status["queuedAt"]), int(status["queueTicket"])
        return (-self.raw["spec"].get("priority", 0), *place, self.raw["metadata"]["uid"])

    def may_run(self) -> bool:
        spec = self.raw["spec"]
        wanted = not spec.get("suspend") and not spec.get("cancel")
        return self.phase is Phase.QUEUED and wanted and "deletionTimestamp" not in self.raw["metadata"]

    def selects(self, labels: Mapping[str, str]) -> bool:
        spec = self.raw["spec"]
        template = (spec.get("template") or {}).get("spec") or {}
        wanted = (template.get("nodeSelector") or {}) | (spec.get("nodeSelector") or {})
        return all(labels.get(k) == v for k, v in wanted.items())


@dataclass
class _Node:
    raw: JSON
    usable_at: float = float("-inf")  # when it last could take a job; inf: it can now
    slots: int = 1
    gpus: int = 0

    @property
    def labels(self) -> Mapping[str, str]:
        return self.raw["metadata"].get("labels") or {}


class _Audit:
    def __init__(self, deleted: Collection[str], caps: Mapping[str, int], grace: float, entered: float) -> None:
        self.deleted, self.caps, self.grace, self.entered = deleted, caps, grace, entered
        self.found = Findings()
        self.jobs: dict[str, _Job] = {}
        self.nodes: dict[str, _Node] = {}
        self.pods: dict[str, JSON] = {}  # runner pods
        self.gone: set[str] = set()  # jobs
        self.full: dict[str, float] = {}  # namespaces that held all slots that they may have, and until when
        self.done: dict[tuple[str, str], tuple[int, str]] = {}  # template runs: the attempt whose work was done, when
        self.outputs: dict[str, set[str]] = defaultdict(set)  # by the run's name in the pod
        self.ends: Counter[tuple[str, str]] = Counter()
        self.results: dict[str, dict[str, str]] = defaultdict(dict)  # of a job, by output: which run

    def broken(self, promise: str, version: int, what: str) -> None:
        self.found.broken[promise].append(f"at {version}: {what}")

    def see(self, e: Event) -> None:
        self.found.counts[e.kind] += 1
        {"jobs": self.job, "pods": self.pod, "nodes": self.node}[e.kind](e)

    # --- nodes

    def node(self, e: Event) -> None:
        name = e.object["metadata"]["name"]
        old = self.nodes.get(name)
        if e.type == "DELETED":
            if old:
                old.usable_at = min(old.usable_at, e.at)
            return
        node = convert.node_of(e.object, 1)
        usable = node.ready and not node.unschedulable and not any(t.effect != "PreferNoSchedule" for t in node.taints)
        before = old.usable_at if old else float("-inf")
        at = float("inf") if usable else min(before, e.at)
        self.nodes[name] = _Node(e.object, at, node.slots, node.capacity.get(GPU, 0))

    # --- pods

    @staticmethod
    def lives(pod: JSON) -> bool:
        killed = pod["metadata"].get("deletionGracePeriodSeconds") == 0
        return bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") in ("Pending", "Running") and not killed

    @staticmethod
    def slot(pod: JSON) -> Slot:
        return pod["spec"]["nodeName"], int(pod["metadata"]["labels"][convert.SLOT])

    def pod(self, e: Event) -> None:
        meta = e.object["metadata"]
        labels = meta.get("labels") or {}
        if labels.get(convert.KIND) != "run":
            return
        uid, name, job = meta["uid"], meta["name"], self.jobs.get(labels[convert.JOB_UID])
        if e.type == "DELETED":
            self.pods.pop(uid, None)
            return
        known = job is not None and labels[convert.JOB_UID] not in self.gone
        number = int(labels[convert.ATTEMPT])
        if e.type == "ADDED":
            self.found.counts["runner pods"] += 1
            if known and job and name not in {a["podName"] for a in job.status.get("attempts", [])}:
                self.broken("an attempt is recorded before its pod exists", e.version, f"{name} was not recorded")
        self.pods[uid] = e.object
        if self.lives(e.object):
            here = self.slot(e.object)
            for other in self.pods.values():
                if other["metadata"]["uid"] != uid and self.lives(other) and self.slot(other) == here:
                    self.broken(
                        "no two runner pods in one slot", e.version, f"{name}, {other['metadata']['name']}: {here}"
                    )
            a = job.attempt if job else None
            if a and a["podName"] == name and a["node"] not in ("", here[0]):
                self.broken("a pod runs where it was planned", e.version, f"{name} on {here[0]}, not on {a['node']}")
        if job is not None:
            self.work(e, job, number)

    def work(self, e: Event, job: _Job, number: int) -> None:
        """What was done twice, or undone."""
        meta, status = e.object["metadata"], e.object["status"]
        main = e.object["spec"]["containers"][0]
        ended = next(
            (t for c in status.get("containerStatuses") or [] if (t := (c.get("state") or {}).get("terminated"))), None
        )
        if status.get("phase") != "Succeeded" or ended is None:
            return
        if job.raw["spec"].get("inference"):
            outcome = json.loads(ended.get("message") or "{}")
            if outcome.get("succeeded"):
                run = next(json.loads(v["value"])["run"] for v in main["env"] if v["name"] == SPEC_ENV)
                self.outputs[run].add(outcome["output"])
                if len(self.outputs[run]) > 1:
                    self.broken("no job has two results", e.version, f"{meta['name']}: {sorted(self.outputs[run])}")
            return
        disrupted = any(c["type"] == "DisruptionTarget" for c in status.get("conditions") or [])
        deleted = meta.get("deletionTimestamp")
        if deleted is None and not disrupted:
            self.done.setdefault(job.run, (number, ended["finishedAt"]))
        elif job.run in self.done and deleted is not None and job.phase not in FINISHED:
            asked = seconds(deleted) - (meta.get("deletionGracePeriodSeconds") or 0)
            if asked <= seconds(ended["finishedAt"]):  # whole seconds: nobody can tell any more what came first
                self.done.pop(job.run)

    # --- jobs

    def job(self, e: Event) -> None:
        uid = e.object["metadata"]["uid"]
        old = self.jobs.get(uid)
        if e.type == "DELETED":
            if old and old.phase in ACTIVE and old.namespace in self.caps:
                self.full[old.namespace] = e.at
            self.gone.add(uid)
            if uid not in self.deleted:
                self.broken("no job is lost", e.version, f"{e.object['metadata']['name']} was deleted by nobody")
            return
        new = _Job(e.object, queued_at=e.at)
        if old is None:
            self.found.counts["jobs ever"] += 1
        else:
            new.edited_at = e.at if old.status == new.status else old.edited_at
            if old.phase is Phase.QUEUED:
                new.queued_at = old.queued_at
            self.change(e, old, new)
        namespace = new.namespace
        if old and old.phase in ACTIVE and self.active()[namespace] >= self.caps.get(namespace, 10**9):
            self.full[namespace] = e.at
        self.jobs[uid] = new

    def change(self, e: Event, old: _Job, new: _Job) -> None:
        before, after = old.phase, new.phase
        if before is not after and (after is None or after not in CHANGES[before]):
            self.broken("phases change as the table says", e.version, f"{new.name}: {before} -> {after}")
        if before in FINISHED and after in FINISHED:
            same = ("completionTime", "results", "attempts", "runId", "phase")
            if any(old.status.get(k) != new.status.get(k) for k in same):
                self.broken("no job has two results", e.version, f"{new.name}: its result was changed")
        elif before in FINISHED and old.run == new.run:
            self.broken("no job has two results", e.version, f"{new.name} ran again, and nobody asked for it")
        elif after in FINISHED:
            self.end(e, new)
        a, b = old.attempt, new.attempt
        if b is not None and (a is None or a["number"] != b["number"]):
            self.begin(e, old, new, a, b)

    def end(self, e: Event, job: _Job) -> None:
        self.found.counts[str(job.phase)] += 1
        self.ends[job.run] += 1
        if self.ends[job.run] > 1:
            self.broken("no job has two results", e.version, f"{job.name} ended twice")
        if job.attempt and job.attempt["state"] in OPEN:
            self.broken("every job ends", e.version, f"{job.name} has ended, its attempt has not")
        output = (job.status.get("results") or {}).get("output")
        if job.phase is Phase.SUCCEEDED and output:
            run = self.results[job.run[0]].setdefault(output, job.run[1])
            if run != job.run[1]:
                self.broken("a new run has a result of its own", e.version, f"{job.name} has that of run {run!r}")

    def begin(self, e: Event, old: _Job, new: _Job, before: JSON | None, attempt: JSON) -> None:
        """A new attempt: `old` is the job as the operator knew it when it admitted it."""
        self.found.counts["admissions"] += 1
        number = before["number"] if before else 0
        if attempt["number"] != number + 1:
            self.broken("attempts are counted", e.version, f"{new.name}: {number} -> {attempt['number']}")
        if before and before["state"] in OPEN:
            self.broken("one attempt at a time", e.version, f"{new.name}: {number} is still open")
        if (done := self.done.get(new.run)) is not None:
            self.broken("what succeeded is not run again", e.version, f"{new.name}: attempt {done[0]} had succeeded")
        here: Slot = attempt["node"], attempt["slot"]
        taken = self.taken()
        if here in taken:
            self.broken("a slot is given to one job", e.version, f"{new.name} gets {here} of {taken[here]}")
        if here[0] in self.nodes:
            self.order(e, old, new, here, taken)

    # --- order

    def taken(self) -> dict[Slot, str]:
        """The slots in use, each with who uses it."""
        out = {self.slot(p): p["metadata"]["name"] for p in self.pods.values() if self.lives(p)}
        for uid, job in self.jobs.items():
            if uid not in self.gone and job.phase in ACTIVE and (a := job.attempt):
                out[a["node"], a["slot"]] = job.name
        return out

    def active(self) -> Counter[str]:
        """Jobs that have a slot, by namespace."""
        return Counter(j.namespace for uid, j in self.jobs.items() if uid not in self.gone and j.phase in ACTIVE)

    def order(self, e: Event, old: _Job, new: _Job, here: Slot, taken: Mapping[Slot, str]) -> None:
        node, decided = self.nodes[here[0]], seconds(new.attempt["startTime"]) if new.attempt else 0.0
        others = sorted(
            (
                j
                for uid, j in self.jobs.items()
                if uid not in self.gone and j.may_run() and uid != new.raw["metadata"]["uid"]
            ),
            key=lambda j: j.rank,
        )
        active = self.active()
        wronged: list[_Job] = []
        for job in others:
            active[job.namespace] += 1
            if active[job.namespace] > self.caps.get(job.namespace, 10**9):
                continue
            if e.at - self.full.get(job.namespace, float("-inf")) <= self.grace:
                continue
            known = e.at - job.edited_at > self.grace and e.at - job.queued_at >= self.entered
            rested = convert.job_of(job.raw).not_before + self.grace <= decided
            # With several slots on a node, what is left of its GPUs depends on what the operator had heard of.
            room = job.gpus <= new.gpus or (node.slots == 1 and job.gpus <= node.gpus)
            if known and rested and room and job.selects(node.labels):
                self.found.counts["jobs that an admission was compared with"] += 1
                if job.rank < old.rank:
                    wronged.append(job)
        free = {
            (name, i): n
            for name, n in self.nodes.items()
            for i in range(n.slots)
            if e.at - n.usable_at <= self.grace and (name, i) != here and (name, i) not in taken
        }
        wishes = [[s for s, n in free.items() if j.selects(n.labels) and j.gpus <= n.gpus] for j in wronged]
        if not _each_gets_one(wishes):
            names = ", ".join(f"{j.name} {j.rank}" for j in wronged)
            self.broken(
                "jobs are admitted in order",
                e.version,
                f"{new.name} {old.rank} gets {here}, ahead of it: {names}; other free slots: {sorted(free)}",
            )

    # --- the end

    def last(self) -> None:
        for uid, job in self.jobs.items():
            if uid not in self.gone and job.phase not in FINISHED:
                self.broken("every job ends", 0, f"{job.name} is {job.phase}: {json.dumps(job.status)[:1500]}")
        for pod in self.pods.values():
            if self.lives(pod):
                self.broken("every job ends", 0, f"{pod['metadata']['name']} still runs")
            elif pod["metadata"].get("finalizers"):
                self.broken("every job ends", 0, f"{pod['metadata']['name']} is held by a finalizer")


def _each_gets_one(wishes: list[list[Slot]]) -> bool:
    """Whether each gets a slot of its own (a matching, by augmenting paths)."""
    holder: dict[Slot, int] = {}

    def seat(i: int, tried: set[Slot]) -> bool:
        for slot in wishes[i]:
            if slot not in tried:
                tried.add(slot)
                if slot not in holder or seat(holder[slot], tried):
                    holder[slot] = i
                    return True
        return False

    return all(seat(i, set()) for i in range(len(wishes)))


def audit(
    history: Iterable[Event],
    *,
    deleted: Collection[str] = (),
    caps: Mapping[str, int] | None = None,
    grace: float = 5.0,
    entered: float = 0.0,
) -> Findings:
    """Each promise that was broken.

    Args:
        history: In order.
        deleted: Uids of jobs that users have deleted.
        caps: Slots that the jobs of a namespace may have at a time.
        grace: Seconds after which the operator must have heard of what others have changed.
        entered: Seconds after which a job that was Queued must not be overtaken: 0 unless the writes of an operator
            land late, since connections hang or it was replaced by another.
    """
    looking = _Audit(deleted, caps or {}, grace, entered)
    for event in history:
        looking.see(event)
    looking.last()
    return looking.found

"""The core against a model of it that fits on a page: whatever users, nodes and crashes do, both say the same.

The model knows a queue, its order, and one slot a node. The core decides by `advance` and `plan`, carried out here on
statuses and pods in memory, to the end or only up to a crash; then both must agree on the phase of each job and on how
often it ran, and nobody may share a slot at any moment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpubatch_operator.core import actions, lifecycle
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.limits import Gate
from gpubatch_operator.core.model import Node, Occupant, Pod, Snapshot
from gpubatch_operator.core.phases import ACTIVE, FINISHED, Phase
from gpubatch_operator.core.placement import misfit
from gpubatch_operator.core.plan import plan
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from unit.operator.build import EPOCH, GPU, inference_spec, node, pod, template_spec

JSON = dict[str, Any]
VALID = json.dumps({"valid": True, "requests": 3})
NODES = ("n0", "n1", "n2")
ENTERING = FINISHED | {None, Phase.SUSPENDED, Phase.VALIDATING}


class Crash(BaseException):
    """The operator dies between two writes."""


# --- the model


@dataclass
class Expected:
    """One job, as the model sees it."""

    born: int
    priority: int
    inference: bool
    retries: int
    where: str = "waits"  # waits | suspended | runs | stops | Succeeded | Failed | Cancelled
    slot: str | None = None  # the node
    suspend: bool = False
    cancel: bool = False
    ready_at: float = 0.0
    bad_in_a_row: int = 0
    lost: int = 0
    failed: int = 0
    ran: int = 0  # attempts, ever

    @property
    def ended(self) -> bool:
        return self.where in ("Succeeded", "Failed", "Cancelled")


class Model:
    """What should be, once the operator has had its say."""

    def __init__(self) -> None:
        self.jobs: dict[str, Expected] = {}
        self.nodes: dict[str, bool] = {}  # whether a job may be put there
        self.births = 0
        self.leaving: set[str] = set()  # nodes whose slot the pod of a deleted job still holds

    def settle(self, now: float) -> None:
        for j in self.jobs.values():
            if j.where in ("waits", "suspended"):
                j.where = "Cancelled" if j.cancel else "suspended" if j.suspend else "waits"
            elif j.where == "runs" and (j.suspend or j.cancel):
                j.where = "stops"
        taken = {j.slot for j in self.jobs.values()} | self.leaving
        free = sum(ok and name not in taken for name, ok in self.nodes.items())
        line = sorted((j for j in self.jobs.values() if j.where == "waits"), key=lambda j: (-j.priority, j.born))
        for j in [j for j in line if j.ready_at <= now][:free]:
            j.where, j.ran = "runs", j.ran + 1
            j.slot = "some"  # which node is the core's choice: the machine tells

    def pod_ended(self, name: str, how: str, now: float) -> None:
        j = self.jobs[name]
        stopping, j.slot = j.where == "stops", None
        if how == "well":
            j.where = "Succeeded"
        elif stopping:
            j.where, j.bad_in_a_row = "waits", 0
        else:
            j.bad_in_a_row += 1
            j.failed, j.lost = j.failed + (how == "badly"), j.lost + (how == "lost")
            j.where = "Failed" if j.failed > j.retries or j.lost >= 10 else "waits"
            doublings = j.bad_in_a_row - 1 - (how == "lost")
            j.ready_at = now + (0 if doublings < 0 else min(300, 10 * 2**doublings))


# --- the core, carried out


class Core:
    """Statuses and pods in memory, and what an operator does with them."""

    def __init__(self) -> None:
        self.now = EPOCH
        self.jobs: dict[str, JSON] = {}
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self._version = 0
        self.left: int | None = None  # writes until it crashes

    def store(self, raw: JSON) -> None:
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        self.jobs[raw["metadata"]["name"]] = raw

    def pods_of(self, uid: str) -> list[Pod]:
        return [p for p in self.pods.values() if p.job_uid == uid]

    def occupied(self) -> Iterator[Occupant]:
        seen = set()
        for p in self.pods.values():
            if p.kind == "run" and not p.finished:
                seen.add((p.job_uid, p.attempt))
                yield Occupant(str(p.node), 0, GPU, 1)
        for raw in self.jobs.values():
            job = convert.job_of(raw)
            if job.phase in ACTIVE and job.attempt and (job.uid, job.attempt.number) not in seen:
                yield Occupant(job.attempt.node, 0, GPU, 1)

    def operate(self) -> None:
        """Inputs are inspected, then rounds until one changes nothing."""
        changed = True
        while changed:  # else it would depend on the time that an inspection takes who comes first
            entering = [name for name, raw in self.jobs.items() if convert.job_of(raw).phase in ENTERING]
            changed = sum(self._advance(name) for name in entering) > 0
        for _ in range(30):
            if not self._round():
                return
        raise AssertionError("it never comes to rest")

    def _round(self) -> bool:
        changed = False
        for name in list(self.jobs):
            changed |= self._advance(name)
        for p in list(self.pods.values()):
            if p.job_uid not in {r["metadata"]["uid"] for r in self.jobs.values()}:
                for action in lifecycle.orphan(p):
                    changed |= self._act("", action)
                if p.gone:
                    self.pods.pop(p.name)
        waiting = [j for r in self.jobs.values() if (j := convert.job_of(r)).phase is Phase.QUEUED]
        for a in plan(Snapshot(waiting, list(self.nodes.values()), list(self.occupied()), self.now)).admissions:
            number = a.job.attempts + 1
            status = lifecycle.admit(a.job, a.node, a.slot, f"{a.job.name}-{number}", self.now)
            self._write(lambda a=a, status=status: self.store(self.jobs[a.job.name] | {"status": status}))
            changed = True
        return changed

    def _advance(self, name: str) -> bool:
        raw = self.jobs[name]
        job = convert.job_of(raw)
        family = self.pods_of(job.uid)
        at = self.nodes.get(job.attempt.node) if job.attempt else None
        fits = at is not None and misfit(job.shape, at) is None
        step = lifecycle.advance(job, family, None, self.now, Limits(), fits, None, Gate())
        changed = step.status != raw.get("status")
        if changed:
            self._write(lambda: self.store(raw | {"status": step.status}))
        for p in family:
            if p.gone:
                self.pods.pop(p.name, None)
        for action in step.actions:
            changed |= self._act(name, action)
        return changed

    def _write(self, do: Callable[[], None]) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Crash
        do()

    def _act(self, name: str, action: actions.Action) -> bool:
        match action:
            case actions.Inspect():
                job = convert.job_of(self.jobs[name])
                found = pod(kind="inspect", name=f"{name}-inspect", uid=f"inspect-{job.uid}", job_uid=job.uid)
                found = replace(found, phase="Succeeded", node="cpu", terminated_message=VALID)
                self._write(lambda: self.pods.setdefault(found.name, found) and None)
            case actions.Run(attempt):
                job = convert.job_of(self.jobs[name])
                made = pod(name=attempt.pod_name, uid=f"uid-{attempt.pod_name}-{job.uid}", job_uid=job.uid)
                made = replace(made, attempt=attempt.number, node=attempt.node, target=attempt.node, phase="Running")
                made = replace(made, started=True, has_finalizer=not job.inference)
                self._write(lambda: self.pods.setdefault(made.name, made) and None)
            case actions.Stop(p, reason):
                self._write(lambda: self.put(replace(p, stop=reason)))
            case actions.Remove(p):
                self._write(lambda: self.delete(p))
            case actions.Release(p):
                self._write(lambda: self.put(replace(p, has_finalizer=False)))
            case _:
                raise AssertionError(action)
        return True

    def put(self, p: Pod) -> None:
        """One without finalizer that is being deleted and has ended is gone."""
        if p.deleting and p.finished and not p.has_finalizer and p.kind == "run":
            p = replace(p, gone=True)
        self.pods[p.name] = p

    def delete(self, p: Pod) -> None:
        if p.kind == "inspect":
            self.pods.pop(p.name)
        elif not p.deleting:
            self.put(replace(p, deleting=True, deleted_at=self.now))


# --- both


class CoreAndModel(RuleBasedStateMachine):
    """What users, kubelets and nodes do; then the operator has its say, and the model its own."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.model = Core(), Model()
        self.ended: dict[str, str] = {}  # jobs whose pod has ended, and how; the operator doesn't know yet
        for name in NODES[:2]:
            self.add_node(name)

    def pick(self, n: int, *where: str) -> str | None:
        """One of the jobs that are there, but for those whose pod has just ended."""
        found = [name for name, j in self.model.jobs.items() if j.where in where and name not in self.ended]
        return found[n % len(found)] if found else None

    def pick_unfinished(self, n: int) -> str | None:
        """As far as a user can see it."""
        found = [name for name, j in self.model.jobs.items() if not j.ended]
        return found[n % len(found)] if found else None

    # users

    @rule(priority=st.integers(-1, 1), inference=st.booleans(), retries=st.integers(0, 2), suspend=st.booleans())
    def submit(self, priority: int, inference: bool, retries: int, suspend: bool) -> None:
        self.core.now += 1  # in one second, who is edited before the operator first sees it counts as later
        self.model.births += 1
        name = f"job-{self.model.births}"
        spec = {"priority": priority, "backoffLimit": retries, "suspend": suspend}
        meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "creationTimestamp": iso(self.core.now)}
        self.core.store({"metadata": meta, "spec": (inference_spec if inference else template_spec)(**spec)})
        self.model.jobs[name] = Expected(self.model.births, priority, inference, retries, suspend=suspend)

    def edit(self, name: str, **fields: Any) -> None:
        raw = self.core.jobs[name]
        self.core.store(raw | {"spec": raw["spec"] | fields})

    @rule(n=st.integers(0, 20), priority=st.integers(-2, 2))
    def prioritize(self, n: int, priority: int) -> None:
        if name := self.pick_unfinished(n):
            self.edit(name, priority=priority)
            self.model.jobs[name].priority = priority

    @rule(n=st.integers(0, 20), suspend=st.booleans())
    def suspend(self, n: int, suspend: bool) -> None:
        if name := self.pick_unfinished(n):
            self.edit(name, suspend=suspend)
            self.model.jobs[name].suspend = suspend

    @rule(n=st.integers(0, 20))
    def cancel(self, n: int) -> None:
        if name := self.pick_unfinished(n):
            self.edit(name, cancel=True)
            self.model.jobs[name].cancel = True

    @rule(n=st.integers(0, 20))
    def run_again(self, n: int) -> None:
        if name := self.pick(n, "Succeeded", "Failed", "Cancelled"):
            self.core.now += 1  # later than all that waits
            self.edit(name, runId=f"run-{self.core.now}", cancel=False, suspend=False)
            self.model.births += 1
            old = self.model.jobs[name]
            self.model.jobs[name] = Expected(self.model.births, old.priority, old.inference, old.retries, ran=old.ran)
            self.operate()

    @rule(n=st.integers(0, 20))
    def delete(self, n: int) -> None:
        if name := self.pick(n, "waits", "suspended", "runs", "stops", "Succeeded", "Failed", "Cancelled"):
            raw, j = self.core.jobs.pop(name), self.model.jobs.pop(name)
            if j.slot:
                self.model.leaving.add(j.slot)
            for p in self.core.pods_of(raw["metadata"]["uid"]):
                self.core.delete(p)

    # pods and nodes

    def end(self, name: str, how: str) -> None:
        """The job's pod ends; how is for the operator to find out."""
        j, raw = self.model.jobs[name], self.core.jobs[name]
        number = raw["status"]["attempts"][-1]["number"]
        p = next(p for p in self.core.pods_of(raw["metadata"]["uid"]) if p.kind == "run" and p.attempt == number)
        if j.inference:
            reason = {"badly": "EngineFailed", "lost": "Interrupted", "told": p.stop or "Interrupted"}.get(how)
            words = json.dumps({"succeeded": how == "well", "reason": reason, "output": "s3://b/out"})
            p = replace(p, phase="Succeeded", terminated_message=words)
        else:
            code = 0 if how == "well" else 1
            p = replace(p, phase="Failed" if code else "Succeeded", failure="exited with code 1" if code else None)
            p = replace(p, disrupted=how == "lost")
        self.core.put(replace(p, ended_at=self.core.now))
        self.ended[name] = how

    @rule(how=st.sampled_from(["well", "badly", "lost"]))
    def pods_end(self, how: str) -> None:
        while name := self.pick(0, "runs"):
            self.end(name, how)

    @rule(n=st.integers(0, 20), how=st.sampled_from(["well", "well", "badly", "lost"]))
    def pod_ends(self, n: int, how: str) -> None:
        if name := self.pick(n, "runs"):
            self.end(name, how)

    @rule(n=st.integers(0, 20), late=st.booleans())
    def pod_is_stopped(self, n: int, late: bool) -> None:
        if name := self.pick(n, "stops"):
            # The last answer may have come just before the runner saw that it should stop.
            self.end(name, "well" if late and self.model.jobs[name].inference else "told")

    @rule()
    def pods_of_deleted_jobs_end(self) -> None:
        alive = {r["metadata"]["uid"] for r in self.core.jobs.values()}
        for p in list(self.core.pods.values()):
            if p.job_uid not in alive and not p.finished:
                self.core.put(replace(p, phase="Failed", ended_at=self.core.now))
        self.model.leaving.clear()

    @rule(name=st.sampled_from(NODES))
    def add_node(self, name: str) -> None:
        if name not in self.model.nodes:
            self.core.nodes[name] = node(name)
            self.model.nodes[name] = True

    @rule(name=st.sampled_from(NODES), cordoned=st.booleans())
    def cordon(self, name: str, cordoned: bool) -> None:
        if name in self.model.nodes:
            self.core.nodes[name] = node(name, unschedulable=cordoned)
            self.model.nodes[name] = not cordoned

    @rule(name=st.sampled_from(NODES))
    def lose_node(self, name: str) -> None:
        """With the pods on it."""
        if name in self.model.nodes:
            for job, j in self.model.jobs.items():
                if j.slot == name and job not in self.ended:
                    self.end(job, "told" if j.where == "stops" else "lost")
            if name in self.model.leaving:
                self.pods_of_deleted_jobs_end()
            del self.core.nodes[name], self.model.nodes[name]

    @rule(seconds=st.sampled_from([1, 5, 11, 41]))
    def wait(self, seconds: int) -> None:
        self.core.now += seconds

    # the operator

    @rule()
    def operate(self) -> None:
        self.core.operate()
        for name, how in self.ended.items():
            if name in self.model.jobs:
                self.model.pod_ended(name, how, self.core.now)
        self.ended.clear()
        self.model.settle(self.core.now)
        self.agree()

    @precondition(lambda self: self.model.jobs)
    @rule(writes=st.integers(0, 12))
    def crash_and_operate(self, writes: int) -> None:
        """Whatever it had done until then, the next one comes to the same end."""
        self.core.left = writes
        with contextlib.suppress(Crash):
            self.core.operate()
        self.core.left = None
        self.nobody_shares_a_slot()
        self.operate()

    def agree(self) -> None:
        for name, j in self.model.jobs.items():
            job = convert.job_of(self.core.jobs[name])
            expected = {
                "waits": {Phase.QUEUED},
                "suspended": {Phase.SUSPENDED},
                "runs": ACTIVE,
                "stops": ACTIVE,
            }.get(j.where) or {Phase(j.where)}
            assert job.phase in expected, f"{name} is {job.phase}, expected {j}"
            assert job.attempts == j.ran, f"{name} ran {job.attempts} times, expected {j}"
            if j.slot == "some":
                assert job.attempt is not None
                j.slot = job.attempt.node
        for name, raw in self.core.jobs.items():
            family = [p for p in self.core.pods_of(raw["metadata"]["uid"]) if not p.finished]
            assert len(family) == (self.model.jobs[name].where in ("runs", "stops")), f"{name}: {family}"

    @invariant()
    def nobody_shares_a_slot(self) -> None:
        where = [o.node for o in self.core.occupied()]
        assert len(where) == len(set(where)), where

    def teardown(self) -> None:
        """At the end every job can come to its end."""
        for name, j in self.model.jobs.items():
            if not j.ended:
                self.edit(name, suspend=False)
                j.suspend = False
        for name in NODES:
            self.add_node(name)
            self.cordon(name, False)
        for _ in range(40 * (1 + len(self.model.jobs))):
            self.core.now += 301
            self.pods_of_deleted_jobs_end()
            self.operate()
            for name, j in self.model.jobs.items():
                if j.where in ("runs", "stops") and name not in self.ended:
                    self.end(name, "well" if j.where == "runs" else "told")
            if all(j.ended for j in self.model.jobs.values()):
                break
        assert all(convert.job_of(raw).phase in FINISHED for raw in self.core.jobs.values())
        assert not [p for p in self.core.pods.values() if p.has_finalizer and p.deleting], "a finalizer is left"


TestCoreAndModel = CoreAndModel.TestCase
TestCoreAndModel.settings = settings(max_examples=settings().max_examples, stateful_step_count=30)

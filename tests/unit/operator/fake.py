"""A small API server, scheduler and kubelet in a dict, that keep the promises the operator builds on and check its own.

The API server refuses stale writes and invalid status; the scheduler honours the locks that pods carry. Each write of
the operator is checked on the spot: phases change only as allowed, an attempt is recorded before its pod exists, a
slot never has two live pods, a finalizer goes only when the outcome is recorded.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpubatch_operator import executor, observe, reconciler
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import CHANGES, FINISHED, Phase
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import MERGE_PATCH, STRATEGIC_PATCH, ApiError
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import JOBS, NODES, PODS
from gpubatch_runner.contract import STOP_ANNOTATION
from unit.operator import schema
from unit.operator.build import EPOCH, GPU, raw_job, raw_node

JSON = dict[str, Any]


class CrashError(BaseException):
    """The operator's process dies here."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = EPOCH

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """The operator's rounds go by it."""
        for module in (reconciler, executor, observe):
            patch.setattr(module, "time", self)


class LiveKeys:
    """Digests of keys, made of nothing."""

    async def digest(self, job_uid: str) -> str:
        """Of a job's key."""
        return f"digest-of-{job_uid}"


class Recorder:
    """Events are no part of what is tested."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str]] = []

    def record(self, job: Job, reason: str, note: str, warning: bool = False) -> None:
        self.notes.append((job.name, reason, note))


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def finished(pod: JSON) -> bool:
    killed = pod["metadata"].get("deletionGracePeriodSeconds") == 0
    return killed or pod["status"].get("phase") in ("Succeeded", "Failed")


class Cluster:
    """Implements what the operator uses of `kube.client.Client`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.jobs: dict[str, JSON] = {}  # by name; everything lives in one namespace
        self.pods: dict[str, JSON] = {}
        self.nodes: dict[str, JSON] = {}
        self.secrets: dict[str, JSON] = {}
        self.events: list[tuple[str, str, JSON]] = []  # not seen by the operator yet: kind, type, object
        self.writes = 0
        self.broken: list[AssertionError] = []  # promises
        self.trouble: list[str | None] = []  # of the next writes: a way to go wrong, or none
        self.created: Counter[str] = Counter()  # pods by name, ever
        self.bound: Counter[str] = Counter()  # those that got a node
        self._version = 100

    # --- the API server

    def _put(self, kind: str, raw: JSON, event: str = "MODIFIED") -> JSON:
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        {"jobs": self.jobs, "pods": self.pods, "nodes": self.nodes}[kind][raw["metadata"]["name"]] = raw
        self.events.append((kind, event, copy.deepcopy(raw)))
        return copy.deepcopy(raw)

    def _drop(self, kind: str, name: str) -> None:
        raw = {"jobs": self.jobs, "pods": self.pods, "nodes": self.nodes}[kind].pop(name)
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        self.events.append((kind, "DELETED", copy.deepcopy(raw)))

    def _write(self, do: Any) -> Any:
        """One write of the operator, which may go wrong before or after it took place."""
        trouble = self.trouble.pop(0) if self.trouble else None
        match trouble:
            case "crash before":
                raise CrashError
            case "refused":
                raise ApiError(500, "InternalError", "etcdserver: leader changed")
        self.writes += 1
        try:
            out = do()
        except AssertionError as e:
            self.broken.append(e)  # the reconciler would take it for one more failed write
            raise
        match trouble:
            case "crash after":
                raise CrashError
            case "lost answer":
                raise OSError("connection reset by peer")
        return out

    @staticmethod
    def _missing(path: str) -> ApiError:
        return ApiError(404, "NotFound", f"{path} not found")

    async def get(self, path: str) -> JSON:
        name = path.removesuffix("/status").rpartition("/")[2]
        there = self.pods if "/pods/" in path else self.secrets if "/secrets/" in path else self.jobs
        if name not in there:
            raise self._missing(path)
        return copy.deepcopy(there[name])

    async def pages(self, path: str, **_: Any) -> AsyncIterator[tuple[list[JSON], str]]:
        items = {JOBS: self.jobs, PODS: self.pods, NODES: self.nodes}[path]
        yield copy.deepcopy(list(items.values())), "1"

    async def create(self, path: str, body: JSON) -> JSON:
        return self._write(lambda: self._create_pod(copy.deepcopy(body)))

    async def patch(self, path: str, body: JSON, kind: str = MERGE_PATCH) -> JSON:
        assert (kind == STRATEGIC_PATCH) == ("$delete" in str(body))
        return self._write(lambda: self._patch_pod(path, body) if "/pods/" in path else self._patch_status(path, body))

    async def delete(self, path: str, uid: str) -> None:
        def do() -> None:
            name = path.rpartition("/")[2]
            if "/pods/" not in path:
                job = self.jobs.get(name)
                assert job is None or Phase(job["status"]["phase"]) in FINISHED, "a job is deleted before its end"
                if job and job["metadata"]["uid"] == uid:
                    self.delete_job(name)
            elif (pod := self.pods.get(name)) and pod["metadata"]["uid"] == uid:
                self.delete_pod(pod)

        self._write(do)

    def _create_pod(self, body: JSON) -> JSON:
        meta = body["metadata"]
        if meta["name"] in self.pods:
            raise ApiError(409, "AlreadyExists", f"pods {meta['name']} already exists")
        job = next((j for j in self.jobs.values() if j["metadata"]["uid"] == meta["labels"][convert.JOB_UID]), None)
        if meta["labels"][convert.KIND] == "run" and job is not None:
            newest = job["status"]["attempts"][-1]
            assert newest["podName"] == meta["name"], "a pod without a recorded attempt"
            mine = [p for p in self.runner_pods(meta["labels"][convert.JOB_UID]) if not finished(p)]
            assert mine == [], "two live pods of one job"
            slot = self.slot(body)
            held = [p for p in self.runner_pods() if slot[0] and self.slot(p) == slot and not finished(p)]
            assert held == [], f"two jobs in one slot {slot}"
        self.created[meta["name"]] += 1
        body["metadata"] |= {
            "uid": f"pod-{sum(self.created.values())}",
            "creationTimestamp": iso(self.clock.now),
        }
        body["status"] = {"phase": "Pending"}
        return self._put("pods", body, "ADDED")

    def _patch_status(self, path: str, body: JSON) -> JSON:
        assert path.endswith("/status")
        name = path.removesuffix("/status").rpartition("/")[2]
        if name not in self.jobs:
            raise self._missing(path)
        raw = self.jobs[name]
        if body["metadata"]["resourceVersion"] != raw["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        old, new = raw["status"], merge(raw["status"], body["status"])
        assert old != new, "a write that changes nothing"
        schema.check_status(new)
        before, after = Phase(old["phase"]) if "phase" in old else None, Phase(new["phase"])
        assert before is after or after in CHANGES[before], f"{before} -> {after}"
        numbers = [a["number"] for a in new.get("attempts", [])]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        for past in new.get("attempts", [])[:-1]:
            assert past["state"] not in ("Active", "Stopping"), "an attempt was left open"
        if after in FINISHED and numbers:
            assert new["attempts"][-1]["state"] not in ("Active", "Stopping")
        if after is Phase.FAILED:
            failed = next(c for c in new["conditions"] if c["type"] == "Failed")
            assert failed["reason"]
            assert failed["message"]
        return self._put("jobs", {**raw, "status": new})

    def _patch_pod(self, path: str, body: JSON) -> JSON:
        name = path.rpartition("/")[2]
        if name not in self.pods:
            raise self._missing(path)
        pod, meta = self.pods[name], dict(body["metadata"])
        if meta["uid"] != pod["metadata"]["uid"]:
            raise ApiError(409, "Conflict", "the uid is another one")
        if "annotations" in meta:
            assert meta["annotations"][STOP_ANNOTATION] in ("Cancelled", "Suspended")
            return self._put("pods", merge(pod, body))
        gone = meta.pop("$deleteFromPrimitiveList/finalizers")
        meta["finalizers"] = [f for f in pod["metadata"].get("finalizers", []) if f not in gone]
        job = next(
            (j for j in self.jobs.values() if j["metadata"]["uid"] == pod["metadata"]["labels"][convert.JOB_UID]), None
        )
        if job is not None:
            number = int(pod["metadata"]["labels"][convert.ATTEMPT])
            recorded = next((a for a in job["status"].get("attempts", []) if a["number"] == number), None)
            assert recorded is None or recorded["state"] not in ("Active", "Stopping"), (
                "released before it was recorded"
            )
        out = self._put("pods", merge(pod, {"metadata": meta}))
        self._sweep()
        return out

    def _sweep(self) -> None:
        """What is being deleted, has ended and is held by nobody is gone."""
        for name, pod in list(self.pods.items()):
            over = finished(pod) or "nodeName" not in pod["spec"]
            if "deletionTimestamp" in pod["metadata"] and over and not pod["metadata"].get("finalizers"):
                self._drop("pods", name)

    # --- users

    def apply(self, name: str, spec: JSON) -> None:
        self._version += 1
        raw = raw_job(name, spec, version=self._version)
        raw["metadata"]["creationTimestamp"] = iso(self.clock.now)
        raw["metadata"]["uid"] = f"uid-{name}-{self._version}"
        self._put("jobs", raw, "ADDED")

    def edit(self, name: str, **fields: Any) -> None:
        """Change fields of a job's spec; what the CRD forbids is forbidden."""
        raw = self.jobs[name]
        phase, again = raw["status"].get("phase"), fields.get("runId", raw["spec"].get("runId"))
        if again != raw["spec"].get("runId") and phase in ("Starting", "Running"):
            return
        raw["spec"] = raw["spec"] | fields
        raw["metadata"]["generation"] += 1
        self._put("jobs", raw)

    def delete_job(self, name: str) -> None:
        uid = self.jobs[name]["metadata"]["uid"]
        self._drop("jobs", name)
        for pod in [p for p in self.pods.values() if p["metadata"]["labels"][convert.JOB_UID] == uid]:
            self.delete_pod(pod)  # the garbage collector

    def delete_pod(self, pod: JSON) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = iso(self.clock.now)
            if "nodeName" not in pod["spec"] and pod["metadata"].get("finalizers"):
                pod["status"]["phase"] = "Failed"  # the pod garbage collector's work
            self._put("pods", pod)
        self._sweep()

    def add_node(self, name: str, gpus: int = 1) -> None:
        self._put("nodes", raw_node(name, gpus), "ADDED")

    def drop_node(self, name: str) -> None:
        self._drop("nodes", name)

    # --- scheduler and kubelet

    def runner_pods(self, job_uid: str | None = None) -> list[JSON]:
        return [
            p
            for p in self.pods.values()
            if p["metadata"]["labels"][convert.KIND] == "run"
            and job_uid in (None, p["metadata"]["labels"][convert.JOB_UID])
        ]

    @staticmethod
    def slot(pod: JSON) -> tuple[str, str]:
        """Node and index; no node, if kube-scheduler is free to choose one and hasn't yet."""
        index = pod["metadata"]["labels"][convert.SLOT]
        if affinity := pod["spec"]["affinity"].get("nodeAffinity"):
            terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            return terms[0]["matchFields"][-1]["values"][0], index
        return pod["spec"].get("nodeName", ""), index

    def bind(self, pod: JSON) -> bool:
        if pod["metadata"]["labels"][convert.KIND] == "run":
            name, index = self.slot(pod)
            others = [p for p in self.runner_pods() if p is not pod and "nodeName" in p["spec"] and not finished(p)]
            taken = [self.slot(p) for p in others]
            wanted = int(pod["metadata"]["annotations"][convert.GPUS])
            free = [n for n, raw in self.nodes.items() if (n, index) not in taken and self._gpus(raw, others) >= wanted]
            if not free or (name and name not in free):
                return False
            pod["spec"]["nodeName"] = name or free[0]
            self.bound[pod["metadata"]["name"]] += 1
        else:
            pod["spec"]["nodeName"] = "cpu-node"
        self._put("pods", pod)
        return True

    @staticmethod
    def _gpus(node: JSON, pods: list[JSON]) -> int:
        """Those that are left."""
        name, all_of_them = node["metadata"]["name"], int(node["status"]["allocatable"].get(GPU, "0"))
        here = (p for p in pods if p["spec"]["nodeName"] == name)
        return all_of_them - sum(int(p["metadata"]["annotations"][convert.GPUS]) for p in here)

    def set_status(self, pod: JSON, phase: str, main: JSON, engine: JSON | None = None, **more: Any) -> None:
        first = pod["spec"]["containers"][0]["name"]
        pod["status"] = {"phase": phase, "containerStatuses": [{"name": first, "restartCount": 0} | main]} | more
        if engine is not None:
            pod["status"]["initContainerStatuses"] = [{"name": convert.ENGINE, "restartCount": 0} | engine]
        self._put("pods", pod)
        self._sweep()

    def start(self, pod: JSON) -> None:
        running = {"started": True, "state": {"running": {}}}
        self.set_status(pod, "Running", running, running)

    def end(self, pod: JSON, code: int, message: str | None = None, **more: Any) -> None:
        ended: JSON = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
        if message is not None:
            ended["message"] = message
        phase = "Failed" if code else "Succeeded"
        self.set_status(pod, phase, {"state": {"terminated": ended}}, **more)

    def vanish(self, pod: JSON) -> None:
        """Deleted by force: no last words, and only a finalizer may keep the object."""
        if pod["metadata"].get("finalizers"):
            pod["metadata"] |= {"deletionTimestamp": iso(self.clock.now), "deletionGracePeriodSeconds": 0}
            self._put("pods", pod)
        else:
            self._drop("pods", pod["metadata"]["name"])

    # --- the watch

    def deliver(self, store: Store) -> None:
        events, self.events = self.events, []
        for kind, event, raw in events:
            deleted = event == "DELETED"
            match kind:
                case "jobs":
                    store.drop_job(raw["metadata"]["uid"]) if deleted else store.put_job(raw)
                case "pods":
                    store.drop_pod(raw) if deleted else store.put_pod(raw)
                case "nodes":
                    store.drop_node(raw["metadata"]["name"]) if deleted else store.put_node(raw)


def outcome(**fields: Any) -> str:
    return json.dumps({"succeeded": True, "total": 3, "completed": 3, "failed": 0} | fields)


def inspection(**fields: Any) -> str:
    return json.dumps({"valid": True, "requests": 3, "invalid": 0} | fields)

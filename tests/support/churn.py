"""A queue that never rests: users that change their minds, nodes that come and go, all drawn from a seed.

What is done, to which job or node, and how long is waited follows from the seed alone; what has no object any more
(a job to cancel that was deleted) or is refused by the API server is left undone. Only how far the cluster has come at
that moment is not in the seed's hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from gpubatch_operator.core.phases import FINISHED
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import ApiError, Client
from support.api import Api, eventually, inference_job, template_job
from support.history import Recorder
from support.kubelet import Kubelets

JSON = dict[str, Any]
HEARTBEAT_SECONDS = 10.0
PATIENCE = 180.0
ACTIONS = {
    "create": 40,
    "prioritize": 10,
    "cancel": 4,
    "suspend": 5,
    "resume": 8,
    "run_again": 4,
    "delete": 3,
    "drain": 3,
    "vanish": 2,
    "cordon": 2,
    "uncordon": 3,
    "fail_node": 2,
    "revive_node": 3,
    "replace_node": 1,
}


class Churn:
    """Users and administrators of a few nodes.

    Args:
        apis: The namespaces that jobs are created in.
        recorder: Knows what is there.
        kubelets: Of the nodes.
        seed: Of all decisions.
        busy: Jobs that haven't ended; while there are more, no further one is created.
    """

    def __init__(self, apis: list[Api], recorder: Recorder, kubelets: Kubelets, seed: int, busy: int) -> None:
        self._apis, self._recorder, self._kubelets, self._busy = apis, recorder, kubelets, busy
        self._client: Client = apis[0].client
        self._drawn = random.Random(seed)
        self.pool = apis[0].namespace
        self.names: list[tuple[Api, str]] = []  # jobs, ever
        self.nodes: list[tuple[str, int, int]] = []  # name, GPUs, slots
        self.bad: set[str] = set()  # nodes that aren't Ready now
        self.deleted: set[str] = set()  # uids of jobs that a user deleted
        self.done: Counter[str] = Counter()

    # --- nodes

    async def add_nodes(self, *shapes: tuple[int, int]) -> None:
        """Nodes with so many GPUs and slots."""
        for gpus, slots in shapes:
            name = f"{self.pool}-{len(self.nodes)}"
            self.nodes.append((name, gpus, slots))
            await self._add_node(name, gpus, slots)

        async def ready() -> bool:
            items, _ = await self._client.list("/api/v1/nodes")
            ours = [n for n in items if n["metadata"]["name"].startswith(self.pool)]
            return len(ours) == len(shapes) and not any(n["spec"].get("taints") for n in ours)

        await eventually("the nodes to be schedulable", ready)

    async def _add_node(self, name: str, gpus: int, slots: int) -> None:
        labels = {"kubernetes.io/hostname": name, "pool": self.pool, convert.SLOTS: str(slots)}
        labels["big"] = str(gpus > 1).lower()
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        await self._client.create("/api/v1/nodes", node)
        room = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
        await self._client.patch(f"/api/v1/nodes/{name}/status", {"status": {"capacity": room, "allocatable": room}})
        await self._beat(name)

    async def _beat(self, name: str) -> None:
        ready = {"type": "Ready", "status": "False" if name in self.bad else "True", "reason": "Played", "message": ""}
        ready["lastHeartbeatTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(ApiError):  # it is being replaced
            await self._client.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})

    async def heartbeats(self) -> None:
        """Of all nodes, for ever: the controller manager would else give them up."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for name, _, _ in self.nodes:
                await self._beat(name)

    async def remove_nodes(self) -> None:
        """All of them."""
        for name, _, _ in self.nodes:
            await self._try("DELETE", f"/api/v1/nodes/{name}")

    # --- decisions

    async def run(self) -> None:
        """One decision after the other, for ever."""
        while True:
            await self.step()
            await asyncio.sleep(self._drawn.uniform(0.0, 0.1))

    async def step(self) -> None:
        """One decision."""
        [action] = self._drawn.choices(list(ACTIONS), list(ACTIONS.values()))
        number = self._drawn.randrange(10**6)
        self.done[action] += 1
        await getattr(self, f"_{action}")(number)

    def _job(self, n: int) -> tuple[Api, str]:
        """One of the latest: the others have ended."""
        latest = self.names[-3 * self._busy :]
        return latest[n % len(latest)]

    async def _create(self, n: int) -> None:
        draw = random.Random(n)
        for _ in range(20):  # all nodes may be out of order, until a later decision mends one
            if len(self.unfinished()) < self._busy:
                break
            await asyncio.sleep(0.05)
        api, name = self._apis[0 if draw.random() < 0.8 else -1], f"job-{len(self.names):04d}"
        self.names.append((api, name))
        spec: JSON = {"priority": draw.choice([0, 0, 0, 1, 2, -1]), "nodeSelector": {"pool": self.pool}}
        spec |= {"backoffLimit": 1} if draw.random() < 0.3 else {}
        spec |= {"suspend": True} if draw.random() < 0.05 else {}
        spec |= {"gpus": 2} if draw.random() < 0.15 else {}
        spec["nodeSelector"] |= {"big": "true"} if draw.random() < 0.1 else {}
        await api.create((inference_job if draw.random() < 0.4 else template_job)(name, **spec))

    async def _edit(self, n: int, **fields: Any) -> None:
        if self.names:
            api, name = self._job(n)
            await self._try("PATCH", f"{api.jobs_path}/{name}", {"spec": fields})

    async def _prioritize(self, n: int) -> None:
        await self._edit(n // 7, priority=n % 7 - 3)

    async def _cancel(self, n: int) -> None:
        await self._edit(n, cancel=True)

    async def _suspend(self, n: int) -> None:
        await self._edit(n, suspend=True)

    async def _resume(self, n: int) -> None:
        await self._edit(n, suspend=False)

    async def _run_again(self, n: int) -> None:
        await self._edit(n, runId=f"run-{n}", cancel=False)

    async def _delete(self, n: int) -> None:
        if not self.names:
            return
        api, name = self._job(n)
        with contextlib.suppress(ApiError):
            # Before it is gone: nobody else may have deleted it.
            self.deleted.add((await api.job(name))["metadata"]["uid"])
            await api.client.request("DELETE", f"{api.jobs_path}/{name}")

    async def _drain(self, n: int) -> None:
        """A runner pod is deleted, with its grace period."""
        if pod := self._a_pod(n):
            await self._try("DELETE", _path(pod))

    async def _vanish(self, n: int) -> None:
        """A runner pod is deleted by force, as with its node."""
        if pod := self._a_pod(n):
            await self._try("DELETE", _path(pod), {"gracePeriodSeconds": 0})

    async def collect_garbage(self) -> None:
        """Every pod that has ended is deleted."""
        for pod in list(self._recorder.now["pods"].values()):
            if pod["status"].get("phase") in ("Succeeded", "Failed"):
                await self._try("DELETE", _path(pod), {"gracePeriodSeconds": 0})

    async def _cordon(self, n: int) -> None:
        await self._try("PATCH", f"/api/v1/nodes/{self._node(n)}", {"spec": {"unschedulable": True}})

    async def _uncordon(self, n: int) -> None:
        await self._try("PATCH", f"/api/v1/nodes/{self._node(n)}", {"spec": {"unschedulable": None}})

    async def _fail_node(self, n: int) -> None:
        """It is cut off: its kubelet does nothing more."""
        self._kubelets.dead.add(self._node(n))
        self.bad.add(self._node(n))
        await self._beat(self._node(n))

    async def _revive_node(self, n: int) -> None:
        self.bad.discard(self._node(n))
        await self._beat(self._node(n))
        self._kubelets.revive(self._node(n))

    async def _replace_node(self, n: int) -> None:
        """Its object is deleted and its pods with it, then it comes back."""
        name, gpus, slots = self.nodes[n % len(self.nodes)]
        await self._try("DELETE", f"/api/v1/nodes/{name}")
        for pod in list(self._recorder.now["pods"].values()):  # the garbage collector of pods takes a minute
            if pod["spec"].get("nodeName") == name:
                disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
                if pod["status"].get("phase") in ("Pending", "Running"):
                    status = {"phase": "Failed", "conditions": [disrupted]}
                    await self._try("PATCH", f"{_path(pod)}/status", {"status": status})
                await self._try("DELETE", _path(pod), {"gracePeriodSeconds": 0})
        self.bad.discard(name)
        await self._add_node(name, gpus, slots)
        self._kubelets.revive(name)

    def _node(self, n: int) -> str:
        return self.nodes[n % len(self.nodes)][0]

    def _a_pod(self, n: int) -> JSON | None:
        """The runner pod of one of the jobs."""
        if not self.names:
            return None
        api, name = self._job(n)
        return next(
            (
                p
                for p in self._recorder.now["pods"].values()
                if p["metadata"]["namespace"] == api.namespace
                and p["metadata"]["annotations"].get("gpubatch.dev/job") == name
                and p["metadata"]["labels"][convert.KIND] == "run"
                and p["status"].get("phase") in ("Pending", "Running")
            ),
            None,
        )

    async def _try(self, method: str, path: str, body: JSON | None = None) -> None:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            await self._client.request(method, path, body, content_type=kind)
        except ApiError as e:
            if e.status not in (400, 403, 404, 409, 422):
                raise

    # --- the end

    def unfinished(self) -> list[str]:
        """Names of jobs that haven't ended, but for those that somebody has suspended."""
        return [
            j["metadata"]["name"]
            for j in self._recorder.now["jobs"].values()
            if (j.get("status") or {}).get("phase") not in FINISHED and not j["spec"].get("suspend")
        ]

    async def settle(self) -> None:
        """All nodes are well and nobody suspends anything; nothing of what was decided can be waited for in vain."""
        for i in range(len(self.nodes)):
            await self._revive_node(i)
            await self._uncordon(i)
        for api, name in self.names:
            await self._try("PATCH", f"{api.jobs_path}/{name}", {"spec": {"suspend": False}})

    async def ended(self) -> None:
        """Wait until every job has ended and no finalizer is left."""

        async def over() -> bool:
            held = [p for p in self._recorder.now["pods"].values() if p["metadata"].get("finalizers")]
            return not self.unfinished() and not held

        try:
            await eventually("every job to end", over, PATIENCE)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.unfinished()}") from None


def _path(pod: JSON) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"

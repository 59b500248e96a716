"""Kubelets and runners, played: what becomes of a pod that kube-scheduler has bound, and that is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_runner.contract import SPEC_ENV, STOP_ANNOTATION
from support.history import Event, Recorder

JSON = dict[str, Any]


class Kubelets:
    """Plays for as long as the context lasts. What a pod's work is like follows from the seed and its name.

    Args:
        client: Straight to the API server.
        recorder: Tells of pods.
        seed: Of the durations, and of who fails.
        pace: Seconds that a run takes about.
    """

    def __init__(self, client: Client, recorder: Recorder, seed: int, pace: float) -> None:
        self._client, self._seed, self._pace = client, seed, pace
        self.dead: set[str] = set()  # nodes
        self.manifests: dict[str, JSON] = {}  # of runs: the outcome that counts, as the runner's storage keeps it
        self._pods: dict[str, JSON] = {}
        self._stirred: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        recorder.listeners.append(self._hear)

    async def __aenter__(self) -> Kubelets:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def revive(self, node: str) -> None:
        """Its kubelet is back."""
        self.dead.discard(node)
        for stirred in self._stirred.values():
            stirred.set()

    def _hear(self, event: Event) -> None:
        if event.kind != "pods":
            return
        pod = event.object
        uid = pod["metadata"]["uid"]
        if event.type == "DELETED":
            self._pods.pop(uid, None)
            if task := self._tasks.pop(uid, None):
                task.cancel()
            self._stirred.pop(uid, None)
            return
        self._pods[uid] = pod
        self._stirred.setdefault(uid, asyncio.Event()).set()
        if pod["spec"].get("nodeName") and uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._play(uid))

    # --- one pod

    async def _play(self, uid: str) -> None:
        with contextlib.suppress(KeyError):  # the pod is gone
            pod = self._pods[uid]
            drawn = random.Random(f"{self._seed}/{pod['metadata']['name']}")
            inspection = pod["metadata"]["labels"][convert.KIND] == "inspect"
            slow, length = drawn.uniform(0, 0.2), self._pace * drawn.uniform(0.2, 1.8) * (0.3 if inspection else 1)
            fails = drawn.random() < 0.1
            if not await self._sleep(uid, slow):
                await self._report(uid, {"running": {"startedAt": _now()}}, "Running")
                stopped = await self._sleep(uid, length)
            else:
                stopped = True
            await self._end(uid, inspection, stopped, fails)
            while "deletionTimestamp" not in self._pods[uid]["metadata"]:
                await self._stir(uid)
            await self._alive(uid)
            await self._write("DELETE", uid, "", {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})

    async def _end(self, uid: str, inspection: bool, stopped: bool, fails: bool) -> None:
        """Its main container ends, and says why."""
        pod = self._pods[uid]
        code, message = 0, ""
        work = next(
            (json.loads(e["value"]) for e in pod["spec"]["containers"][0]["env"] if e["name"] == SPEC_ENV), None
        )
        if inspection:
            message = "" if stopped else json.dumps({"valid": True, "requests": 10, "inputTokens": 100})
            code = 143 if stopped else 0
        elif work is not None:
            if (outcome := self.manifests.get(work["run"])) is None:
                why = pod["metadata"].get("annotations", {}).get(STOP_ANNOTATION)
                outcome = {"succeeded": False, "total": 10, "completed": 3, "failed": 0, "message": "as played"}
                if stopped:
                    outcome["reason"] = why or "Interrupted"
                elif fails:
                    outcome["reason"] = "EngineFailed"
                else:
                    output = f"{work['output']}#{pod['metadata']['name']}"  # who did the work
                    outcome |= {"succeeded": True, "completed": 10, "output": output}
                    self.manifests[work["run"]] = outcome
            message = json.dumps(outcome)
        elif stopped or fails:
            code = 143 if stopped else 1
        ended = {"exitCode": code, "message": message, "startedAt": _now(), "finishedAt": _now()}
        ended["reason"] = "Error" if code else "Completed"
        await self._report(uid, {"terminated": ended}, "Failed" if code else "Succeeded")

    def _stops(self, uid: str) -> bool:
        meta = self._pods[uid]["metadata"]
        return "deletionTimestamp" in meta or STOP_ANNOTATION in (meta.get("annotations") or {})

    async def _alive(self, uid: str) -> None:
        while self._pods[uid]["spec"]["nodeName"] in self.dead:
            await self._stir(uid)

    async def _stir(self, uid: str) -> None:
        stirred = self._stirred[uid]
        stirred.clear()
        await stirred.wait()

    async def _sleep(self, uid: str, seconds: float) -> bool:
        """Until the time is over, or the pod is told to stop: whether it was."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while not self._stops(uid) and (left := end - clock()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stir(uid)
        await self._alive(uid)
        return self._stops(uid)

    async def _report(self, uid: str, state: JSON, phase: str) -> None:
        pod = self._pods[uid]
        name = pod["spec"]["containers"][0]["name"]
        main = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status = {"phase": phase, "containerStatuses": [main | {"started": "running" in state}]}
        await self._write("PATCH", uid, "/status", {"metadata": {"uid": uid}, "status": status})

    async def _write(self, method: str, uid: str, part: str, body: JSON) -> None:
        meta = self._pods[uid]["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}{part}"
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            await self._client.request(method, path, body, content_type=kind)
        except ApiError as e:
            if e.status not in (404, 409):  # it is gone, or another one has its name
                raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

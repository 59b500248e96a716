"""Carries out what the core has decided about a job's pods, by requests to the API server.

Each action may be carried out again: what was done already is found done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core import actions, lifecycle, running
from gpubatch_operator.core.model import Attempt, Job, Pod
from gpubatch_operator.core.phases import FINISHED, Phase
from gpubatch_operator.kube import convert, pods
from gpubatch_operator.kube.client import STRATEGIC_PATCH, ApiError, Client
from gpubatch_operator.kube.livekeys import LiveKeys
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.writing import job_path, write_status
from gpubatch_operator.settings import Settings
from gpubatch_runner.contract import STOP_ANNOTATION

JSON = dict[str, Any]
Announce = Callable[[Job, JSON, float], None]
"""Told of a job, the status that was written, and since when (monotonic) that was due."""


class Executor:
    """Carries actions out.

    Args:
        client: To the API server.
        store: Told of each answer at once.
        settings: What pods are made of.
        live_keys: Of live jobs.
        announce: Told when a pod that the API server refuses has changed its job's status.
    """

    def __init__(
        self, client: Client, store: Store, settings: Settings, live_keys: LiveKeys, announce: Announce
    ) -> None:
        self._client, self._store, self._settings = client, store, settings
        self._live_keys, self._announce = live_keys, announce
        self._refused_since: dict[str, float] = {}  # jobs whose pod the API server refuses, since when

    async def act(self, job: Job | None, action: actions.Action) -> None:
        """Carry out one action of a job; None: it is gone, and the action is about a pod of it.

        Raises:
            ApiError: It couldn't be done now; it may be tried again.
        """
        match action:
            case actions.Inspect():
                assert job is not None
                await self._create(job, pods.inspect_pod(self._store.raw[job.uid], self._spec(job), self._settings))
            case actions.Run(attempt):
                assert job is not None
                await self._run(job, attempt)
            case actions.Stop(pod, reason):
                await self._ask_to_stop(pod, reason)
            case actions.Remove(pod):
                await self._client.delete(pod_path(pod), pod.uid)
            case actions.Release(pod):
                await self._release(pod)
            case actions.Expire():
                assert job is not None
                await self._client.delete(job_path(job), job.uid)

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._refused_since.pop(job_uid, None)

    async def _run(self, job: Job, attempt: Attempt) -> None:
        spec, digest = self._spec(job), None
        if spec.inference and (asked := spec.inference.input.live) and asked.key_from is None:
            try:
                digest = await self._live_keys.digest(job.uid)
            except ApiError as e:
                if e.status not in (403, 422):
                    raise
                message = f"{e.message} (for the key of live requests; spec.inference.input.live.keyFrom needs none)"
                if await self._rejected(job, ApiError(e.status, e.reason, message)):
                    raise
                return
        raw, end = self._store.raw[job.uid], running.deadline(job, attempt)
        await self._create(job, pods.runner_pod(raw, spec, attempt, self._settings, end, digest))

    def _spec(self, job: Job) -> JobSpec:
        return convert.spec_of(self._store.raw[job.uid]["spec"])

    async def _create(self, job: Job, pod: JSON) -> None:
        path = f"/api/v1/namespaces/{job.namespace}/pods"
        try:
            self._store.put_pod(await self._client.create(path, pod))
            self._refused_since.pop(job.uid, None)
        except ApiError as e:
            if e.status == 409 and e.reason == "AlreadyExists":
                await self._adopt(job, f"{path}/{pod['metadata']['name']}")
            elif e.status in (400, 403, 404, 422):
                if await self._rejected(job, e):
                    raise  # tried again, later and later
            else:
                raise

    async def _adopt(self, job: Job, path: str) -> None:
        """A pod of that name exists: ours, if its owner is this very job."""
        raw = await self._client.get(path)
        if any(o["uid"] == job.uid for o in raw["metadata"].get("ownerReferences") or []):
            self._store.put_pod(raw)
        else:
            await self._rejected(
                job, ApiError(409, "AlreadyExists", f"a pod {raw['metadata']['name']} of another owner exists")
            )

    async def _rejected(self, job: Job, error: ApiError) -> bool:
        """The API server refuses the pod; whether to try it again.

        What is wrong with the job is final. Forbidden may change by itself: a quota gets free, a namespace that was
        made a moment ago gets its service account.
        """
        current = self._store.jobs.get(job.uid)
        if current is None or current.phase in FINISHED:
            return False
        now, message = time.time(), f"the API server refused the pod: {error.message}"
        since = self._refused_since.setdefault(job.uid, now)
        quota = error.status == 403 and "exceeded quota" in error.message
        final = error.status != 403 or now >= since + self._settings.start_seconds
        if quota:
            status = lifecycle.over_quota(current, message, now)
        else:
            status = lifecycle.rejected(current, message, now, final)
        if await write_status(self._client, self._store, current, status):
            self._announce(current, status, time.monotonic())
        return current.phase is Phase.VALIDATING if quota else not final

    async def _ask_to_stop(self, pod: Pod, reason: str) -> None:
        body = {"metadata": {"uid": pod.uid, "annotations": {STOP_ANNOTATION: reason}}}
        try:
            self._store.put_pod(await self._client.patch(pod_path(pod), body))
        except ApiError as e:
            if e.status not in (404, 409):  # it is gone, or another one has its name
                raise

    async def _release(self, pod: Pod) -> None:
        path = pod_path(pod)
        try:
            # The API server takes it out of the list as it is then; a pod of another uid is a conflict.
            body = {"metadata": {"uid": pod.uid, "$deleteFromPrimitiveList/finalizers": [convert.FINALIZER]}}
            self._store.put_pod(await self._client.patch(path, body, STRATEGIC_PATCH))
        except ApiError as e:
            if e.status not in (404, 409):
                raise


def pod_path(pod: Pod) -> str:
    """Where a pod is."""
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"

"""Starting live jobs, exactly one at a time of a model: its name follows from the live jobs that there were before, and
the API server takes each name once, however many replicas want it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gpubatch_gateway import kube, manifest, metrics, refusals
from gpubatch_gateway.live.lives import Lives, Served
from gpubatch_gateway.models import Models
from gpubatch_gateway.problems import RequestError, unavailable
from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
FAILED_SECONDS = 60.0
"""After a live job has failed no other is started for so long: else requests would make failing jobs without an end."""


log = logging.getLogger(__name__)


class Starting:
    """Starts live jobs from the administrator's templates.

    Args:
        client: To the API server.
        lives: Told of what is made.
        models: The templates that there are now.
        idle_seconds: After which a started job ends.
    """

    def __init__(self, client: Client, lives: Lives, models: Callable[[], Models], idle_seconds: int) -> None:
        self._client, self._lives, self._models, self._idle_seconds = client, lives, models, idle_seconds
        self._tasks: dict[Served, asyncio.Task[None]] = {}

    async def start(self, namespace: str, model: str, may_start: Callable[[], Awaitable[object]]) -> None:
        """Start a live job of a model of which none is wanted; `lives` knows it then.

        Raises:
            RequestError: It can't be started.
        """
        self._check_failures(namespace, model)
        self.check(namespace, model)
        try:
            await may_start()
        except RequestError as e:
            if e.status == 403:
                raise refusals.may_not_start(model, e) from None
            raise
        served = namespace, model
        if (task := self._tasks.get(served)) is None:
            task = self._tasks[served] = asyncio.create_task(self._create(namespace, model))
            task.add_done_callback(lambda done: self._forget(served, done))
        try:
            await asyncio.shield(task)  # who goes away doesn't take it from the others
        except ApiError as e:
            metrics.LIVE_STARTED.labels("refused").inc()
            raise refusals.told(e, "invalid_job") from e

    def check(self, namespace: str, model: str) -> None:
        """Whether a model is served, or could be.

        Raises:
            RequestError: 404; neither.
        """
        if model not in self._models().templates and not any(job.wanted for job in self._lives.of(namespace, model)):
            raise self._unknown(namespace, model)

    def _forget(self, served: Served, task: asyncio.Task[None]) -> None:
        del self._tasks[served]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear it

    async def _create(self, namespace: str, model: str) -> None:
        if any(job.wanted for job in self._lives.of(namespace, model)):
            return  # another replica has made one while the caller's rights were asked for
        name = self._next_name(namespace, model)
        body = manifest.live_job(name, namespace, model, self._models(), self._idle_seconds)
        job, new = await kube.create_once(self._client, namespace, body)
        result = "new" if new else "known"
        held = self._lives.put(job)
        if held is None or held.served != (namespace, model):
            raise RequestError(409, "not_a_live_job", f"The job {name!r} serves no model {model!r}. Delete it.")
        metrics.LIVE_STARTED.labels(result).inc()
        log.info("the live job %s/%s serves %s: %s", namespace, name, model, result)

    def _next_name(self, namespace: str, model: str) -> str:
        """The name behind those of all jobs that there were."""
        there = sorted(self._lives.of(namespace, model), key=lambda job: (job.created, job.uid))
        name = manifest.live_name(namespace, model, there[-1].uid if there else "")
        by_name = {job.name: job for job in there}
        while name in by_name:  # of two of one second the order isn't known
            name = manifest.live_name(namespace, model, by_name[name].uid)
        return name

    def _check_failures(self, namespace: str, model: str) -> None:
        failed = [(job.failure, job.name) for job in self._lives.of(namespace, model) if job.failure]
        if not failed:
            return
        failure, name = max(failed, key=lambda each: each[0].at)
        left = failure.at + FAILED_SECONDS - time.time()
        if left > 0:
            message = f"The job {name!r}, which was to serve {model!r}, has failed: {failure.reason}: {failure.message}"
            raise unavailable(message, "model_failed", retry_after=math.ceil(left))

    def _unknown(self, namespace: str, model: str) -> RequestError:
        there = {*self._models().templates, *(job.model for job in self._lives.wanted(namespace))}
        said = refusals.not_served(model, there)
        for job in self._lives.of(namespace, model):
            if job.suspended:
                said += f" The live job {job.name!r}, which would serve it, is suspended."
        return RequestError(404, "model_not_found", said, "model")

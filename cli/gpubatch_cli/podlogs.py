"""Logs of a job's pods: of one attempt, or of all of them as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpubatch_cli import lookup
from gpubatch_cli.api import Api
from gpubatch_cli.console import say
from gpubatch_cli.errors import CliError, Exit, NotFound, Unreachable, WrongUse
from gpubatch_cli.following import brief, verdict
from gpubatch_cli.jobs import finished, phase, pod_of_attempt

JSON = dict[str, Any]
PAUSE = 1.0  # seconds between two looks at a job whose pod hasn't begun to log
INSPECTION = 0


@dataclass(frozen=True)
class Wanted:
    """Which lines."""

    container: str | None = None
    attempt: int | None = None
    previous: bool = False
    tail: int | None = None
    since: int | None = None
    timestamps: bool = False

    def query(self, container: str, follow: bool) -> JSON:
        """For the API server."""
        asked = {
            "container": container,
            "follow": "true" if follow else None,
            "previous": "true" if self.previous else None,
            "tailLines": self.tail,
            "sinceSeconds": self.since,
            "timestamps": "true" if self.timestamps else None,
        }
        return {name: value for name, value in asked.items() if value is not None}


class Logs:
    """The logs of one job."""

    def __init__(self, api: Api, namespace: str, wanted: Wanted) -> None:
        self._api, self._namespace, self._wanted = api, namespace, wanted
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def show(self, name: str) -> int:
        """What there is.

        Raises:
            CliError: There is nothing, or not any more.
        """
        job = lookup.find(self._api, self._namespace, name)
        pod, why_none = self._pod(job)
        if pod is None:
            raise why_none
        if not self._copy(pod, self._container(pod), follow=False):
            say(f"nothing was logged; {brief(job)}")
        return Exit.OK

    def follow(self, name: str) -> int:
        """All attempts, one after the other, until the job has ended; or one, until its container has.

        Raises:
            CliError: The job is deleted, or the cluster refuses.
        """
        seen: set[tuple[str, int]] = set()
        told = ""
        job = lookup.find(self._api, self._namespace, name)
        while True:
            over = finished(job)
            pod, why_none = self._pod(job)
            if pod is not None and (run := self._to_read(pod, seen)):
                seen.add(run)
                self._copy(pod, self._container(pod), follow=True)
            elif over or (self._wanted.attempt is not None and pod is not None):
                if not seen and pod is None:
                    raise why_none
                say(brief(job))
                return verdict([job]) if over else Exit.OK
            elif (news := brief(job)) != told:
                told = news
                say(news)
            time.sleep(PAUSE)
            with suppress(Unreachable):  # it is asked again
                job = lookup.find(self._api, self._namespace, name)

    def _to_read(self, pod: JSON, seen: set[tuple[str, int]]) -> tuple[str, int] | None:
        """The container's run that there are lines of, unless they were copied."""
        status = self._status(pod, self._container(pod))
        if not status or not ({"running", "terminated"} & set(status.get("state") or {})):
            return None
        run = (pod["metadata"]["uid"], int(status.get("restartCount", 0)))
        return None if run in seen else run

    @staticmethod
    def _status(pod: JSON, container: str) -> JSON:
        status = pod.get("status") or {}
        found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        return next((c for c in found if c["name"] == container), {})

    # --- which pod, which container

    def _pod(self, job: JSON) -> tuple[JSON | None, CliError]:
        """The pod, or why there is none."""
        number, name = self._wanted.attempt, job["metadata"]["name"]
        attempt = pod_of_attempt(job, number) if number != INSPECTION else None
        if attempt is not None:
            told = ": ".join(p for p in (attempt.get("reason"), attempt.get("message")) if p)
            advice = f"Status has kept of its end: {told}" if told else ""
            gone = CliError(f"the pod of attempt {attempt['number']} of {name} is gone, and its log with it", advice)
            try:
                return self._api.get(f"{self._pods}/{attempt['podName']}"), gone
            except NotFound:
                return None, gone
        if number not in (None, INSPECTION):
            numbers = [str(a["number"]) for a in (job.get("status") or {}).get("attempts") or []]
            raise CliError(
                f"{name} has no attempt {number}", f"There are: {', '.join(numbers) or 'none yet'}.", Exit.CLUSTER
            )
        selector = f"gpubatch.dev/job-uid={job['metadata']['uid']},gpubatch.dev/kind=inspect"
        pods = self._api.list(self._pods, labelSelector=selector)
        none = CliError(f"{name} has no pod now: it is {phase(job)}", f"`gpubatch why {name}` tells why; -f waits.")
        return (pods[0] if pods else None), none

    def _container(self, pod: JSON) -> str:
        """The container that was asked for.

        Raises:
            WrongUse: The pod has no such container.
        """
        spec = pod["spec"]
        main = [c["name"] for c in spec["containers"]]
        all_names = [*main, *(c["name"] for c in spec.get("initContainers") or [])]
        if (name := self._wanted.container) is None:
            return str(main[0])
        if name not in all_names:
            raise WrongUse(f"--container: the pod has no {name!r}", f"It has {', '.join(all_names)}.")
        return name

    # --- copying

    def _copy(self, pod: JSON, container: str, follow: bool) -> bool:
        """Whether there was anything."""
        path = f"{self._pods}/{pod['metadata']['name']}/log"
        try:
            with self._api.stream(path, None if follow else 60, **self._wanted.query(container, follow)) as pieces:
                found = False
                for piece in _whole_lines(pieces):
                    found = True
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
                return found
        except NotFound:
            raise CliError(f"the pod {pod['metadata']['name']} is gone, and its log with it") from None


def _whole_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """As it comes; ended by a line's end, so that what follows begins on a line of its own."""
    last = b"\n"
    for piece in pieces:
        if piece:
            last = piece
            yield piece
    if not last.endswith(b"\n"):
        yield b"\n"

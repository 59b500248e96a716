"""Kubernetes Events: one for each change of phase and each dead letter, what `kubectl describe` shows."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from datetime import UTC, datetime

from gpubatch_operator import metrics
from gpubatch_operator.api.crd import API_VERSION, KIND
from gpubatch_operator.core.model import Job
from gpubatch_operator.kube.client import Client

log = logging.getLogger(__name__)


BURST, REFILL = 100.0, 1.0
"""Normal Events at once, and a second: nobody reads more, and status tells the same."""


class Recorder:
    """Writes Events in the background; a lost one is no harm. Warnings are always written."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._left, self._at = BURST, time.monotonic()
        self._instance = os.environ.get("HOSTNAME") or socket.gethostname()
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, job: Job, reason: str, note: str, warning: bool = False) -> None:
        """Send it and go on."""
        if not warning and not self._may():
            metrics.EVENTS_DROPPED.inc()
            return
        task = asyncio.create_task(self._send(job, reason, note, warning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may(self) -> bool:
        now = time.monotonic()
        self._left, self._at = min(BURST, self._left + REFILL * (now - self._at)), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    async def _send(self, job: Job, reason: str, note: str, warning: bool) -> None:
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{job.name[:50].rstrip('.-')}-", "namespace": job.namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "gpubatch.dev/operator",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": reason,
            "type": "Warning" if warning else "Normal",
            "note": note[:1024],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": job.namespace,
                "name": job.name,
                "uid": job.uid,
            },
        }
        try:
            await self._client.create(f"/apis/events.k8s.io/v1/namespaces/{job.namespace}/events", body)
        except Exception as e:
            log.debug("event not recorded: %s", e)

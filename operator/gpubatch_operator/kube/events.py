"""Kubernetes Events: one for each change of phase and each dead letter, what `kubectl describe` shows."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from datetime import UTC, datetime

from gpubatch_operator.api.crd import API_VERSION, KIND
from gpubatch_operator.core.model import Job
from gpubatch_operator.kube.client import Client

log = logging.getLogger(__name__)


class Recorder:
    """Writes Events in the background; a lost one is no harm."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._instance = os.environ.get("HOSTNAME") or socket.gethostname()
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, job: Job, reason: str, note: str, warning: bool = False) -> None:
        """Send it and go on."""
        task = asyncio.create_task(self._send(job, reason, note, warning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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

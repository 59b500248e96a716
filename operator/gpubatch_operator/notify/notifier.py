"""Delivers webhooks: at least once, with a stable id, its state in the job's status so that a restart goes on.

Each attempt is its own task: a receiver that hangs delays nobody else's delivery, nor the queue.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import logging
import math
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.model import Job
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.events import Recorder
from gpubatch_operator.kube.store import Store
from gpubatch_operator.metrics import DELIVERIES
from gpubatch_operator.notify import dial, message
from gpubatch_operator.reconciler import write_status
from gpubatch_operator.settings import Settings

JSON = dict[str, Any]
SECRET_LABEL = "gpubatch.dev/webhook-secret"
PAUSE = 0.5
PARALLEL = 64
MAX_RETRY_AFTER = 3600.0

log = logging.getLogger(__name__)


class UndeliverableError(Exception):
    """This attempt failed before it was sent, for a reason that the user can mend."""


class Notifier:
    """Owns the deliveries in flight."""

    def __init__(self, client: Client, store: Store, settings: Settings, events: Recorder) -> None:
        self._client, self._store, self._settings, self._events = client, store, settings, events
        self._networks = dial.networks(settings.webhook_allowed_networks)
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(PARALLEL)

    async def run(self) -> None:
        """Start what is due, for ever."""
        timeout = httpx.Timeout(self._settings.webhook_timeout_seconds)
        async with httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False) as http:
            try:
                while True:
                    self._start_due(http, time.time())
                    await asyncio.sleep(PAUSE)
            finally:
                # Whoever leads next sends them again, under the same ids.
                tasks = list(self._in_flight.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _start_due(self, http: httpx.AsyncClient, now: float) -> None:
        for uid in self._store.deliverable:
            for delivery in self._store.jobs[uid].status.get("webhookDeliveries") or []:
                due = seconds(delivery["nextAttemptTime"]) if "nextAttemptTime" in delivery else 0.0
                if delivery["state"] == "Pending" and due <= now and delivery["id"] not in self._in_flight:
                    task = asyncio.create_task(self._attempt(http, uid, delivery))
                    self._in_flight[delivery["id"]] = task

    async def _attempt(self, http: httpx.AsyncClient, uid: str, delivery: JSON) -> None:
        try:
            await self._attempt_once(http, uid, delivery)
        finally:
            del self._in_flight[delivery["id"]]

    async def _attempt_once(self, http: httpx.AsyncClient, uid: str, delivery: JSON) -> None:
        """One attempt and the record of it; without the record it will be made again."""
        raw = self._store.raw.get(uid)
        if raw is None:
            return
        retry_after = 0.0
        result: JSON
        try:
            async with self._gate, asyncio.timeout(self._settings.webhook_timeout_seconds + 5):
                response = await self._send(http, raw, delivery)
            ok = response.is_success
            result = {"lastStatusCode": response.status_code}
            if not ok:
                result["lastError"] = f"the receiver answered {response.status_code}: {response.text[:200]}"
                retry_after = _retry_after(response, time.time())
        except (UndeliverableError, dial.RefusedError) as e:
            ok, result = False, {"lastError": str(e)[:1024]}
        except Exception as e:  # whatever it is, it counts as an attempt: else it would be made again for ever
            if not isinstance(e, (httpx.HTTPError, OSError, TimeoutError, ApiError)):
                log.exception("a delivery failed in an unexpected way: %s", delivery["id"])
            ok, result = False, {"lastError": f"{type(e).__name__}: {e}"[:1024]}
        DELIVERIES.labels("delivered" if ok else "failed").inc()
        try:
            await self._record(uid, delivery["id"], ok, result, retry_after)
        except ApiError as e:
            log.warning("a delivery wasn't recorded and will be repeated: %s: %s", delivery["id"], e)

    async def _send(self, http: httpx.AsyncClient, raw: JSON, delivery: JSON) -> httpx.Response:
        webhooks = raw["spec"].get("webhooks") or []
        if delivery["webhook"] >= len(webhooks):
            raise UndeliverableError("the webhook was removed from spec.webhooks")
        hook = webhooks[delivery["webhook"]]
        secret = None
        if name := hook.get("secretName"):
            secret = await self._secret(raw["metadata"]["namespace"], name)
        body = message.payload(raw, delivery)
        try:
            headers = message.headers(delivery["id"], body, secret)
        except ValueError as e:
            raise UndeliverableError(f"the key 'secret' of Secret {hook.get('secretName')} is {e}") from None
        target = await dial.resolve(hook["url"], self._networks)
        return await http.post(
            target.url,
            content=body,
            headers=headers | {"host": target.host_header},
            extensions={"sni_hostname": target.hostname},
        )

    async def _secret(self, namespace: str, name: str) -> str:
        try:
            raw = await self._client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except ApiError as e:
            if e.status != 404:
                raise
            raise UndeliverableError(f"Secret {name} doesn't exist in namespace {namespace}") from None
        # Without the label anybody who may create jobs could have any Secret used for signing, and test guesses at it.
        if (raw["metadata"].get("labels") or {}).get(SECRET_LABEL) != "true":
            raise UndeliverableError(f"Secret {name} lacks the label {SECRET_LABEL}=true, which permits this use")
        value = (raw.get("data") or {}).get("secret")
        if value is None:
            raise UndeliverableError(f"Secret {name} has no key 'secret'")
        return base64.b64decode(value).decode().strip()

    async def _record(self, uid: str, delivery_id: str, ok: bool, result: JSON, retry_after: float) -> None:
        while (job := self._store.jobs.get(uid)) is not None:
            status, now = copy.deepcopy(dict(job.status)), time.time()
            delivery = next((d for d in status.get("webhookDeliveries", []) if d["id"] == delivery_id), None)
            if delivery is None or delivery["state"] != "Pending":
                return
            delivery["attempts"] += 1
            for key in ("lastStatusCode", "lastError", "nextAttemptTime"):
                delivery.pop(key, None)
            delivery |= result
            if ok:
                delivery["state"] = "Delivered"
            elif delivery["attempts"] >= self._settings.webhook_attempts:
                delivery["state"] = "DeadLettered"
            else:
                delay = max(self._backoff(delivery["attempts"]), retry_after)
                delivery["nextAttemptTime"] = iso(math.ceil(now + delay))  # whole seconds, never earlier
            if await write_status(self._client, self._store, job, status):
                self._tell(job, delivery)
                return

    def _backoff(self, attempts: int) -> float:
        jitter = random.uniform(0.8, 1.2)
        return float(self._settings.webhook_backoff_seconds * 2 ** (attempts - 1) * jitter)

    def _tell(self, job: Job, delivery: JSON) -> None:
        extra = {"job": f"{job.namespace}/{job.name}", "uid": job.uid}
        what = f"webhook {delivery['webhook']} ({delivery['event']}), attempt {delivery['attempts']}"
        log.info("%s: %s %s", what, delivery["state"], delivery.get("lastError", ""), extra=extra)
        if delivery["state"] == "DeadLettered":
            DELIVERIES.labels("dead_lettered").inc()
            self._events.record(job, "WebhookDeadLettered", f"{what}: {delivery.get('lastError')}", warning=True)


def _retry_after(response: httpx.Response, now: float) -> float:
    """Seconds that the receiver asks for, as a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        return max(0.0, min(parsedate_to_datetime(value).timestamp() - now, MAX_RETRY_AFTER))
    except ValueError:
        return 0.0

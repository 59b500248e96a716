"""The Lease that elects the one replica that plans.

Rules are those of `core.election`. Followers watch the Lease, so that a clean release is taken over at once, and look
at it every few seconds in case the watch is dead. Each request has a timeout of its own, and its own connections: a
leader that is cut off, paused or overloaded must notice in time. It then ends its process on the spot, since nothing
that it still does could be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

from gpubatch_operator.core.election import Lease, Sight, Terms, held_until, see
from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
REQUEST_SECONDS = 5.0
WATCH_SECONDS = 300

log = logging.getLogger(__name__)


def monotonic() -> float:
    """Seconds that also pass while the process, or the whole machine, is paused."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def random_name() -> str:
    """A name that no other process has."""
    return f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def end_process(why: str) -> NoReturn:
    """Without any clean-up, which could write."""
    log.critical("%s: the process ends at once", why)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(1)


class Elector:
    """One replica's part in the election.

    Args:
        client: For the lease alone.
        namespace: Where the Lease is.
        name: What it is called; made if absent.
        me: Who this is; no other living process may have the name. The container of a pod is started anew only when
            the old one is dead, so it may take the old one's lease over at once.
        terms: Durations.
        on_lost: Called once the lease is lost; must not return.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        me: str,
        terms: Terms,
        on_lost: Callable[[str], NoReturn] = end_process,
    ) -> None:
        self._client, self._terms, self._on_lost, self.me = client, terms, on_lost, me
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self._sight: Sight | None = None
        self._acquired = ""
        self._renewed: float | None = None  # when the last good renewal was sent; None while not leading
        self._released = False
        self._stirred = asyncio.Event()  # the watch has seen something
        self.tried = asyncio.Event()  # whether the lease was free at the start is known

    @property
    def leads(self) -> bool:
        """Whether the lease is held at this very moment."""
        return self._renewed is not None and monotonic() < held_until(self._renewed, self._terms)

    @property
    def led(self) -> bool:
        """Whether any replica holds the lease, as far as this one can tell."""
        seen = self._sight
        return self.leads or bool(seen and seen.lease and seen.lease.holder and monotonic() < seen.free_at)

    def check(self) -> None:
        """To be called right before each write of a leader: without the lease it doesn't return.

        Raises:
            ApiError: The lease was given up in good order, and the process is about to end.
        """
        if self._released:
            raise ApiError(0, "Released", "this replica doesn't lead any more")
        if not self.leads:
            self._on_lost("a write without the lease was about to happen")

    async def acquire(self) -> float:
        """Wait until the lease is won; the moment (`time.monotonic`) from which on nobody else has it."""
        watcher = asyncio.create_task(self._watch())
        try:
            while not await self._try():
                self.tried.set()
                now = monotonic()
                due = self._sight.free_at - now if self._sight else 0.0
                pause = self._terms.retry * random.uniform(1.0, 1.2)
                self._stirred.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, max(due, 0.1))):
                        await self._stirred.wait()
            won_at = time.monotonic()
        finally:
            self.tried.set()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        log.info("leading as %s", self.me)
        return won_at

    async def renew(self) -> None:
        """Renew for ever; when that fails for too long, or another holds the lease, it is lost."""
        while True:
            await asyncio.sleep(self._terms.retry)
            assert self._renewed is not None
            left = held_until(self._renewed, self._terms) - monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, REQUEST_SECONDS))):
                    await self._write(self.me)
            except (ApiError, TimeoutError) as e:
                log.warning("the lease wasn't renewed: %s: %s", type(e).__name__, e)
                if isinstance(e, ApiError) and e.status in (404, 409):
                    await self._look_again()
            if not self.leads:
                self._on_lost("the lease is lost: it couldn't be renewed in time")

    async def release(self) -> None:
        """Give the lease up, for others to take it at once. Nothing may be written after this, or while it runs."""
        if not self.leads:
            return
        self._released = True
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._write("")
            log.info("lease released")
        except (ApiError, TimeoutError) as e:
            log.warning("the lease wasn't released, others wait for its end: %s", e)
        self._renewed = None

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    # --- the object

    async def _try(self) -> bool:
        """Look at the lease and take it if that is allowed; whether it was won."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._look()
                if self._sight is None or self._sight.free_at > monotonic():
                    return False
                self._acquired = _micro_time()
                await self._write(self.me)
                return self.leads
        except (ApiError, TimeoutError) as e:
            if not (isinstance(e, ApiError) and e.status == 409):  # another was quicker
                log.warning("the lease can't be read or taken: %s: %s", type(e).__name__, e)
            return False

    async def _look(self) -> None:
        try:
            self._seen(await self._client.get(f"{self._collection}/{self._name}"))
        except ApiError as e:
            if e.status != 404:
                raise
            self._sight = see(self._sight, None, monotonic(), self.me, self._terms.duration)

    async def _look_again(self) -> None:
        """Somebody else has written to our lease: an edit of its labels is no harm, any other holder is the end."""
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._look()
                if self._sight is None or self._sight.lease is None or self._sight.lease.holder != self.me:
                    self._on_lost("the lease is lost: another replica holds it")

    def _seen(self, raw: JSON) -> None:
        spec = raw.get("spec") or {}
        lease = Lease(
            version=raw["metadata"]["resourceVersion"],
            holder=spec.get("holderIdentity") or "",
            duration=float(spec.get("leaseDurationSeconds") or 0),
            mark=str(spec.get("renewTime")),
            transitions=int(spec.get("leaseTransitions") or 0),
        )
        self._sight = see(self._sight, lease, monotonic(), self.me, self._terms.duration)

    async def _write(self, holder: str) -> None:
        """Create or update the lease under the version that was seen.

        Raises:
            ApiError: 409 if somebody else has written meanwhile.
        """
        known = self._sight.lease if self._sight else None
        transitions = known.transitions + (known.holder != self.me and bool(holder)) if known else 0
        now = monotonic()
        spec = {
            "holderIdentity": holder,
            # An integer in the API; others must never wait shorter than we believe to hold it.
            "leaseDurationSeconds": max(1, -int(-self._terms.duration // 1)) if holder else 1,
            "acquireTime": self._acquired,
            "renewTime": _micro_time(),
            "leaseTransitions": transitions,
        }
        metadata: JSON = {"name": self._name, "namespace": self._namespace}
        body: JSON = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if known is None:
            self._seen(await self._client.create(self._collection, body))
        else:
            metadata["resourceVersion"] = known.version
            self._seen(await self._client.patch(f"{self._collection}/{self._name}", body))
        self._renewed = now if holder else None

    async def _watch(self) -> None:
        """See each change of the lease as it happens, for ever."""
        query = {"watch": "true", "fieldSelector": f"metadata.name={self._name}", "timeoutSeconds": WATCH_SECONDS}
        while True:
            with contextlib.suppress(ApiError, TimeoutError):
                async for line in self._client.stream(self._collection, query, WATCH_SECONDS + REQUEST_SECONDS):
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED"):
                        self._seen(event["object"])
                    self._stirred.set()
            await asyncio.sleep(self._terms.retry)


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

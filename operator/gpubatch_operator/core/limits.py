"""How much may wait at a time: the queue's depth, in all and by namespace, and the requests in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import WAITING


@dataclass(frozen=True, slots=True)
class NamespaceCaps:
    """What an administrator allows one namespace; None: no limit of its own."""

    max_queue_depth: int | None = None
    max_slots: int | None = None
    max_priority: int | None = None


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What an administrator allows; None: no limit. The namespace `*` stands for all that aren't named."""

    max_queue_depth: int | None = None
    max_total_requests: int | None = None
    namespaces: Mapping[str, NamespaceCaps] = field(default_factory=dict)

    def caps(self, namespace: str) -> NamespaceCaps:
        """Those of one namespace."""
        return self.namespaces.get(namespace) or self.namespaces.get("*") or NamespaceCaps()


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a job may not enter the queue now."""

    message: str


@dataclass(slots=True)
class Gate:
    """Counts who is in the queue (Validating or Queued), so that a look costs nothing whatever its length."""

    limits: QueueLimits = field(default_factory=QueueLimits)
    _inside: dict[str, tuple[str, int]] = field(default_factory=dict)  # by uid: namespace, requests
    _depth: Counter[str] = field(default_factory=Counter)
    _requests: int = 0

    @property
    def depth(self) -> int:
        """Jobs in the queue."""
        return len(self._inside)

    def enter(self, job: Job, requests: int | None) -> None:
        """It is in the queue now; `requests` of it once they are counted."""
        self.leave(job.uid)
        self._inside[job.uid] = (job.namespace, requests or 0)
        self._depth[job.namespace] += 1
        self._requests += requests or 0

    def leave(self, uid: str) -> bool:
        """It isn't any more; whether it was."""
        if (there := self._inside.pop(uid, None)) is None:
            return False
        self._depth[there[0]] -= 1
        self._requests -= there[1]
        return True

    def hold(self, job: Job, requests: int | None) -> Hold | None:
        """Why it may not enter (or, once its requests are counted, stay), or None if it may."""
        limits, caps = self.limits, self.limits.caps(job.namespace)
        if job.phase not in WAITING:
            if limits.max_queue_depth is not None and self.depth >= limits.max_queue_depth:
                return Hold(full(self.depth, limits.max_queue_depth))
            depth = self._depth[job.namespace]
            if caps.max_queue_depth is not None and depth >= caps.max_queue_depth:
                return Hold(full(depth, caps.max_queue_depth, job.namespace))
        if limits.max_total_requests is not None and requests:
            others = self._requests - self._inside.get(job.uid, ("", 0))[1]
            if others and others + requests > limits.max_total_requests:
                return Hold(
                    f"Queue full ({others} requests wait; with the {requests} of this job there would be more than "
                    f"{limits.max_total_requests})"
                )
        return None


def full(depth: int, limit: int, namespace: str | None = None) -> str:
    """What is said when there is no room for one more job."""
    return f"Queue full ({depth}/{limit} jobs{f' of namespace {namespace}' if namespace else ''})"

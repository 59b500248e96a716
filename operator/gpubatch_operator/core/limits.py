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

    def full(self, depth: int, of_namespace: int, namespace: str) -> str:
        """Why one more job of the namespace may not wait, beside so many of all and so many of its own.

        Empty if it may.
        """
        own = self.caps(namespace).max_queue_depth
        if self.max_queue_depth is not None and depth >= self.max_queue_depth:
            return f"Queue full ({depth}/{self.max_queue_depth} jobs)"
        if own is not None and of_namespace >= own:
            return f"Queue full ({of_namespace}/{own} jobs in namespace {namespace})"
        return ""


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
        if job.phase not in WAITING and (
            message := self.limits.full(self.depth, self._depth[job.namespace], job.namespace)
        ):
            return Hold(message)
        most = self.limits.max_total_requests
        if most is not None and requests:
            others = self._requests - self._inside.get(job.uid, ("", 0))[1]
            if others and others + requests > most:
                return Hold(
                    f"Queue full ({others} requests wait; with the {requests} of this job there would be more than "
                    f"{most})"
                )
        return None

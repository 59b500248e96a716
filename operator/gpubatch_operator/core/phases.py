"""The phases of a job and the only ways between them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a job is in its life; for people. Machines read the conditions."""

    HELD = "Held"  # the queue is full: it enters, in order, when there is room
    SUSPENDED = "Suspended"  # its user said so
    VALIDATING = "Validating"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
WAITING = frozenset({Phase.VALIDATING, Phase.QUEUED})  # in the queue; what `maxQueueDepth` counts
PARKED = frozenset({Phase.HELD, Phase.SUSPENDED})  # neither in the queue nor running
ACTIVE = frozenset({Phase.STARTING, Phase.RUNNING})

_ENTRANCES = frozenset({Phase.VALIDATING, Phase.QUEUED, Phase.HELD, Phase.SUSPENDED})
_GIVEN_UP = frozenset({Phase.FAILED, Phase.CANCELLED})

CHANGES: dict[Phase | None, frozenset[Phase]] = {
    None: _ENTRANCES | _GIVEN_UP,
    Phase.HELD: frozenset({Phase.VALIDATING, Phase.QUEUED, Phase.SUSPENDED}) | _GIVEN_UP,
    Phase.SUSPENDED: frozenset({Phase.VALIDATING, Phase.QUEUED, Phase.HELD}) | _GIVEN_UP,
    Phase.VALIDATING: frozenset({Phase.QUEUED, Phase.HELD, Phase.SUSPENDED}) | _GIVEN_UP,
    Phase.QUEUED: frozenset({Phase.STARTING, Phase.SUSPENDED}) | _GIVEN_UP,
    # An attempt that was lost, or that failed and may be tried again, puts the job back at its old place.
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.QUEUED, Phase.SUSPENDED, Phase.SUCCEEDED}) | _GIVEN_UP,
    Phase.RUNNING: frozenset({Phase.QUEUED, Phase.SUSPENDED, Phase.SUCCEEDED}) | _GIVEN_UP,
    # A new `runId` runs a finished job again.
    Phase.SUCCEEDED: _ENTRANCES,
    Phase.FAILED: _ENTRANCES,
    Phase.CANCELLED: _ENTRANCES,
}
"""Every change of phase that may happen; drawn in docs/design.md. `None` is a job that was never seen before."""

"""The phases of a job and the only ways between them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a job is in its life; for people. Machines read the conditions."""

    VALIDATING = "Validating"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


FINISHED = frozenset({Phase.SUCCEEDED, Phase.FAILED})
WAITING = frozenset({Phase.VALIDATING, Phase.QUEUED})
ACTIVE = frozenset({Phase.STARTING, Phase.RUNNING})

CHANGES: dict[Phase | None, frozenset[Phase]] = {
    None: frozenset({Phase.VALIDATING, Phase.QUEUED, Phase.FAILED}),
    Phase.VALIDATING: frozenset({Phase.QUEUED, Phase.FAILED}),
    Phase.QUEUED: frozenset({Phase.STARTING, Phase.FAILED}),
    # A lost attempt (its pod vanished, its node is gone) puts the job back into the queue, at its old place.
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.QUEUED, Phase.SUCCEEDED, Phase.FAILED}),
    Phase.RUNNING: frozenset({Phase.QUEUED, Phase.SUCCEEDED, Phase.FAILED}),
    Phase.SUCCEEDED: frozenset(),
    Phase.FAILED: frozenset(),
}
"""Every change of phase that may happen; drawn in docs/design.md. `None` is a job that was never seen before."""

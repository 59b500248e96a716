"""What a step of a job's life asks to be done, once its status is written."""

from __future__ import annotations

from dataclasses import dataclass

from gpubatch_operator.core.model import JSON, Attempt, Pod


@dataclass(frozen=True, slots=True)
class Inspect:
    """Create the job's inspect pod."""


@dataclass(frozen=True, slots=True)
class Run:
    """Create the runner pod of the recorded attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the runner in this pod to save what it has, and to end."""

    pod: Pod
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete this pod, gracefully: the runner saves what it has."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Release:
    """Take our finalizer off this pod: its outcome is recorded."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Expire:
    """Delete the job: its time to live after its end is over."""


Action = Inspect | Run | Stop | Remove | Release | Expire


@dataclass(frozen=True, slots=True)
class Step:
    """The status that should be, and what to do once it is written."""

    status: JSON
    actions: tuple[Action, ...] = ()
    retry_at: float | None = None  # when time alone may change the answer

"""The ways in which an inspection or a run fails for a reason that its owner can act on.

    RunnerError                 carries the contract's `Reason`; its text names the field, what was found, what to do
    ├── InputNotFound           nothing is at the input's location
    ├── InputUnreadable         the input's location makes no sense, or reading broke off
    ├── AccessDenied            the credentials do not allow what the job needs
    │   └── NoCredentials       there are none; a service that hands them out may come back
    ├── OutputNotWritable       an output's location makes no sense, or cannot be written
    │   └── OutputExpired       a URL that files are PUT to is no longer good
    ├── InvalidRequests         no line, or not every line, of the input is a request
    ├── TooManyRequests         more requests than the limit of a job
    ├── InputTooLarge           more bytes than the limit of a job
    ├── EngineNotReady          the engine never answered
    ├── EngineFailed            the engine answered, died and did not come back
    ├── Stopped                 it was told to stop before the work was done
    │   ├── Interrupted         the pod is being stopped; a later attempt goes on
    │   ├── Suspended           the job is; a later attempt goes on
    │   └── Ended               the run is over with what it has
    │       ├── Cancelled       its owner said so
    │       ├── DeadlineExceeded
    │       └── CompletionWindowExceeded
    └── InternalError           the runner's own volume failed

Anything else that escapes is a defect: it ends the process with a traceback, and the kubelet starts it again.
"""

# ruff: noqa: N818 - named as the contract names the reasons

from __future__ import annotations

from typing import ClassVar

from gpubatch_runner.contract import Reason


class RunnerError(Exception):
    """Base of all failures that end in a verdict."""

    reason: ClassVar[Reason] = Reason.INTERNAL_ERROR


class InputNotFound(RunnerError):
    """Nothing is at the input's location."""

    reason = Reason.INPUT_NOT_FOUND


class InputUnreadable(RunnerError):
    """The input's location makes no sense, or reading it broke off."""

    reason = Reason.INPUT_UNREADABLE


class AccessDenied(RunnerError):
    """The credentials do not allow what the job needs."""

    reason = Reason.ACCESS_DENIED


class NoCredentials(AccessDenied):
    """There are no credentials, or the service that hands them out does not answer."""


class OutputNotWritable(RunnerError):
    """An output's location makes no sense, or cannot be written."""

    reason = Reason.OUTPUT_NOT_WRITABLE


class OutputExpired(OutputNotWritable):
    """The server refuses the URL that a file is PUT to: its signature is wrong or has expired."""

    reason = Reason.OUTPUT_EXPIRED


class InvalidRequests(RunnerError):
    """The input holds no valid request, or an invalid one where the job refuses those."""

    reason = Reason.INVALID_REQUESTS


class TooManyRequests(RunnerError):
    """The input holds more requests than one job may have."""

    reason = Reason.TOO_MANY_REQUESTS


class InputTooLarge(RunnerError):
    """The input is longer than that of one job may be."""

    reason = Reason.INPUT_TOO_LARGE


class EngineNotReady(RunnerError):
    """The engine did not answer within its start deadline."""

    reason = Reason.ENGINE_NOT_READY


class EngineFailed(RunnerError):
    """The engine died during the run and did not come back within its start deadline."""

    reason = Reason.ENGINE_FAILED


class Stopped(RunnerError):
    """The run was told to stop before it was done. What is in its results is saved."""


class Interrupted(Stopped):
    """The pod is being stopped."""

    reason = Reason.INTERRUPTED


class Suspended(Stopped):
    """The job is suspended."""

    reason = Reason.SUSPENDED


class Ended(Stopped):
    """The run is over: its results are what there is, and every other request has an error record."""

    code: ClassVar[str] = ""
    """Of those records, as in OpenAI's Batch API."""


class Cancelled(Ended):
    """The job was cancelled."""

    reason = Reason.CANCELLED
    code = "batch_cancelled"


class DeadlineExceeded(Ended):
    """The job's time was over."""

    reason = Reason.DEADLINE_EXCEEDED
    code = "batch_expired"


class CompletionWindowExceeded(Ended):
    """The window in which the job had to be done was over."""

    reason = Reason.COMPLETION_WINDOW_EXCEEDED
    code = "batch_expired"


class InternalError(RunnerError):
    """The runner's own volume failed."""

    reason = Reason.INTERNAL_ERROR

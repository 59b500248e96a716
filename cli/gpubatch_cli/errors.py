"""What goes wrong for a user, and with which exit status; each says what to do about it.

The statuses are part of the interface: scripts ask for them. `docs/cli.md` lists them, from here.
"""

# ruff: noqa: N818 - named after what the API server says

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CLUSTER = 3
    CANCELLED = 4
    TIMEOUT = 124
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done; of commands that wait for a job: it succeeded",
    Exit.FAILED: "the job failed, or the input has lines that are no valid requests",
    Exit.USAGE: "the command or a file on this machine is wrong; nothing was done",
    Exit.CLUSTER: "the cluster or a store refused, wasn't reached, or has no such object",
    Exit.CANCELLED: "the job was cancelled",
    Exit.TIMEOUT: "`--timeout` was over first; the job goes on",
    Exit.INTERRUPTED: "Ctrl-C; the job goes on",
}


class CliError(Exception):
    """Ends the command.

    Args:
        text: What was found, on which object.
        advice: What to do about it; more than one line is fine.
        code: The exit status.
    """

    def __init__(self, text: str, advice: str = "", code: Exit = Exit.CLUSTER) -> None:
        super().__init__(text)
        self.text, self.advice, self.code = text, advice, code


class NotFound(CliError):
    """The API server has no such object."""


class Forbidden(CliError):
    """The API server doesn't let this user do that."""


class Gone(CliError):
    """A watch is too old to go on: list anew."""


class Unreachable(CliError):
    """The API server can't be reached now; it may be in a moment."""


class WrongUse(CliError):
    """A mistake in the command or in a file on this machine."""

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text, advice, Exit.USAGE)

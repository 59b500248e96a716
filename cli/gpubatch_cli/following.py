"""Waiting for jobs, and telling meanwhile how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from gpubatch_cli import lookup
from gpubatch_cli.api import Api, jobs_path
from gpubatch_cli.console import console, say
from gpubatch_cli.errors import CliError, Exit, NotFound
from gpubatch_cli.jobs import ACTIVE, finished, phase, row, why
from gpubatch_cli.queueview import batches

JSON = dict[str, Any]


class Limit:
    """A time that may run out."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self, what: str) -> None:
        """Raises CliError: The time is over."""
        if self._end is not None and time.monotonic() >= self._end:
            raise CliError(f"waited {self.seconds:.0f} s in vain: {what}", "The job goes on.", Exit.TIMEOUT)


def verdict(jobs: Iterable[JSON]) -> int:
    """The exit status that tells how jobs ended."""
    phases = {phase(job) for job in jobs}
    return Exit.FAILED if "Failed" in phases else Exit.CANCELLED if "Cancelled" in phases else Exit.OK


def brief(job: JSON) -> str:
    """One line about a job."""
    found = row(job)
    reason, message = why(job)
    words = [found.phase]
    words += [f"position {found.position}"] if found.position else []
    words += [f"on {found.node}"] if found.node and found.phase in ACTIVE else []
    words += [f"{reason}: {message}" if found.phase == "Failed" else reason] if reason else []
    return f"{found.name}: {', '.join(words)}"


class Follower:
    """Follows jobs of one namespace by a watch."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._stack = ExitStack()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, str] = {}
        self._listed: set[str] = set()

    def ended(self, names: list[str], limit: Limit) -> list[JSON]:
        """Waits until all have ended; they are, then.

        Raises:
            NotFound: One of them isn't there, or not any more.
            CliError: The time is over, or the cluster refuses.
        """
        jobs: dict[str, JSON] = {}
        one = {"fieldSelector": f"metadata.name={names[0]}"} if len(names) == 1 else {}
        with self._stack:
            self._open()
            for news in batches(self._api.watch(jobs_path(self._namespace), **one)):
                synced = self._take(news, names, jobs)
                if synced and (missing := next((n for n in names if n not in jobs), None)):
                    raise lookup.absent(self._api, self._namespace, missing)
                left = [n for n in names if not (n in jobs and finished(jobs[n]))]
                if not left:
                    break
                limit.check(brief(jobs[left[0]]) if left[0] in jobs else left[0])
        return [jobs[name] for name in names]

    def _take(self, news: list[tuple[str, JSON]], names: list[str], jobs: dict[str, JSON]) -> bool:
        synced = False
        for kind, job in news:
            if kind == "SYNCED":
                synced = True
                if gone := next((name for name in jobs if name not in self._listed), None):
                    raise _deleted(gone)
                self._listed.clear()
                continue
            name = job["metadata"]["name"]
            if name not in names:
                continue
            if kind == "DELETED" or (name in jobs and jobs[name]["metadata"]["uid"] != job["metadata"]["uid"]):
                raise _deleted(name)
            if kind == "LISTED":
                self._listed.add(name)
            jobs[name] = job
            self._tell(job)
        return synced

    def _open(self) -> None:
        if not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn()
        self._bars = self._stack.enter_context(Progress(*columns, console=console(stderr=True)))

    def _tell(self, job: JSON) -> None:
        name, told = job["metadata"]["name"], brief(job)
        if self._bars is None:
            if self._said.get(name) != told:
                self._said[name] = told
                say(told)
            return
        found = row(job)
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=100, said="")
        done = 100 if finished(job) else (found.percent or 0)
        said = told.partition(": ")[2] + (f", {found.progress}" if found.progress and not finished(job) else "")
        self._bars.update(self._tasks[name], completed=done, said=said)


def _deleted(name: str) -> NotFound:
    return NotFound(f"the job {name!r} was deleted while it was waited for")

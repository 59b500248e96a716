"""The queue once, or as it changes."""

from __future__ import annotations

import json
import queue as queues
import sys
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from gpubatch_cli.console import console, document, out, say
from gpubatch_cli.errors import WrongUse
from gpubatch_cli.jobs import FINISHED, order, phase, row
from gpubatch_cli.render import queue_table, summary

JSON = dict[str, Any]
TICK = 1.0  # seconds between two looks at the clock
FRAMES = 4  # pictures a second, at most


def chosen(jobs: Iterable[JSON], ended: bool) -> list[JSON]:
    """Those to show, in order."""
    return sorted((j for j in jobs if ended or phase(j) not in FINISHED), key=order)


def now() -> datetime:
    """With the zone of this machine."""
    return datetime.now().astimezone()


def show(jobs: list[JSON], everywhere: bool, ended: bool, form: str | None, place: str | None = None) -> None:
    """The queue as it is."""
    found = chosen(jobs, ended)
    if form == "name":
        for job in found:
            out(f"gpubatchjob.gpubatch.dev/{job['metadata']['name']}")
        return
    if form in ("json", "yaml"):
        document({"jobs": [row(job).as_json() for job in found]}, form)
        return
    if not found:
        where = f" in namespace {place}" if place else ""
        hidden = len(jobs)
        say(f"no jobs{where}" + (f" wait or run; {hidden} finished (--all)" if hidden else ""))
        return
    console().print(queue_table(map(row, found), now(), everywhere, form == "wide"))


def watch(changes: Iterator[tuple[str, JSON]], everywhere: bool, ended: bool, form: str | None) -> None:
    """The queue as it changes, until Ctrl-C."""
    if form in ("yaml", "name"):
        raise WrongUse(f"-w has no -o {form}", "Use -o json, -o wide or none.")
    if (form is None and sys.stdout.isatty()) or (form == "wide" and sys.stdout.isatty()):
        _live(changes, everywhere, ended, form == "wide")
    else:
        _lines(changes, everywhere, form)


def _lines(changes: Iterator[tuple[str, JSON]], everywhere: bool, form: str | None) -> None:
    """A line for each job as it is, and at each change of what is shown of it."""
    before: dict[str, str] = {}
    for kind, job in changes:
        if kind == "SYNCED":
            continue
        uid = job["metadata"]["uid"]
        found = row(job)
        if form == "json":
            told = json.dumps({"deleted": kind == "DELETED", **found.as_json()}, ensure_ascii=False)
        else:
            words = [found.phase if kind != "DELETED" else "Deleted"]
            words += [f"position {found.position}"] if found.position is not None else []
            words += [part for part in (found.progress, found.node, found.reason) if part]
            told = f"{f'{found.namespace}/' if everywhere else ''}{found.name}  {', '.join(words)}"
        if before.get(uid) != told:
            before[uid] = told
            out(told)
            sys.stdout.flush()
        if kind == "DELETED":
            del before[uid]


def _live(changes: Iterator[tuple[str, JSON]], everywhere: bool, ended: bool, wide: bool) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    jobs: dict[str, JSON] = {}
    listed: set[str] = set()

    def picture(height: int) -> Group:
        found = chosen(jobs.values(), ended)
        head = Text(f"{summary(found)}; {now():%H:%M:%S}", "dim")
        shown = found[: max(1, height - 4)]
        more = [Text(f"... and {len(found) - len(shown)} more", "dim")] if len(found) > len(shown) else []
        return Group(head, queue_table(map(row, shown), now(), everywhere, wide), *more)

    screen = console()
    with Live(console=screen, auto_refresh=False, screen=False) as live:
        for news in batches(changes):
            for kind, job in news:
                if kind == "SYNCED":  # what isn't in the list any more went while nobody could tell
                    jobs = {uid: job for uid, job in jobs.items() if uid in listed}
                    listed = set()
                    continue
                uid = job["metadata"]["uid"]
                if kind == "LISTED":
                    listed.add(uid)
                if kind == "DELETED":
                    jobs.pop(uid, None)
                else:
                    jobs[uid] = job
            live.update(picture(screen.height), refresh=True)


def batches(changes: Iterator[tuple[str, JSON]]) -> Iterator[list[tuple[str, JSON]]]:
    """What came since the last picture; an empty list when nothing came for a second, since clocks go on.

    Raises:
        Exception: What ended the changes.
    """
    came: queues.Queue[tuple[str, JSON] | BaseException | None] = queues.Queue()

    def read() -> None:
        try:
            for change in changes:
                came.put(change)
            came.put(None)
        except BaseException as error:  # it is raised where it is shown
            came.put(error)

    threading.Thread(target=read, daemon=True).start()
    pause = threading.Event()
    while True:
        news: list[tuple[str, JSON]] = []
        try:
            item = came.get(timeout=TICK)
            while True:
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    if news:
                        yield news
                    return
                news.append(item)
                item = came.get_nowait()
        except queues.Empty:
            pass
        yield news
        pause.wait(1 / FRAMES)

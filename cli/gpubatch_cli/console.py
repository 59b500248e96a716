"""What is written where: results to stdout, all else to stderr; colours, bars and live tables on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
"""Called with how much more is done."""


def say(text: str) -> None:
    """A line about what goes on, for people."""
    click.echo(text, err=True)


def out(text: str) -> None:
    """A line of the result."""
    click.echo(text)


def document(value: Any, form: str) -> None:
    """The result as JSON or YAML."""
    if form == "json":
        out(json.dumps(value, indent=2, ensure_ascii=False))
        return
    import yaml

    out(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip("\n"))


def console(stderr: bool = False) -> Console:
    """Rich's console. Piped or redirected, lines are as long as they are: a program reads them."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:  # whatever $COLUMNS says
        made = Console(stderr=stderr, highlight=False, width=1000)
    return made


@contextmanager
def bar(title: str, total: int | None, unit: str = "bytes") -> Iterator[Advance]:
    """A bar on a terminal, nothing elsewhere. `total` None: it isn't known."""
    if not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn()
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda more: progress.advance(task, more)

"""What the demo prints: a table that redraws itself on a terminal; elsewhere, and in transcripts, one each change."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

HEARTBEAT_SECONDS = 20.0
UP, CLEAR = "\x1b[{}A", "\x1b[J"


class DemoError(Exception):
    """The demo can't go on; the text says what was found."""


class Console:
    """Standard output, and a copy of it in a file.

    Args:
        transcript: Receives everything as it looks without a terminal.
    """

    def __init__(self, transcript: TextIO | None = None) -> None:
        self._transcript = transcript
        self._terminal = sys.stdout.isatty()
        self._drawn = 0
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo started."""
        return time.monotonic() - self._start

    def say(self, *lines: str) -> None:
        """Print lines that stay."""
        self._drawn = 0
        for line in lines or [""]:
            print(line, flush=True)
        self._record(lines or [""])

    def heading(self, text: str) -> None:
        """Open a part of the demo."""
        self.say("", f"==> {text}  [{self.elapsed:.0f} s]")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what a long step does, and now and then that it still does."""
        start, done = time.monotonic(), threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                print(f"    still at it: {what} ({time.monotonic() - start:.0f} s)", flush=True)

        self.say(f"    {what} ...")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def show(self, lines: Sequence[str], changed: bool) -> None:
        """Show the live table: redrawn on a terminal, printed elsewhere if something in it changed."""
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print(
                (UP.format(self._drawn) + CLEAR if self._drawn else "") + "\n".join(x[:width] for x in lines),
                flush=True,
            )
            self._drawn = len(lines)
        elif changed:
            print("\n".join(["", *lines]), flush=True)
        if changed:
            self._record(["", *lines])

    def _record(self, lines: Sequence[str]) -> None:
        if self._transcript:
            self._transcript.write("\n".join(lines) + "\n")
            self._transcript.flush()

"""What the user sees: progress with a heartbeat on standard error, and failures of one sentence."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_SECONDS = 20.0


class SetupError(Exception):
    """Something that the user can mend; its text says what was found and what to do."""


def say(text: str) -> None:
    """Print one line of progress; standard output is kept for what scripts read."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a long step, say every few seconds that it goes on, and how long it took."""
    start, done = time.monotonic(), threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"    still at it: {what} ({time.monotonic() - start:.0f} s)")

    say(f"==> {what}")
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
    say(f"    done in {time.monotonic() - start:.1f} s: {what}")

"""Running other programs, waiting for a condition, and locks between concurrent runs."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from localcluster.console import SetupError, say


def run(
    *argv: str | Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        SetupError: it is missing, took longer than `timeout` seconds or exited non-zero; with the end of what it said.
    """
    words = [str(word) for word in argv]
    try:
        result = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise SetupError(f"{words[0]} is not installed: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"`{shlex.join(words)}` did not end within {timeout:.0f} s") from error
    if result.returncode:
        said = "\n".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-15:])
        raise SetupError(f"`{shlex.join(words)}` exited {result.returncode}: {said}")
    return result.stdout


def succeeds(*argv: str | Path, timeout: float = 30) -> bool:
    """Whether a program exits 0."""
    try:
        run(*argv, timeout=timeout)
    except SetupError:
        return False
    return True


def wait_for(what: str, check: Callable[[], bool], seconds: float, hint: Path) -> None:
    """Poll until `check` is true.

    Raises:
        SetupError: after `seconds`, with the end of the log that tells more.
    """
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            said = hint.read_text(errors="replace").splitlines()[-15:] if hint.exists() else []
            raise SetupError("\n".join([f"{what} was not ready within {seconds:.0f} s: see {hint}", *said]))
        time.sleep(0.2)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which a killed process lets go of by itself; say so when somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"==> Waiting for another run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new text, never half of it."""
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=mode)
    new.chmod(mode)
    new.write_text(text)
    new.replace(path)

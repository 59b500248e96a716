"""Background processes: started in a cgroup, with a log and a process number in a folder."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from localcluster import cgroups


def start(group: str, folder: Path, name: str, argv: Sequence[str | Path]) -> int:
    """Start a process that outlives this one; its output goes to `NAME.log`. Returns its process number."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            cgroups.joining(group, argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    (folder / f"{name}.pid").write_text(f"{process.pid}\n")
    return process.pid


def pid(folder: Path, name: str) -> int | None:
    """The number that a process was started with, alive or not."""
    try:
        return int((folder / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None


def alive(group: str, folder: Path, name: str) -> bool:
    """Whether the process still runs: a number that the kernel gave to somebody else since doesn't count."""
    number = pid(folder, name)
    return number is not None and cgroups.contains(group, number)

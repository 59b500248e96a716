"""cgroups: how the processes of a cluster are found again and ended, whatever happened to the run that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from localcluster.console import SetupError

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
MOST_SHARES = 262_144
JOIN = 'for folder in $1; do echo $$ >"$folder/cgroup.procs" || exit 1; done; shift; exec "$@"'


def is_v1() -> bool:
    """Whether each controller has a hierarchy of its own here, which the nodes need."""
    return all((ROOT / controller).is_dir() for controller in CONTROLLERS)


def _folders(group: str) -> list[Path]:
    return [ROOT / controller / group for controller in CONTROLLERS] if is_v1() else [ROOT / group]


def create(group: str) -> None:
    """Make a group, and those above it, in every hierarchy."""
    for folder in _folders(group):
        folder.mkdir(parents=True, exist_ok=True)
    if is_v1():  # a new cpuset is empty, and takes no process until it has CPUs and memory
        parent = ROOT / "cpuset"
        for part in Path(group).parts:
            child = parent / part
            for name in ("cpuset.cpus", "cpuset.mems"):
                (child / name).write_text((parent / name).read_text())
            parent = child


def favour(group: str) -> None:
    """Let what is in a group run before what competes with it.

    On each processor a group counts as much as the share of its load that is there. So who wakes up where its group has
    hardly been lately, and others compute all the time, may wait for seconds; with the most shares that there are the
    smallest part of them is enough.
    """
    if is_v1():
        (ROOT / "cpu" / group / "cpu.shares").write_text(str(MOST_SHARES))


def joining(group: str, argv: Sequence[str | Path]) -> list[str]:
    """The command line that enters the group and becomes `argv`, with the same process number."""
    return ["/bin/sh", "-c", JOIN, "sh", " ".join(map(str, _folders(group))), *map(str, argv)]


def contains(group: str, pid: int) -> bool:
    """Whether a live process is in the group."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return state != "Z" and any(line.endswith(f":/{group}") for line in groups)


def processes(group: str) -> set[int]:
    """All processes in the group and below it."""
    found: set[int] = set()
    for folder in _folders(group):
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(map(int, file.read_text().split()))
    return found


def remove(group: str) -> None:
    """Kill everything in the group and remove it.

    Raises:
        SetupError: a process outlives SIGKILL.
    """
    end = time.monotonic() + 30
    while alive := processes(group):
        if time.monotonic() > end:
            raise SetupError(f"processes {sorted(alive)} of cgroup {group} do not die; look at them with ps")
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for folder in _folders(group):
        while folder.is_dir():
            for child in sorted(folder.rglob("*/"), reverse=True):
                _rmdir(child)
            _rmdir(folder)
            if time.monotonic() > end:
                raise SetupError(f"cgroup {folder} cannot be removed although it is empty")


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:  # the kernel takes a moment to notice that a group is empty
        time.sleep(0.02)

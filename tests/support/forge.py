"""Operators as processes that start at once: forked from one that has imported everything already.

Operators are started hundreds of times, and would else spend most of their lives importing. Each is a process of its
own, with a memory of its own, and dies by a real `kill -9`. Run as a program this is the parent: it reads a line of
JSON for each order, and answers with a line.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Forge:
    """The parent of operators, which end with it."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": ":".join(str(ROOT / p) for p in ("operator", "runner", "tests"))}
        command = [sys.executable, "-m", "support.forge"]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        """No order comes any more."""
        self._process.communicate()

    def fork(self, env: dict[str, str], log: Path, package: str = "gpubatch_operator") -> int:
        """A new process' id: an operator's, or a gateway's."""
        return int(self._order({"env": env, "log": str(log), "package": package}))

    def status(self, pid: int) -> int | None:
        """The exit status of an operator that has ended (minus the signal, if it was killed), told only once."""
        status: int | None = self._order({"pid": pid})
        return status

    def _order(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@cache
def forge() -> Forge:
    """This process' own."""
    made = Forge()
    atexit.register(made.close)
    return made


def main() -> None:
    """Import once, fork for each line."""
    from gpubatch_gateway import __main__ as gateway
    from gpubatch_operator import __main__ as operator

    programs = {"gpubatch_gateway": gateway.main, "gpubatch_operator": operator.main}
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            ended, status = os.waitpid(order["pid"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _become(programs[order["package"]], order["env"], order["log"])


def _become(work: Any, env: dict[str, str], path: str) -> None:
    """Work as a program of its own would, and end with its exit status."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(env)
    work()
    sys.exit(0)


if __name__ == "__main__":
    main()

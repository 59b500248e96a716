"""Operators as processes that start at once: forked from one that has imported everything already.

An operator that is killed hundreds of times would else spend its life importing. Each is a process of its own, with a
memory of its own, and dies by a real `kill -9`. Run as a program this is the parent: it reads a line of JSON for each
operator, and answers with its process id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from support.process import OperatorProcess


class Forge:
    """The parent, for as long as the context lasts."""

    def __enter__(self) -> Forge:
        root = Path(__file__).resolve().parents[2]
        env = {**os.environ, "PYTHONPATH": ":".join(str(root / p) for p in ("operator", "runner", "tests"))}
        command = [sys.executable, "-m", "support.forge"]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def fork(self, env: dict[str, str], log: Path) -> int:
        """A new operator's process id."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"env": env, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class ForkedOperator(OperatorProcess):
    """As an `OperatorProcess`, from a forge."""

    def __init__(self, forge: Forge, kubeconfig: Path, log: Path, **settings: str | float) -> None:
        super().__init__(kubeconfig, log, **settings)
        self._forge, self._pid = forge, 0

    def start(self) -> None:
        self._pid = self._forge.fork(self._env, self._log)

    def pause(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    @property
    def lives(self) -> bool:
        """Whether its process is there."""
        if self._pid:
            try:
                os.kill(self._pid, 0)
            except ProcessLookupError:
                self._pid = 0
        return self._pid != 0

    def _end(self, sig: signal.Signals) -> int:
        """It is dead when this returns, and so are its connections; the status isn't known."""
        if self.lives:
            os.kill(self._pid, sig)
        while self.lives:
            time.sleep(0.001)
        return 0


def main() -> None:
    """Import once, fork for each line."""
    from gpubatch_operator import __main__ as operator

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    for line in sys.stdin:
        order = json.loads(line)
        if pid := os.fork():
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(order["env"])
        operator.main()
        os._exit(0)


if __name__ == "__main__":
    main()

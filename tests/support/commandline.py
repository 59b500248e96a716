"""The command line as its users have it: installed from the wheel, run as a process of its own."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Told:
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass
class CommandLine:
    """The installed programs, a kubeconfig, and nothing else of this process' environment but the PATH.

    Args:
        folder: Where the package is installed.
        kubeconfig: Of the cluster.
        tools: Folders of other programs on the PATH, kubectl's among them.
    """

    folder: Path
    kubeconfig: Path
    tools: list[str] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """As the processes have it."""
        return {
            "PATH": os.pathsep.join([str(self.folder / "bin"), *self.tools, "/usr/bin", "/bin"]),
            "PYTHONPATH": str(self.folder),
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.kubeconfig),
            "GPUBATCH_COMPLETION_SECONDS": "600",
            **more,
        }

    async def run(self, *command: str, program: str = "gpubatch", **environment: str) -> Told:
        """Runs it to its end."""
        process = await asyncio.create_subprocess_exec(
            *self.program(program),
            *command,
            env=self.environment(**environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        told = Told(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in told.err, told.err
        return told

    def program(self, name: str) -> list[str]:
        """The path of an installed program, or of another one."""
        installed = self.folder / "bin" / name
        return [str(installed) if installed.exists() else name]

    async def on_a_terminal(self, *command: str, until: str) -> tuple[int, str]:
        """Runs it on a terminal until it shows some text, then Ctrl-C; its exit status, and all that it has shown."""
        return await asyncio.to_thread(self._on_a_terminal, command, until)

    def _on_a_terminal(self, command: tuple[str, ...], until: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        environment = self.environment(TERM="xterm-256color", COLUMNS="160", LINES="40")
        process = subprocess.Popen(
            [*self.program("gpubatch"), *command],
            env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=_heed_interrupts,
        )  # fmt: skip
        os.close(theirs)
        shown, end, asked = b"", time.monotonic() + 600, False
        try:
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # nobody has it open any more
                    break
                if not piece:
                    break
                shown += piece
                if not asked and (until.encode() in shown or time.monotonic() > end):
                    asked = True
                    process.send_signal(signal.SIGINT)
            return process.wait(600), shown.decode(errors="replace")
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _heed_interrupts() -> None:
    """A shell has its background commands ignore SIGINT, and what they start inherits that: tests may run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def install(folder: Path) -> Path:
    """Builds the wheel from the checkout and installs it, without what it depends on: that is here."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--no-compile", "--target", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return folder

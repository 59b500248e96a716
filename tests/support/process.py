"""The operator as a process of its own, to be killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


class OperatorProcess:
    """`python -m gpubatch_operator` against the cluster of a kubeconfig; logs go to a file.

    All have one name in the Lease, so that the next one leads at once: two that live at a time need `replica`.
    """

    def __init__(self, kubeconfig: Path, log: Path, **settings: str | float) -> None:
        self._log = log
        self._env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'runner'}",
            "KUBECONFIG": str(kubeconfig),
            "GPUBATCH_METRICS_PORT": "0",
            "GPUBATCH_HEALTH_PORT": "0",
            "GPUBATCH_ADMISSION_PORT": "0",
            "GPUBATCH_REPLICA": "test",
            "GPUBATCH_LOG_FORMAT": "text",
            "GPUBATCH_PROGRESS_SECONDS": "0.5",
            "GPUBATCH_SCALE_UP_PODS": "0",  # no autoscaler here: what fits no node waits
            **{f"GPUBATCH_{k.upper()}": str(v) for k, v in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it logs `synced` when it has listed everything."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpubatch_operator"], env=self._env, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """`kill -9`, as a power cut or an OOM killer would."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, without waiting for its end."""
        self._living.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it gets no CPU until `resume`, as in a frozen cgroup or a stopped virtual machine."""
        self._living.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._living.send_signal(signal.SIGCONT)

    def ended(self) -> int | None:
        """Its exit status, once it has ended by itself."""
        return self._living.poll()

    @property
    def _living(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        status = self._living.wait(60)
        self._process = None
        return status

    def _end(self, sig: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(sig)
        return self.wait()

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self._log.read_text() if self._log.exists() else ""

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            print(self.log[-8000:])

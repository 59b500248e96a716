"""The operator, and the gateway, each as a process of its own, to be killed at any moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from support.forge import ROOT, forge


class Program:
    """A process of ours against the cluster of a kubeconfig; logs go to a file."""

    package = ""

    def __init__(self, kubeconfig: Path, log: Path, **env: str) -> None:
        self._log = log
        paths = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'runner'}", "KUBECONFIG": str(kubeconfig)}
        self.env = {**os.environ, **paths, **env}
        self._pid = 0
        self._status: int | None = None

    def start(self) -> None:
        """Start it; it logs `synced` when it has listed everything."""
        self._pid, self._status = forge().fork(self.env, self._log, self.package), None

    def kill(self) -> None:
        """`kill -9`, as a power cut or an OOM killer would; it is dead then, and so are its connections."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, without waiting for its end."""
        os.kill(self._pid, signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it gets no CPU until `resume`, as in a frozen cgroup or a stopped virtual machine."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    @property
    def lives(self) -> bool:
        """Whether its process is there."""
        return self._pid != 0 and self.ended() is None

    def ended(self) -> int | None:
        """Its exit status, once it has ended by itself."""
        if self._status is None:
            self._status = forge().status(self._pid)
        return self._status

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        end = time.monotonic() + 60
        while (status := self.ended()) is None:
            assert time.monotonic() < end, "it doesn't end"
            time.sleep(0.002)
        return status

    def _end(self, sig: signal.Signals) -> int:
        if self.lives:
            os.kill(self._pid, sig)
        return self.wait() if self._pid else 0

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self._log.read_text() if self._log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            print(self.log[-8000:])


class OperatorProcess(Program):
    """The operator.

    All have one name in the Lease, so that the next one leads at once: two that live at a time need `replica`.
    """

    package = "gpubatch_operator"

    def __init__(self, kubeconfig: Path, log: Path, **settings: str | float) -> None:
        env = {
            "GPUBATCH_METRICS_PORT": "0",
            "GPUBATCH_HEALTH_PORT": "0",
            "GPUBATCH_ADMISSION_PORT": "0",
            "GPUBATCH_HTTP_PORT": "0",
            "GPUBATCH_LOOPBACK_PORT": "0",
            "GPUBATCH_REPLICA": "test",
            "GPUBATCH_LOG_FORMAT": "text",
            "GPUBATCH_PROGRESS_SECONDS": "0.5",
            "GPUBATCH_SCALE_UP_PODS": "0",  # no autoscaler here: what fits no node waits
            **{f"GPUBATCH_{k.upper()}": str(v) for k, v in settings.items()},
        }
        super().__init__(kubeconfig, log, **env)


class GatewayProcess(Program):
    """A replica of the gateway; it logs `served` when it can be asked."""

    package = "gpubatch_gateway"

    def __init__(self, kubeconfig: Path, log: Path, **settings: str | float) -> None:
        chosen = {"health_port": 0, "metrics_port": 0, "log_format": "text", **settings}
        super().__init__(kubeconfig, log, **{f"GPUBATCH_GATEWAY_{k.upper()}": str(v) for k, v in chosen.items()})

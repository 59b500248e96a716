"""The jobs of the benchmark, and the operator as a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpubatch_operator.api.crd import API_VERSION, KIND, PLURAL
from gpubatch_operator.kube.client import Client
from localcluster.console import SetupError
from queuebench.lab import ROOT, Lab, each

JSON = dict[str, Any]
# What isn't known yet to the operator's version is ignored by it.
UNLIMITED = {"MAX_QUEUE_DEPTH": "1000000", "MAX_TOTAL_QUEUED_REQUESTS": "1000000000"}


def jobs_path(namespace: str) -> str:
    """The collection of the namespace's jobs."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


def job(name: str, seconds: float, hold: bool = False, **spec: Any) -> JSON:
    """A job whose pod KWOK ends after so many seconds, or never while it is held."""
    meta: JSON = {"annotations": {"bench/duration": f"{seconds}s"}}
    if hold:
        meta["labels"] = {"bench/hold": "true"}
    pod = {"containers": [{"name": "main", "image": "gpubatch.dev/bench"}]}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"template": {"metadata": meta, "spec": pod}, **spec},
    }


async def create(client: Client, namespace: str, jobs: list[JSON]) -> None:
    """Create the jobs."""
    await each([client.create(jobs_path(namespace), j) for j in jobs])


async def until_all(client: Client, namespace: str, phase: str, process: Process) -> None:
    """Wait until all jobs are in a phase."""
    while True:
        process.check()
        jobs, _ = await client.list(jobs_path(namespace), resourceVersion="0")
        if all(j.get("status", {}).get("phase") == phase for j in jobs):
            return
        await asyncio.sleep(1)


async def release(client: Client, namespace: str) -> None:
    """Let all pods that are held end."""
    pods, _ = await client.list(f"/api/v1/namespaces/{namespace}/pods", labelSelector="bench/hold")
    patch = {"metadata": {"labels": {"bench/hold": None}}}
    await each([client.patch(f"/api/v1/namespaces/{namespace}/pods/{p['metadata']['name']}", patch) for p in pods])


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    cpu: float  # seconds
    peak: float  # MiB


class Process:
    """A process that is measured, with its log."""

    def __init__(self, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        self.started = time.time()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *argv], env={**os.environ, **env}, stdout=file, stderr=file
            )

    def usage(self) -> Usage:
        """CPU time and the largest resident memory until now.

        Raises:
            SetupError: It has ended.
        """
        self.check()
        proc = Path(f"/proc/{self._process.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        peak = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("VmHWM"))
        ticks = int(fields[11]) + int(fields[12])
        return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) / 1024)

    def check(self) -> None:
        """Raises `SetupError` with its last words if it has ended."""
        if self._process.poll() is not None:
            raise SetupError(f"{self.log.stem} ended with {self._process.returncode}: {self.words()}")

    def words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait for its end."""
        await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    async def said(self, word: str) -> None:
        """Wait until its log has the word."""
        while word not in self.log.read_text():
            self.check()
            await asyncio.sleep(0.05)


@contextmanager
def bare_loop(lab: Lab, nodes: int, jobs: int, seconds: float) -> Iterator[Process]:
    """The loop of `bare`."""
    argv = ["-m", "queuebench.bare", str(lab.kubeconfig("bare")), str(nodes), str(jobs), str(seconds)]
    yield from _running(Process(argv, {"PYTHONPATH": str(ROOT / "hack")}, lab.folder / "bare.log"))


@contextmanager
def operator(lab: Lab, log: str = "operator") -> Iterator[Process]:
    """The operator as it is shipped, without the ports of its probes, metrics and webhook."""
    settings = {
        "METRICS_PORT": "0",
        "HEALTH_PORT": "0",
        "ADMISSION_PORT": "0",
        "HTTP_PORT": "0",
        "LOOPBACK_PORT": "0",
        **UNLIMITED,
    }
    env = {
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'runner'}",
        "KUBECONFIG": str(lab.kubeconfig("operator")),
        **{f"GPUBATCH_{k}": v for k, v in settings.items()},
    }
    yield from _running(Process(["-m", "gpubatch_operator"], env, lab.folder / f"{log}.log"))


def _running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.kill()

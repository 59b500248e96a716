"""Live requests: the runner as a process in front of an engine, and the pace of whatever answers them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_lib import runs
from gpubatch_runner.http1 import Connections

PATH = "/v1/chat/completions"
KEEP_SECONDS = 3.0


@dataclass(frozen=True)
class Pace:
    """How fast one server answers."""

    milliseconds: float
    """Median of a request that is alone."""
    per_second: float
    """Requests, at the concurrency that is asked for."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of the engine's answer")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--alone", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)


@contextlib.contextmanager
def runner(engine: str, concurrency: int, key: str) -> Iterator[tuple[int, int]]:
    """The port and process of a live run in front of an engine."""
    port = runs.free_port()
    live = {"idleTimeoutSeconds": 3600, "keyDigest": hashlib.sha256(key.encode()).hexdigest()}
    spec = {
        "job": {"namespace": "bench", "name": "live", "uid": "bench"},
        "run": "bench",
        "attempt": 1,
        "servedModelName": runs.SERVED,
        "live": live,
        "maxConcurrentRequests": 4 * concurrency,
        "engineUrl": engine,
    }
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(runs.REPOSITORY / "runner"),
            "GPUBATCH_RUN": json.dumps(spec),
            "GPUBATCH_JOURNAL_DIR": f"{folder}/journal",
            "GPUBATCH_TERMINATION_LOG": f"{folder}/termination-log",
            "GPUBATCH_PROGRESS_PORT": str(port),
        }
        command = [sys.executable, "-m", "gpubatch_runner", "run"]
        with Path(folder, "runner.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            _await_stage(port, "Processing")
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def _await_stage(port: int, stage: str) -> None:
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/progress") as answer:
            if json.load(answer)["stage"] == stage:
                return
        time.sleep(0.05)


async def measure(port: int, options: argparse.Namespace, key: str) -> Pace:
    """The pace of the server at a port."""
    connections = Connections("127.0.0.1", port, KEEP_SECONDS)
    message = {"role": "user", "content": "What is the capital of France? " * 40}
    body = json.dumps({"model": runs.SERVED, "messages": [message], "max_tokens": 40}).encode()
    header = f"Authorization: Bearer {key}\r\n"

    async def ask() -> float:
        begin = time.perf_counter()
        answer = await connections.stream(PATH, body, "application/json", header)
        await answer.read()
        assert answer.status == 200, answer.status
        return time.perf_counter() - begin

    await asyncio.gather(*(ask() for _ in range(options.concurrency)))  # connections are opened
    alone = [await ask() for _ in range(options.alone)]
    left = iter(range(options.requests))

    async def client() -> None:
        for _ in left:
            await ask()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(options.concurrency)))
    seconds = time.perf_counter() - begin
    connections.close()
    return Pace(1000 * statistics.median(alone), options.requests / seconds)


def processor_seconds(pid: int) -> float:
    """Of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(name: str, ports: tuple[int, int], pid: int, options: argparse.Namespace, key: str) -> dict[str, object]:
    """What stands between client and engine against the engine alone, in pairs.

    Args:
        name: Of what stands between.
        ports: The engine's, and the other one's.
        pid: The other one's process.
        options: Of `add_options`.
        key: What is shown.
    """
    pairs: list[tuple[Pace, Pace]] = []
    before = processor_seconds(pid)
    for number in range(options.pairs):
        order = ports if number % 2 == 0 else ports[::-1]
        found = {port: asyncio.run(measure(port, options, key)) for port in order}
        pairs.append((found[ports[0]], found[ports[1]]))
        direct, through = pairs[-1]
        print(f"pair {number + 1}: {direct.per_second:.0f}/s, {through.per_second:.0f}/s", file=sys.stderr)
    spent = processor_seconds(pid) - before
    asked = options.pairs * (options.requests + options.alone + options.concurrency)
    return {
        "latency": options.latency,
        "concurrency": options.concurrency,
        "engine_per_second": [round(direct.per_second, 1) for direct, _ in pairs],
        f"{name}_per_second": [round(through.per_second, 1) for _, through in pairs],
        "throughput_ratio": round(statistics.median(t.per_second / d.per_second for d, t in pairs), 3),
        "overhead_ms": round(statistics.median(t.milliseconds - d.milliseconds for d, t in pairs), 2),
        "processor_ms_per_request": round(1000 * spent / asked, 3),
    }

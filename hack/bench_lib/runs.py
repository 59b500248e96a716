"""Runs of the runner as a process, with its inputs, and what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SERVED = "tiny"
KINDS = ("chat", "embeddings", "prefixes")


def free_port() -> int:
    """A TCP port of the loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def write_input(file: Path, kind: str, count: int, tokens: int) -> None:
    """Requests of one kind.

    Args:
        file: Where to.
        kind: `chat`: short ones that share nothing. `embeddings`: a sentence each. `prefixes`: questions about 40
            documents of about 300 tokens (of the tiny model), shuffled.
        count: How many.
        tokens: That each chat yields.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    order = list(range(count))
    if kind == "prefixes":
        random.Random(1).shuffle(order)
    with file.open("w") as out:
        for n in order:
            url, body = _request(kind, n, tokens)
            out.write(json.dumps({"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}) + "\n")


def _request(kind: str, n: int, tokens: int) -> tuple[str, dict[str, Any]]:
    if kind == "embeddings":
        return "/v1/embeddings", {"model": SERVED, "input": f"Sentence {n}: the capital of France is Paris."}
    text = f"request {n}: what is the capital of France?"
    if kind == "prefixes":
        document = n % 40
        text = " ".join(f"fact {document}.{fact}" for fact in range(30)) + f" Question {n}?"
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return "/v1/chat/completions", {"model": SERVED, **body}


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    outcome: dict[str, Any]
    wall: float
    """Seconds from the process' start to its end."""
    cpu: float
    """Seconds of processor time, start and imports included."""
    peak_mib: float


def start(folder: Path, engine: str, **changes: Any) -> subprocess.Popen[bytes]:
    """The runner on `FOLDER/claims/data/in.jsonl`; a folder that has been worked in is gone on with."""
    run = {
        "job": {"namespace": "bench", "name": "runner", "uid": "bench"},
        "run": "bench",
        "attempt": 1,
        "servedModelName": SERVED,
        "input": "pvc://data/in.jsonl",
        "output": "pvc://data/out.jsonl",
        "errors": "pvc://data/errors.jsonl",
        "engineUrl": engine,
        "maxRequests": 10_000_000,
        "maxInputBytes": 1 << 40,
        **changes,
    }
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY / "runner"),
        "GPUBATCH_RUN": json.dumps(run),
        "GPUBATCH_JOURNAL_DIR": str(folder / "journal"),
        "GPUBATCH_CLAIMS_DIR": str(folder / "claims"),
        "GPUBATCH_TERMINATION_LOG": str(folder / "termination-log"),
        "GPUBATCH_PROGRESS_PORT": "0",
    }
    with (folder / "runner.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "gpubatch_runner", "run"], env=environment, stderr=log)


def finish(process: subprocess.Popen[bytes], folder: Path, begin: float) -> Cost:
    """Waits for the runner's end.

    Raises:
        RuntimeError: It didn't succeed.
    """
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    wall = time.monotonic() - begin
    outcome = json.loads((folder / "termination-log").read_text())
    if not outcome["succeeded"]:
        raise RuntimeError(f"the runner failed: {outcome}; its log: {folder / 'runner.log'}")
    return Cost(outcome, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(folder: Path, engine: str, **changes: Any) -> Cost:
    """One run, anew."""
    for name in ("journal", "termination-log"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for left in (folder / "claims" / "data").glob("out.jsonl*"):
        left.unlink()
    begin = time.monotonic()
    return finish(start(folder, engine, **changes), folder, begin)


@contextlib.contextmanager
def stub_engine(latency: float) -> Iterator[str]:
    """The URL of an engine that answers after `latency` seconds."""
    port = free_port()
    stub = REPOSITORY / "hack" / "bench_lib" / "stub_engine.py"
    process = subprocess.Popen([sys.executable, str(stub), str(port), str(latency)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()

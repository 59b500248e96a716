"""The runner against `vllm run_batch`, in pairs: same engine flags, model and requests, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench_lib import runs

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
}


@dataclass(frozen=True)
class Timing:
    """Seconds of one measurement."""

    processing: float
    """From the first request to the results on disk, the model being loaded."""

    whole: float
    """From the start of the processes to the results on disk, which is what the GPU is held for."""


@dataclass(frozen=True)
class Pairs:
    """What is measured.

    Args:
        python: The Python in which vLLM is installed.
        model: Folder of the model.
        flags: Of the engine.
        requests: In the input.
        folder: With the input in it.
    """

    python: str
    model: Path
    flags: list[str]
    requests: int
    folder: Path

    def run_batch(self) -> Timing:
        """One `vllm run_batch`; its processing is timed by its own messages."""
        source, output = self.folder / "claims" / "data" / "in.jsonl", self.folder / "run_batch.jsonl"
        output.unlink(missing_ok=True)
        command = [self.python, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(output)]
        begin = time.monotonic()
        reading = written = begin
        tail: list[str] = []
        with self._engine(command, subprocess.PIPE) as process:
            assert process.stdout
            for line in process.stdout:
                tail = [*tail[-30:], line]
                if "Reading batch from" in line:
                    reading = time.monotonic()
                elif "Writing outputs to local file" in line:
                    written = time.monotonic()  # the last message; a file of this size takes milliseconds
        if process.returncode or written == begin or _count(output) != self.requests:
            sys.exit(f"run_batch failed: {''.join(tail)}")
        return Timing(written - reading, written - begin)

    def runner(self) -> Timing:
        """One engine beside one runner, as in their pod."""
        port = runs.free_port()
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
        with (self.folder / "engine.log").open("w") as log:
            begin = time.monotonic()
            with self._engine([*command, "--disable-uvicorn-access-log"], log) as engine:
                try:
                    cost = runs.measure(self.folder, f"http://127.0.0.1:{port}")
                    whole = time.monotonic() - begin
                finally:
                    engine.terminate()
        if cost.outcome["completed"] != self.requests:
            sys.exit(f"the runner failed: {cost.outcome}; the engine's log: {self.folder / 'engine.log'}")
        timings = cost.outcome["timings"]
        return Timing(timings["processing"] + timings["uploading"], whole)

    def _engine(self, command: list[str], output: int | IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--model", str(self.model), "--served-model-name", runs.SERVED, *self.flags],
            env={**os.environ, **ENGINE_ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0

"""Jobs for tests of the runner: a claim in a temporary folder, requests in it, and what is found there afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubatch_runner.contract import SPEC_ENV, JobRef, RunSpec, Upload
from gpubatch_runner.environment import Environment

RUNNER_PATH = str(Path(__file__).parents[3] / "runner")

STATUS_FIELDS = {
    "queue_size",
    "processing_count",
    "max_concurrent",
    "max_queue_size",
    "total_processed",
    "total_failed",
    "total_queued",
    "active_requests",
    "is_running",
}
"""Of `GET /v1/queue/status`: exactly these."""


def request(number: int, **changes: Any) -> dict[str, Any]:
    """A valid chat request whose prompt is its number."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": str(number)}], "max_tokens": 16}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


@dataclass
class Job:
    """One job with its files in a claim named `data`."""

    folder: Path
    attempt: int = 1
    spec_changes: dict[str, Any] = field(default_factory=dict)

    @property
    def claim(self) -> Path:
        return self.folder / "claims" / "data"

    @property
    def output(self) -> Path:
        return self.claim / "out.jsonl"

    @property
    def errors(self) -> Path:
        return self.claim / "errors.jsonl"

    @property
    def environment(self) -> Environment:
        """The container's places; each attempt is a pod of its own."""
        return Environment(
            journal_dir=self.folder / f"pod{self.attempt}" / "journal",
            claims_dir=self.folder / "claims",
            configmaps_dir=self.folder / "configmaps",
            termination_log=self.folder / f"pod{self.attempt}" / "termination-log",
            secrets_dir=self.folder / "secrets",
            credentials_dir=self.folder / "credentials",
            pod_dir=self.folder / f"pod{self.attempt}" / "said",
            progress_port=0,
        )

    def spec(self, **changes: Any) -> RunSpec:
        values: dict[str, Any] = {
            "job": JobRef(namespace="ns", name="job", uid="u-1"),
            "run": "u-1/run-1",
            "attempt": self.attempt,
            "served_model_name": "tiny",
            "input": "pvc://data/in.jsonl",
            "output": "pvc://data/out.jsonl",
            "errors": "pvc://data/errors.jsonl",
            "upload": Upload(backoff_seconds=0.01),
        }
        return RunSpec(**(values | self.spec_changes | changes))

    def write(self, requests: list[Any]) -> None:
        """Writes the input; a string or bytes stand for a raw line."""
        self.claim.mkdir(parents=True, exist_ok=True)
        with (self.claim / "in.jsonl").open("wb") as file:
            for item in requests:
                text = item if isinstance(item, bytes | str) else json.dumps(item)
                file.write((text if isinstance(text, bytes) else text.encode()) + b"\n")

    def start(self, command: str, spec: RunSpec, *python: str) -> subprocess.Popen[bytes]:
        """The runner as a process, as in its container, or other Python code with the runner's environment."""
        places = self.environment
        places.journal_dir.mkdir(parents=True, exist_ok=True)
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": RUNNER_PATH,
            SPEC_ENV: spec.to_json(),
            "GPUBATCH_JOURNAL_DIR": str(places.journal_dir),
            "GPUBATCH_CLAIMS_DIR": str(places.claims_dir),
            "GPUBATCH_CONFIGMAPS_DIR": str(places.configmaps_dir),
            "GPUBATCH_TERMINATION_LOG": str(places.termination_log),
            "GPUBATCH_SECRETS_DIR": str(places.secrets_dir),
            "GPUBATCH_CREDENTIALS_DIR": str(places.credentials_dir),
            "GPUBATCH_POD_DIR": str(places.pod_dir),
            "GPUBATCH_PROGRESS_PORT": "0",
        }
        with (self.folder / "runner.log").open("ab") as log:
            arguments = python or ("-m", "gpubatch_runner", command)
            return subprocess.Popen(
                [sys.executable, *arguments], env=environ, stderr=log, stdout=subprocess.PIPE if python else None
            )


def records(path: Path) -> list[dict[str, Any]]:
    """The records of an output or error file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(path: Path) -> list[str]:
    """The `custom_id` of each record, sorted."""
    return sorted(record["custom_id"] for record in records(path))

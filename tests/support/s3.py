"""A real S3 server (versitygw), and jobs that read and write there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpubatch_runner.contract import Inspection, Outcome, RunSpec, Storage
from gpubatch_runner.environment import Environment
from gpubatch_runner.preflight import inspect
from gpubatch_runner.puts import Chunks
from gpubatch_runner.run import run
from unit.runner.jobs import Job, request

CLUSTER = Path(__file__).parents[2] / "hack" / "cluster"
KEYS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "usersecret"}


@dataclass
class S3:
    """A server with the buckets `batches`, which the user may use, and `foreign`, which it may not."""

    endpoint: str
    root: Path

    @property
    def storage(self) -> Storage:
        return Storage(endpoint=self.endpoint, region="us-east-1")

    def put(self, key: str, data: bytes) -> None:
        (self.root / "batches" / key).write_bytes(data)

    def names(self) -> list[str]:
        """What a reader of the bucket finds."""
        return sorted(path.name for path in (self.root / "batches").iterdir() if not path.name.startswith("."))

    def unfinished(self) -> list[str]:
        """Uploads of parts that nobody completed, as the server keeps them."""
        return [str(path) for path in (self.root / "batches" / ".sgwtmp" / "multipart").glob("*/*")]

    def clear(self) -> None:
        """Empties the bucket."""
        for path in (self.root / "batches").iterdir():
            if path.is_file():
                path.unlink()
        shutil.rmtree(self.root / "batches" / ".sgwtmp", ignore_errors=True)

    def ids(self, key: str) -> list[str]:
        lines = (self.root / "batches" / key).read_text().splitlines()
        return sorted(json.loads(line)["custom_id"] for line in lines)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[S3]:
    """A server with its data below a folder, until the block ends."""
    (folder / "data").mkdir()
    (folder / "iam").mkdir()
    binary = os.environ.get("GPUBATCH_S3_BIN") or _tool("versitygw")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = ["--access", "root", "--secret", "rootsecret"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, *root, "--port", f"127.0.0.1:{port}", "--iam-dir", folder / "iam", "posix", folder / "data"],
            stdout=log,
            stderr=log,
        )
    try:
        server = S3(f"http://127.0.0.1:{port}", folder / "data")
        _wait(port, process, folder / "log")
        admin = [binary, "admin", *root, "--endpoint-url", server.endpoint]
        for command in (
            ["create-user", "--access", "user", "--secret", "usersecret", "--role", "user"],
            ["create-bucket", "--owner", "user", "--bucket", "batches"],
            ["create-bucket", "--owner", "root", "--bucket", "foreign"],
        ):
            subprocess.run([*admin, *command], check=True, capture_output=True)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _tool(name: str) -> str:
    found = subprocess.run([CLUSTER, "tool", name], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.fail(
            f"no S3 server to test with: set GPUBATCH_S3_BIN to a {name} binary, or mend `hack/cluster tool {name}`: "
            f"{found.stderr}"
        )
    return found.stdout.strip()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the S3 server did not start: {log.read_text()}")


def spec(s3: S3, **changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "input": "s3://batches/in.jsonl",
        "output": "s3://batches/out.jsonl",
        "errors": "s3://batches/errors.jsonl",
        "storage": s3.storage,
    }
    return Job(Path("/nowhere")).spec(**(values | changes))


def lines(count: int) -> bytes:
    return b"".join(json.dumps(request(n)).encode() + b"\n" for n in range(count))


def chunks_of(*chunks: bytes) -> Chunks:
    async def given() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return given


async def look(s3: S3, **changes: Any) -> Inspection:
    return await inspect(spec(s3, attempt=0, **changes), Environment())


async def finish(s3: S3, folder: Path, **changes: Any) -> Outcome:
    environment = Environment(journal_dir=folder, progress_port=0)
    return await asyncio.wait_for(run(spec(s3, **changes), environment, asyncio.Event()), 60)

"""A small HTTP server that answers as an API server would: real connections, answers of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

JSON = dict[str, Any]
Answer = tuple[int, Any] | Callable[["Asked"], tuple[int, Any]]
JOBS = "/apis/gpubatch.dev/v1alpha1/namespaces/team/gpubatchjobs"


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeApi:
    """Answers by method and path; what has none is answered as a missing CRD."""

    url: str = ""
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def kubeconfig(self, folder: Path, **user: Any) -> Path:
        """One that leads here, with the namespace `team`."""
        file = folder / "kubeconfig"
        file.write_text(yaml.safe_dump(document(self.url, **user)))
        return file

    def jobs(self, *found: JSON) -> None:
        """The jobs of the namespace."""
        items = {"metadata": {"resourceVersion": "1"}, "items": list(found)}
        self.answers["GET", JOBS] = (200, items)
        self.answers["GET", JOBS.replace("/namespaces/team", "")] = (200, items)
        for one in found:
            self.answers["GET", f"{JOBS}/{one['metadata']['name']}"] = (200, one)

    def patched(self) -> list[JSON]:
        """The bodies of all PATCHes."""
        return [a.body for a in self.asked if a.method == "PATCH"]


def document(url: str, name: str = "here", namespace: str = "team", **user: Any) -> JSON:
    """A kubeconfig."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": url}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    }


def status(code: int, reason: str, message: str, **details: Any) -> tuple[int, JSON]:
    """A refusal as the API server writes it."""
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return code, body | {"details": details or {"group": "gpubatch.dev", "kind": "gpubatchjobs"}}


def absent(name: str) -> tuple[int, JSON]:
    """No such job."""
    return status(404, "NotFound", f'gpubatchjobs.gpubatch.dev "{name}" not found', name=name)


@contextmanager
def serving() -> Iterator[FakeApi]:
    """One, until the block ends."""
    fake = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            asked = Asked(
                self.command,
                parts.path,
                dict(parse_qsl(parts.query)),
                {k.lower(): v for k, v in self.headers.items()},
                json.loads(raw) if raw else None,
            )
            fake.asked.append(asked)
            answer = fake.answers.get((self.command, parts.path))
            if answer is None and parts.path.startswith(f"{JOBS}/") and ("GET", JOBS) in fake.answers:
                answer = absent(parts.path.rpartition("/")[2])
            code, body = answer(asked) if callable(answer) else answer or (404, "404 page not found\n")
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            data = data.encode() if isinstance(data, str) else data
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def job(name: str, phase: str | None = "Queued", spec: JSON | None = None, **more: Any) -> JSON:
    """A job as the API server returns it."""
    state = {"observedGeneration": 1, **({"phase": phase} if phase else {}), **more} if phase or more else {}
    return {
        "apiVersion": "gpubatch.dev/v1alpha1",
        "kind": "GPUBatchJob",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T10:00:00Z",
        },
        "spec": {"inference": {"model": "m"}, **(spec or {})},
        **({"status": state} if state else {}),
    }

"""An API server in a dict, as far as the gateway asks it, and a gateway on the loopback in front of it."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from gpubatch_gateway import keys, kube, models, server
from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.transcriptions import Transcriptions
from gpubatch_gateway.auth import Gate
from gpubatch_gateway.batch.board import Board
from gpubatch_gateway.batch.creation import Creation, Known
from gpubatch_gateway.batch.routes import Routes
from gpubatch_gateway.batch.storage import Files
from gpubatch_gateway.batch.workers import Workers
from gpubatch_gateway.live.live_routes import LiveRoutes
from gpubatch_gateway.live.livekeys import LiveKeys
from gpubatch_gateway.live.lives import Lives
from gpubatch_gateway.live.routing import Router
from gpubatch_gateway.live.runners import Runners
from gpubatch_gateway.live.runners import connections as connections_to_jobs
from gpubatch_gateway.live.starting import Starting
from gpubatch_gateway.model_routes import ModelRoutes
from gpubatch_gateway.objects import Objects
from gpubatch_gateway.settings import Settings
from gpubatch_operator.core.clock import iso
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web.reviews import TOKEN_REVIEWS
from gpubatch_runner.environment import Environment
from unit.operator.build import EPOCH

JSON = dict[str, Any]
MINILM = {"gpus": 1, "inference": {"model": "sentence-transformers/all-MiniLM-L6-v2"}}
SECRET = "/api/v1/namespaces/gpubatch-system/secrets/gpubatch-live"
VERBS = frozenset({"get", "list", "create", "patch", "delete"})


class ApiServer:
    """Keeps jobs; who has the token `NAMESPACE` is its service account `app`, and may do there what `rights` says.

    A right is `VERB`, or `VERB SUBRESOURCE`.
    """

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], JSON] = {}
        self.rights: dict[str, frozenset[str]] = {}
        self.asked: list[str] = []
        self.refusal: ApiError | None = None  # of the next create
        self.down = False
        self.secret = b"s" * 32  # from which the keys of live jobs follow
        self._version = 0

    async def review(self, path: str, body: JSON) -> JSON:
        self._reachable()
        spec = body["spec"]
        if path == TOKEN_REVIEWS:
            namespace = spec["token"]
            user = {"username": f"system:serviceaccount:{namespace}:app", "groups": []}
            if namespace == "ann":
                user = {"username": "ann", "groups": []}
            known = namespace in self.rights or namespace == "ann"
            return {"status": {"authenticated": known, "user": user if known else {}}}
        what = spec["resourceAttributes"]
        assert (what["group"], what["resource"]) == ("gpubatch.dev", "gpubatchjobs")
        home = spec["user"].split(":")[2] if ":" in spec["user"] else "*"
        rights = self.rights.get(what["namespace"], VERBS)
        given = what["verb"] in rights or f"{what['verb']} {what.get('subresource')}" in rights
        may = home in ("*", what["namespace"]) and given
        return {"status": {"allowed": may}}

    def _reachable(self) -> None:
        if self.down:
            raise ApiError(0, "Unreachable", "connection refused")

    async def get(self, path: str) -> JSON:
        self._reachable()
        self.asked.append(f"get {path}")
        if path == SECRET:
            return {"data": {"key": base64.b64encode(self.secret).decode()}}
        if (job := self.jobs.get(_place(path))) is None:
            raise ApiError(404, "NotFound", "not found")
        return copy.deepcopy(job)

    async def list(self, path: str, **query: str) -> tuple[list[JSON], str]:
        self._reachable()
        self.asked.append(f"list {path}")
        label, _, value = query["labelSelector"].partition("=")
        namespace = path.split("/")[5]
        there = [j for (n, _), j in self.jobs.items() if n == namespace and j["metadata"]["labels"][label] == value]
        return copy.deepcopy(there), str(self._version)

    async def create(self, path: str, body: JSON) -> JSON:
        self._reachable()
        await asyncio.sleep(0)
        if self.refusal:
            refusal, self.refusal = self.refusal, None
            raise refusal
        meta = body["metadata"]
        place = meta["namespace"], meta["name"]
        assert path == kube.collection(meta["namespace"])
        if place in self.jobs:
            raise ApiError(409, "AlreadyExists", "it exists")
        more = {"uid": f"uid-{meta['name']}", "creationTimestamp": iso(EPOCH + len(self.jobs) // 3)}
        self.jobs[place] = copy.deepcopy(body) | {"metadata": {**meta, **more}}
        return self._written(place)

    async def patch(self, path: str, body: JSON) -> JSON:
        self._reachable()
        job = self.jobs[_place(path)]
        job["spec"] |= body["spec"]
        job["metadata"]["annotations"] |= body["metadata"]["annotations"]
        return self._written(_place(path))

    def status(self, namespace: str, name: str, **status: Any) -> JSON:
        """The operator writes a job's status."""
        self.jobs[namespace, name]["status"] = status
        return self._written((namespace, name))

    def _written(self, place: tuple[str, str]) -> JSON:
        self._version += 1
        self.jobs[place]["metadata"]["resourceVersion"] = str(self._version)
        return copy.deepcopy(self.jobs[place])


def _place(path: str) -> tuple[str, str]:
    parts = urlsplit(path).path.split("/")
    return parts[5], parts[7]


@dataclass
class Site:
    """A gateway at a port, and its client."""

    api: ApiServer
    board: Board
    port: int
    http: aiohttp.ClientSession
    root: Path
    token: str = "search"
    models: dict[str, JSON] = field(default_factory=lambda: {"minilm": MINILM})
    lives: Lives = field(default_factory=Lives)
    records: Records = field(init=False)

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", **more}

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, JSON]:
        if isinstance(data := more.get("data"), bytes):
            more["data"] = io.BytesIO(data)  # of long ones aiohttp warns
        more["headers"] = self.headers(**more.pop("headers", {}))
        async with self.http.request(method, f"http://127.0.0.1:{self.port}{path}", **more) as answer:
            return answer.status, await answer.json()

    async def upload(self, data: bytes, name: str = "in.jsonl", **headers: str) -> tuple[int, JSON]:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", io.BytesIO(data), filename=name, content_type="application/octet-stream")
        return await self.ask("POST", "/v1/files", data=form, headers=headers)

    async def uploaded(self, data: bytes = b"") -> str:
        status, file = await self.upload(data or request(1))
        assert status == 200, file
        return str(file["id"])

    async def create(self, file: str, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, JSON]:
        body = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h", **fields}
        return await self.ask("POST", "/v1/batches", json=body, headers=headers or {})

    def stored(self) -> list[str]:
        """All files below the claim."""
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())


def request(number: int, model: str = "minilm", url: str = "/v1/embeddings") -> bytes:
    body = {"model": model, "input": f"text {number}"}
    return json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body}).encode() + b"\n"


@asynccontextmanager
async def serving(
    folder: Path,
    api: ApiServer | None = None,
    accounts: keys.Keys | None = None,
    workers: Workers | None = None,
    **settings: Any,
) -> AsyncIterator[Site]:
    """A gateway whose files are in a folder, for namespace `search` by its default."""
    api = api or ApiServer()
    api.rights = api.rights or {"search": VERBS, "train": VERBS}
    claim = folder / "claims" / "files"
    claim.mkdir(parents=True, exist_ok=True)
    chosen = {"storage_url": "pvc://files/gpubatch", "namespace": "search", **settings}
    config = Settings.model_validate(chosen)
    objects = Objects(config, Environment(claims_dir=folder / "claims"))
    files, board = Files(objects), Board()
    records = Records(objects, config.transcription_ttl_seconds)
    held = accounts or keys.Keys()
    client: Any = api
    async with (
        aiohttp.ClientSession() as http,
        connections_to_jobs(config.live_request_seconds) as connections,
    ):
        site = Site(api, board, 0, http, claim)
        site.records = records
        creation = Creation(client, board, files, lambda: models.Models(site.models), workers, config)
        gate = Gate(api.review, lambda: held, config.namespaces_watched())
        starting = Starting(client, site.lives, lambda: models.Models(site.models), config.live_idle_seconds)
        runners = Runners(connections, LiveKeys(client, "gpubatch-system", config.live_secret_name))
        router = Router(site.lives, runners, starting, config.live_max_waiting)
        transcriptions = Transcriptions(gate, router, starting, site.lives, records, config)
        endpoints = (
            Routes(gate, files, board, Known(client, board), creation, config),
            LiveRoutes(gate, router, runners, site.lives, config),
            transcriptions,
            ModelRoutes(gate, lambda: models.Models(site.models), site.lives),
        )
        async with server.listening(server.application(endpoints, 30.0), "127.0.0.1", 0) as site.port:
            working = asyncio.create_task(transcriptions.work())
            yield site
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def raw(port: int, data: bytes, eof: bool = False) -> bytes:
    """Send bytes, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()

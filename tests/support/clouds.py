"""Google's and Azure's object storage, by their emulators: fake-gcs-server from its Go module, Azurite from npm.

The runner's client speaks Google's XML API, of which fake-gcs-server serves only reading and deleting: `XmlApi` stands
before it and turns the rest into the JSON API that it has. What decides between attempts, the condition on the object's
generation, is the emulator's.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import aiohttp
import pytest
from aiohttp import web
from obstore.store import AzureStore, GCSStore
from yarl import URL

from localcluster import tools
from localcluster.settings import cache_root
from localcluster.shell import lock
from support.web import served

AZURITE = "azurite@3.37.0"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Every Azurite's: https://learn.microsoft.com/azure/storage/common/storage-use-azurite"""

BUCKET = "batches"


@dataclass
class Cloud:
    """One of them, with an empty bucket."""

    scheme: str
    endpoint: str
    keys: dict[str, str]
    """What the job's Secret would hold."""
    store: GCSStore | AzureStore
    """The tests' own access."""
    listing: Callable[[], list[str]]

    def names(self) -> list[str]:
        """What a reader of the bucket finds."""
        return sorted(self.listing())

    def clear(self) -> None:
        """Empties the bucket."""
        for name in self.names():
            self.store.delete(name)


# --- Google


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[str]:
    """fake-gcs-server with a bucket; its URL."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", url]
    command = [str(tools.path("fake-gcs-server")), "-backend", "memory", "-scheme", "http", *where]
    with _process(command, port, folder / "gcs.log"):
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        _open(urllib.request.Request(f"{url}/storage/v1/b?project=test", body, headers, method="POST"))
        yield url


class XmlApi:
    """Google's XML API (https://cloud.google.com/storage/docs/xml-api/overview) before a server of the JSON API.

    Args:
        upstream: The server's URL.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._uploads: dict[str, dict[int, bytes]] = {}
        self.cuts = 0
        """Downloads to be cut in the middle."""

    @property
    def cloud(self) -> Cloud:
        """The emulator, as a job is told of it."""
        url = f"http://127.0.0.1:{self.port}"
        key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        store = GCSStore(BUCKET, service_account_key=json.dumps(key), client_options={"allow_http": True})
        return Cloud("gs", url, {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}, store, self._names)

    def _names(self) -> list[str]:
        found = _open(urllib.request.Request(f"{self._upstream}/storage/v1/b/{BUCKET}/o"))
        return [item["name"] for item in json.loads(found).get("items", [])]

    @property
    def unfinished(self) -> int:
        """Uploads of parts that nobody completed."""
        return len(self._uploads)

    async def __aenter__(self) -> XmlApi:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1024**3)
        app.router.add_get("/{bucket}", self._list)
        app.router.add_route("*", "/{bucket}/{object:.+}", self._serve)
        self._runner, self.port = await served(app)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _list(self, request: web.Request) -> web.Response:
        asked = {k: request.query[k] for k in ("prefix", "delimiter") if k in request.query}
        url = URL(f"{self._upstream}/storage/v1/b/{request.match_info['bucket']}/o").with_query(asked)
        async with self._session.get(url) as answer:
            found = json.loads(await answer.read())
        objects = "".join(
            f"<Contents><Key>{escape(o['name'])}</Key><Size>{o['size']}</Size><ETag>{escape(o['etag'])}</ETag>"
            f"<LastModified>{o['updated']}</LastModified></Contents>"
            for o in found.get("items", [])
        )
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in found.get("prefixes", [])
        )
        text = f"<ListBucketResult>{objects}{folders}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        query, bucket, name = request.query, request.match_info["bucket"], request.match_info["object"]
        body = await request.read()
        if "uploads" in query:
            upload = os.urandom(8).hex()
            self._uploads[upload] = {}
            return _xml("InitiateMultipartUploadResult", Bucket=bucket, Key=name, UploadId=upload)
        if request.method == "PUT" and "partNumber" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            return web.Response(headers={"ETag": f'"{query["partNumber"]}"'})
        if request.method == "POST" and "uploadId" in query:
            parts = self._uploads.pop(query["uploadId"])
            await self._insert(bucket, name, b"".join(parts[number] for number in sorted(parts)), request)
            return _xml("CompleteMultipartUploadResult", Bucket=bucket, Key=name, ETag='"1"')
        if request.method == "DELETE" and "uploadId" in query:
            del self._uploads[query["uploadId"]]
            return web.Response(status=204)
        if request.method == "PUT" and (source := request.headers.get("x-goog-copy-source")):
            from_bucket, _, from_name = unquote(source).strip("/").partition("/")
            path = f"/b/{from_bucket}/o/{quote(from_name, safe='')}/copyTo/b/{bucket}/o/{quote(name, safe='')}"
            return await self._answer("POST", f"/storage/v1{path}", b"{}", {"Content-Type": "application/json"})
        if request.method == "PUT":
            return await self._insert(bucket, name, body, request)
        if request.method == "GET" and self.cuts:
            self.cuts -= 1
            return await self._cut(request)
        return await self._forward(request)

    async def _insert(self, bucket: str, name: str, body: bytes, request: web.Request) -> web.Response:
        only_if = request.headers.get("x-goog-if-generation-match")
        condition = "" if only_if is None else f"&ifGenerationMatch={only_if}"
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}{condition}"
        return await self._answer("POST", path, body, {"Content-Type": "application/octet-stream"})

    async def _forward(self, request: web.Request) -> web.Response:
        kept = {k: v for k, v in request.headers.items() if k.lower() in ("range", "if-match", "if-none-match")}
        return await self._answer(request.method, request.raw_path, b"", kept)

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        """The first half of what the client should have got."""
        whole = await self._forward(request)
        assert isinstance(whole.body, bytes)
        answer = web.StreamResponse(status=whole.status, headers=whole.headers)
        answer.content_length = len(whole.body)
        await answer.prepare(request)
        await answer.write(whole.body[: len(whole.body) // 2])
        assert request.transport
        request.transport.close()
        return answer

    async def _answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> web.Response:
        url = URL(self._upstream + path, encoded=True)
        skipped = ("User-Agent", "Accept", "Accept-Encoding")
        async with self._session.request(
            method, url, data=io.BytesIO(body) if body else None, headers=headers, skip_auto_headers=skipped
        ) as answer:
            dropped = ("connection", "transfer-encoding", "content-length", "content-encoding")
            kept: dict[str, Any] = {k: v for k, v in answer.headers.items() if k.lower() not in dropped}
            said = await answer.read()
            if method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            elif method == "POST" and answer.status == 200:
                kept |= {"ETag": f'"{json.loads(said).get("etag", "1")}"'}
            return web.Response(status=answer.status, headers=kept, body=said)


def _xml(kind: str, **fields: str) -> web.Response:
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return web.Response(text=f"<{kind}>{inside}</{kind}>", content_type="application/xml")


# --- Azure


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Cloud]:
    """Azurite with a container."""
    port = _free_port()
    main = _npm(AZURITE) / "azurite" / "dist" / "src" / "blob" / "main.js"
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command = ["node", str(main), *where, "--skipApiVersionCheck", "--disableTelemetry"]
    with _process(command, port, folder / "azurite.log"):
        endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        _create_container(endpoint)
        options = {"endpoint": endpoint, "client_options": {"allow_http": True}}
        store = AzureStore(BUCKET, account_name=AZURE_ACCOUNT, account_key=AZURE_KEY, **options)  # type: ignore[arg-type]
        keys = {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}
        names = lambda: [found["path"] for batch in store.list() for found in batch]  # noqa: E731
        yield Cloud("az", endpoint, keys, store, names)


def _npm(package: str) -> Path:
    """The folder that a package of npm is installed into, with its own; kept in the cache."""
    if not shutil.which("npm"):
        pytest.skip(f"no npm to install {package} with")
    folder = cache_root() / "npm" / package
    with lock(cache_root() / "npm.lock"):
        if not (folder / "ready").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", package]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            (folder / "ready").touch()
    return folder / "node_modules"


def _create_container(endpoint: str) -> None:
    """https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""
    headers = {"x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "x-ms-version": "2021-08-06"}
    signed = [f"{name}:{value}" for name, value in headers.items()]
    path = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}"
    text = "\n".join(["PUT", *[""] * 11, *signed, path, "restype:container"])
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), "sha256")).decode()
    headers |= {"Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}", "Content-Length": "0"}
    _open(urllib.request.Request(f"{endpoint}/{BUCKET}?restype=container", headers=headers, method="PUT"))


# --- both


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _process(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server, from when it listens to the end of the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while True:
            if process.poll() is not None:
                pytest.fail(f"{command[0]} did not start: {log.read_text()}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _open(request: urllib.request.Request) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        said: bytes = answer.read()
    return said

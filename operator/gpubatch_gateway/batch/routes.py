"""The endpoints of files and batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import orjson
from aiohttp import web

from gpubatch_gateway import metrics, names
from gpubatch_gateway.answering import break_off, of_bytes, of_json, of_page
from gpubatch_gateway.auth import FILES, Act, Gate
from gpubatch_gateway.batch import files as file_objects
from gpubatch_gateway.batch import wishes
from gpubatch_gateway.batch.board import Board, Entry
from gpubatch_gateway.batch.creation import Creation, Known, other_namespace
from gpubatch_gateway.batch.files import File
from gpubatch_gateway.batch.storage import Files
from gpubatch_gateway.problems import DONT_RETRY, RequestError, invalid, no_batch, no_file
from gpubatch_gateway.reading import body_of, limit_of, query_of
from gpubatch_gateway.receiving import Form, Limits, Purpose
from gpubatch_gateway.settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY = 64 * 1024  # bytes of a request that isn't a file
MAX_BATCHES, MAX_FILES = 100, 10_000  # of a page
STREAMS = frozenset({"upload", "content"})
"""Routes that take as long as a file does."""


class Routes:
    """The handlers.

    Args:
        gate: Lets requests in.
        files: The object store.
        board: The batches.
        known: Finds those that the board doesn't have yet.
        creation: Makes them.
        settings: Limits.
    """

    def __init__(
        self,
        gate: Gate,
        files: Files,
        board: Board,
        known: Known,
        creation: Creation,
        settings: Settings,
    ) -> None:
        self._gate, self._files, self._board, self._known = gate, files, board, known
        self._creation, self._settings = creation, settings
        self._limits = Limits(settings.max_file_bytes, settings.body_seconds, settings.min_upload_bytes_per_second)
        self._uploads = asyncio.Semaphore(settings.max_uploads)

    def add_to(self, app: web.Application) -> None:
        """Serve them."""
        for method, path, handler in (
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files", self.list_files),
            ("GET", "/v1/files/{file}", self.file),
            ("GET", "/v1/files/{file}/content", self.content),
            ("DELETE", "/v1/files/{file}", self.delete),
            ("POST", "/v1/batches", self.create),
            ("GET", "/v1/batches", self.list_batches),
            ("GET", "/v1/batches/{batch}", self.batch),
            ("POST", "/v1/batches/{batch}/cancel", self.cancel),
        ):
            app.router.add_route(method, path, handler, name=handler.__name__)

    # --- files

    async def upload(self, request: web.Request) -> web.Response:
        """Take a file."""
        namespace = await self._gate.enter(request.headers, Act("create", FILES))
        if self._files.in_claim and namespace != self._settings.namespace:
            raise other_namespace(namespace, self._settings.namespace)
        async with self._uploads:
            metrics.UPLOADS.inc()
            try:
                file = await self._receive(namespace, Form(request, self._limits, Purpose()))
            finally:
                metrics.UPLOADS.dec()
        return of_json(file.document())

    async def _receive(self, namespace: str, form: Form) -> File:
        if not await form.begin():
            raise invalid("Missing required parameter: 'file'.", "file", "missing_required_parameter")
        file_id = names.new_file_id(time.time())
        await self._files.put(namespace, file_id, form.filename, form.chunks())
        metrics.RECEIVED.inc(form.size)
        key = names.upload_key(namespace, file_id, form.filename)
        file = file_objects.of_key(key, form.size, 0, None)
        assert file is not None
        return file

    async def list_files(self, request: web.Request) -> web.Response:
        """The files of a namespace."""
        namespace = await self._gate.enter(request.headers, Act("list", FILES))
        query = query_of(request, "after", "limit", "order", "purpose")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid(f"Invalid 'order': {order[:100]!r}: expected 'asc' or 'desc'.", "order")
        limit = limit_of(query, MAX_FILES, MAX_FILES)
        there = await self._files.all(namespace)
        page, more = file_objects.page(there, query.get("purpose"), order, query.get("after"), limit)
        return of_page([f.id for f in page], [orjson.dumps(f.document()) for f in page], more)

    async def file(self, request: web.Request) -> web.Response:
        """One file's object."""
        return of_json((await self._find(request, "get")).document())

    async def content(self, request: web.Request) -> web.StreamResponse:
        """A file's bytes, or a range of them."""
        file = await self._find(request, "get")
        start, end, response = _range_of(request, file)
        chunks = self._files.read(file, start, end) if end > start else None
        # The first bytes before the headers: by then it is known whether there will be any.
        try:
            first = await anext(chunks) if chunks else b""
        except FileNotFoundError:
            raise no_file(file.id) from None
        await response.prepare(request)
        await self._send(request, response, first)
        try:
            while chunks and (chunk := await anext(chunks, b"")):
                await self._send(request, response, chunk)
        except (RequestError, FileNotFoundError) as e:
            break_off(request, e)
        await response.write_eof()
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
        """Send, as fast as the client reads; one that doesn't read is left."""
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                await response.write(chunk)
        except TimeoutError as e:
            break_off(request, e)
        metrics.SENT.inc(len(chunk))

    async def delete(self, request: web.Request) -> web.Response:
        """Remove a file that no unfinished batch reads."""
        file = await self._find(request, "delete")
        namespace = file.key.partition("/")[0]
        if users := await self._known.users(namespace, file.id):
            message = f"{file.id} is the input of {users[0]}, which isn't finished. Cancel that first."
            raise RequestError(409, "file_in_use", message, "file_id", DONT_RETRY)
        await self._files.delete(file)
        return of_json({"id": file.id, "object": "file", "deleted": True})

    async def _find(self, request: web.Request, verb: str) -> File:
        namespace = await self._gate.enter(request.headers, Act(verb, FILES))
        file_id = request.match_info["file"]
        if (file := await self._files.find(namespace, file_id)) is None:
            raise no_file(file_id)
        return file

    # --- batches

    async def create(self, request: web.Request) -> web.Response:
        """Make a batch."""
        namespace = await self._gate.enter(request.headers, Act("create"))
        wish = wishes.wish(await body_of(request))
        try:
            job, new = await self._creation.create(namespace, wish, request.headers.get("Idempotency-Key"))
        except RequestError:
            metrics.CREATED.labels("refused").inc()
            raise
        metrics.CREATED.labels("new" if new else "known").inc()
        if (entry := self._board.put(job)) is None:
            raise RequestError(409, "not_a_batch", f"The job {job['metadata']['name']!r} was edited. Delete it.")
        warning = orjson.loads(entry.document)["warning"]
        return of_bytes(entry.document, {"Warning": f'299 gpubatch "{warning}"'} if warning else {})

    async def list_batches(self, request: web.Request) -> web.Response:
        """The batches of a namespace, the newest first."""
        namespace = await self._gate.enter(request.headers, Act("list"))
        query = query_of(request, "after", "limit")
        limit, after = limit_of(query, 20, MAX_BATCHES), None
        if (batch := query.get("after")) and (after := await self._known.find(namespace, batch)) is None:
            raise invalid(f"Invalid 'after': {batch[:100]!r}: there is no such batch. List from the start.", "after")
        page, more = self._board.page(namespace, after, limit)
        return of_page([names.batch_id(e.name) for e in page], [e.document for e in page], more)

    async def batch(self, request: web.Request) -> web.Response:
        """One batch."""
        return of_bytes((await self._batch(request, "get")).document)

    async def cancel(self, request: web.Request) -> web.Response:
        """Have a batch end; what is answered until then is kept."""
        entry = await self._known.cancel(await self._batch(request, "patch"))
        if entry is None:
            raise no_batch(request.match_info["batch"])
        return of_bytes(entry.document)

    async def _batch(self, request: web.Request, verb: str) -> Entry:
        namespace = await self._gate.enter(request.headers, Act(verb))
        batch = request.match_info["batch"]
        if (entry := await self._known.find(namespace, batch)) is None:
            raise no_batch(batch)
        return entry


def _range_of(request: web.Request, file: File) -> tuple[int, int, web.StreamResponse]:
    """The bytes that are asked for, from the first to before the last, and the answer's head."""
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.named.filename, safe='')}",
    }
    if file.etag:
        headers["ETag"] = file.etag
    start, end, status = 0, file.size, 200
    wanted = request.headers.get("Range", "")
    newer = request.headers.get("If-Range", file.etag) != file.etag
    if wanted and "," not in wanted and not newer:
        try:
            asked = request.http_range
        except ValueError:
            asked = slice(0, None, 1)
            wanted = ""
        if wanted:
            start, end, _ = asked.indices(file.size)
            status = 206
            if start >= end:
                message = f"The range {wanted[:100]!r} is outside of the file's {file.size} bytes."
                headers = {"Content-Range": f"bytes */{file.size}"}
                raise RequestError(416, "invalid_range", message, "Range", headers)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    return start, end, web.StreamResponse(status=status, headers=headers)

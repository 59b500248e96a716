"""The input as a stream: bytes from any location, never held whole, taken up again where a connection was cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import obstore
from yarl import URL

from gpubatch_runner.contract import Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, InputNotFound, InputUnreadable
from gpubatch_runner.locations import BUCKETS, Location
from gpubatch_runner.objectstore import open_bucket, told

CHUNK = 1024 * 1024
MAX_CUTS = 5
"""Connections that may be cut without progress before reading is given up."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)


def read(location: Location, storage: Storage, environment: Environment) -> AsyncIterator[bytes]:
    """The bytes of the input in chunks.

    Raises (while iterating):
        InputNotFound, AccessDenied, InputUnreadable: As their names say; the text names the field.
    """
    if location.scheme in BUCKETS:
        return _object(location, storage, environment)
    if location.scheme in ("http", "https"):
        return _http(location)
    return _file(location, environment)


async def _object(location: Location, storage: Storage, environment: Environment) -> AsyncIterator[bytes]:
    with told(location):  # the client itself takes a cut download up again, from the same version of the object
        store = open_bucket(location, storage, Upload(), environment)
        async for chunk in (await obstore.get_async(store, location.path)).stream(min_chunk_size=CHUNK):
            yield bytes(chunk)


async def _file(location: Location, environment: Environment) -> AsyncIterator[bytes]:
    path = location.file(environment)
    try:
        with await asyncio.to_thread(Path.open, path, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
    except FileNotFoundError:
        what = "ConfigMap, or no such key in it" if location.scheme == "configmap" else "file in this claim"
        raise InputNotFound(f"{location.field} {location.shown}: no such {what}; add it or correct the URL") from None
    except PermissionError:
        raise AccessDenied(
            f"{location.field} {location.shown}: the file is not readable for the runner's user; make it so (chmod a+r)"
        ) from None
    except OSError as error:
        raise location.problem(f"reading failed ({error.strerror or error}); name a readable file") from error


async def _http(location: Location) -> AsyncIterator[bytes]:
    offset, cuts, validator = 0, 0, ""
    url = URL(location.url, encoded=True)  # a signature covers the URL as it is written
    async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False) as session:
        while True:
            headers = {"Accept-Encoding": "identity"}
            if offset:
                headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
            try:
                async with session.get(url, headers=headers) as response:
                    _check(location, response, offset)
                    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                    async for chunk in response.content.iter_chunked(CHUNK):
                        offset, cuts = offset + len(chunk), 0
                        yield chunk
                return
            except (aiohttp.ClientError, TimeoutError) as error:
                cuts += 1
                if cuts > MAX_CUTS or (offset and (not validator or validator.startswith("W/"))):
                    raise location.problem(
                        f"reading broke off after {offset} bytes ({type(error).__name__}: {error}); check that the "
                        "server can be reached from the cluster"
                    ) from error
                await asyncio.sleep(min(0.2 * 2**cuts, 10))


def _check(location: Location, response: aiohttp.ClientResponse, offset: int) -> None:
    where = f"{location.field} {location.shown}: HTTP {response.status}"
    if response.status in (404, 410):
        raise InputNotFound(f"{where}; nothing is there: upload the input before the job, or correct the URL")
    if response.status in (401, 403):
        raise AccessDenied(f"{where}; the URL is not public, or its signature has expired: give a fresh one")
    if response.status >= 500 or response.status == 429:
        raise aiohttp.ClientPayloadError(f"HTTP {response.status}")
    if offset and response.status == 200:
        raise InputUnreadable(
            f"{where} after a cut at byte {offset}: the file changed or the server cannot resume; run the job again"
        )
    if response.status not in (200, 206):
        raise InputUnreadable(f"{where}; expected 200: correct the URL")

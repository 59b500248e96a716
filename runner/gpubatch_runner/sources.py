"""The input as a stream: bytes from any location, never held whole, taken up again where a connection was cut."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator

import aiohttp
import obstore
from yarl import URL

from gpubatch_runner.contract import Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, InputNotFound, InputTooLarge, InputUnreadable
from gpubatch_runner.locations import BUCKETS, Location
from gpubatch_runner.objectstore import open_bucket, told
from gpubatch_runner.unpack import unpacked

CHUNK = 1024 * 1024
MAX_CUTS = 5
"""Connections that may be cut without progress before reading is given up."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)


def read(location: Location, storage: Storage, environment: Environment) -> AsyncIterator[bytes]:
    """The bytes of the input in chunks, unpacked.

    Raises (while iterating):
        InputNotFound, AccessDenied, InputUnreadable: As their names say; the text names the field.
    """
    return unpacked(location, read_raw(location, storage, environment))


def read_raw(location: Location, storage: Storage, environment: Environment) -> AsyncIterator[bytes]:
    """The bytes of a file as they are; raises as `read`."""
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
        with path.open("rb") as file:
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


async def limited(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """The chunks of an input, as long as it isn't too long.

    Raises (while iterating):
        InputTooLarge: It has more than `most` bytes.
    """
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise InputTooLarge(
                f"The input has more than {most} bytes (unpacked), the limit of one job (the operator's setting "
                "maxInputBytesPerJob); split it into several jobs, or ask for a higher limit."
            )
        yield chunk


async def _http(location: Location) -> AsyncIterator[bytes]:
    """A file of a web server. What follows a cut must be of the same version as what came before it: the server's
    validator says so, or else the whole is read again and the part that is known must have the same digest."""
    offset, cuts, validator, digest = 0, 0, "", hashlib.sha256()
    url = URL(location.url, encoded=True)  # a signature covers the URL as it is written
    async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, auto_decompress=False) as session:
        while True:
            headers = {"Accept-Encoding": "identity"}
            if offset and validator:
                headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
            try:
                async with session.get(url, headers=headers) as response:
                    _check(location, response)
                    chunks: AsyncIterator[bytes] = response.content.iter_chunked(CHUNK)
                    if response.status == 206:
                        _check_range(location, response, offset)
                    elif offset:
                        chunks = _after(location, chunks, offset, digest.digest())
                    else:
                        validator = _validator(response)
                    async for chunk in chunks:
                        offset, cuts = offset + len(chunk), 0
                        digest.update(chunk)
                        yield chunk
                return
            except (aiohttp.ClientError, TimeoutError) as error:
                cuts += 1
                if cuts > MAX_CUTS:
                    raise location.problem(
                        f"reading broke off after {offset} bytes ({type(error).__name__}: {error}); check that the "
                        "server can be reached from the cluster"
                    ) from error
                await asyncio.sleep(random.uniform(0.5, 1) * min(0.2 * 2**cuts, 10))


async def _after(location: Location, chunks: AsyncIterator[bytes], offset: int, digest: bytes) -> AsyncIterator[bytes]:
    """What comes after the first `offset` bytes, if those are the ones that are known."""
    again, missing = hashlib.sha256(), offset
    async for chunk in chunks:
        known = chunk[:missing]
        again.update(known)
        missing -= len(known)
        if not missing and known and again.digest() != digest:
            raise InputUnreadable(
                f"{location.field} {location.shown}: after a cut at byte {offset} the file changed; run the job again"
            )
        if rest := chunk[len(known) :]:
            yield rest
    if missing:
        raise aiohttp.ClientPayloadError(f"cut again at byte {offset - missing}")


def _validator(response: aiohttp.ClientResponse) -> str:
    """What the server can compare versions by (RFC 9110, 13.1.5: weak ones won't do)."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_range(location: Location, response: aiohttp.ClientResponse, offset: int) -> None:
    told = response.headers.get("Content-Range", "")
    if not told.startswith(f"bytes {offset}-"):
        raise InputUnreadable(
            f"{location.field} {location.shown}: asked for what follows byte {offset}, the server sent {told!r}; use "
            "one that knows range requests"
        )


def _check(location: Location, response: aiohttp.ClientResponse) -> None:
    where = f"{location.field} {location.shown}: HTTP {response.status}"
    if response.status in (404, 410):
        raise InputNotFound(f"{where}; nothing is there: upload the input before the job, or correct the URL")
    if response.status in (401, 403):
        raise AccessDenied(f"{where}; the URL is not public, or its signature has expired: give a fresh one")
    if response.status >= 500 or response.status == 429:
        raise aiohttp.ClientPayloadError(f"HTTP {response.status}")
    if response.status not in (200, 206):
        raise InputUnreadable(f"{where}; expected 200: correct the URL")

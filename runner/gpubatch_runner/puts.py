"""Files that are handed over by one HTTP PUT, to a presigned URL for instance: it can be neither read back nor undone,
and its signature has an end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import aiohttp
from yarl import URL

from gpubatch_runner.contract import Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import OutputExpired
from gpubatch_runner.locations import Location

Chunks = Callable[[], AsyncIterator[bytes]]
"""Gives the bytes of a file from their start, each time that it is called."""

Connector = Callable[[], aiohttp.BaseConnector]
"""Makes the connections of one attempt, to where its maker lets them go."""


async def put(
    location: Location,
    size: int,
    chunks: Chunks,
    limits: Upload,
    environment: Environment,
    connector: Connector | None = None,
) -> None:
    """One attempt.

    Args:
        location: Where to; the URL is read from its Secret anew.
        size: Bytes that `chunks` gives.
        chunks: The file.
        limits: Patience.
        environment: Where Secrets are mounted.
        connector: Decides where connections may go. None: anywhere, through the proxy that the environment names.

    Raises:
        OutputExpired: The server refuses the URL.
        OutputNotWritable: Anything else; the text has the error's type and words.
    """
    location = location.now(environment)
    url = URL(location.url, encoded=True)  # a signature covers the URL as it is written
    headers = {"Content-Length": str(size)}
    if "sig" in dict(parse_qsl(urlsplit(location.url).query)) and "blob" in (url.host or ""):
        headers["x-ms-blob-type"] = "BlockBlob"  # Azure demands it
    timeout = aiohttp.ClientTimeout(
        total=limits.total_seconds, connect=None, sock_connect=limits.connect_seconds, sock_read=None
    )
    watchdog = asyncio.timeout(limits.pool_seconds + limits.connect_seconds)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector() if connector else None,
                timeout=timeout,
                trust_env=connector is None,
                auto_decompress=False,
                skip_auto_headers=("Content-Type", "Accept"),
            ) as session,
            watchdog,
            session.put(
                url,
                data=_watched(chunks, size, watchdog, limits) if size else b"",
                headers=headers,
                allow_redirects=False,
            ) as response,
        ):
            answer = (await response.content.read(4096)).decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        what = "no progress within its time limits" if isinstance(error, TimeoutError) else said_by(error)
        raise location.problem(f"PUT failed ({type(error).__name__}: {what})") from error
    _check(location, response.status, answer)


async def _watched(chunks: Chunks, size: int, watchdog: asyncio.Timeout, limits: Upload) -> AsyncIterator[bytes]:
    """The file; sets how long the next step may take: taking a chunk, and after the last one, the answer."""
    loop, sent = asyncio.get_running_loop(), 0
    async with aclosing(chunks()) as source:  # type: ignore[type-var]
        async for chunk in source:
            sent += len(chunk)
            if sent > size:
                break
            watchdog.reschedule(loop.time() + limits.write_seconds)
            yield chunk
    if sent != size:
        raise ValueError(f"{sent} bytes to send where {size} were expected")
    watchdog.reschedule(loop.time() + limits.read_seconds)


def said_by(error: Exception) -> str:
    """An error's words without the URL, which some of them have, with its signature."""
    if isinstance(error, aiohttp.InvalidURL):
        return "no usable URL"
    return error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)


def _check(location: Location, status: int, answer: str) -> None:
    if 200 <= status < 300:
        return
    code, message = re.search(r"<Code>(.*?)</Code>", answer), re.search(r"<Message>(.*?)</Message>", answer)
    # An answer may repeat what was signed, and the signature: only these two parts are shown.
    said = ": ".join(found[1] for found in (code, message) if found)
    what = f"HTTP {status}{f' ({said[:400]})' if said else ''}"
    if status in (401, 403) or "expired" in said.lower():
        raise OutputExpired(f"{location.field} {location.shown}: the URL was refused with {what}; {_renew(location)}")
    raise location.problem(f"PUT was answered with {what}; expected 200")


def _renew(location: Location) -> str:
    if location.secret:
        name, _, key = location.secret.partition("/")
        return f"put a fresh presigned URL into the key {key!r} of the Secret {name!r}"
    if not location.field.startswith("spec."):  # a field of a request, not of a job
        return "send the request again with a fresh presigned URL"
    return "give a fresh presigned URL, by urlFrom.secretKeyRef if it is to be renewed while the job exists"


def check_expiry(location: Location, now: float | None = None) -> None:
    """Finds out before any work is done whether a presigned URL is past its end, where it tells that itself.

    Raises:
        OutputExpired: It is.
    """
    end = expiry(location.url)
    if end is not None and end <= (time.time() if now is None else now):
        when = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        raise OutputExpired(f"{location.field} {location.shown}: the URL expired at {when}; {_renew(location)}")


def expiry(url: str) -> float | None:
    """Unix time until which a presigned URL of AWS, Google or Azure is good; None if it doesn't say."""
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    try:
        for brand in ("amz", "goog"):
            if f"x-{brand}-expires" in query:
                begin = datetime.strptime(query[f"x-{brand}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return (begin + timedelta(seconds=int(query[f"x-{brand}-expires"]))).timestamp()
        if "sig" in query and "se" in query:
            end = datetime.fromisoformat(query["se"])
            return (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()
        if "signature" in query and "expires" in query:
            return float(query["expires"])
    except (KeyError, ValueError, OverflowError):
        return None
    return None

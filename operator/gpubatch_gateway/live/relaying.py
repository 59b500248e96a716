"""Passes a job's answer on to the client: to the byte, and a stream part by part as it comes."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from gpubatch_gateway.answering import break_off
from gpubatch_gateway.problems import RequestError

PASSED_ON = ("Content-Type", "Cache-Control", "Retry-After", "X-Request-Id")
WHOLE_BYTES = 1024 * 1024
"""A longer answer is passed on part by part, whatever it is."""


async def relay(request: web.Request, answer: aiohttp.ClientResponse, write_seconds: float) -> web.StreamResponse:
    """The answer for the client; that of a stream has been sent when this returns.

    Args:
        request: The client's.
        answer: The job's.
        write_seconds: How long the client may read nothing.

    Raises:
        RequestError: 502; the job's answer broke before any of it was sent.
        ConnectionError: It broke later, or the client doesn't read; the client's connection is cut then.
    """
    headers = {name: value for name in PASSED_ON if (value := answer.headers.get(name)) is not None}
    length = answer.content_length
    try:
        if length is not None and length <= WHOLE_BYTES:
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        part = await answer.content.readany()  # until there is one, what goes wrong can still be told by a status
    except (aiohttp.ClientError, TimeoutError) as e:
        message = "The connection to the job broke before its answer was whole. Send the request once more."
        raise RequestError(502, "connection_error", message) from e
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = length
    await response.prepare(request)
    try:
        while part:
            async with asyncio.timeout(write_seconds):
                await response.write(part)
            part = await answer.content.readany()
    except (aiohttp.ClientError, TimeoutError) as e:
        break_off(request, e)
    await response.write_eof()
    return response

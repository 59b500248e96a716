"""What a live run says to clients itself, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

RETRY_AFTER_SECONDS = 10
"""What clients are told of a run that ends: by then its job may run elsewhere."""


def document(status: int, code: str, message: str) -> dict[str, object]:
    """The body of an error (https://platform.openai.com/docs/guides/error-codes)."""
    kind = "invalid_request_error" if status < 500 and status != 408 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def complaint(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as an answer."""
    return web.json_response(document(status, code, message), status=status, headers=headers)


def event(status: int, code: str, message: str) -> bytes:
    """An error at the end of a stream of events that has begun: OpenAI's clients raise it."""
    return b"\n\ndata: " + json.dumps(document(status, code, message)).encode() + b"\n\n"


def ending() -> web.Response:
    """The run takes no more requests."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return complaint(503, "stopping", "This job is being stopped and takes no more requests; try another.", headers)

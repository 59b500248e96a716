"""What goes wrong with a request, in the shape of OpenAI's errors: its clients make their own exceptions of it."""

from __future__ import annotations

import orjson
from aiohttp import web

JSON_TYPE = "application/json"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
DONT_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients repeat a request after 409 and 429 by themselves, unless they are told that it is of no use."""


class RequestError(Exception):
    """An answer that isn't the one that was wanted.

    Args:
        status: Of HTTP.
        code: For machines, in snake case.
        message: For people: what was found, what was expected, and what to do.
        param: The parameter or field at fault.
        headers: More of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}

    @property
    def error(self) -> dict[str, str | None]:
        """What is the matter, of OpenAI's shape."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    @property
    def body(self) -> bytes:
        """The JSON document."""
        return orjson.dumps({"error": self.error})

    def response(self) -> web.Response:
        """The answer."""
        return web.Response(status=self.status, body=self.body, content_type=JSON_TYPE, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> RequestError:
    """A parameter that can't be used."""
    return RequestError(400, code, message, param)


def no_file(file_id: str, status: int = 404) -> RequestError:
    """There is no such file, or it is another namespace's: nobody learns which."""
    return RequestError(
        status, "file_not_found", f"No such file: {file_id[:100]!r}. GET /v1/files lists yours.", "file_id"
    )


def no_batch(batch_id: str) -> RequestError:
    """The same of a batch."""
    message = f"No such batch: {batch_id[:100]!r}. GET /v1/batches lists yours."
    return RequestError(404, "batch_not_found", message, "batch_id")


def unavailable(message: str, code: str = "unavailable", retry_after: int = 2) -> RequestError:
    """Something that is needed doesn't answer now."""
    return RequestError(503, code, message, headers={"Retry-After": str(retry_after)})

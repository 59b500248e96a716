"""What requests say in their query and in a body that is JSON."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from gpubatch_gateway.problems import RequestError, invalid


async def body_of(request: web.Request) -> Any:
    """The document.

    Raises:
        RequestError: 400; it is none.
    """
    return parsed(await request.read())


def parsed(body: bytes) -> Any:
    """The document in a body.

    Raises:
        RequestError: 400; it is none.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        raise invalid("The body can't be read as JSON.", code="invalid_json") from None


def late(seconds: float) -> RequestError:
    """A body that didn't come in time."""
    return RequestError(408, "upload_timeout", f"The body hadn't come after {seconds:g} s. Send it anew.")


def query_of(request: web.Request, *known: str) -> dict[str, str]:
    """The query, all of whose parameters are known.

    Raises:
        RequestError: 400; one isn't.
    """
    for name in request.query:
        if name not in known:
            raise invalid(f"Unknown parameter: {name[:100]!r}. There are: {', '.join(known)}.", name[:100])
    return dict(request.query)


def limit_of(query: dict[str, str], default: int, most: int) -> int:
    """How long a page may be.

    Raises:
        RequestError: 400; it is no number, or too much.
    """
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= most):
        raise invalid(f"Invalid 'limit': {text[:100]!r}: expected a number from 1 to {most}.", "limit")
    return int(text)

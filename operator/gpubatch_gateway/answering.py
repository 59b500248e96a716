"""How answers are made, and how one is broken off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import orjson
from aiohttp import web

from gpubatch_gateway.problems import JSON_TYPE


def of_json(document: Any) -> web.Response:
    """A document."""
    return of_bytes(orjson.dumps(document))


def of_bytes(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    """A document that is JSON already."""
    return web.Response(body=body, content_type=JSON_TYPE, headers=headers)


def of_page(ids: list[str], documents: Iterable[bytes], more: bool) -> web.Response:
    """A part of a list, and whether there is more."""
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None, "has_more": more}
    return of_bytes(b'{"object":"list","data":[' + b",".join(documents) + b"]," + orjson.dumps(ends)[1:])


def break_off(request: web.Request, why: Exception) -> NoReturn:
    """End an answer that was begun and can't be gone on with: its client sees that it isn't whole."""
    if request.transport:
        request.transport.abort()
    raise ConnectionResetError(str(why)) from why

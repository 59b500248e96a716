"""A client's connection: what can't be read is answered as all else is, and its end is told to whoever works for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from gpubatch_gateway.problems import RequestError

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One of them."""

    on_lost: Callable[[], object] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client went away."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a request that can't be read."""
        if request.writer.output_size > 0:  # half an answer is under way: nothing but its break tells that
            raise ConnectionResetError("the answer was begun") from exc
        if status >= 500 and not isinstance(exc, ConnectionError):
            log.error("a request failed", exc_info=exc)
        if status >= 500:
            problem = RequestError(500, "internal_error", "The gateway failed to answer; its log says why.")
        else:
            problem = RequestError(status, "bad_request", f"The request can't be read: {str(message or exc)[:200]}.")
        response = problem.response()
        response.force_close()
        return response


@contextmanager
def ends_with_client(request: web.Request) -> Iterator[None]:
    """Cancel what is done within the context when the request's client goes away.

    Raises:
        ConnectionError: It is gone already.
    """
    if request.transport is None:
        raise ConnectionResetError("the client went away")
    connection, task = request.protocol, asyncio.current_task()
    assert isinstance(connection, Connection)
    assert task is not None
    connection.on_lost = task.cancel
    try:
        yield
    finally:
        connection.on_lost = None

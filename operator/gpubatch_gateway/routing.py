"""Which live job answers a request: the one of the namespace that serves its model, started if there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import aiohttp

Body = bytes | Callable[[], aiohttp.FormData | aiohttp.Payload]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is posted to a live job.

    Attributes:
        path: Below the job's base URL: `/chat/completions`.
        body: The bytes, or what makes a new body each time: a job that ends meanwhile has the request sent to another.
        headers: Of the request; `Content-Type` where the body doesn't say it itself. The key isn't among them.
    """

    path: str
    body: Body
    headers: Mapping[str, str] = field(default_factory=dict)


class Router:
    """Sends requests to live jobs."""

    def send(
        self,
        namespace: str,
        model: str,
        ask: Ask,
        deadline: float,
        may_start: Callable[[], Awaitable[object]],
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer of the live job that serves a model; its body is read from it within the context.

        Whatever the job has answered is given, errors too. Nothing is answered twice: only what no job has worked on
        is sent to another one. Leaving the context, by a cancellation too, tells the job to stop working on it.

        Args:
            namespace: Of the caller, who may send requests there.
            model: What the request names.
            ask: What is sent.
            deadline: By the loop's clock: until then the head of the answer must have come.
            may_start: Returns if the caller may create jobs, and raises RequestError 403 if not; only called if there
                is no job.

        Raises (on entering):
            RequestError: 404 `model_not_found`, 403 `permission_denied`, 408 `request_timeout`, 429 `queue_full`, 502
                `connection_error`, 503 `queue_full`, `model_failed`, `unavailable`.
        """
        raise NotImplementedError

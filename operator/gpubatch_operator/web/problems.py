"""What goes wrong with a request: said as JSON, with what was found, what was expected and what to do."""

from __future__ import annotations

import orjson
from aiohttp import web

JSON_TYPE = "application/json"


class RequestError(Exception):
    """An answer that isn't the one that was wanted.

    Args:
        status: Of HTTP.
        reason: For machines, one word.
        message: For people: what was found, and what was expected.
        next_step: What to do.
    """

    def __init__(self, status: int, reason: str, message: str, next_step: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.next_step = status, reason, message, next_step
        self.retry_after = retry_after

    def response(self) -> web.Response:
        """The answer."""
        error = {"status": self.status, "reason": self.reason, "message": self.message, "nextStep": self.next_step}
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="gpubatch"'
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        body = orjson.dumps({"error": error})
        return web.Response(status=self.status, body=body, content_type=JSON_TYPE, headers=headers)


def no_token() -> RequestError:
    """There is nothing to know the caller by."""
    return RequestError(
        401,
        "Unauthorized",
        "the request has no bearer token in its Authorization header",
        "send 'Authorization: Bearer TOKEN' with a token of the cluster, as `kubectl create token SERVICEACCOUNT` "
        "prints one, or use `kubectl port-forward`, which needs none",
    )


def bad_token(why: str) -> RequestError:
    """The API server doesn't know it."""
    return RequestError(
        401,
        "Unauthorized",
        f"the bearer token isn't valid: {why}",
        "get a new one, as `kubectl create token SERVICEACCOUNT` prints it; its audience must be the API server's",
    )


def forbidden(user: str, where: str) -> RequestError:
    """The caller may not see what they ask for."""
    return RequestError(
        403,
        "Forbidden",
        f"{user} may not list gpubatchjobs {where}",
        "ask for a RoleBinding to the role view there; with rights in one namespace only, name it: ?namespace=NAME",
    )


def unavailable(why: str) -> RequestError:
    """Who the caller is can't be found out now."""
    return RequestError(503, "Unavailable", why, "try again in a few seconds", retry_after=2)


def bad_parameter(name: str, found: str, expected: str) -> RequestError:
    """A parameter of the request that can't be used."""
    return RequestError(400, "BadRequest", f"{name} is {found[:100]!r}", f"{name} must be {expected}")

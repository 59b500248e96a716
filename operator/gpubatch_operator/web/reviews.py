"""What the API server says of callers: who a token belongs to (TokenReview), what they may do (SubjectAccessReview).

Its answers are used for a minute at most, as the API server does itself with those of its own authorizers; nothing of a
token but its hash is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpubatch_operator.api.crd import GROUP, PLURAL
from gpubatch_operator.web.caching import Cache, Life

JSON = dict[str, Any]
Post = Callable[[str, JSON], Awaitable[JSON]]

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
GOOD = Life(60.0, 30.0)
BAD_TOKEN = Life(10.0, 10.0)
RIGHTS = 50_000  # remembered at most
PARALLEL = 32  # reviews at a time
PATIENCE = 8.0  # seconds that a request waits for reviews
MAX_TOKEN = 16_384  # characters


@dataclass(frozen=True, slots=True)
class Caller:
    """As the API server knows them."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Right:
    """What somebody wants to do with the jobs of a namespace; with no name, of all."""

    verb: str
    namespace: str
    subresource: str = ""


class TokenError(Exception):
    """A request has no token that could be asked about; what it has instead, if anything."""


class Reviews:
    """Asks the API server, and remembers.

    Args:
        post: Creates a review and gives the API server's answer.
        callers: Tokens remembered at most.
        clock: Seconds, monotonic.
    """

    def __init__(self, post: Post, callers: int, clock: Callable[[], float]) -> None:
        self._post = post
        self._gate = asyncio.Semaphore(PARALLEL)
        self._callers: Cache[str, Caller | str] = Cache(callers, clock)  # by the token's hash
        self._rights: Cache[tuple[Caller, Right], bool] = Cache(RIGHTS, clock)

    async def caller(self, digest: str, token: str) -> Caller | str:
        """Whose token it is, or why it isn't good.

        Raises:
            ApiError: The API server doesn't say.
        """
        return await self._callers.get(digest, partial(self._review_token, token))

    async def may(self, caller: Caller, right: Right) -> bool:
        """Whether they have the right.

        Raises:
            ApiError: The API server doesn't say.
        """
        return await self._rights.get((caller, right), partial(self._review_right, caller, right))

    def knows(self, caller: Caller, right: Right) -> bool:
        """Whether `may` answers at once."""
        return self._rights.holds((caller, right))

    async def _review_token(self, token: str) -> tuple[Caller | str, Life]:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        async with self._gate:
            status = (await self._post(TOKEN_REVIEWS, body)).get("status") or {}
        if not status.get("authenticated"):
            return status.get("error") or "the API server doesn't know it", BAD_TOKEN
        user = status.get("user") or {}
        extra = tuple(sorted((k, tuple(v)) for k, v in (user.get("extra") or {}).items()))
        return Caller(user["username"], user.get("uid", ""), tuple(user.get("groups") or ()), extra), GOOD

    async def _review_right(self, caller: Caller, right: Right) -> tuple[bool, Life]:
        what = {"group": GROUP, "resource": PLURAL, "verb": right.verb}
        what |= {"namespace": right.namespace} if right.namespace else {}
        what |= {"subresource": right.subresource} if right.subresource else {}
        spec = {
            "resourceAttributes": what,
            "user": caller.name,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {k: list(v) for k, v in caller.extra},
        }
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        async with self._gate:
            allowed = bool(((await self._post(ACCESS_REVIEWS, body)).get("status") or {}).get("allowed"))
        return allowed, GOOD


def bearer_token(authorization: str | None) -> tuple[str, str]:
    """The hash of a request's token, and the token.

    Raises:
        TokenError: There is none; with a text: it can't be one.
    """
    kind, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if kind.lower() != "bearer" or not token:
        raise TokenError
    if len(token) > MAX_TOKEN or not token.isascii():
        raise TokenError("it doesn't look like one")
    return hashlib.sha256(token.encode()).hexdigest(), token

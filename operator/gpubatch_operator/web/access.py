"""Who may see what: the API server says it, by TokenReview and SubjectAccessReview. Whoever may list the jobs of a
namespace sees them.

Its answers are used for a minute at most, as the API server does itself with those of its own authorizers; nothing of a
token but its hash is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpubatch_operator.api.crd import GROUP, PLURAL
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web import problems
from gpubatch_operator.web.caching import Cache, Life

JSON = dict[str, Any]
Post = Callable[[str, JSON], Awaitable[JSON]]
Scope = frozenset[str] | None
"""The namespaces that a caller sees; None: all, also those that will come."""

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
GOOD = Life(60.0, 30.0)
BAD_TOKEN = Life(10.0, 10.0)
CALLERS, RIGHTS = 2_000, 50_000  # remembered at most
PARALLEL = 32  # reviews at a time
PATIENCE = 8.0  # seconds that a request waits for reviews
MAX_TOKEN = 16_384  # characters
SCOPE_SECONDS = 5.0  # for so long a caller's namespaces aren't put together anew


@dataclass(frozen=True, slots=True)
class Caller:
    """As the API server knows them."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Access:
    """Decides for each request what its caller sees.

    Args:
        post: Creates a review and gives the API server's answer.
        namespaces: Those that have jobs.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, post: Post, namespaces: Callable[[], Iterable[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._post, self._namespaces, self._clock = post, namespaces, clock
        self._gate = asyncio.Semaphore(PARALLEL)
        self._callers: Cache[str, Caller | str] = Cache(CALLERS, clock)  # by the token's hash
        self._rights: Cache[tuple[Caller, str], bool] = Cache(RIGHTS, clock)
        self._scopes: OrderedDict[tuple[str, tuple[str, ...]], tuple[Scope, float, Iterable[str]]] = OrderedDict()

    async def scope(self, authorization: str | None, asked: tuple[str, ...]) -> Scope:
        """What this caller sees of the namespaces that they ask for; none asked for: of all.

        Raises:
            problems.RequestError: 401 without a valid token, 403 without a right, 503 if the API server doesn't answer.
        """
        digest, token = _token(authorization)
        there = self._namespaces()
        if known := self._scopes.get((digest, asked)):
            scope, until, of = known
            if self._clock() < until and (scope is None or asked or of == there):
                return scope
        try:
            async with asyncio.timeout(PATIENCE):
                caller = await self._caller(digest, token)
                scope = await self._look(caller, asked, there)
        except (ApiError, OSError, TimeoutError) as e:
            detail = e.message if isinstance(e, ApiError) else f"no answer for {PATIENCE:.0f} s"
            raise problems.unavailable(f"the API server can't be asked what you may see: {detail}") from e
        self._scopes[digest, asked] = (scope, self._clock() + SCOPE_SECONDS, there)
        self._scopes.move_to_end((digest, asked))
        if len(self._scopes) > CALLERS:
            self._scopes.popitem(last=False)
        return scope

    async def _caller(self, digest: str, token: str) -> Caller:
        caller = await self._callers.get(digest, partial(self._review_token, token))
        if isinstance(caller, str):
            raise problems.bad_token(caller)
        return caller

    async def _look(self, caller: Caller, asked: tuple[str, ...], there: Iterable[str]) -> Scope:
        # All that is asked by name is looked up at once; all namespaces only for who may not see them all anyway.
        first = [n for n in ("", *asked) if not self._rights.holds((caller, n))]
        await asyncio.gather(*(self._may(caller, n) for n in first))
        if await self._may(caller, ""):
            return frozenset(asked) if asked else None
        names = asked or tuple(there)
        await asyncio.gather(*(self._may(caller, n) for n in names if not self._rights.holds((caller, n))))
        allowed = frozenset([n for n in names if await self._may(caller, n)])
        if missing := [n for n in asked if n not in allowed]:
            raise problems.forbidden(caller.name, f"in namespace {missing[0]}")
        if not allowed:
            raise problems.forbidden(caller.name, "in any namespace that has jobs")
        return allowed

    async def _may(self, caller: Caller, namespace: str) -> bool:
        """Whether they may list its jobs; with no name, those of all namespaces."""
        return await self._rights.get((caller, namespace), partial(self._review_right, caller, namespace))

    async def _review_token(self, token: str) -> tuple[Caller | str, Life]:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        async with self._gate:
            status = (await self._post(TOKEN_REVIEWS, body)).get("status") or {}
        if not status.get("authenticated"):
            return status.get("error") or "the API server doesn't know it", BAD_TOKEN
        user = status.get("user") or {}
        extra = tuple(sorted((k, tuple(v)) for k, v in (user.get("extra") or {}).items()))
        return Caller(user["username"], user.get("uid", ""), tuple(user.get("groups") or ()), extra), GOOD

    async def _review_right(self, caller: Caller, namespace: str) -> tuple[bool, Life]:
        what = {"group": GROUP, "resource": PLURAL, "verb": "list", **({"namespace": namespace} if namespace else {})}
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


def _token(authorization: str | None) -> tuple[str, str]:
    """The token's hash, and the token.

    Raises:
        problems.RequestError: There is none.
    """
    kind, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if kind.lower() != "bearer" or not token:
        raise problems.no_token()
    if len(token) > MAX_TOKEN or not token.isascii():
        raise problems.bad_token("it doesn't look like one")
    return hashlib.sha256(token.encode()).hexdigest(), token

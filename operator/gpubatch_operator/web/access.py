"""Who may see what: whoever may list the jobs of a namespace, as the API server says, sees them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web import problems
from gpubatch_operator.web.reviews import PATIENCE, Caller, Post, Reviews, Right, TokenError, bearer_token

Scope = frozenset[str] | None
"""The namespaces that a caller sees; None: all, also those that will come."""

CALLERS = 2_000  # remembered at most
SCOPE_SECONDS = 5.0  # for so long a caller's namespaces aren't put together anew


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
        self._namespaces, self._clock = namespaces, clock
        self._reviews = Reviews(post, CALLERS, clock)
        self._scopes: OrderedDict[tuple[str, tuple[str, ...]], tuple[Scope, float, Iterable[str]]] = OrderedDict()

    async def scope(self, authorization: str | None, asked: tuple[str, ...]) -> Scope:
        """What this caller sees of the namespaces that they ask for; none asked for: of all.

        Raises:
            problems.RequestError: 401 without a valid token, 403 without a right, 503 if the API server doesn't answer.
        """
        try:
            digest, token = bearer_token(authorization)
        except TokenError as e:
            raise problems.bad_token(str(e)) if str(e) else problems.no_token() from None
        there = self._namespaces()
        if known := self._scopes.get((digest, asked)):
            scope, until, of = known
            if self._clock() < until and (scope is None or asked or of == there):
                return scope
        try:
            async with asyncio.timeout(PATIENCE):
                caller = await self._reviews.caller(digest, token)
                if isinstance(caller, str):
                    raise problems.bad_token(caller)
                scope = await self._look(caller, asked, there)
        except (ApiError, OSError, TimeoutError) as e:
            detail = e.message if isinstance(e, ApiError) else f"no answer for {PATIENCE:.0f} s"
            raise problems.unavailable(f"the API server can't be asked what you may see: {detail}") from e
        self._scopes[digest, asked] = (scope, self._clock() + SCOPE_SECONDS, there)
        self._scopes.move_to_end((digest, asked))
        if len(self._scopes) > CALLERS:
            self._scopes.popitem(last=False)
        return scope

    async def _look(self, caller: Caller, asked: tuple[str, ...], there: Iterable[str]) -> Scope:
        # All that is asked by name is looked up at once; all namespaces only for who may not see them all anyway.
        everywhere = Right("list", "")
        await self._learn(caller, [everywhere, *(Right("list", name) for name in asked)])
        if await self._reviews.may(caller, everywhere):
            return frozenset(asked) if asked else None
        rights = {name: Right("list", name) for name in asked or there}
        await self._learn(caller, rights.values())
        allowed = frozenset([name for name, right in rights.items() if await self._reviews.may(caller, right)])
        if missing := [n for n in asked if n not in allowed]:
            raise problems.forbidden(caller.name, f"in namespace {missing[0]}")
        if not allowed:
            raise problems.forbidden(caller.name, "in any namespace that has jobs")
        return allowed

    async def _learn(self, caller: Caller, rights: Iterable[Right]) -> None:
        """Ask for what isn't known yet, all at once."""
        unknown = [right for right in rights if not self._reviews.knows(caller, right)]
        await asyncio.gather(*(self._reviews.may(caller, right) for right in unknown))

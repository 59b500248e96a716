"""Who a caller is, and what they may do: never more than the API server lets the same user do with jobs.

A bearer token is an API key, or a token of Kubernetes. Either way each act is one of a user on the jobs of a namespace,
and the API server is asked (SubjectAccessReview) whether they may. Files and live requests are subresources of jobs
that only reviews know: `gpubatchjobs/files` and `gpubatchjobs/requests`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gpubatch_gateway.keys import Account, Keys
from gpubatch_gateway.problems import RequestError, unavailable
from gpubatch_operator.api.crd import PLURAL
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web.reviews import PATIENCE, Caller, Post, Reviews, Right, TokenError, bearer_token

CALLERS = 10_000  # tokens remembered at most
HEADERS = ("X-GPUBatch-Namespace", "OpenAI-Project")
FILES, REQUESTS = "files", "requests"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):[^:]+")


@dataclass(frozen=True, slots=True)
class Act:
    """What a request does: a verb of Kubernetes on jobs, or on their files or live requests."""

    verb: str
    subresource: str = ""


class Gate:
    """Lets requests in.

    Args:
        post: Creates a review and gives the API server's answer.
        keys: Those that there are now.
        watched: The namespaces that are served; none: all.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        post: Post,
        keys: Callable[[], Keys],
        watched: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._watched, self._reviews = keys, frozenset(watched), Reviews(post, CALLERS, clock)

    async def enter(self, headers: Mapping[str, str], act: Act) -> str:
        """The namespace that a request is for, in which its caller may do what it does.

        Raises:
            RequestError: 401 without a valid token, 403 without the right, 400 if the namespace isn't clear, 503 if the
                API server doesn't answer.
        """
        try:
            digest, token = bearer_token(headers.get("Authorization"))
        except TokenError as e:
            raise _unknown(str(e) or "there is none in the Authorization header") from None
        try:
            async with asyncio.timeout(PATIENCE):
                caller, home = await self._caller(digest, token)
                namespace = _namespace(headers, caller, home)
                if not await self._reviews.may(caller, Right(act.verb, namespace, act.subresource)):
                    raise _forbidden(caller, act, namespace)
        except (ApiError, OSError, TimeoutError) as e:
            detail = e.message if isinstance(e, ApiError) else f"no answer for {PATIENCE:.0f} s"
            raise unavailable(f"The API server can't be asked what you may do: {detail}. Try again.") from e
        if self._watched and namespace not in self._watched:
            there = ", ".join(sorted(self._watched))
            message = f"Namespace {namespace!r} isn't served here; these are: {there}."
            raise RequestError(403, "namespace_not_served", message)
        return namespace

    async def _caller(self, digest: str, token: str) -> tuple[Caller, Account | None]:
        """Who it is, and for an API key the account that it stands for."""
        if account := self._keys().account(digest):
            return Caller(account.user, groups=account.groups), account
        caller = await self._reviews.caller(digest, token)
        if isinstance(caller, str):
            raise _unknown(caller)
        return caller, None


def _namespace(headers: Mapping[str, str], caller: Caller, home: Account | None) -> str:
    asked = next((value for name in HEADERS if (value := headers.get(name))), None)
    if asked is not None and not _LABEL.fullmatch(asked):
        raise RequestError(
            400, "invalid_namespace", f"The header names the namespace {asked[:100]!r}, which can't be one.", HEADERS[0]
        )
    if home is not None:
        if asked not in (None, home.namespace):
            message = (
                f"This API key is for namespace {home.namespace!r}, and the request names {asked!r}. Leave it out."
            )
            raise RequestError(403, "wrong_namespace", message, HEADERS[0])
        return home.namespace
    if asked is not None:
        return asked
    if found := _SERVICE_ACCOUNT.fullmatch(caller.name):
        return found[1]
    message = f"{caller.name!r} is no service account: name the namespace in the header {' or '.join(HEADERS)}."
    raise RequestError(400, "missing_namespace", message, HEADERS[0])


def _unknown(why: str) -> RequestError:
    return RequestError(
        401,
        "invalid_api_key",
        f"The bearer token can't be used: {why}. Send an API key of this gateway, or a token of the cluster as "
        "`kubectl create token SERVICEACCOUNT` prints one.",
        headers={"WWW-Authenticate": 'Bearer realm="gpubatch"'},
    )


def _forbidden(caller: Caller, act: Act, namespace: str) -> RequestError:
    what = f"{PLURAL}/{act.subresource}" if act.subresource else PLURAL
    return RequestError(
        403,
        "permission_denied",
        f"{caller.name} may not {act.verb} {what} in namespace {namespace}. Ask for a RoleBinding there, to the "
        "role edit for instance.",
    )

"""Why something can't be made, in words for clients."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from gpubatch_gateway.problems import DONT_RETRY, RequestError, invalid, unavailable
from gpubatch_operator.kube.client import ApiError

SHOWN = 20  # models
_DENIED = re.compile(r'admission webhook "[^"]*" denied the request: (.*)', re.DOTALL)

log = logging.getLogger(__name__)


def not_served(model: str, there: Iterable[str]) -> str:
    """There is no such model, but these."""
    names = sorted(there)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    said = f"Here are: {', '.join(map(repr, names[:SHOWN]))}{more}." if names else "No model is set up here."
    return f"The model {model[:100]!r} isn't served. {said}"


def may_not_start(model: str, error: RequestError) -> RequestError:
    """Nobody serves a model, and this caller may not change that, as the gate has said."""
    message = f"No live job serves {model!r} now, and you may not start one: {error.message}"
    return RequestError(403, error.code, message, error.param)


def told(error: ApiError, code: str = "invalid_batch") -> RequestError:
    """The API server's refusal as ours; `code` says what it finds wrong."""
    denied = _DENIED.fullmatch(error.message)
    text = denied[1] if denied else error.message
    if error.status == 429 and denied:
        return RequestError(429, "queue_full", text, headers=DONT_RETRY)
    if error.status == 403:
        return RequestError(403, "forbidden", text)
    if error.status in (400, 422):
        return invalid(text, code=code)
    if error.status == 404:  # the namespace
        return invalid(text, code="namespace_not_found")
    log.error("the API server can't be used: %s", error)
    return unavailable("The cluster's API server can't be used now. Try again; the gateway's log says why.")

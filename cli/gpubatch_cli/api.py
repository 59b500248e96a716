"""Raw JSON to and from the API server, by the official client's connection; its refusals as what a user can act on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from gpubatch_cli.errors import CliError, Forbidden, Gone, NotFound, Unreachable
from gpubatch_cli.kubeconfig import Access

JSON = dict[str, Any]
Objects = list[JSON]
API_VERSION = "gpubatch.dev/v1alpha1"
KIND = "GPUBatchJob"
PLURAL = "gpubatchjobs"
MANAGER = "gpubatch-cli"
PAGE = 500
CONNECT, READ = 10.0, 30.0  # seconds
WATCH = 240  # seconds that one request watches: less than the idle limits of most proxies
SILENCE = 300.0  # seconds without the API server until somebody who watches gives up

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def jobs_path(namespace: str | None, name: str = "") -> str:
    """Of the jobs of a namespace (None: of all), or of one job."""
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{place}/{PLURAL}{f'/{name}' if name else ''}"


class Api:
    """One cluster."""

    def __init__(self, access: Access) -> None:
        from kubernetes.client.rest import RESTClientObject

        self.access = access
        self._configuration = access.configuration
        with self._troubles():
            self._pool = RESTClientObject(self._configuration).pool_manager

    def close(self) -> None:
        """Closes its connections."""
        self._pool.clear()

    # --- requests

    def request(
        self, method: str, path: str, body: JSON | None = None, kind: str = "application/json", **query: Any
    ) -> JSON:
        """One request; the answer's body.

        Raises:
            CliError: Any status but 2xx, or no answer.
        """
        return self._answer(method, path, body, kind, query)[1]

    def _answer(self, method: str, path: str, body: JSON | None, kind: str, query: JSON) -> tuple[int, JSON]:
        """The answer's status, which is 2xx, and its body."""
        with self._troubles():
            response = self._send(method, path, body, kind, query, (CONNECT, READ))
            data = response.data
        if not 200 <= response.status < 300:
            raise self._refusal(response.status, path, data)
        return int(response.status), _object(data)

    @contextmanager
    def stream(self, path: str, read: float | None = None, **query: Any) -> Iterator[Iterator[bytes]]:
        """The pieces of an answer as they come.

        Raises:
            CliError: Any status but 2xx, no answer, or one that breaks off.
        """
        with self._troubles():
            response = self._send("GET", path, None, "", query, (CONNECT, read))
            if response.status not in (200, 204):  # 204: a log that nothing was written to
                raise self._refusal(response.status, path, response.data)
        try:
            yield self._pieces(response)
        finally:
            response.close()

    def _pieces(self, response: Any) -> Iterator[bytes]:
        with self._troubles():
            yield from response.stream(2**16, decode_content=True)

    def get(self, path: str, **query: Any) -> JSON:
        """Read one object."""
        return self.request("GET", path, **query)

    def list(self, path: str, **query: Any) -> Objects:
        """All objects of a collection."""
        return self.list_version(path, **query)[0]

    def list_version(self, path: str, **query: Any) -> tuple[Objects, str]:
        """All objects of a collection, page by page, and the list's version, for a watch to go on from."""
        items: Objects = []
        token = ""
        while True:
            page = self.get(path, limit=PAGE, **query, **({"continue": token} if token else {}))
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items, str(page["metadata"]["resourceVersion"])

    def apply(self, path: str, body: JSON, force: bool = False, dry_run: bool = False) -> tuple[JSON, bool]:
        """Server-side apply, as `kubectl apply --server-side` with strict validation; the object, and if it is new."""
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", "force": "true" if force else "false"}
        query |= {"dryRun": "All"} if dry_run else {}
        status, applied = self._answer("PATCH", path, body, APPLY, query)
        return applied, status == 201

    def patch(self, path: str, body: JSON) -> JSON:
        """Merge a patch into an object."""
        return self.request("PATCH", path, body, MERGE, fieldManager=MANAGER, fieldValidation="Strict")

    # --- watching

    def watch(self, path: str, **query: Any) -> Iterator[tuple[str, JSON]]:
        """What is there (`LISTED`, then one `SYNCED`), then each change (`ADDED`, `MODIFIED`, `DELETED`), for ever.

        A connection that breaks is made anew for `SILENCE` seconds; what was missed meanwhile is listed again.

        Raises:
            CliError: The API server refuses, or is away for longer.
        """
        since = time.monotonic()
        while True:
            try:
                items, version = self.list_version(path, **query)
                for item in items:
                    yield "LISTED", item
                yield "SYNCED", {}
                since = time.monotonic()
                for change in self._changes(path, version, query):
                    since = time.monotonic()
                    yield change
            except Gone:
                continue
            except Unreachable:
                if time.monotonic() - since > SILENCE:
                    raise
                time.sleep(2)

    def _changes(self, path: str, version: str, query: JSON) -> Iterator[tuple[str, JSON]]:
        while True:
            more = {"watch": "true", "resourceVersion": version, "timeoutSeconds": WATCH, "allowWatchBookmarks": "true"}
            with self.stream(path, read=WATCH + READ, **query, **more) as pieces:
                for line in _lines(pieces):
                    event = _object(line)
                    found = event.get("object") or {}
                    if event.get("type") == "ERROR":
                        raise Gone(str(found.get("message", "the watch ended")))
                    version = str(found["metadata"]["resourceVersion"])
                    if event["type"] != "BOOKMARK":
                        yield str(event["type"]), found

    # --- below

    def _send(
        self, method: str, path: str, body: JSON | None, kind: str, query: JSON, limits: tuple[float, float | None]
    ) -> Any:
        from urllib3 import Timeout

        headers = {"Accept": "application/json", "User-Agent": MANAGER, **self.access.headers}
        if token := self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization"):
            headers["Authorization"] = token
        elif basic := self._configuration.username and self._configuration.get_basic_auth_token():
            headers["Authorization"] = basic
        if body is not None:
            headers["Content-Type"] = kind
        url = self._configuration.host.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        return self._pool.request(
            method,
            url,
            body=json.dumps(body).encode() if body is not None else None,
            headers=headers,
            timeout=Timeout(connect=limits[0], read=limits[1]),
            retries=False,
            preload_content=False,
        )

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """Connections that fail, in the user's words."""
        from kubernetes.config import ConfigException
        from urllib3 import exceptions as http

        where = f"the cluster at {self._configuration.host} (context {self.access.context})"
        try:
            yield
        except http.SSLError as error:
            raise CliError(
                f"{where} can't be trusted: {_reason(error)}",
                "Compare the cluster's certificate-authority in the kubeconfig with the one that it has now.",
            ) from None
        except http.ProxyError as error:
            raise Unreachable(
                f"the proxy {self._configuration.proxy} on the way to {where} fails: {_reason(error)}",
                "Correct HTTPS_PROXY, NO_PROXY or the kubeconfig's proxy-url.",
            ) from None
        except (http.HTTPError, OSError) as error:
            raise Unreachable(
                f"{where} can't be reached: {_reason(error)}",
                "Is it up, and are you in its network? `kubectl cluster-info` asks the same; --context names another.",
            ) from None
        except ConfigException as error:
            raise CliError(f"{where}: {error}", "Log in anew, and try again.") from None

    def _refusal(self, status: int, path: str, data: bytes) -> CliError:
        """The API server's own sentence, and what to do."""
        body = _object(data)
        message = str(body.get("message") or data[:300].decode(errors="replace").strip() or f"HTTP {status}")
        who = f"context {self.access.context}"
        match status:
            case 401:
                return CliError(f"the cluster doesn't know you ({who}): {message}", "Log in anew, and try again.")
            case 403:
                return Forbidden(message, _permission(body))
            case 404 if "details" not in body and f"/{API_VERSION}" in path:
                return CliError(
                    f"GPUBatch isn't installed in this cluster ({who}): it has no {PLURAL} ({API_VERSION})",
                    "Install it: helm install gpubatch charts/gpubatch --namespace gpubatch-system --create-namespace; "
                    "or name another cluster by --context.",
                )
            case 404:
                return NotFound(message)
            case 409 if body.get("reason") == "Conflict":
                return CliError(
                    message, "Somebody else manages those fields (a GitOps tool?): change them there, or --force."
                )
            case 410:
                return Gone(message)
            case 413:
                return CliError(message, "The manifest is too large for Kubernetes: put its data into the store.")
            case 429 if "Queue full" in message:
                advice = "`gpubatch queue -A` shows who waits. Try again later, or ask for fullQueuePolicy: Hold."
                return CliError(_plain(message), advice)
            case 400 | 422:
                return CliError(_plain(message), "Correct that field; docs/api.md explains each.")
            case _ if status >= 500 or status == 429:
                return Unreachable(f"the API server answered {status} ({who}): {message}", "Try again in a moment.")
        return CliError(f"the API server answered {status} ({who}): {message}")


def _permission(body: JSON) -> str:
    details = body.get("details") or {}
    if details.get("group") == "gpubatch.dev" or details.get("kind") == PLURAL:
        return (
            "Ask whoever runs the cluster for the role `edit` (to look only: `view`) in that namespace; "
            "`kubectl auth can-i --list` shows what you may. Is it the right namespace (-n)?"
        )
    return "`kubectl auth can-i --list` shows what you may; is it the right namespace (-n)?"


def _plain(message: str) -> str:
    """Without the API server's preamble about which webhook said so."""
    _, found, rest = message.partition("denied the request: ")
    return rest if found else message


def _reason(error: BaseException) -> str:
    """The telling part of urllib3's nested errors."""
    while inner := getattr(error, "reason", None) or error.__cause__:
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error)
    return text.partition(": ")[2] or text if "object at 0x" in text or "Connection(" in text else text


def _object(data: bytes) -> JSON:
    try:
        found = json.loads(data) if data else {}
    except ValueError:  # from something between us and the API server
        return {}
    return found if isinstance(found, dict) else {}


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line for line in whole if line)

"""Raw JSON in, raw JSON out: where and as whom by the official asyncio client, the requests by aiohttp alone.

The official client's models, copies and look-ups for each request cost more than the request; the store wants plain
objects anyway.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio import client as k8s
from kubernetes.aio import config
from kubernetes.aio.client.rest import RESTClientObject
from yarl import URL

from gpubatch_operator.metrics import API_WRITES

JSON = dict[str, Any]
Objects = list[JSON]
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"  # of Kubernetes' own kinds only
TIMEOUT = 10.0  # of one request, seconds; a lost one is repeated by the next plan
PAGE = 500
CONNECTIONS = 96
LINE = 2**21  # bytes: a watch's event holds a whole object


class ApiError(Exception):
    """The API server said no, in its own sentence, or wasn't reached (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Client:
    """One connection pool to the API server.

    Args:
        configuration: Where the API server is, and as whom to talk to it.
        before_write: Called before each request that isn't a GET; it may forbid the write by not returning.
    """

    def __init__(self, configuration: k8s.Configuration, before_write: Callable[[], None] = lambda: None) -> None:
        self._configuration, self._before_write = configuration, before_write
        self._host = configuration.host.rstrip("/")
        self._options = {
            "proxy": configuration.proxy or _proxy(self._host),
            "proxy_headers": configuration.proxy_headers,
            "server_hostname": configuration.tls_server_name or None,
        }
        context = RESTClientObject(configuration).ssl_context
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context),
            headers={"Accept": "application/json", "User-Agent": "gpubatch-operator"},
            timeout=aiohttp.ClientTimeout(total=TIMEOUT),
            read_bufsize=LINE,
        )

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, before_write: Callable[[], None] = lambda: None) -> Client:
        """By this kubeconfig, else by $KUBECONFIG, else in a pod by its service account, else by the user's own."""
        configuration = k8s.Configuration()
        kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
        if "KUBERNETES_SERVICE_HOST" in os.environ and kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(kubeconfig, client_configuration=configuration)
        return cls(configuration, before_write)

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        query: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> JSON:
        """One request; the answer's body.

        Raises:
            ApiError: Any status but 2xx; status 0 if the server wasn't reached.
        """
        if method != "GET":
            self._before_write()
            API_WRITES.labels(method, _resource(path)).inc()
        return await self._send(method, path, body, query, content_type)

    async def _send(
        self, method: str, path: str, body: JSON | None, query: dict[str, Any] | None, content_type: str
    ) -> JSON:
        headers = await self._headers()
        if body is not None:
            headers["Content-Type"] = content_type
        content = orjson.dumps(body) if body is not None else None
        try:
            async with self._session.request(
                method, self._url(path, query), data=content, headers=headers, **self._options
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e
        try:
            data = orjson.loads(raw) if raw else {}
        except ValueError:  # from something between us and the API server
            data = {"message": raw[:200].decode(errors="replace")}
        if not 200 <= response.status < 300:
            raise ApiError(response.status, data.get("reason", ""), data.get("message", ""))
        return data if isinstance(data, dict) else {}

    async def stream(self, path: str, query: dict[str, Any], seconds: float) -> AsyncGenerator[bytes]:
        """The lines of a watch, until the server or the time ends it.

        Raises:
            ApiError: As in `request`.
        """
        timeout, headers = aiohttp.ClientTimeout(total=seconds), await self._headers()
        try:
            async with self._session.get(
                self._url(path, query), timeout=timeout, headers=headers, **self._options
            ) as answer:
                if answer.status != 200:
                    raise ApiError(answer.status, answer.reason or "", (await answer.text())[:200])
                async for line in answer.content:
                    yield line
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as e:  # ValueError: a line without end
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e

    async def _headers(self) -> dict[str, str]:
        """With the token, which may have been renewed."""
        token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": token} if token else {}

    def _url(self, path: str, query: dict[str, Any] | None) -> URL:
        return URL(f"{self._host}{path}?{urlencode(query)}" if query else self._host + path, encoded=True)

    async def get(self, path: str) -> JSON:
        """Read one object."""
        return await self.request("GET", path)

    async def list(self, path: str, **query: Any) -> tuple[list[JSON], str]:
        """All objects of a collection, page by page, and the resourceVersion of the list."""
        items: list[JSON] = []
        token = ""
        while True:
            page = await self._page(path, query, token)
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items, page["metadata"]["resourceVersion"]

    async def pages(self, path: str, **query: Any) -> AsyncIterator[tuple[Objects, str]]:
        """All objects of a collection, a page at a time, and the resourceVersion of the list."""
        token = ""
        while True:
            page = await self._page(path, query, token)
            token = page["metadata"].get("continue", "")
            yield page.pop("items", None) or [], page["metadata"]["resourceVersion"]
            if not token:
                return

    async def _page(self, path: str, query: dict[str, Any], token: str) -> JSON:
        more = {"continue": token} if token else {}
        return await self.request("GET", path, query={**query, "limit": PAGE, **more})

    async def create(self, path: str, body: JSON) -> JSON:
        """Create an object."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: JSON, kind: str = MERGE_PATCH) -> JSON:
        """Merge a patch into an object."""
        return await self.request("PATCH", path, body, content_type=kind)

    async def review(self, path: str, body: JSON) -> JSON:
        """Ask by creating an object that is stored nowhere: a TokenReview, a SubjectAccessReview. It writes nothing."""
        return await self._send("POST", path, body, None, "application/json")

    async def delete(self, path: str, uid: str) -> None:
        """Delete the object if it is still this one; gone already is fine."""
        try:
            await self.request("DELETE", path, {"preconditions": {"uid": uid}})
        except ApiError as e:
            if e.status not in (404, 409):
                raise


def _proxy(host: str) -> str | None:
    """As the environment says, read once."""
    parts = urlsplit(host)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _resource(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[parts.index("namespaces") + 2] if "namespaces" in parts[:-2] else parts[-1]

"""Raw JSON in, raw JSON out: a thin layer over the official asyncio client.

The client's own models cost more time than the requests; the store wants plain objects anyway.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from kubernetes.aio import client as k8s
from kubernetes.aio import config

from gpubatch_operator.metrics import API_WRITES

JSON = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
TIMEOUT = 10.0  # of one request, seconds; a lost one is repeated by the next plan
PAGE = 500


class ApiError(Exception):
    """The API server said no, in its own sentence, or wasn't reached (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Client:
    """One connection pool to the API server.

    Args:
        api: The official client.
        before_write: Called before each request that isn't a GET; it may forbid the write by not returning.
    """

    def __init__(self, api: k8s.ApiClient, before_write: Callable[[], None] = lambda: None) -> None:
        self._api, self._before_write = api, before_write

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, before_write: Callable[[], None] = lambda: None) -> Client:
        """By this kubeconfig, else by $KUBECONFIG, else in a pod by its service account, else by the user's own."""
        configuration = k8s.Configuration()
        kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
        if "KUBERNETES_SERVICE_HOST" in os.environ and kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(kubeconfig, client_configuration=configuration)
        configuration.connection_pool_maxsize = 64
        return cls(k8s.ApiClient(configuration), before_write)

    async def close(self) -> None:
        """Close the pool."""
        await self._api.close()

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
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        if method != "GET":
            self._before_write()
            API_WRITES.labels(method, _resource(path)).inc()
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._api.call_api(*request, _request_timeout=TIMEOUT)
            await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e
        try:
            data = json.loads(response.data) if response.data else {}
        except ValueError:  # from something between us and the API server
            data = {"message": response.data[:200].decode(errors="replace")}
        if not 200 <= response.status < 300:
            raise ApiError(response.status, data.get("reason", ""), data.get("message", ""))
        return data if isinstance(data, dict) else {}

    async def stream(self, path: str, query: dict[str, Any], seconds: float) -> AsyncIterator[bytes]:
        """The lines of a watch, until the server or the time ends it.

        Raises:
            ApiError: As in `request`.
        """
        headers = {"Accept": "application/json"}
        request = await self._api.param_serialize(
            "GET", path, query_params=list(query.items()), header_params=headers, auth_settings=["BearerToken"]
        )
        try:
            answer = (await self._api.call_api(*request, _request_timeout=seconds)).response
            async with answer:
                if answer.status != 200:
                    raise ApiError(answer.status, answer.reason or "", (await answer.text())[:200])
                async for line in answer.content:
                    yield line
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as e:  # ValueError: a line without end
            raise ApiError(0, "Unreachable", f"{type(e).__name__}: {e}") from e

    async def get(self, path: str) -> JSON:
        """Read one object."""
        return await self.request("GET", path)

    async def list(self, path: str, **query: Any) -> tuple[list[JSON], str]:
        """All objects of a collection, page by page, and the resourceVersion of the list."""
        items: list[JSON] = []
        token = ""
        while True:
            page = await self.request(
                "GET", path, query={**query, "limit": PAGE, **({"continue": token} if token else {})}
            )
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items, page["metadata"]["resourceVersion"]

    async def create(self, path: str, body: JSON) -> JSON:
        """Create an object."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: JSON) -> JSON:
        """Merge a patch into an object."""
        return await self.request("PATCH", path, body, content_type=MERGE_PATCH)

    async def delete(self, path: str, uid: str) -> None:
        """Delete the object if it is still this one; gone already is fine."""
        try:
            await self.request("DELETE", path, {"preconditions": {"uid": uid}})
        except ApiError as e:
            if e.status not in (404, 409):
                raise


def _resource(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[parts.index("namespaces") + 2] if "namespaces" in parts[:-2] else parts[-1]

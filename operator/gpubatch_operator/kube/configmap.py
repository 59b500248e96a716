"""A ConfigMap that several replicas write: read with its version, written only if nobody else has meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]


class ConfigMap:
    """One by its name.

    Args:
        client: For requests.
        namespace: Where it is.
        name: What it is called; made if absent.
    """

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client, self._namespace, self._name = client, namespace, name
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"

    def __str__(self) -> str:
        return f"{self._namespace}/{self._name}"

    async def read(self) -> tuple[Mapping[str, str], str | None]:
        """Its data and version; nothing and None if it isn't there.

        Raises:
            ApiError: The API server refuses, or doesn't answer.
        """
        try:
            raw = await self._client.get(f"{self._collection}/{self._name}")
        except ApiError as e:
            if e.status != 404:
                raise
            return {}, None
        return raw.get("data") or {}, raw["metadata"]["resourceVersion"]

    async def write(self, data: Mapping[str, str], version: str | None) -> str:
        """Put data in the place of this version's (None: there is none); the new version.

        Raises:
            ApiError: 409 if somebody else has written meanwhile.
        """
        metadata: JSON = {"name": self._name, "namespace": self._namespace}
        body: JSON = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
        if version is None:
            raw = await self._client.create(self._collection, body)
        else:
            metadata["resourceVersion"] = version
            raw = await self._client.request("PUT", f"{self._collection}/{self._name}", body)
        return str(raw["metadata"]["resourceVersion"])

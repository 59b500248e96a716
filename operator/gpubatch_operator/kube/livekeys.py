"""The installation's secret, from which the keys of live jobs are derived: a Secret beside the operator, made when the
first such job runs. It is read anew for each attempt, so a new one counts for those that start from then on."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

from gpubatch_operator.core.livekey import digest_of, key_of
from gpubatch_operator.kube.client import ApiError, Client

DATA_KEY = "key"
BYTES = 32


def secret_of(found: Mapping[str, Any], name: str) -> bytes:
    """What a Secret holds.

    Raises:
        ApiError: Nothing usable.
    """
    secret = base64.b64decode((found.get("data") or {}).get(DATA_KEY, ""))
    if len(secret) < BYTES:
        what = f"the Secret {name} has no key {DATA_KEY!r} of {BYTES} bytes or more"
        raise ApiError(422, "Invalid", f"{what}; delete it, and it is made anew")
    return secret


class LiveKeys:
    """Keys by the Secret.

    Args:
        client: To read and make it.
        namespace: Where it is.
        name: Its name.
    """

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._metadata = {"name": name, "namespace": namespace}

    async def key(self, job_uid: str) -> str:
        """What clients of a job show.

        Raises:
            ApiError: The Secret can be neither read nor made, or holds nothing usable.
        """
        name = self._metadata["name"]
        try:
            found = await self._client.get(f"{self._path}/{name}")
        except ApiError as e:
            if e.status != 404:
                raise
            found = await self._make()
        return key_of(secret_of(found, name), job_uid)

    async def digest(self, job_uid: str) -> str:
        """What the runner of a job is told of its key; raises as `key` does."""
        return digest_of(await self.key(job_uid))

    async def _make(self) -> dict[str, object]:
        data = {DATA_KEY: base64.b64encode(secrets.token_bytes(BYTES)).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": self._metadata, "type": "Opaque", "data": data}
        try:
            return await self._client.create(self._path, body)
        except ApiError as e:
            if e.status != 409:
                raise
            return await self._client.get(f"{self._path}/{self._metadata['name']}")  # another replica was first

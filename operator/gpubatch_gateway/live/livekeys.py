"""What the gateway shows to live jobs: keys that follow from the installation's Secret, which the operator makes."""

from __future__ import annotations

import logging
import time

from gpubatch_gateway.problems import unavailable
from gpubatch_operator.core.livekey import key_of
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.livekeys import secret_of

REST_SECONDS = 10.0  # the Secret is read no oftener

log = logging.getLogger(__name__)


class LiveKeys:
    """Keys by the Secret, which is read once, and anew when a job doesn't take its key.

    Args:
        client: To read it.
        namespace: Where it is.
        name: Its name.
    """

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client, self._name = client, name
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self._secret = b""
        self._read_at = 0.0

    async def key(self, job_uid: str) -> str:
        """What is shown to a job.

        Raises:
            RequestError: 503; the Secret can't be read.
        """
        if not self._secret:
            try:
                self._secret = secret_of(await self._client.get(self._path), self._name)
            except ApiError as e:
                log.error("the Secret %s, from which the keys of live jobs follow, can't be read: %s", self._name, e)
                message = "The keys of live jobs can't be read now. Try again; the gateway's log says why."
                raise unavailable(message) from e
            self._read_at = time.monotonic()
        return key_of(self._secret, job_uid)

    def renew(self) -> bool:
        """A job didn't take its key: whether the Secret is read anew for the next one."""
        if time.monotonic() - self._read_at < REST_SECONDS:
            return False
        self._secret = b""
        return True

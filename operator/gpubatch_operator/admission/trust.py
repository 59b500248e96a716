"""Keeps the Secret with the certificate, and tells the API server to trust it.

Every replica does all of it: each write names the version that it was made from, so that of several one wins and the
others read what it wrote.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpubatch_operator.admission import certificates
from gpubatch_operator.admission.certificates import Certificates, Pair
from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
LOOK_SECONDS = 60.0  # at most, between two looks

log = logging.getLogger(__name__)


class Trust:
    """Holds the TLS context of the webhook's server, and keeps it fresh.

    Args:
        client: For the Secret and the webhook's configuration.
        namespace: Where the Secret is.
        secret: Its name; made if absent.
        configuration: The ValidatingWebhookConfiguration; nobody calls us if there is none.
        names: What the API server may call us.
        seconds: Life of a certificate.
    """

    def __init__(
        self, client: Client, namespace: str, secret: str, configuration: str, names: Sequence[str], seconds: float
    ) -> None:
        self._client, self._names, self._seconds = client, names, seconds
        self._namespace, self._secret = namespace, secret
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"
        self._configuration = f"{CONFIGURATIONS}/{configuration}"
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._served: Pair | None = None

    async def keep(self, ready: Callable[[], None]) -> None:
        """Look after it for ever; `ready` is called once the context has a certificate."""
        pause = min(LOOK_SECONDS, self._seconds / 100)
        while True:
            try:
                await self._look()
                ready()
            except (ApiError, OSError, ssl.SSLError) as e:
                if isinstance(e, ApiError) and e.status == 409:
                    continue  # another replica has written: what it wrote counts
                log.warning("the webhook's certificate can't be looked after, the next look may succeed: %s", e)
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        held, version = await self._read()
        published = held is not None and await self._publish(held)
        wanted = certificates.advance(held, self._names, time.time(), self._seconds, published)
        if wanted is not None:
            await self._write(wanted, version)
            await self._publish(wanted)
            what = "a new one is served" if wanted.following is None else "the next one is made"
            log.info("webhook certificate: %s", what)
        if (current := wanted or held) and current.current != self._served:
            load(self.context, current.current)
            self._served = current.current

    async def _read(self) -> tuple[Certificates | None, str | None]:
        try:
            raw = await self._client.get(f"{self._secrets}/{self._secret}")
        except ApiError as e:
            if e.status != 404:
                raise
            return None, None
        return certificates.from_secret(raw.get("data") or {}), raw["metadata"]["resourceVersion"]

    async def _write(self, wanted: Certificates, version: str | None) -> None:
        metadata: JSON = {"name": self._secret, "namespace": self._namespace}
        body: JSON = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}
        body["data"] = certificates.to_secret(wanted)
        if version is None:
            await self._client.create(self._secrets, body)
        else:
            metadata["resourceVersion"] = version
            await self._client.request("PUT", f"{self._secrets}/{self._secret}", body)

    async def _publish(self, held: Certificates) -> bool:
        """Whether the API server has been told before; it is now."""
        bundle = base64.b64encode(held.bundle.encode()).decode()
        try:
            raw = await self._client.get(self._configuration)
            if all(w["clientConfig"].get("caBundle") == bundle for w in raw.get("webhooks") or []):
                return True
            for webhook in raw["webhooks"]:
                webhook["clientConfig"]["caBundle"] = bundle
            version = {"resourceVersion": raw["metadata"]["resourceVersion"]}
            await self._client.patch(self._configuration, {"metadata": version, "webhooks": raw["webhooks"]})
        except ApiError as e:
            if e.status != 404:
                raise
            log.debug("there is no %s: nobody calls the webhook", self._configuration)
            return True
        return False


async def follow_files(context: ssl.SSLContext, folder: Path, ready: Callable[[], None], pause: float = 5.0) -> None:
    """The same for a certificate that others make, as cert-manager does: read it anew when it changes, for ever."""
    served: Pair | None = None
    while True:
        try:
            pair = await asyncio.to_thread(_pair_in, folder)
            if pair != served:
                load(context, pair)
                served = pair
                ready()
        except (OSError, ssl.SSLError) as e:
            log.warning("the webhook's certificate in %s can't be read: %s", folder, e)
        await asyncio.sleep(pause)


def load(context: ssl.SSLContext, pair: Pair) -> None:
    """Serve this certificate from the next handshake on; connections that are open stay."""
    with tempfile.TemporaryDirectory() as folder:  # the ssl module only takes files
        chain, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        chain.write_text(pair.certificate)
        key.touch(0o600)
        key.write_text(pair.key)
        context.load_cert_chain(chain, key)


def _pair_in(folder: Path) -> Pair:
    return Pair((folder / "tls.crt").read_text(), (folder / "tls.key").read_text())

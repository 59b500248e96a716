"""The chart's webhook on an API server without pods: its Service, whose endpoints are processes of the machine."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import yaml

from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


class Webhook:
    """What the chart installs for the webhook, for operators of one instance that listen on the machine.

    The API server resolves the Service by its EndpointSlices, one for each operator, which a test plays the kubelet
    for: `put` when one is ready, `remove` when it isn't any more.
    """

    def __init__(self, client: Client, namespace: str, address: str) -> None:
        self._client, self._namespace, self._address = client, namespace, address
        self._slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self.instance = namespace

    async def install(self, namespaces: JSON | None = None, **values: str) -> None:
        """The chart's objects, for jobs in these namespaces (a label selector; default: in this one)."""
        helm = subprocess.check_output([ROOT / "hack" / "cluster", "tool", "helm"], text=True).strip()  # noqa: ASYNC221
        given = {"settings.instance": self.instance, "admission.timeoutSeconds": "20", **values}
        command = [helm, "template", "x", ROOT / "charts" / "gpubatch", "--namespace", self._namespace]
        command += ["--show-only", "templates/admission.yaml", "--kube-version", "1.35.0"]
        text = subprocess.check_output([*command, *(w for v in given.items() for w in ("--set", "=".join(v)))])  # noqa: ASYNC221
        service, configuration = yaml.safe_load_all(text)
        del service["spec"]["selector"]
        [webhook] = configuration["webhooks"]
        webhook["namespaceSelector"] = namespaces or {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}}
        await self._client.create(f"/api/v1/namespaces/{self._namespace}/services", service)
        await self._client.create(CONFIGURATIONS, configuration)

    async def remove_all(self) -> None:
        with contextlib.suppress(ApiError):
            await self._client.request("DELETE", f"{CONFIGURATIONS}/{self.instance}")

    async def configuration(self) -> JSON:
        return await self._client.get(f"{CONFIGURATIONS}/{self.instance}")

    async def put(self, replica: str, port: int) -> None:
        """The replica is ready."""
        await self._client.create(
            self._slices,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": replica,
                    "labels": {"kubernetes.io/service-name": f"{self.instance}-admission"},
                },
                "addressType": "IPv4",
                "ports": [{"name": "admission", "port": port, "protocol": "TCP"}],
                "endpoints": [{"addresses": [self._address], "conditions": {"ready": True}}],
            },
        )

    async def remove(self, replica: str) -> None:
        """The replica isn't ready any more."""
        await self._client.request("DELETE", f"{self._slices}/{replica}")

"""Replicas of the operator that serve the admission webhook behind one Service."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gpubatch_operator.kube.client import ApiError
from support.api import Api, eventually, template_job
from support.process import OperatorProcess
from support.webhook import Webhook

JSON = dict[str, Any]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


class Replicas:
    """Operators that serve the webhook behind one Service."""

    def __init__(self, api: Api, webhook: Webhook, kubeconfig: Path, folder: Path, stack: ExitStack) -> None:
        self._api, self.webhook, self._kubeconfig, self._folder, self._stack = api, webhook, kubeconfig, folder, stack
        self.ports: dict[str, int] = {}
        self.running: dict[str, OperatorProcess] = {}

    def begin(self, replica: str, **settings: str | float) -> OperatorProcess:
        self.ports[replica] = port = free_port()
        own = {"replica": replica, "instance": self.webhook.instance, "namespace": self._api.namespace}
        # No pod for a job that no node can take: it would not wait any more.
        quick = {
            "lease_duration_seconds": 6,
            "lease_renew_seconds": 4.5,
            "lease_retry_seconds": 0.5,
            "scale_up_pods": 0,
        }
        operator = OperatorProcess(
            self._kubeconfig, self._folder / f"{replica}.log", admission_port=port, **own, **quick, **settings
        )
        self.running[replica] = operator
        return self._stack.enter_context(operator)

    async def serving(self, operator: OperatorProcess, replica: str) -> None:
        async def there() -> bool:
            return "the admission webhook is served" in operator.log.rpartition("synced: ")[2]

        await eventually(f"{replica} to serve the webhook", there)
        await self.webhook.put(replica, self.ports[replica])

    async def start(self, replica: str, **settings: str | float) -> OperatorProcess:
        operator = self.begin(replica, **settings)
        await self.serving(operator, replica)
        return operator

    async def two(self, **settings: str | float) -> tuple[OperatorProcess, OperatorProcess]:
        """Both at once, as a Deployment starts them; the first one leads."""
        first, second = self.begin("first", **settings), self.begin("second", **settings)
        await self.serving(first, "first")
        await self.serving(second, "second")
        return first, second


def address(kubeconfig: Path) -> str:
    """The machine's, as the API server sees it."""
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return str(urlsplit(server).hostname)


async def attempt(api: Api, job: JSON, **query: str) -> ApiError | None:
    """Create a job; the refusal, if it is refused."""
    try:
        await api.client.request("POST", api.jobs_path, job, query=query)
    except ApiError as e:
        return e
    return None


async def asked(api: Api) -> None:
    """Wait until the API server asks the webhook, and trusts it: it takes a moment to see the configuration."""

    async def refused() -> bool:
        error = await attempt(api, template_job("probe", priority=1000), dryRun="All")
        return error is not None and error.status == 403

    await eventually("the API server to ask the webhook", refused)

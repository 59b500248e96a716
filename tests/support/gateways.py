"""Replicas of the gateway for a test, and clients of them."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from support.accounts import account
from support.api import Api, eventually
from support.process import GatewayProcess
from support.replicas import free_port
from support.s3 import S3

JSON = dict[str, Any]
MODEL = "tiny"  # as the requests of `s3.lines` name it
NOWHERE = {"gpuResource": "gpubatch.dev/none"}
RESOURCES = ["gpubatchjobs", "gpubatchjobs/files", "gpubatchjobs/requests"]
VERBS = ["get", "list", "create", "patch", "delete"]


@dataclass
class Gateways:
    """Replicas of the gateway for the test's namespace, whose files are in a folder of the bucket of its own."""

    api: Api
    kubeconfig: Path
    folder: Path
    s3: S3
    stack: AsyncExitStack
    replicas: list[GatewayProcess] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def models(self, **templates: JSON) -> None:
        (self.folder / "models").mkdir(exist_ok=True)
        (self.folder / "models" / "models.yaml").write_text(json.dumps(templates))

    async def start(self, **settings: str | float) -> int:
        """Start one more; its port."""
        port = free_port()
        chosen: dict[str, str | float] = {
            "storage_url": f"s3://batches/{self.api.namespace}",
            "storage_endpoint": self.s3.endpoint,
            "storage_region": "us-east-1",
            "namespace": self.api.namespace,
            "models_folder": str(self.folder / "models"),
            "keys_folder": str(self.folder / "keys"),
            "port": port,
            **settings,
        }
        replica = GatewayProcess(self.kubeconfig, self.folder / f"gateway-{port}.log", **chosen)
        self.stack.enter_context(replica)
        self.replicas.append(replica)
        self.ports.append(port)
        await self.up(replica)
        return port

    async def up(self, replica: GatewayProcess, before: str = "") -> None:
        """Wait until it is served, by more than what its log said before."""

        async def served() -> bool:
            return "the gateway is served" in replica.log[len(before) :]

        await eventually("the gateway to be served", served)

    async def client(self, port: int, token: str, **more: Any) -> AsyncOpenAI:
        url = f"http://127.0.0.1:{port}/v1"
        return await self.stack.enter_async_context(AsyncOpenAI(base_url=url, api_key=token, max_retries=0, **more))

    async def account(self, api: Api, name: str = "app") -> str:
        """A service account that may use the gateway in its namespace; its token."""
        return await account(api, name, RESOURCES, VERBS, api.namespace)

    def stored(self) -> list[Path]:
        """What the bucket shows of the test's folder."""
        root = self.s3.root / "batches" / self.api.namespace
        return sorted(p for p in root.rglob("*") if p.is_file() and ".sgwtmp" not in p.parts)

"""The HTTP endpoints of a real operator: a real API server says who its callers are and what they may list."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from gpubatch_operator.core.totals import Tally
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.convert import job_of
from gpubatch_operator.web.totals import Record, once
from support.accounts import account
from support.api import Api, eventually, namespace, template_job
from support.process import OperatorProcess

JSON = dict[str, Any]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Site:
    """The two listeners of an operator."""

    def __init__(self, http: ClientSession, port: int, loopback: int) -> None:
        self._http, self._ports = http, {False: port, True: loopback}

    async def get(self, path: str, token: str | None = None, loopback: bool = False) -> tuple[int, JSON]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._http.get(f"http://127.0.0.1:{self._ports[loopback]}{path}", headers=headers) as answer:
            return answer.status, await answer.json()

    async def up(self) -> bool:
        try:
            return (await self.get("/health", loopback=True))[1]["isRunning"] is True
        except ClientError:
            return False


@pytest.fixture
async def site(kubeconfig: Path, tmp_path: Path) -> AsyncIterator[Site]:
    port, loopback = free_port(), free_port()
    async with ClientSession() as http:
        with OperatorProcess(kubeconfig, tmp_path / "log", http_port=port, loopback_port=loopback):
            site = Site(http, port, loopback)
            await eventually("the endpoints to be served", site.up)
            yield site


async def viewer(api: Api, name: str, *may_view: str) -> str:
    """A service account that may view these namespaces; its token."""
    return await account(api, name, ["gpubatchjobs"], ["list"], *may_view)


async def test_a_caller_sees_the_namespaces_that_the_cluster_lets_them_list(api: Api, site: Site) -> None:
    async with namespace(api.client, f"{api.namespace}-b") as other:
        nowhere = {"nodeSelector": {"is": "nowhere"}}
        await api.create(template_job("mine", **nowhere))
        await other.create(template_job("theirs", **nowhere))
        both = await viewer(api, "both", api.namespace, other.namespace)
        one, none = await viewer(api, "one", api.namespace), await viewer(api, "none")

        async def seen(token: str, path: str) -> list[str]:
            status, body = await site.get(path, token)
            assert status == 200, body
            return [item["name"] for item in body["items"]]

        async def all_there() -> bool:
            _, body = await site.get(f"/v1/queue?namespace={api.namespace},{other.namespace}", loopback=True)
            return len(body["items"]) == 2

        await eventually("both jobs to wait", all_there)
        assert await seen(both, "/v1/queue") == ["mine", "theirs"]
        assert await seen(one, "/v1/queue") == ["mine"]
        assert (await site.get(f"/v1/jobs/{api.namespace}/mine", one))[1]["phase"] == "Queued"
        status, body = await site.get(f"/v1/jobs/{other.namespace}/theirs", one)
        assert (status, body["error"]["message"]) == (
            403,
            f"system:serviceaccount:{api.namespace}:one may not list gpubatchjobs in namespace {other.namespace}",
        )
        assert (await site.get("/v1/jobs", none))[0] == 403
        assert (await site.get("/v1/jobs", "nonsense"))[0] == 401
        assert (await site.get("/v1/jobs"))[0] == 401
        assert (await site.get("/v1/queue/status", one))[1]["queue_size"] == 1


async def test_totals_survive_the_deletion_of_jobs_and_a_restart(api: Api, client: Client) -> None:
    def record() -> Record:
        return Record(client, api.namespace, "totals")

    path = f"/api/v1/namespaces/{api.namespace}/configmaps/totals"
    raw, now = await api.create(template_job("gone")), 0.0
    ended = {
        "phase": "Failed",
        "queuedAt": raw["metadata"]["creationTimestamp"],
        "completionTime": "2027-01-15T08:00:00Z",
    }
    job = job_of(raw | {"status": ended})
    first, now = Tally(), job.created + 10**9
    first.see(job)
    await once(first, record(), True, now)
    second = Tally()
    await once(second, record(), False, now)
    assert (second.total("Failed"), second.total("Queued")) == (1, 1)
    written = (await client.get(path))["metadata"]["resourceVersion"]
    second.see(job)
    await once(second, record(), True, now)
    assert (await client.get(path))["metadata"]["resourceVersion"] == written, "nothing new, nothing written"
    assert second.total("Failed") == 1

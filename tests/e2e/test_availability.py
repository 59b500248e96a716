"""Two replicas of the operator, as the chart installs them: one plans, both answer the admission webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gpubatch_operator.kube.client import ApiError
from support.api import Api, eventually
from support.installation import Installation, story
from support.workloads import on, sleeper


@pytest.fixture(scope="module")
def replicas(installation: Installation) -> Iterator[Installation]:
    """Two of them."""
    installation.change("replicas=2")
    yield installation
    installation.change("replicas=1")


async def test_an_upgrade_disturbs_no_job(api: Api, replicas: Installation, image: str) -> None:
    await api.create(sleeper("running", image, 30, **on("gpu-a")))
    await api.create(sleeper("next", image, 1, **on("gpu-a")))
    await api.phase("running", "Running")
    pod, before = await api.pod_of("running"), await asyncio.to_thread(replicas.leader)
    await asyncio.to_thread(replicas.restart)

    async def another_leads() -> bool:  # the old pods may still be ending
        return await asyncio.to_thread(replicas.leader) not in ("", before)

    await eventually("another replica to lead", another_leads)
    for name in ("running", "next"):
        status = (await api.phase(name, "Succeeded", patience=120))["status"]
        assert len(status["attempts"]) == 1
    assert (await api.job("running"))["status"]["podName"] == pod["metadata"]["name"]


async def test_the_twenty_first_job_is_refused_also_while_the_leader_is_replaced(
    api: Api, replicas: Installation, image: str
) -> None:
    def waits(name: str) -> dict[str, object]:
        return sleeper(name, image, nodeSelector={"kubernetes.io/hostname": "nowhere"})

    async def refused(name: str) -> bool:
        try:
            await api.create(waits(name))
        except ApiError as e:
            said = (e.status, e.message.rpartition("denied the request: ")[2])
        else:
            return False
        assert said == (429, "Queue full (20/20 jobs). Try again later.")
        return True

    for i in range(20):
        assert not await refused(f"job-{i}")
    assert await refused("one-too-many")
    leader = await asyncio.to_thread(replicas.leader)
    await api.client.request("DELETE", f"/api/v1/namespaces/{story.SYSTEM}/pods/{leader}")

    async def another_leads() -> bool:
        assert await refused("still-one-too-many")
        return await asyncio.to_thread(replicas.leader) not in ("", leader)

    await eventually("another replica to lead", another_leads)
    assert len(await api.jobs()) == 20

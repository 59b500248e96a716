"""What the operator's watches miss is healed: kopf tells nothing of what was deleted meanwhile, doesn't call a failing
handler again, and begins anew with a list when its place in the history is gone.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from support.api import Api, eventually, template_job
from support.faults import FaultyProxy
from support.process import OperatorProcess

AddNode = Callable[..., Awaitable[str]]
JSON = dict[str, Any]
NEVER = 3600


@pytest.fixture
async def proxy(kubeconfig: Path, tmp_path: Path) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(kubeconfig, tmp_path) as made:
        yield made


def on(node: str) -> JSON:
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


async def position(api: Api, name: str, expected: int) -> None:
    async def there() -> bool:
        return bool((await api.job(name)).get("status", {}).get("queuePosition") == expected)

    await eventually(f"{name} to have position {expected}", there)


async def test_what_is_deleted_while_the_watch_is_down_holds_neither_a_slot_nor_a_place(
    api: Api, proxy: FaultyProxy, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node()
    with OperatorProcess(proxy.kubeconfig, tmp_path / "log", resync_seconds=1):
        for name in ("running", "waiting", "next", "last"):
            await api.create(template_job(name, **on(node)))
        pod = await api.bound("running")
        await position(api, "last", 3)
        proxy.deafen()
        for name in ("running", "waiting"):
            await api.client.request("DELETE", f"{api.jobs_path}/{name}")
        await api.play_gone(pod)
        await api.bound("next")
        await position(api, "last", 1)
        proxy.heal()


async def test_an_event_that_a_handler_fails_on_is_made_good_by_the_next_list(
    api: Api, proxy: FaultyProxy, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node(unschedulable=True)

    def without_types(path: str, event: JSON) -> JSON:
        if path != "/api/v1/nodes" or event["object"]["metadata"].get("name") != node:
            return event
        event = copy.deepcopy(event)
        event["object"]["status"]["conditions"] = [{}]
        return event

    with OperatorProcess(proxy.kubeconfig, tmp_path / "log", resync_seconds=1) as operator:
        await api.create(template_job("job", **on(node)))
        await position(api, "job", 1)
        proxy.mangle = without_types
        await api.client.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": None}})
        await api.bound("job")

        async def failed() -> bool:
            return "KeyError" in operator.log

        await eventually("the handler to fail", failed)


async def test_events_lost_before_a_relist_are_made_good_by_it(
    api: Api, proxy: FaultyProxy, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node()
    with OperatorProcess(proxy.kubeconfig, tmp_path / "log", resync_seconds=NEVER):
        await api.create(template_job("first", **on(node)))
        pod = await api.bound("first")
        await api.phase("first", "Starting")
        proxy.mangle = lambda _, event: None
        await api.create(template_job("second", **on(node)))
        await api.play_end(pod)
        proxy.mangle = lambda _, event: event
        await proxy.expire()
        await api.phase("first", "Succeeded")
        await api.bound("second")

"""Live jobs on a real API server: what is refused, and the life of one whose runner is real and its kubelet played."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gpubatch_operator.core.livekey import key_of
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.kube.livekeys import LiveKeys
from gpubatch_runner import live
from gpubatch_runner.contract import Outcome, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.server import serving
from support.api import JSON, Api, eventually, inference_job, template_job
from support.process import OperatorProcess
from support.story import condition, on, recorded, run_spec, states
from unit.runner.fake_engine import FakeEngine

AddNode = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    log = tmp_path_factory.mktemp("live") / "operator.log"
    with OperatorProcess(kubeconfig, log, stop_seconds=600, scale_up_pods=0, progress_seconds=0.2) as process:
        yield process


def live_job(name: str, inference: JSON | None = None, live: JSON | None = None, **spec: Any) -> JSON:
    """A job that takes its requests over HTTP."""
    job = inference_job(name, **spec)
    job["spec"]["inference"] = {"model": "org/m", "servedModelName": "m", "input": {"live": live or {}}}
    job["spec"]["inference"] |= inference or {}
    return job


# --- the manifest


LOCATION = {"url": "s3://bucket/out.jsonl"}
REFUSED = [
    ({"output": LOCATION}, "input.live has no files: its clients get the answers; remove output, errors and"),
    ({"errors": LOCATION}, "remove output, errors and checkpoint"),
    ({"checkpoint": LOCATION}, "remove output, errors and checkpoint"),
    ({"outputOrder": "Input"}, "outputOrder, requestOrder and invalidRequests are about files"),
    ({"invalidRequests": "Fail"}, "outputOrder, requestOrder and invalidRequests are about files"),
    ({"input": {"live": {}, "url": "s3://bucket/in"}}, "set exactly one of url, urlFrom and live"),
    ({"input": {}}, "set exactly one of url, urlFrom and live"),
    ({"input": {"live": {"idleTimeoutSeconds": 0}}}, "spec.inference.input.live.idleTimeoutSeconds"),
    ({"input": {"live": {"keyFrom": {}}}}, "spec.inference.input.live.keyFrom.secretKeyRef"),
    ({"input": {"url": "s3://bucket/in"}}, "output is missing; set output.url or output.urlFrom"),
]


@pytest.mark.parametrize(("inference", "said"), REFUSED, ids=[str(i)[:40] for i, _ in REFUSED])
async def test_what_makes_no_sense_is_refused_with_the_field_and_what_to_do(
    api: Api, inference: JSON, said: str
) -> None:
    with pytest.raises(ApiError) as refused:
        await api.create(live_job("bad", copy.deepcopy(inference)))
    assert refused.value.status == 422
    assert said in refused.value.message
    assert "spec.inference" in refused.value.message


async def test_a_live_job_gets_its_defaults(api: Api) -> None:
    job = await api.create(live_job("job", suspend=True))
    assert job["spec"]["inference"]["input"]["live"] == {"idleTimeoutSeconds": 600}
    assert job["spec"]["inference"]["maxQueueSize"] == 100


# --- its life


class Pod:
    """A pod of a live job as its kubelet would run it: the runner itself, in this process, at an address of its own."""

    def __init__(self, api: Api, pod: JSON, engine: FakeEngine, folder: Path, address: str) -> None:
        self.api, self.pod, self.address = api, pod, address
        self.spec = RunSpec.model_validate(run_spec(pod) | {"engineUrl": engine.url})
        self._places = Environment(
            journal_dir=folder / pod["metadata"]["name"],
            secrets_dir=folder / "secrets",
            pod_dir=folder / f"{pod['metadata']['name']}-said",
        )
        self._terminated = asyncio.Event()
        self._work: asyncio.Task[Outcome] | None = None

    async def start(self) -> None:
        """It runs, and has its address."""
        assert self.spec.live is not None
        self._places.pod_dir.mkdir(parents=True)
        self._work = asyncio.create_task(live.run(self.spec, self.spec.live, self._places, self._terminated))
        await self.api.play_running(self.pod)
        status = {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        await self.api.client.patch(f"{self.api.pods_path}/{self.pod['metadata']['name']}/status", {"status": status})

    async def heed(self) -> None:
        """Passes on what the operator says to the pod."""

        async def said() -> str | None:
            now = await self.api.pod(self.pod["metadata"]["name"])
            assert now is not None
            reason: str | None = now["metadata"]["annotations"].get("gpubatch.dev/stop")
            return reason

        (self._places.pod_dir / "stop").write_text(await eventually("the runner to be asked to stop", said))

    async def end(self) -> Outcome:
        """It ends by itself; its last words are in the pod's status."""
        assert self._work is not None
        outcome = await self._work
        await self.api.play_end(self.pod, message=outcome.to_json())
        return outcome

    async def kill(self) -> None:
        """It vanishes."""
        assert self._work is not None
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self.api.play_gone(self.pod)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of the loopback at which runners serve."""
    address = "127.34.0.1"
    monkeypatch.setattr(live, "serving", partial(serving, host=address))
    return address


async def reachable(api: Api, name: str) -> JSON:
    """Wait until the job says where it takes requests."""

    async def there() -> JSON | None:
        found: JSON | None = (await api.job(name))["status"].get("live")
        return found

    found: JSON = await eventually(f"{name} to be reachable", there)
    return found


async def ask(url: str, key: str, prompt: str = "1") -> tuple[int, JSON]:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    headers = {"Authorization": f"Bearer {key}"}
    asking = aiohttp.request("POST", f"{url}/chat/completions", json=body, headers=headers)
    async with asking as response:
        return response.status, await response.json()


async def key_for(api: Api, name: str) -> str:
    """What the gateway shows to a job without a Secret of its own."""
    return await LiveKeys(api.client, "default", "gpubatch-live").key((await api.job(name))["metadata"]["uid"])


async def test_it_waits_in_the_queue_serves_those_who_have_its_key_and_succeeds_when_nobody_wants_it(
    api: Api, add_node: AddNode, tmp_path: Path, address: str
) -> None:
    node = await add_node()
    await api.create(template_job("before", **on(node)))
    before = await api.bound("before")
    await api.create(live_job("job", live={"idleTimeoutSeconds": 3}, **on(node)))
    waiting = await api.phase("job", "Queued")
    assert "inspection" not in waiting["status"]
    assert {p["metadata"]["labels"]["gpubatch.dev/kind"] for p in await api.pods()} == {"run"}
    await api.create(template_job("behind", **on(node)))
    await api.play_end(before)
    async with FakeEngine() as engine:
        pod = Pod(api, await api.bound("job"), engine, tmp_path, address)
        await pod.start()
        found = await reachable(api, "job")
        assert found == {"url": f"http://{address}:9808/v1", "model": "m"}
        key = await key_for(api, "job")
        assert (await ask(found["url"], key_of(b"guessed" * 5, "uid")))[0] == 401
        code, answer = await ask(found["url"], key)
        assert (code, answer["choices"][0]["message"]["content"]) == (200, "echo 1")
        running = await api.phase("job", "Running")
        assert "estimatedCompletionTime" not in running["status"]
        assert key not in json.dumps(pod.pod)
        assert (await pod.end()).completed == 1
    done = await api.phase("job", "Succeeded")
    assert "live" not in done["status"]
    assert done["status"]["progress"]["summary"] == "1 served"
    assert "output" not in done["status"]["results"]
    assert condition(done, "Complete")["message"].endswith("Nobody wanted anything for 3 s.")
    await api.bound("behind")


async def test_a_cancelled_one_finishes_what_is_in_progress_and_its_slot_goes_to_the_next(
    api: Api, add_node: AddNode, tmp_path: Path, address: str
) -> None:
    node = await add_node()
    await api.create(live_job("job", **on(node)))
    await api.create(template_job("next", **on(node)))
    go = asyncio.Event()

    async def held(prompt: str, before: int) -> None:
        await go.wait()

    async with FakeEngine(held) as engine:
        pod = Pod(api, await api.bound("job"), engine, tmp_path, address)
        await pod.start()
        url, key = (await reachable(api, "job"))["url"], await key_for(api, "job")
        asked = asyncio.create_task(ask(url, key))
        await engine.has_seen(1)
        await api.edit("job", cancel=True)
        await pod.heed()
        go.set()
        assert (await asked)[0] == 200
        assert (await pod.end()).completed == 1
    job = await api.phase("job", "Cancelled")
    assert "live" not in job["status"]
    assert (states(job), job["status"]["results"]["completed"]) == (["Stopped"], 1)
    await api.bound("next")


async def test_resumed_or_after_the_loss_of_its_pod_it_serves_again(
    api: Api, add_node: AddNode, tmp_path: Path, address: str
) -> None:
    node = await add_node()
    await api.create(live_job("job", **on(node)))
    async with FakeEngine() as engine:
        first = Pod(api, await api.bound("job"), engine, tmp_path, address)
        await first.start()
        await reachable(api, "job")
        await api.edit("job", suspend=True)
        await first.heed()
        await first.end()
        suspended = await api.phase("job", "Suspended")
        assert "live" not in suspended["status"]
        await api.edit("job", suspend=False)
        second = Pod(api, await api.bound("job"), engine, tmp_path, address)
        await second.start()
        await reachable(api, "job")
        await recorded(api, "job")
        await second.kill()
        third = Pod(api, await next_pod(api, second.pod), engine, tmp_path, address)
        assert third.spec.attempt == 3
        assert "live" not in (await api.job("job"))["status"]
        await third.start()
        url = (await reachable(api, "job"))["url"]
        assert (await ask(url, await key_for(api, "job")))[0] == 200
        await api.edit("job", cancel=True)
        await third.heed()
        await third.end()
    assert states(await api.phase("job", "Cancelled")) == ["Stopped", "Lost", "Stopped"]


async def next_pod(api: Api, lost: JSON) -> JSON:
    """The pod of the attempt after the one that was lost; it waits for no back-off."""

    async def there() -> JSON | None:
        pod = await api.bound("job")
        return pod if pod["metadata"]["name"] != lost["metadata"]["name"] else None

    found: JSON = await eventually("the next attempt", there)
    return found


async def test_its_own_secret_is_its_only_key(api: Api, add_node: AddNode, tmp_path: Path, address: str) -> None:
    node = await add_node()
    source = {"keyFrom": {"secretKeyRef": {"name": "chat-key", "key": "token"}}}
    await api.create(live_job("job", live=source, **on(node)))
    (tmp_path / "secrets" / "chat-key").mkdir(parents=True)
    (tmp_path / "secrets" / "chat-key" / "token").write_text("mine")
    async with FakeEngine() as engine:
        pod = Pod(api, await api.bound("job"), engine, tmp_path, address)
        [volume] = [v["secret"] for v in pod.pod["spec"]["volumes"] if "secret" in v]
        assert (volume["secretName"], volume["items"]) == ("chat-key", [{"key": "token", "path": "token"}])
        await pod.start()
        url = (await reachable(api, "job"))["url"]
        assert (await ask(url, "mine"))[0] == 200
        assert (await ask(url, await key_for(api, "job")))[0] == 401
        await api.edit("job", cancel=True)
        await pod.heed()
        await pod.end()

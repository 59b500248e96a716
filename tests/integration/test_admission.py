"""The admission webhook as the API server calls it: the chart's configuration, a Service, two operators behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from kubernetes import client, config

from gpubatch_operator.kube.client import ApiError, Client
from support.api import Api, eventually, template_job
from support.replicas import Replicas, address, asked, attempt
from support.webhook import Webhook

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]
FULL = "Queue full (20/20 jobs). Try again later."
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def replicas(api: Api, kubeconfig: Path, tmp_path: Path) -> AsyncIterator[Replicas]:
    """None yet; they are asked about this test's jobs only."""
    webhook = Webhook(api.client, api.namespace, address(kubeconfig))
    with ExitStack() as stack:
        yield Replicas(api, webhook, kubeconfig, tmp_path, stack)
        await webhook.remove_all()


@pytest.fixture(scope="module")
def shared(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One replica for all tests that only ask it something: at most two jobs of a namespace may wait."""
    folder = tmp_path_factory.mktemp("shared")
    caps = {"*": {"maxQueueDepth": 2, "maxPriority": 5}}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("KUBECONFIG", str(kubeconfig))

        async def begin() -> None:
            client = await Client.connect()
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shared"}}
            await client.create("/api/v1/namespaces", body)
            webhook = Webhook(client, "shared", address(kubeconfig))
            await webhook.install({"matchLabels": {"ask": "shared"}})
            replicas = Replicas(Api(client, "shared"), webhook, kubeconfig, folder, stack)
            await replicas.start("only", namespace_caps=json.dumps(caps))
            await client.close()

        async def end() -> None:
            client = await Client.connect()
            await Webhook(client, "shared", "").remove_all()
            await client.close()

        asyncio.run(begin())
        yield
        asyncio.run(end())


@pytest.fixture
async def asking(api: Api, shared: None) -> None:
    """The shared replica is asked about this test's jobs."""
    await api.client.patch(f"/api/v1/namespaces/{api.namespace}", {"metadata": {"labels": {"ask": "shared"}}})
    await asked(api)


CAPPED = {"namespace_caps": '{"*": {"maxPriority": 999}}'}


def waits(name: str, **spec: Any) -> JSON:
    """A job that no node will ever take."""
    return template_job(name, gpuResource="gpubatch.dev/none", **spec)


async def answered(api: Api, job: JSON) -> ApiError | None:
    """As a client that tries again when the webhook couldn't be called, and only then."""
    while (error := await attempt(api, job)) and error.status == 500:
        pass
    return error


async def thirty_at_once(api: Api, label: str) -> list[ApiError]:
    """The refusals."""
    results = await asyncio.gather(*(answered(api, waits(f"{label}-{i}")) for i in range(30)))
    return [r for r in results if r]


def are_ten_refusals(refusals: list[ApiError]) -> None:
    assert [(r.status, r.reason) for r in refusals] == [(429, "TooManyRequests")] * 10, refusals
    assert all(r.message.endswith(f"denied the request: {FULL}") for r in refusals), refusals


async def test_of_thirty_jobs_created_at_once_through_two_replicas_twenty_are_accepted_each_time(
    api: Api, replicas: Replicas
) -> None:
    await replicas.webhook.install(**{"admission.failurePolicy": "Fail"})
    first, _ = await replicas.two(**CAPPED)
    await asked(api)
    for turn in range(20):
        are_ten_refusals(await thirty_at_once(api, f"turn-{turn}"))
        await api.client.request("DELETE", api.jobs_path)

    # And while the leader is shut down: it answers what it was asked.
    await replicas.webhook.remove("first")  # and then it has some seconds, the chart's preStop
    creating = asyncio.create_task(thirty_at_once(api, "last"))
    await asyncio.sleep(0.1)
    assert await asyncio.to_thread(first.stop) == 0
    are_ten_refusals(await creating)


async def test_the_limit_is_exact_while_a_replica_is_killed(api: Api, replicas: Replicas) -> None:
    await replicas.webhook.install(**{"admission.failurePolicy": "Fail"})
    await replicas.two(**CAPPED)
    await asked(api)
    for dying, delay in (("first", 0.03), ("second", 0.1)):  # the leader, and then the leader again
        operator = replicas.running[dying]
        creating = asyncio.create_task(thirty_at_once(api, dying))
        await asyncio.sleep(delay)
        operator.kill()
        await replicas.webhook.remove(dying)  # as the kubelet would, if a little later
        are_ten_refusals(await creating)
        assert len(await api.jobs()) == 20
        await api.client.request("DELETE", api.jobs_path)
        operator.start()
        await replicas.serving(operator, dying)


async def test_a_creation_that_a_quota_refuses_gives_its_place_back(api: Api, replicas: Replicas) -> None:
    path = f"/api/v1/namespaces/{api.namespace}/resourcequotas"
    hard = {"count/gpubatchjobs.gpubatch.dev": "1"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "jobs"}, "spec": {"hard": hard}}
    await api.client.create(path, quota)
    await replicas.webhook.install()
    await replicas.start("only", **CAPPED, max_queue_depth=3)
    await asked(api)

    # The controller may take minutes to count a kind of object that was defined only now.
    used = dict.fromkeys(hard, "0")
    await api.client.patch(f"{path}/jobs/status", {"status": {"hard": hard, "used": used}})

    async def first() -> bool:  # the API server may not have heard of the quota's status yet
        return await attempt(api, waits("first")) is None

    await eventually("the first job to be created", first)
    for i in range(2):
        error = await attempt(api, waits(f"too-many-{i}"))
        assert error is not None
        assert "exceeded quota" in error.message
    await api.client.request("DELETE", f"{path}/jobs")

    async def accepted() -> bool:
        return await attempt(api, waits(f"after-{len(await api.jobs())}")) is None

    await eventually("the second place to be free", accepted)
    await eventually("the third place to be free", accepted)
    error = await attempt(api, waits("fourth"))
    assert error is not None
    assert "Queue full (3/3 jobs)" in error.message


async def test_a_dry_run_takes_no_place_and_writes_nothing(api: Api, asking: None) -> None:
    book = "/api/v1/namespaces/shared/configmaps/shared-queue"
    assert await attempt(api, waits("one")) is None
    before = await api.client.get(book)
    assert [await attempt(api, waits(f"dry-{i}"), dryRun="All") for i in range(5)] == [None] * 5
    assert (await api.client.get(book))["data"] == before["data"]
    assert await attempt(api, waits("two")) is None


async def test_a_suspended_job_takes_no_place_and_is_not_refused_when_it_comes_back(api: Api, asking: None) -> None:
    assert [await attempt(api, waits(f"suspended-{i}", suspend=True)) for i in range(3)] == [None] * 3
    for name in ("waiting-0", "waiting-1"):
        assert await attempt(api, waits(name)) is None
        await api.phase(name, "Queued")  # the older one would else be first
    await api.client.patch(f"{api.jobs_path}/suspended-0", {"spec": {"suspend": False}})
    await api.phase("suspended-0", "Held")


async def test_a_refused_client_is_told_at_once_and_not_when_to_try_again(
    api: Api, asking: None, kubeconfig: Path
) -> None:
    assert [await attempt(api, waits(name)) for name in ("zero", "one")] == [None, None]
    said = await kubectl(kubeconfig, api, waits("two"))
    assert said.endswith(f"denied the request: Queue full (2/2 jobs in namespace {api.namespace}). Try again later.\n")
    assert "(TooManyRequests)" in said

    def by_the_python_client() -> tuple[int, dict[str, str]]:
        jobs = client.CustomObjectsApi(config.new_client_from_config(str(kubeconfig)))
        with pytest.raises(client.ApiException) as refused:
            jobs.create_namespaced_custom_object(
                "gpubatch.dev", "v1alpha1", api.namespace, "gpubatchjobs", waits("three")
            )
        return refused.value.status, dict(refused.value.headers)

    status, headers = await asyncio.to_thread(by_the_python_client)
    assert status == 429
    assert "retry-after" not in {h.lower() for h in headers}


async def kubectl(kubeconfig: Path, api: Api, job: JSON, *options: str) -> str:
    """What `kubectl create` says on stderr."""
    path = subprocess.check_output([ROOT / "hack" / "cluster", "tool", "kubectl"], text=True).strip()  # noqa: ASYNC221
    command = [path, "--kubeconfig", kubeconfig, "--namespace", api.namespace, "create", "-f", "-", *options]
    done = await asyncio.to_thread(
        subprocess.run, command, input=json.dumps(job), text=True, capture_output=True, timeout=60
    )
    return str(done.stderr)


async def test_what_no_node_can_take_is_accepted_with_a_warning(
    api: Api, asking: None, kubeconfig: Path, add_node: AddNode
) -> None:
    node = await add_node(labels={"zone": "a"})
    path = f"/api/v1/nodes/{node}/status"

    async def says(job: JSON, text: str) -> None:
        async def said() -> bool:
            return text in await kubectl(kubeconfig, api, job, "--dry-run=server")

        await eventually(text, said)

    own = {"kubernetes.io/hostname": node}
    assert "Warning" not in await kubectl(kubeconfig, api, template_job("fits", nodeSelector=own))
    await says(
        template_job("x", nodeSelector={"zone": "b"}),
        "Warning: no node can take the job, it will wait: 1 node: label zone is not b",
    )
    await says(waits("x"), "Warning: no node with gpubatch.dev/none is ready; the job will wait")
    ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": ""}
    await api.client.patch(path, {"status": {"conditions": [ready]}})
    await says(template_job("x", nodeSelector=own), "Warning: no GPU node is ready (last seen ")


async def test_an_administrators_caps_of_a_namespace_hold(api: Api, asking: None) -> None:
    error = await attempt(api, waits("high", priority=6))
    assert error is not None
    assert error.status == 403
    assert f"spec.priority is 6, and jobs in namespace {api.namespace} may have at most 5" in error.message
    assert [await attempt(api, waits(n, priority=p)) for n, p in (("one", 5), ("two", -1))] == [None, None]
    path = f"{api.jobs_path}/two"
    with pytest.raises(ApiError, match="may have at most 5"):
        await api.client.patch(path, {"spec": {"priority": 6}})
    await api.client.patch(path, {"spec": {"priority": 4}})
    error = await attempt(api, waits("three"))
    assert error is not None
    assert f"Queue full (2/2 jobs in namespace {api.namespace}). Try again later." in error.message


async def test_without_the_webhook_jobs_are_taken_all_the_same(api: Api, replicas: Replicas) -> None:
    await replicas.webhook.install()
    operator = await replicas.start("only", max_queue_depth=1, **CAPPED)
    await asked(api)
    assert await attempt(api, waits("one")) is None
    operator.kill()
    assert await attempt(api, waits("two")) is None


async def test_the_certificate_is_replaced_without_a_request_being_lost(api: Api, replicas: Replicas) -> None:
    await replicas.webhook.install(**{"admission.failurePolicy": "Fail"})
    await replicas.two(**CAPPED, admission_certificate_seconds=10)
    await asked(api)
    served: set[str] = set()
    trusted: set[int] = set()

    async def turn() -> bool:
        error = await attempt(api, template_job("probe", priority=1000), dryRun="All")
        assert error is not None
        assert error.status == 403, error
        served.update([await asyncio.to_thread(certificate, port) for port in replicas.ports.values()])
        bundle = (await replicas.webhook.configuration())["webhooks"][0]["clientConfig"]["caBundle"]
        trusted.add(base64.b64decode(bundle).count(b"BEGIN"))
        return len(served) >= 3 and max(trusted) > 1

    await eventually("three certificates to have been served", turn)


def certificate(port: int) -> str:
    """The serial number of what is served there."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as s, context.wrap_socket(s) as tls:
        data = tls.getpeercert(binary_form=True)
    assert data is not None
    return str(x509.load_der_x509_certificate(data).serial_number)

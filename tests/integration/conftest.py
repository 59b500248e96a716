"""A real API server, scheduler and controller manager, and nodes that are nothing but objects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from gpubatch_operator.kube.client import ApiError, Client
from support import cluster
from support import s3 as s3_support
from support.api import Api, eventually, namespace
from support.clouds import Cloud, XmlApi, azurite, gcs_server
from support.gateways import MODEL, NOWHERE, Gateways
from support.process import OperatorProcess

APART = ("test_chaos.py", "test_runner_crashes.py")
LONGEST = (
    "test_chaos.py",
    "test_operator.py",
    "test_life.py",
    "test_availability.py",
    "test_admission.py",
    "test_nodes.py",
)
ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "hack" / "cluster"
PRIORITY_CLASS = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "gpubatch-runner"},
    "value": 0,
    "preemptionPolicy": "Never",
}


class Shares(LoadScopeScheduling):
    """What a worker of pytest-xdist takes at a time: a file, whose tests share an operator, or one of those apart."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if Path(file).name in APART else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    return Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """A control plane of the tests' own, beside any other cluster of this machine."""
    env = {**os.environ, "GPUBATCH_CLUSTER_ID": cluster.own()}
    subprocess.run([CLUSTER, "down"], env=env, check=True)
    subprocess.run([CLUSTER, "up", "--nodes", "0"], env=env, check=True, stdout=subprocess.DEVNULL)
    path = subprocess.check_output([CLUSTER, "kubeconfig"], env=env, text=True).strip()
    kubectl = subprocess.check_output([CLUSTER, "tool", "kubectl"], env=env, text=True).strip()
    for manifest in ((ROOT / "crds" / "gpubatchjobs.yaml").read_text(), json.dumps(PRIORITY_CLASS)):
        subprocess.run([kubectl, "--kubeconfig", path, "apply", "-f", "-"], input=manifest, text=True, check=True)
    wait = ["wait", "--for=condition=Established", "crd/gpubatchjobs.gpubatch.dev", "--timeout=60s"]
    subprocess.run([kubectl, "--kubeconfig", path, *wait], check=True)
    yield Path(path)
    subprocess.run([CLUSTER, "down"], env=env, check=True)


@pytest.fixture
async def client(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """The tests' own access to the API server."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    client = await Client.connect()
    yield client
    await client.close()


@pytest.fixture
async def api(client: Client, request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    """A namespace of the test's own."""
    async with namespace(client, f"test-{abs(hash(request.node.nodeid)) % 10**10}") as api:
        yield api


AddNode = Callable[..., Awaitable[str]]


@pytest.fixture
async def add_node(api: Api) -> AsyncIterator[AddNode]:
    """Makes nodes that are Ready and stay so for as long as a test lasts."""
    made: list[str] = []

    async def add(gpus: int = 1, labels: dict[str, str] | None = None, **spec: Any) -> str:
        name = f"{api.namespace}-{len(made)}"
        made.append(name)
        labels = {"kubernetes.io/hostname": name, **(labels or {})}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}
        await api.client.create("/api/v1/nodes", node)
        room = {"cpu": "64", "memory": "256Gi", "pods": "110", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        body = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
        await api.client.patch(f"/api/v1/nodes/{name}/status", body)
        # The controller manager taints new nodes until it has seen that they are Ready.
        await eventually(f"{name} to be schedulable", lambda: _untainted(api, name))
        return name

    yield add
    for name in made:
        with contextlib.suppress(ApiError):  # the test has deleted it
            await api.client.request("DELETE", f"/api/v1/nodes/{name}")


async def _untainted(api: Api, name: str) -> bool:
    taints = (await api.client.get(f"/api/v1/nodes/{name}"))["spec"].get("taints") or []
    return not any(t["key"] == "node.kubernetes.io/not-ready" for t in taints)


@pytest.fixture
def operator(kubeconfig: Path, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that runs for as long as the test."""
    with OperatorProcess(kubeconfig, tmp_path / "operator.log") as process:
        yield process


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_support.S3]:
    with s3_support.serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: s3_support.S3, monkeypatch: pytest.MonkeyPatch) -> s3_support.S3:
    """The server with an empty bucket, and the user's keys in the environment as the pod has them."""
    s3_server.clear()
    for name, value in s3_support.KEYS.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
async def gateways(api: Api, kubeconfig: Path, tmp_path: Path, s3: s3_support.S3) -> AsyncIterator[Gateways]:
    async with AsyncExitStack() as stack:
        found = Gateways(api, kubeconfig, tmp_path, s3, stack)
        found.models(**{MODEL: NOWHERE})
        yield found
    shutil.rmtree(s3.root / "batches" / api.namespace, ignore_errors=True)


# --- Google's and Azure's object storage


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Object stores of clouds; each is started when it is first asked for."""
    with ExitStack() as stack:
        started: dict[str, Any] = {}

        def server(scheme: str) -> Any:
            if scheme not in started:
                serve = gcs_server if scheme == "gs" else azurite
                started[scheme] = stack.enter_context(serve(tmp_path_factory.mktemp(scheme)))
            return started[scheme]

        yield server


@pytest.fixture(params=["gs", "az"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Of the locations."""
    return str(request.param)


@pytest.fixture
async def google(scheme: str, clouds: Any) -> AsyncIterator[XmlApi | None]:
    """What stands before Google's emulator."""
    if scheme != "gs":
        yield None
        return
    async with XmlApi(clouds(scheme)) as api:
        yield api


@pytest.fixture
def cloud(scheme: str, clouds: Any, google: XmlApi | None, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The cloud with an empty bucket, and the job's keys in the environment as the pod has them."""
    found: Cloud = google.cloud if google else clouds(scheme)
    for name, value in found.keys.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
async def emptied(cloud: Cloud) -> Cloud:
    await asyncio.to_thread(cloud.clear)
    return cloud

"""The command line as it is installed, on a real API server and S3 server, with the real operator.

The kubelet is played by the tests, its port for logs included.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.api import Api, template_job
from support.commandline import CommandLine, Told, install
from support.containerlogs import serving
from support.process import OperatorProcess
from support.s3 import KEYS, S3, lines
from support.story import NOWHERE, inference_running, on, outcome, run_spec, validated

AddNode = Callable[..., Awaitable[str]]
Run = Callable[..., Awaitable[Told]]
CLUSTER = Path(__file__).parents[2] / "hack" / "cluster"


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    settings: dict[str, Any] = {"stop_seconds": 5, "webhook_attempts": 1}
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("cli") / "operator.log", **settings) as process:
        yield process


@pytest.fixture(scope="module")
def commandline(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The programs, installed."""
    kubectl = subprocess.check_output([CLUSTER, "tool", "kubectl"], text=True).strip()
    return CommandLine(install(tmp_path_factory.mktemp("installed")), kubeconfig, [os.path.dirname(kubectl)])


@pytest.fixture
def run(commandline: CommandLine, api: Api) -> Run:
    """Runs a command in the test's namespace."""

    async def call(*command: str, **environment: str) -> Told:
        return await commandline.run("-n", api.namespace, *command, **environment)

    return call


async def secret(api: Api, name: str, **data: str) -> None:
    found = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
    await api.client.create(f"/api/v1/namespaces/{api.namespace}/secrets", found)


def submitted(told: Told) -> str:
    assert told.code == 0, told.err
    return told.out.split()[0].removeprefix("gpubatchjob.gpubatch.dev/")


# --- a job's whole life


async def test_from_a_file_on_a_laptop_to_its_results(
    api: Api, add_node: AddNode, run: Run, s3: S3, tmp_path: Path
) -> None:
    node = await add_node()
    await secret(api, "keys", **KEYS)
    file = tmp_path / "Chats.jsonl"
    file.write_bytes(lines(20))
    told = await run(
        "submit", str(file), "--model", "org/model", "--output", "s3://batches/out.jsonl", "--endpoint", s3.endpoint,
        "--secret", "keys", "--node-selector", f"kubernetes.io/hostname={node}", "--priority", "1",
    )  # fmt: skip
    name = submitted(told)
    assert name.startswith("chats-")
    assert s3.names() == ["out.jsonl.input.jsonl"]  # by the keys of the Secret: the environment had none
    assert (s3.root / "batches" / "out.jsonl.input.jsonl").read_bytes() == lines(20)
    assert f"{name} (namespace {api.namespace}): Validating" in told.out
    job = await api.job(name)
    assert {entry["manager"] for entry in job["metadata"]["managedFields"]} == {
        "gpubatch-cli",
        "gpubatch-operator",
    } or ("gpubatch-cli" in {entry["manager"] for entry in job["metadata"]["managedFields"]})
    assert job["spec"]["inference"]["servedModelName"] == "tiny"

    await validated(api, name)
    pod = await api.bound(name)
    assert run_spec(pod)["input"] == "s3://batches/out.jsonl.input.jsonl"
    await api.play_running(pod)
    await api.phase(name, "Starting")  # its runner, which isn't there, has the last word on Running
    [found] = json.loads((await run("queue", "-o", "json")).out)["jobs"]
    assert (found["name"], found["phase"], found["position"], found["node"]) == (name, "Starting", 0, node)
    assert f"Starting on {node}" in (await run("why", name)).out

    s3.put("out.jsonl", b'{"custom_id": "r0"}\n')
    told_end = outcome().replace("s3://bucket/", "s3://batches/")
    await api.play_end(pod, message=told_end)
    told = await run("wait", name)
    assert told.code == 0, told.err
    folder = tmp_path / "results"
    told = await run("results", name, "--fetch", str(folder))
    assert told.code == 0, told.err
    assert [path.name for path in folder.iterdir()] == ["out.jsonl"]
    assert "there is no errors file" in told.err
    assert (await run("results", name, "--cat", **KEYS)).out == '{"custom_id": "r0"}\n'
    told = await run("results", name, "--cat", **(KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}))
    assert told.code == 3
    assert "access denied" in told.err


async def test_logs_come_from_runner_and_engine_of_each_attempt(
    api: Api, add_node: AddNode, run: Run, tmp_path: Path
) -> None:
    node = await add_node()
    async with serving(tmp_path) as kubelet:
        await kubelet.serve(api, node)
        pod = await inference_running(api, "job", **on(node))
        kubelet.lines[f"{pod['metadata']['name']}/runner"] = "sent 10 requests\n"
        kubelet.lines[f"{pod['metadata']['name']}/engine"] = "model loaded\n"
        assert (await run("logs", "job")).out == "sent 10 requests\n"
        assert (await run("logs", "job", "-c", "engine")).out == "model loaded\n"
        await api.play_end(pod, message=outcome("EngineFailed"))
        told = await run("logs", "job", "-f")
        assert (told.code, told.out) == (1, "sent 10 requests\n")
        assert (await run("logs", "job", "--attempt", "9")).code == 3
    await api.play_gone(pod)
    told = await run("logs", "job")
    assert told.code == 3
    assert "is gone, and its log with it" in told.err


# --- who may, and what is there


async def test_kubectl_finds_and_completes_the_plugin(api: Api, commandline: CommandLine) -> None:
    await api.create(template_job("nightly", **NOWHERE))
    told = await commandline.run("gpubatch", "queue", "-n", api.namespace, "-o", "name", program="kubectl")
    assert told.out == "gpubatchjob.gpubatch.dev/nightly\n", told.err
    told = await commandline.run("gpubatch", "why", "absent", "-n", api.namespace, program="kubectl")
    assert told.code == 3
    assert told.err.startswith("kubectl gpubatch: there is no job 'absent'")
    told = await commandline.run("__complete", "gpubatch", "why", "-n", api.namespace, "nig", program="kubectl")
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["nightly", ":4"], told.err

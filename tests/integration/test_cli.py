"""The command line as it is installed, on a real API server and S3 server, with the real operator.

The kubelet is played by the tests, its port for logs included.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.api import JSON, Api, eventually, template_job
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
    assert f"{name} (namespace {api.namespace}): " in told.out  # where it stands: how far that is, is the operator's
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


async def test_a_large_file_is_uploaded_whole(api: Api, run: Run, s3: S3, tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    file.write_bytes(
        b"".join(
            line.replace(b'"content": "', b'"content": "' + b"x" * 40_000)
            for line in lines(300).splitlines(keepends=True)
        )
    )
    assert file.stat().st_size > 8 * 1024 * 1024, "it isn't sent in parts"
    more = ["--output", "s3://batches/o", "--endpoint", s3.endpoint, "--node-selector", "no=such-node", "-o", "name"]
    told = await run("submit", str(file), "--model", "m", "--name", "large", *more, **KEYS)
    assert told.out == "gpubatchjob.gpubatch.dev/large\n", told.err
    assert (s3.root / "batches" / "o.input.jsonl").read_bytes() == file.read_bytes()


async def test_nothing_is_uploaded_for_a_job_that_the_cluster_refuses(
    api: Api, run: Run, s3: S3, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(lines(2))
    to = ["--model", "m", "--output", "s3://batches/o", "--endpoint", s3.endpoint]
    told = await run("submit", str(file), *to, "--node-selector", "a=" + "x" * 64, **KEYS)
    assert told.code in (2, 3)
    assert "nodeSelector" in told.err
    told = await run("submit", str(file), *to, "--dry-run=server", **KEYS)
    assert (told.code, told.out) == (0, "")
    told = await run("submit", str(file), *to, "-n", "absent-namespace", **KEYS)
    assert told.code == 3
    assert "absent-namespace" in told.err
    assert s3.names() == []
    assert await api.jobs() == {}
    told = await run("submit", str(file), *to, **(KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}))
    assert told.code == 3
    assert "access denied" in told.err
    assert await api.jobs() == {}


async def test_manifests_are_applied_server_side_and_never_taken_from_another_tool(
    api: Api, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.yaml"
    jobs = [template_job("a", **NOWHERE), template_job("b", **NOWHERE, priority=1)]
    file.write_text(yaml.safe_dump_all(jobs))
    told = await run("submit", str(file))
    assert told.code == 0, told.err
    assert "gpubatchjob.gpubatch.dev/a created" in told.out
    assert f"b (namespace {api.namespace}): " in told.out
    generation = (await api.job("a"))["metadata"]["generation"]
    assert "gpubatchjob.gpubatch.dev/a configured" in (await run("submit", str(file))).out
    assert (await api.job("a"))["metadata"]["generation"] == generation

    path = f"{api.jobs_path}/a"
    theirs = {"apiVersion": jobs[0]["apiVersion"], "kind": jobs[0]["kind"], "spec": {"priority": 7}}
    query = {"fieldManager": "argocd", "force": "true"}
    await api.client.request("PATCH", path, theirs, query=query, content_type="application/apply-patch+yaml")
    jobs[0]["spec"]["priority"] = 2
    file.write_text(yaml.safe_dump(jobs[0]))
    told = await run("submit", str(file))
    assert told.code == 3
    assert "argocd" in told.err
    assert "--force" in told.err
    assert (await run("submit", str(file), "--force")).code == 0
    assert (await api.job("a"))["spec"]["priority"] == 2

    file.write_text(yaml.safe_dump(template_job("typo", **NOWHERE) | {"spec": {"priorty": 1}}))
    told = await run("submit", str(file))
    assert told.code == 3
    assert "priorty" in told.err


# --- steering


async def test_wishes_are_carried_out_by_the_operator(api: Api, add_node: AddNode, run: Run) -> None:
    node = await add_node()
    pod = await inference_running(api, "runs", **on(node))
    for name in "abc":
        await api.create(template_job(name, **on(node)))
    await api.positions("a", "b", "c")
    assert (await run("priority", "c", "high")).out == "c: priority 0 -> 1\n"
    await api.positions("c", "a", "b")
    told = await run("why", "b")
    assert told.out.splitlines()[0].startswith(f"b (namespace {api.namespace}): Queued, position 3, priority 0")
    assert "before it: runs (Starting), c (Queued), a (Queued)" in told.out
    assert (await run("suspend", "a", "b")).code == 0
    await api.positions("c")
    assert (await run("resume", "b")).code == 0
    await api.positions("c", "b")
    assert (await run("cancel", "c")).code == 0
    assert (await run("wait", "c")).code == 4
    assert (await run("rerun", "c")).out == "c: runs again, as run 2\n"
    await api.positions("c", "b")  # a new run keeps the priority

    await api.play_end(pod, message=outcome("AccessDenied", completed=0))
    told = await run("wait", "runs")
    assert told.code == 1
    assert "AccessDenied" in told.err
    assert "gpubatch retry" in (await run("why", "runs")).out
    assert (await run("retry", "runs")).code == 0
    again = await api.phase("runs", "Queued")
    assert again["status"]["retry"]
    told = await run("wait", "runs", "--timeout", "1s")
    assert told.code == 124


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


async def test_webhooks_that_were_given_up_are_listed_and_sent_again(api: Api, run: Run) -> None:
    hook = {"url": "http://127.0.0.1:1/hook", "events": ["cancelled"]}  # an address that no webhook may go to
    await api.create(template_job("job", **NOWHERE, webhooks=[hook]))
    await api.positions("job")
    assert (await run("cancel", "job")).code == 0

    async def given_up() -> list[JSON]:
        told = await run("deliveries", "--dead", "-o", "json")
        found: list[JSON] = json.loads(told.out)["deliveries"]
        return found

    [dead] = await eventually("the delivery to be given up", given_up)
    assert (dead["job"], dead["event"], dead["webhook"]) == ("job", "cancelled", hook["url"])
    assert "127.0.0.1" in dead["lastError"]
    assert dead["id"] in (await run("deliveries", "job")).out
    assert "webhooks: 1 given up" in (await run("why", "job")).out
    assert (await run("redeliver", "job")).out == "job: sending 1 again\n"

    async def heeded() -> bool:
        return "redelivered" in (await api.job("job"))["status"]

    await eventually("the operator to heed it", heeded)
    [again] = await eventually("the delivery to be given up again", given_up)
    assert again["id"] == dead["id"]


# --- who may, and what is there


async def restricted(api: Api, kubeconfig: Path, folder: Path, role: str | None) -> Path:
    """A kubeconfig of a service account that has this role in the test's namespace, or none."""
    name = role or "nobody"
    base = f"/api/v1/namespaces/{api.namespace}/serviceaccounts"
    await api.client.create(base, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    if role:
        rules = [{"apiGroups": ["gpubatch.dev"], "resources": ["gpubatchjobs"], "verbs": ["get", "list", "watch"]}]
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{api.namespace}"
        group = "rbac.authorization.k8s.io"
        await api.client.create(
            f"{rbac}/roles", {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": role}, "rules": rules}
        )
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": api.namespace}],
        }
        await api.client.create(f"{rbac}/rolebindings", binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await api.client.create(f"{base}/{name}/token", request))["status"]["token"]
    config = yaml.safe_load(await asyncio.to_thread(kubeconfig.read_text))
    for user in config["users"]:
        user["user"] = {"token": token}
    for context in config["contexts"]:
        context["context"]["namespace"] = api.namespace
    file = folder / f"{name}.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


async def test_rights_are_those_of_the_user(
    api: Api, kubeconfig: Path, commandline: CommandLine, tmp_path: Path
) -> None:
    await api.create(template_job("mine", **NOWHERE))
    await api.positions("mine")
    nobody = await restricted(api, kubeconfig, tmp_path, None)
    told = await commandline.run("queue", KUBECONFIG=str(nobody))
    assert told.code == 3
    assert "cannot list resource" in told.err
    assert "role `edit`" in told.err

    async def seen() -> bool:  # the authorizer hears of a new role a moment later
        return (await commandline.run("queue", KUBECONFIG=str(viewer))).code == 0

    viewer = await restricted(api, kubeconfig, tmp_path, "viewer")
    await eventually("the viewer's role to count", seen)
    told = await commandline.run("why", "mine", KUBECONFIG=str(viewer))  # those of other namespaces aren't shown
    assert "position 1" in told.out, told.err
    told = await commandline.run("cancel", "mine", KUBECONFIG=str(viewer))
    assert told.code == 3
    assert "cannot patch resource" in told.err
    assert not (await api.job("mine"))["spec"].get("cancel")


async def test_kubectl_finds_and_completes_the_plugin(api: Api, commandline: CommandLine) -> None:
    await api.create(template_job("nightly", **NOWHERE))
    told = await commandline.run("gpubatch", "queue", "-n", api.namespace, "-o", "name", program="kubectl")
    assert told.out == "gpubatchjob.gpubatch.dev/nightly\n", told.err
    told = await commandline.run("gpubatch", "why", "absent", "-n", api.namespace, program="kubectl")
    assert told.code == 3
    assert told.err.startswith("kubectl gpubatch: there is no job 'absent'")
    told = await commandline.run("__complete", "gpubatch", "why", "-n", api.namespace, "nig", program="kubectl")
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["nightly", ":4"], told.err


async def test_bash_completes_the_names_of_jobs(api: Api, commandline: CommandLine) -> None:
    await api.create(template_job("nightly", **NOWHERE))
    script = f"""
      source <(gpubatch completion bash)
      COMP_WORDS=(gpubatch cancel -n {api.namespace} nig) COMP_CWORD=4
      _gpubatch_completion gpubatch
      echo "${{COMPREPLY[*]}}"
    """
    told = await commandline.run("-c", script, program="bash")
    assert told.out == "nightly\n", told.err


async def test_on_a_terminal_the_queue_is_live(api: Api, commandline: CommandLine) -> None:
    await api.create(template_job("nightly", **NOWHERE))
    await api.positions("nightly")
    code, shown = await commandline.on_a_terminal("queue", "-n", api.namespace, "-w", until="Queued")
    assert code == 130
    assert "nightly" in shown
    assert "\x1b[" in shown, "no colours, no live table"
    assert "Traceback" not in shown
    code, shown = await commandline.on_a_terminal("wait", "-n", api.namespace, "nightly", until="Queued")
    assert code == 130
    assert "\u2501" in shown, "no bar"

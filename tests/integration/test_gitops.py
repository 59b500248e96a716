"""Jobs under GitOps: what is committed runs, nothing drifts, and each tool's own code tells how a job is."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import gitops
from support.api import Api, eventually, inference_job, template_job
from support.gitops import Repository
from support.process import OperatorProcess

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]

VALID = json.dumps({"valid": True, "requests": 10, "inputTokens": 100})
DONE = json.dumps({"succeeded": True, "total": 10, "completed": 9, "failed": 1, "output": "s3://bucket/out.jsonl"})
SPEC = {
    # Numbers, quantities and lists that a server may write in another way than they were committed.
    "priority": 0,
    "gpus": 1,
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "webhooks": [{"url": "https://example.com/hook"}],
    "ttlSecondsAfterFinished": 1,
}


ENGINE = "- {op: add, path: /spec/inference/engine, value: {image: 'vllm/vllm-openai:v1'}}"


@pytest.fixture(scope="module")
def health_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gitops.build_health(tmp_path_factory.mktemp("health"))


class Watched:
    """A committed job, looked at through each phase of its life."""

    def __init__(self, api: Api, repository: Repository, program: Path, name: str) -> None:
        self._api, self._repository, self._program, self._name = api, repository, program, name
        self.healths: dict[str, tuple[str, str]] = {}

    async def still(self, *phases: str, generation: int) -> None:
        """Wait for a phase; then nothing differs, and applying twice changes nothing."""
        job = await self._api.phase(self._name, *phases)
        assert job["metadata"]["generation"] == generation, f"something has written to spec: {job['metadata']}"
        self.healths[job["status"]["phase"]] = gitops.health(self._program, job)[0]
        for _ in range(2):
            await asyncio.to_thread(self._repository.apply)
        assert await asyncio.to_thread(self._repository.diff) == ""
        after = await self._api.job(self._name)
        assert after["metadata"]["generation"] == generation, "an apply of the same has changed it"
        owners = {f["manager"] for f in after["metadata"]["managedFields"] if f.get("subresource") != "status"}
        assert owners == {gitops.MANAGER}, "somebody else owns fields that were committed"


@pytest.mark.parametrize("kind", ["inference by kustomize", "template by helm"])
async def test_nothing_drifts_in_a_jobs_whole_life(
    api: Api,
    operator: OperatorProcess,
    add_node: AddNode,
    kubeconfig: Path,
    tmp_path: Path,
    health_program: Path,
    kind: str,
) -> None:
    inference = kind.startswith("inference")
    make, write = (inference_job, gitops.write_kustomization) if inference else (template_job, gitops.write_chart)
    label = {"drift": api.namespace}
    repository = Repository(kubeconfig, tmp_path / "jobs", api.namespace)

    def commit(**spec: Any) -> None:
        write(repository.folder, [make("nightly", **SPEC, nodeSelector=label, **spec)])
        repository.apply()

    job = Watched(api, repository, health_program, "nightly")
    commit(runId="1", suspend=True)
    await job.still("Suspended", generation=1)
    commit(runId="1")
    if inference:
        await job.still("Validating", generation=2)
        await api.play_end(await api.pod_of("nightly", "inspect"), message=VALID)
    await job.still("Queued", generation=2)
    await add_node(labels=label)
    pod = await api.bound("nightly")
    await job.still("Starting", generation=2)
    if not inference:  # there is no runner here to say that it processes requests
        await api.play_running(pod)
        await job.still("Running", generation=2)
    await api.play_end(pod, message=DONE if inference else "")
    await job.still("Succeeded", generation=2)
    # A new runId is all that it takes to run it again.
    commit(runId="2")
    if inference:
        await api.play_end(await api.pod_of("nightly", "inspect"), message=json.dumps({"valid": False, "message": "x"}))
    else:
        await api.play_end(await api.bound("nightly"), code=1)
    await job.still("Failed", generation=3)
    assert (await api.job("nightly"))["status"]["runId"] == "2"
    commit(runId="3", suspend=True)
    await job.still("Suspended", generation=4)
    commit(runId="3", suspend=True, cancel=True)
    await job.still("Cancelled", generation=5)
    waits = ("InProgress", "Progressing")
    assert job.healths == {
        "Suspended": ("Current", "Suspended"),
        "Validating" if inference else "Running": waits,
        "Queued": waits,
        "Starting": waits,
        "Succeeded": ("Current", "Healthy"),
        "Failed": ("Failed", "Degraded"),
        "Cancelled": ("Current", "Suspended"),
    }


async def test_a_job_that_nobody_has_seen_yet_isnt_taken_for_a_finished_one(api: Api, health_program: Path) -> None:
    made = await api.create(template_job("new"))
    assert gitops.health(health_program, made) == [("InProgress", "Progressing")]


async def test_a_new_commit_isnt_taken_for_done_before_it_is_seen(api: Api, health_program: Path) -> None:
    made = await api.create(template_job("again", runId="1"))
    ended = {"phase": "Succeeded", "observedGeneration": 1}
    await api.client.patch(f"{api.jobs_path}/again/status", {"status": ended})
    assert gitops.health(health_program, await api.job("again")) == [("Current", "Healthy")]
    again = await api.edit("again", runId="2")
    assert again["metadata"]["generation"] == made["metadata"]["generation"] + 1
    assert gitops.health(health_program, again) == [("InProgress", "Progressing")]


async def test_what_is_no_longer_committed_goes_with_its_pods_and_nothing_else_does(
    api: Api, operator: OperatorProcess, add_node: AddNode, kubeconfig: Path, tmp_path: Path
) -> None:
    node = await add_node(gpus=2, labels={"gpubatch.dev/slots": "2"})
    here = {"nodeSelector": {"kubernetes.io/hostname": node}}
    kept, removed = (template_job(name, **here) for name in ("kept", "removed"))
    await api.create(template_job("by-hand", suspend=True))
    repository = Repository(kubeconfig, tmp_path / "jobs", api.namespace)
    gitops.write_kustomization(repository.folder, [kept, removed])
    repository.prune()
    pods = {name: await api.bound(name) for name in ("kept", "removed")}
    for pod in pods.values():
        await api.play_running(pod)
    await api.phase("kept", "Running")
    assert "pruned" not in repository.prune(), "pods of a job are nobody's to prune"
    gitops.write_kustomization(repository.folder, [kept])
    assert "gpubatchjob.gpubatch.dev/removed pruned" in repository.prune()
    await api.gone("removed")
    await api.terminating(pods["removed"])
    await api.play_end(pods["removed"], code=143)
    await api.play_gone(pods["removed"])

    async def alone() -> bool:
        return [p["metadata"]["name"] for p in await api.pods()] == [pods["kept"]["metadata"]["name"]]

    await eventually("the pod of the removed job to be gone", alone)
    assert (await api.jobs()).keys() == {"kept", "by-hand"}
    assert (await api.job("kept"))["status"]["phase"] == "Running"


async def test_two_tools_that_commit_different_fields_of_a_job_dont_fight(
    api: Api, kubeconfig: Path, tmp_path: Path, operator: OperatorProcess
) -> None:
    """A priority by hand stays, if it isn't committed; one that is committed comes back with the next sync."""
    repository = Repository(kubeconfig, tmp_path / "jobs", api.namespace)
    gitops.write_kustomization(repository.folder, [template_job("job", nodeSelector={"no": "node"})])
    repository.apply()
    await api.phase("job", "Queued")
    await api.edit("job", priority=5)
    assert repository.diff() == ""
    repository.apply()
    assert (await api.job("job"))["spec"]["priority"] == 5
    gitops.write_kustomization(repository.folder, [template_job("job", nodeSelector={"no": "node"}, priority=1)])
    with pytest.raises(AssertionError, match="conflict"):
        repository.apply()


# --- the examples


def test_the_examples_job_is_valid_and_names_that_kustomize_changes_reach_it(
    api: Api, kubeconfig: Path, tmp_path: Path
) -> None:
    shutil.copytree(gitops.EXAMPLES, tmp_path / "gitops")
    overlay = {
        "resources": ["../team"],
        "namespace": api.namespace,
        "namePrefix": "my-",
        "secretGenerator": [{"name": "s3-credentials", "literals": ["AWS_ACCESS_KEY_ID=a"]}],
        "patches": [{"target": {"kind": "GPUBatchJob"}, "patch": ENGINE}],
        "images": [{"name": "vllm/vllm-openai", "newTag": "mine"}],
    }
    repository = Repository(kubeconfig, tmp_path / "gitops" / "mine", api.namespace)
    repository.folder.mkdir()
    (repository.folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = {o["kind"]: o for o in yaml.safe_load_all(repository.render())}
    work = objects["GPUBatchJob"]["spec"]["inference"]
    assert work["storage"]["secretName"] == objects["Secret"]["metadata"]["name"] != "s3-credentials"
    assert work["engine"]["image"] == "vllm/vllm-openai:mine"
    repository.apply()


def test_argo_cd_gets_the_script_that_is_tested() -> None:
    text = subprocess.check_output([gitops.tool("kubectl"), "kustomize", gitops.EXAMPLES / "argocd"], text=True)
    [settings] = [o for o in yaml.safe_load_all(text) if o["kind"] == "ConfigMap"]
    assert settings["metadata"]["name"] == "argocd-cm"
    assert settings["data"] == {"resource.customizations.health.gpubatch.dev_GPUBatchJob": gitops.HEALTH.read_text()}


def test_flux_applies_the_folder_that_the_example_has() -> None:
    text = subprocess.check_output([gitops.tool("kubectl"), "kustomize", gitops.EXAMPLES / "flux"], text=True)
    objects = {o["kind"]: o for o in yaml.safe_load_all(text)}
    source = objects["Kustomization"]["spec"]["sourceRef"]
    assert (source["kind"], source["name"]) == ("GitRepository", objects["GitRepository"]["metadata"]["name"])
    assert (gitops.EXAMPLES / objects["Kustomization"]["spec"]["path"] / "kustomization.yaml").exists()

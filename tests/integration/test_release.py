"""The chart on a real API server: what it makes is taken, its rights suffice, and no release loses a job.

The operator is a process of the tests, as the service account of the release: without a right it can't do its work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpubatch_operator.kube import pods
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.settings import Settings
from support.api import Api, inference_job, namespace, template_job
from support.gitops import tool
from support.process import OperatorProcess
from unit.operator.build import attempt, inference_spec, raw_job, spec_of

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gpubatch"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpubatchjobs.gpubatch.dev"
PROMETHEUS_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass
class Release:
    """A release of the chart in a namespace of its own.

    Args:
        kubeconfig: The administrator's.
        name: Of the release and of its namespace.
        folder: For files.
    """

    kubeconfig: Path
    name: str
    folder: Path

    def helm(self, *arguments: str) -> str:
        """Run Helm.

        Raises:
            AssertionError: It fails, with what it says.
        """
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HELM_CACHE_HOME": str(self.folder / "helm")}
        done = subprocess.run([tool("helm"), *arguments, "-n", self.name], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *values: str, chart: Path = CHART, more: tuple[str, ...] = ()) -> None:
        """Install or upgrade; the webhook is left out, since no pod runs here that could answer."""
        sets = [w for v in ("settings.admissionPort=0", *values) for w in ("--set", v)]
        self.helm("upgrade", "--install", self.name, str(chart), "--create-namespace", *sets, *more)

    async def operator(self, client: Client, **settings: str | float) -> OperatorProcess:
        """An operator with the rights of the release, and no others."""
        account = f"/api/v1/namespaces/{self.name}/serviceaccounts/{self.name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = (await client.create(account, request))["status"]["token"]
        config = yaml.safe_load(self.kubeconfig.read_text())
        for user in config["users"]:
            user["user"] = {"token": token}
        (path := self.folder / "service-account").write_text(yaml.safe_dump(config))
        names: dict[str, str | float] = {"instance": self.name, "namespace": self.name}
        return OperatorProcess(path, self.folder / "operator.log", **names, **settings)


@pytest.fixture
async def release(api: Api, kubeconfig: Path, tmp_path: Path) -> AsyncIterator[Release]:
    release = Release(kubeconfig, f"{api.namespace}-release", tmp_path)
    yield release
    release.helm("uninstall", release.name, "--ignore-not-found")
    await api.client.request("DELETE", f"/api/v1/namespaces/{release.name}")


async def test_a_release_that_comes_is_upgraded_goes_and_comes_again_loses_no_job(
    api: Api, release: Release, add_node: AddNode
) -> None:
    old = release.folder / "old"
    shutil.copytree(CHART, old)
    crd = yaml.safe_load((old / "files" / "gpubatchjobs.yaml").read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["retry"]
    (old / "files" / "gpubatchjobs.yaml").write_text(yaml.safe_dump(crd))

    async def knows_retry() -> bool:
        [version] = (await api.client.get(CRD))["spec"]["versions"]
        return "retry" in version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]

    release.install("priorityClass.create=false", chart=old, more=("--take-ownership",))
    assert not await knows_retry()
    here = {"nodeSelector": {"kubernetes.io/hostname": await add_node()}}
    await api.create(template_job("runs", **here))
    await api.create(template_job("waits", **here))
    with await release.operator(api.client):
        running = await api.bound("runs")
        await api.play_running(running)
        await api.phase("runs", "Running")
        await api.phase("waits", "Queued")
        before = {name: job["metadata"]["uid"] for name, job in (await api.jobs()).items()}
        release.install("priorityClass.create=false")
        assert await knows_retry()
        await api.create(inference_job("later"))
        await api.phase("later", "Validating")
    release.helm("uninstall", release.name)
    jobs = await api.jobs()
    assert before.items() <= {name: job["metadata"]["uid"] for name, job in jobs.items()}.items()
    assert (await api.pod(running["metadata"]["name"]) or {})["metadata"]["uid"] == running["metadata"]["uid"]
    with pytest.raises(ApiError, match="404"):
        await api.client.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{release.name}-operator")
    release.install("priorityClass.create=false")
    with await release.operator(api.client):
        await api.play_end(running)
        await api.phase("runs", "Succeeded")
        await api.bound("waits")


async def test_without_any_cluster_role_the_jobs_of_a_namespace_run_one_by_one_and_others_are_left_alone(
    api: Api, release: Release, add_node: AddNode
) -> None:
    values = ("settings.readNodes=false", "crds.install=false", "priorityClass.create=false", "rbac.aggregate=false")
    release.install(f"settings.watchNamespaces={api.namespace}", *values)
    bindings, _ = await api.client.list("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")
    assert not [b for b in bindings if any(s.get("namespace") == release.name for s in b.get("subjects") or [])]
    here = {"nodeSelector": {"kubernetes.io/hostname": await add_node(gpus=2)}}
    settings = {"watch_namespaces": api.namespace, "read_nodes": "false", "scale_up_pods": 1}
    async with namespace(api.client, f"{api.namespace}-other") as other:
        with await release.operator(api.client, **settings) as operator:
            await other.create(template_job("foreign", **here))
            for name in ("first", "second"):
                await api.create(template_job(name, **here))
            first = await api.bound("first")
            await api.play_running(first)
            await api.phase("first", "Running")
            # kube-scheduler chooses nodes, and the pods' own locks keep the second out of the slot.
            second = await api.pod_of("second")
            await api.pending("second", "ScalingUp")
            assert "nodeName" not in second["spec"]
            await api.play_end(first)
            await api.phase("first", "Succeeded")
            await api.play_end(await api.bound("second"))
            await api.phase("second", "Succeeded")
            assert "phase" not in (await other.job("foreign")).get("status", {})
            assert "403" not in operator.log


# --- what the API server says to each object

RENDERINGS = {
    "default": "",
    "everything": "metrics.serviceMonitor.enabled=true,metrics.rules.enabled=true,metrics.dashboard.enabled=true,"
    "networkPolicy.enabled=true,networkPolicy.runnerNamespaces={NAMESPACE},settings.modelCacheClaim=models,"
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b,"
    "modelCache.namespaces={NAMESPACE},rbac.webhookSecrets.namespaces={NAMESPACE},image.digest=sha256:DIGEST,"
    "imagePullSecrets[0].name=registry,admission.certificateSecret=tls,tolerations[0].operator=Exists,"
    "nodeSelector.a=b,extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://proxy:3128,priorityClassName=a,"
    "gateway.enabled=true,gateway.keysSecret=keys,networkPolicy.gatewayFrom[0].namespaceSelector.matchLabels.a=b",
    "namespaced": "settings.watchNamespaces=NAMESPACE",
}


@pytest.fixture(scope="module")
def prometheus_operator(kubeconfig: Path) -> None:
    """Its CRDs, so that its objects are checked, too."""
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    found = subprocess.check_output([tool("go"), "mod", "download", "-json", PROMETHEUS_OPERATOR], env=env, cwd="/")
    folder = Path(json.loads(found)["Dir"]) / "example" / "prometheus-operator-crd"
    names = [
        f"{group}.yaml" for group in ("monitoring.coreos.com_servicemonitors", "monitoring.coreos.com_prometheusrules")
    ]
    files = [word for name in names for word in ("-f", str(folder / name))]
    kubectl = [tool("kubectl"), "--kubeconfig", str(kubeconfig)]
    subprocess.run([*kubectl, "apply", "--server-side", *files], check=True)
    subprocess.run([*kubectl, "wait", "--for=condition=Established", "--timeout=60s", *files], check=True)


def rendering(name: str, into: str) -> str:
    """As Helm renders it for a namespace."""
    values = RENDERINGS[name].replace("NAMESPACE", into).replace("DIGEST", "0" * 64)
    command = [tool("helm"), "template", "gpubatch", CHART, "--namespace", into, "--kube-version", "1.35.0"]
    return subprocess.check_output([*command, "--set", values], text=True)


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_api_server_takes_each_object_to_the_last_field(
    api: Api, kubeconfig: Path, prometheus_operator: None, name: str
) -> None:
    options = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    command = [tool("kubectl"), "--kubeconfig", kubeconfig, "apply", *options, "-f", "-"]
    text = rendering(name, api.namespace)
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # What the tests' own fixtures have applied in another way stays theirs in a dry run.
    said = [line for line in done.stderr.splitlines() if "Warning" in line and "failed to migrate" not in line]
    assert said == []
    assert done.stdout.count("\n") == len([o for o in yaml.safe_load_all(text) if o])


async def test_all_pods_are_let_into_a_restricted_namespace(api: Api) -> None:
    await api.client.patch(f"/api/v1/namespaces/{api.namespace}", {"metadata": {"labels": RESTRICTED}})
    objects = [o for o in yaml.safe_load_all(rendering("everything", api.namespace)) if o]
    served = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]
    assert len(served) == 2
    [test] = [o for o in objects if o["kind"] == "Pod"]
    settings = Settings(model_cache_claim="models", model_token_secret="hub")
    raw = raw_job(spec=inference_spec())
    made = [
        *({"metadata": {"name": spec["containers"][0]["name"]}, "spec": spec} for spec in served),
        {"metadata": {"name": "test"}, "spec": test["spec"]},
        pods.inspect_pod(raw, spec_of(raw), settings),
        pods.runner_pod(raw, spec_of(raw), attempt(), settings),
    ]
    for pod in made:
        metadata = {"name": pod["metadata"]["name"], "namespace": api.namespace}
        spec = {k: v for k, v in pod["spec"].items() if k not in ("serviceAccountName", "priorityClassName")}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        await api.client.request("POST", api.pods_path, body, query={"dryRun": "All"})
    privileged = pods.runner_pod(raw, spec_of(raw), attempt(), Settings(model_cache_path="/models"))
    spec = {k: v for k, v in privileged["spec"].items() if k != "priorityClassName"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "on-the-node"}, "spec": spec}
    with pytest.raises(ApiError, match="hostPath"):  # as the manual says
        await api.client.request("POST", api.pods_path, body, query={"dryRun": "All"})

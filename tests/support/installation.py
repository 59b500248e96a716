"""GPUBatch installed on a real cluster, beside what its jobs need: an S3 server and a receiver of webhooks."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import obstore
from obstore.store import S3Store

from demo_lib import story
from demo_lib.console import Console
from demo_lib.results import open_bucket
from demo_lib.tools import ROOT, DemoError, Kube, pin_images, rollout, run, wait_for
from gpubatch_operator.kube.client import Client
from support.api import Api, eventually
from support.workloads import ENDPOINT, MODELS, template, whisper

JSON = dict[str, Any]
NAMESPACE = "gpubatch-e2e"
CLUSTER = ROOT / "hack" / "cluster"
CHART = ROOT / "charts" / "gpubatch"
MANIFESTS = Path(story.__file__).parent / "manifests"
IMPATIENT = {
    "imagePullSeconds": 20,
    "startSeconds": 30,
    "engineRestarts": 2,
    "scaleUpPods": 0,  # what fits no node waits: there is no autoscaler
    "progressSeconds": 0.5,
    "checkpointSeconds": 2,
    "webhookBackoffSeconds": 1,
}


GATEWAY = f"{story.RELEASE}-gateway"


def secret(name: str, data: dict[str, str], labels: dict[str, str] | None = None, namespace: str = NAMESPACE) -> JSON:
    """A Secret."""
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


@dataclass
class Installation:
    """The operator, by Helm, with settings that make its patience short.

    Args:
        kube: The cluster.
        images: References of our own images, which its nodes hold.
        console: Where it is told what is going on.
    """

    kube: Kube
    images: dict[str, str]
    console: Console
    keys: dict[str, str] = field(
        default_factory=lambda: {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24),
        }
    )
    webhook_secret: str = field(default_factory=lambda: f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")

    # --- there and back

    def remove(self) -> None:
        """All that this or an earlier run, even a killed one, or a demo may have left."""
        story.uninstall(self.kube, self.console)
        if self.kube.has("crd", "gpubatchjobs.gpubatch.dev"):
            self.kube.kubectl("delete", "gpubatchjobs", "--all", "--all-namespaces", "--wait=false")
        if self.kube.has("namespace", NAMESPACE):
            with self.console.waiting(f"removing namespace {NAMESPACE}"):
                self.kube.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
                wait_for(f"namespace {NAMESPACE} to be gone", 240, self._is_gone)

    def _is_gone(self) -> bool:
        # Template pods keep a finalizer until an operator has recorded their outcome; there is none any more.
        for pod in self.kube.get("-n", NAMESPACE, "pods")["items"]:
            if pod["metadata"].get("deletionTimestamp") and pod["metadata"].get("finalizers"):
                patch = [
                    "patch",
                    "pod",
                    pod["metadata"]["name"],
                    "--type=merge",
                    "-p",
                    '{"metadata":{"finalizers":null}}',
                ]
                self.kube.kubectl("-n", NAMESPACE, *patch)
        return not self.kube.has("namespace", NAMESPACE)

    def install(self) -> None:
        """S3, the receiver, and the operator and the gateway as pods of the cluster."""
        objects = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": story.SYSTEM}},
            secret("gateway-s3", self.keys, namespace=story.SYSTEM),
            secret("s3-credentials", self.keys),
            secret("s3-wrong", {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}),
            secret("webhook-secret", {"secret": self.webhook_secret}, {"gpubatch.dev/webhook-secret": "true"}),
        ]
        for document in objects:
            self.kube.apply(json.dumps(document))
        for name in ("storage", "receiver"):
            manifest = (MANIFESTS / f"{name}.yaml").read_text().replace(story.NAMESPACE, NAMESPACE)
            self.kube.apply(pin_images(manifest, self.images))
        repository, _, tag = self.images["operator"].rpartition(":")
        settings = {
            **IMPATIENT,
            "runnerImage": self.images["runner"],
            "engineImage": self.images["engine-cpu"],
            "webhookAllowedNetworks": self._address("receiver"),
        }
        values = ["--set-json", f"image={json.dumps({'repository': repository, 'tag': tag})}"]
        # One replica: whose restarts are counted is the one that plans.
        values += ["--set-json", f"settings={json.dumps(settings)}", "--set", "replicas=1"]
        # The engines of both nodes leave nothing of two cores: the operator gets several times the share of one of
        # them, and a rolling update of two replicas still fits.
        values += ["--set", "resources.requests.cpu=800m", "--set-json", f"gateway={json.dumps(self._gateway())}"]
        command = ["upgrade", "--install", story.RELEASE, str(CHART), "--namespace", story.SYSTEM, "--create-namespace"]
        self.kube.helm(*command, "--take-ownership", *values)
        for deployment in ("s3", "receiver"):
            rollout(self.kube, self.console, NAMESPACE, deployment)
        rollout(self.kube, self.console, story.SYSTEM, story.RELEASE)
        rollout(self.kube, self.console, story.SYSTEM, GATEWAY)

    def _address(self, service: str) -> str:
        """A Service's, as a network."""
        address = str(self.kube.get("-n", NAMESPACE, "service", service)["spec"]["clusterIP"])
        return f"{address}/{128 if ':' in address else 32}"

    def _gateway(self) -> JSON:
        """Values of the chart."""
        return {
            "enabled": True,
            "replicas": 1,
            "storageSecret": "gateway-s3",
            "resources": {"requests": {"cpu": "200m", "memory": "192Mi"}, "limits": {"memory": "512Mi"}},
            "models": {**{name: template(name) for name in MODELS}, "whisper": whisper(self.images["transcription"])},
            "settings": {
                "storageUrl": "s3://batches/gateway",
                "storageEndpoint": ENDPOINT,
                "storageSecretName": "s3-credentials",
                "liveIdleSeconds": 20,
                "liveRequestSeconds": 600,
                "allowHttp": True,
                "allowedNetworks": self._address("s3"),
            },
        }

    @contextmanager
    def gateway(self) -> Iterator[tuple[str, str]]:
        """Its base URL, and a token that may do in the jobs' namespace what the chart gives to who may edit."""
        account = "client"
        self.kube.apply(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"name": account, "namespace": NAMESPACE},
                }
            )
        )
        self.kube.apply(
            json.dumps(
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "RoleBinding",
                    "metadata": {"name": account, "namespace": NAMESPACE},
                    "roleRef": {
                        "apiGroup": "rbac.authorization.k8s.io",
                        "kind": "ClusterRole",
                        "name": f"{story.RELEASE}-edit",
                    },
                    "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
                }
            )
        )
        token = self.kube.kubectl("-n", NAMESPACE, "create", "token", account).strip()
        with self.kube.forward(story.SYSTEM, f"service/{GATEWAY}", 80) as port:
            yield f"http://127.0.0.1:{port}/v1", token

    def change(self, *values: str) -> None:
        """Other values for the chart, as `--set` takes them; waits until all replicas have them."""
        more = [word for value in values for word in ("--set", value)]
        self.kube.helm("upgrade", story.RELEASE, str(CHART), "--namespace", story.SYSTEM, "--reuse-values", *more)
        rollout(self.kube, self.console, story.SYSTEM, story.RELEASE)

    def restart(self) -> None:
        """Replace all replicas, as an upgrade does; waits for it."""
        deployment = f"deployment/{story.RELEASE}"
        self.kube.kubectl("-n", story.SYSTEM, "rollout", "restart", deployment)
        self.kube.kubectl("-n", story.SYSTEM, "rollout", "status", deployment, "--timeout=180s")

    def leader(self) -> str:
        """The pod that plans."""
        lease = self.kube.get("-n", story.SYSTEM, "lease", story.RELEASE)
        return str(lease["spec"]["holderIdentity"])

    # --- jobs, and what they left

    @asynccontextmanager
    async def queue(self) -> AsyncIterator[Api]:
        """The jobs' namespace; at the end no job is left in it, nor a pod of one."""
        client = await Client.connect(str(self.kube.kubeconfig))
        api = Api(client, NAMESPACE)
        ours = {"labelSelector": "app.kubernetes.io/managed-by=gpubatch"}

        async def empty() -> bool:
            await client.request("DELETE", api.pods_path, {"gracePeriodSeconds": 1}, query=ours)
            pods, _ = await client.list(api.pods_path, **ours)
            return not pods and not await api.jobs()

        try:
            yield api
            await client.request("DELETE", api.jobs_path)
            await eventually("the jobs and their pods to be gone", empty, patience=120)
        finally:
            await client.close()

    @contextmanager
    def bucket(self) -> Iterator[S3Store]:
        """The jobs' bucket, through a local port."""
        with self.kube.forward(NAMESPACE, "service/s3", 7070) as port:
            yield open_bucket(port, self.keys)

    def presigned(self, method: Literal["GET", "PUT"], key: str) -> str:
        """A URL of the jobs' bucket, as the cluster reaches it."""
        inside = S3Store(
            "batches",
            endpoint=ENDPOINT,
            region="us-east-1",
            access_key_id=self.keys["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.keys["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )
        return obstore.sign(inside, method, key, timedelta(hours=1))

    def received(self, job: str) -> list[JSON]:
        """The webhooks about a job that arrived, with their headers and bodies."""
        lines = self.kube.kubectl("-n", NAMESPACE, "logs", "deployment/receiver", "--tail=-1").splitlines()
        return [r for r in map(json.loads, lines) if json.loads(r["body"])["data"]["job"]["name"] == job]

    def logs(self, pod: str, container: str, previous: bool = False) -> list[str]:
        """What a container has said; with `previous` the one before its last restart."""
        more = ["--previous"] if previous else []
        return self.kube.kubectl("-n", NAMESPACE, "logs", pod, "-c", container, "--tail=-1", *more).splitlines()

    def events(self, job: str) -> list[JSON]:
        """The Events about a job."""
        found = self.kube.get("-n", NAMESPACE, "events.events.k8s.io")["items"]
        return [e for e in found if e["regarding"].get("kind") == "GPUBatchJob" and e["regarding"]["name"] == job]

    # --- kill -9

    def kill_operator(self) -> None:
        """SIGKILL to the operator's process."""
        self.kill(self.operator_pod(), "operator")

    def operator_pod(self) -> JSON:
        """The pod of the operator that runs."""
        found = self.kube.get("-n", story.SYSTEM, "pods", "-l", "app.kubernetes.io/component=operator")["items"]
        pod: JSON = next(p for p in found if not p["metadata"].get("deletionTimestamp"))
        return pod

    def kill(self, pod: JSON, container: str, signal: str = "KILL") -> None:
        """SIGKILL (or another signal) to a container's main process, from the node: it gets no last word.

        Raises:
            DemoError: It doesn't run.
        """
        status = pod["status"]
        found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        identity = next(c["containerID"] for c in found if c["name"] == container).removeprefix("containerd://")
        node = pod["spec"]["nodeName"]
        tasks = run(CLUSTER, "exec", node, "ctr", "--namespace", "k8s.io", "tasks", "ls").splitlines()
        process = next((line.split()[1] for line in tasks if line.startswith(identity)), None)
        if process is None:
            raise DemoError(f"container {container} of {pod['metadata']['name']} has no process on {node}")
        run(CLUSTER, "exec", node, "kill", f"-{signal}", process)

    # --- nodes

    def clear(self, node: str) -> None:
        """Moves all that isn't a job away from a node."""
        self.kube.kubectl("cordon", node)
        try:
            for namespace in (NAMESPACE, story.SYSTEM):
                on_it = self.kube.get("-n", namespace, "pods", f"--field-selector=spec.nodeName={node}")["items"]
                for pod in on_it:
                    self.kube.kubectl("-n", namespace, "delete", "pod", pod["metadata"]["name"])
            for deployment in ("s3", "receiver"):
                rollout(self.kube, self.console, NAMESPACE, deployment)
            rollout(self.kube, self.console, story.SYSTEM, story.RELEASE)
        finally:
            self.kube.kubectl("uncordon", node)

    def cut_power(self, node: str, deleted: bool) -> None:
        """Everything on a node dies at once, its disk too; with `deleted` the cluster forgets it."""
        run(CLUSTER, "poweroff", node)
        if deleted:
            self.kube.kubectl("delete", "node", node)

    def bring_back(self) -> None:
        """All nodes work."""
        run(CLUSTER, "up")

    # --- GPUs

    def offer_gpus(self, node: str, count: int) -> None:
        """Let a node say that it has so many."""
        status = {part: {"nvidia.com/gpu": str(count)} for part in ("capacity", "allocatable")}
        patch = ["--subresource=status", "--type=merge", "-p", json.dumps({"status": status})]
        self.kube.kubectl("patch", "node", node, *patch)

        def said() -> bool:
            found = self.kube.get("node", node)["status"]
            return all(found[part].get("nvidia.com/gpu", "0") == str(count) for part in ("capacity", "allocatable"))

        wait_for(f"{node} to offer {count} GPUs", 60, said)


def describe(kube: Kube, say: Callable[[str], None]) -> None:
    """What a person would look at after a failure."""
    looks: Sequence[Sequence[str]] = (
        ("-n", NAMESPACE, "get", "gpubatchjobs,pods", "-o", "wide"),
        (
            "-n",
            NAMESPACE,
            "get",
            "gpubatchjobs",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}: {.status}{'\\n'}{end}",
        ),
        ("-n", story.SYSTEM, "logs", f"deployment/{story.RELEASE}", "--tail=40"),
        ("-n", story.SYSTEM, "logs", f"deployment/{GATEWAY}", "--tail=20"),
    )
    for words in looks:
        try:
            say(kube.kubectl(*words))
        except DemoError as error:
            say(str(error))

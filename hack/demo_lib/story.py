"""The demo from its first to its last step."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo_lib import inputs, results
from demo_lib.checks import Checks
from demo_lib.console import Console, DemoError
from demo_lib.queue import ACTIVE, Job, Watcher
from demo_lib.tools import JSON, Kube, pin_images, rollout, wait_for

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "charts" / "gpubatch"
NAMESPACE, SYSTEM, RELEASE = "gpubatch-demo", "gpubatch-system", "gpubatch"
OWNER_LABEL = "gpubatch.dev/demo-made-the-cluster"
URGENT = "chat-urgent"
QUEUE_SECONDS = 1800.0
PRINT_SECONDS, HEARTBEAT_SECONDS = 5.0, 30.0
CHATS = {"nightly": 1500, "urgent": 200}


@dataclass
class Demo:
    """One run on a cluster that exists.

    Args:
        kube: The cluster.
        images: References of our own images, which its nodes hold.
        console: Where it is told.
        owns_cluster: Whether a demo made the cluster, so that a later one may remove it.
    """

    kube: Kube
    images: dict[str, str]
    console: Console
    owns_cluster: bool
    checks: Checks = field(default_factory=Checks)
    keys: dict[str, str] = field(
        default_factory=lambda: {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24),
        }
    )
    webhook_secret: str = field(default_factory=lambda: f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")

    def play(self) -> None:
        """All of it.

        Raises:
            DemoError: Something that the rest needs didn't come about.
        """
        remove_leftovers(self.kube, self.console)
        self.prepare()
        self.install()
        with self.kube.forward(NAMESPACE, "service/s3", 7070) as port:
            bucket = results.open_bucket(port, self.keys)
            requests = {name: inputs.chat_requests(count) for name, count in CHATS.items()}
            files = {
                "sentences": inputs.embedding_requests(),
                "broken": inputs.broken_requests()[0],
                **requests,
            }
            for name, lines in files.items():
                bucket.put(f"{name}.jsonl", "\n".join([*lines, ""]).encode())
            self.console.say(*(f"    s3://batches/{name}.jsonl: {len(lines)} lines" for name, lines in files.items()))
        jobs = self.run_jobs()
        with self.kube.forward(NAMESPACE, "service/s3", 7070) as port:
            bucket = results.open_bucket(port, self.keys)
            results.show_summary(self.console, jobs)
            results.show_embeddings(self.console, self.checks, bucket)
            results.show_broken(self.console, self.checks, bucket, jobs["chat-broken-lines"])
            results.show_chats(self.checks, bucket, requests)
        results.show_failures(self.console, self.checks, jobs)
        results.show_webhooks(self.console, self.checks, self.received())
        with self.kube.forward(NAMESPACE, "service/receiver", 8080) as port:
            results.forge_webhook(self.checks, port)
        self.check_operator()

    # --- what the jobs need

    def prepare(self) -> None:
        """A namespace with an S3 server, a receiver of webhooks, and the Secrets that the examples name."""
        self.console.heading("An S3 server, and a receiver of webhooks")
        self.kube.apply(_namespace(self.owns_cluster))
        self.kube.apply(_secret("s3-credentials", self.keys))
        labels = {"gpubatch.dev/webhook-secret": "true"}
        self.kube.apply(_secret("webhook-secret", {"secret": self.webhook_secret}, labels))
        for name in ("storage", "receiver"):
            self.kube.apply(pin_images((HERE / "manifests" / f"{name}.yaml").read_text(), self.images))
        for deployment in ("s3", "receiver"):
            rollout(self.kube, self.console, NAMESPACE, deployment)

    def install(self) -> None:
        """The operator, by Helm, as a pod of the cluster."""
        self.console.heading("Helm installs the operator")
        receiver = self.kube.get("-n", NAMESPACE, "service", "receiver")["spec"]["clusterIP"]
        repository, _, tag = self.images["operator"].rpartition(":")
        values = {
            "image": {"repository": repository, "tag": tag},
            "settings": {
                "runnerImage": self.images["runner"],
                "engineImage": self.images["engine-cpu"],
                # The receiver is inside the cluster, where webhooks may not go unless an administrator says so.
                "webhookAllowedNetworks": f"{receiver}/{128 if ':' in receiver else 32}",
            },
        }
        command = ["upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM, "--create-namespace"]
        settings = [f"{path}={value}" for path, value in _flat(values)]
        self.console.say(f"    helm {' '.join([*command[:3], 'charts/gpubatch', *command[4:]])} \\")
        self.console.say(*(f"      --set {setting}" for setting in settings))
        # An earlier demo or a test may have left the CRD.
        self.kube.helm(*command, "--take-ownership", *(word for s in settings for word in ("--set", s)))
        rollout(self.kube, self.console, SYSTEM, RELEASE)

    def received(self) -> list[JSON]:
        """The webhooks that arrived; they may come a little after the jobs' end."""
        lines: list[str] = []

        def arrived() -> bool:
            lines[:] = self.kube.kubectl("-n", NAMESPACE, "logs", "deployment/receiver").splitlines()
            return len(lines) >= 2

        try:
            wait_for("the webhooks", 60, arrived)
        except DemoError as error:
            self.console.say(f"    {error}")
        return [json.loads(line) for line in lines]

    # --- the queue

    def run_jobs(self) -> dict[str, Job]:
        """Apply the examples, watch the queue move until all have ended; the jobs as they ended."""
        self.console.heading("kubectl applies the examples: more jobs than nodes")
        self.check_refusal()
        manifest = self.kube.kubectl("kustomize", str(HERE / "overlay"))
        examples = pin_images(manifest, self.images).split("\n---\n")
        first = [example for example in examples if f"name: {URGENT}\n" not in example]
        [urgent] = [example for example in examples if example not in first]
        self.kube.apply("\n---\n".join(first))
        self.console.say(f"    {len(first)} jobs applied; kubectl get gpubatchjobs --watch:")
        watcher, start = Watcher(), time.monotonic()
        self.watch(watcher, start, lambda: _is_crowded(list(watcher.jobs.values())) or watcher.finished)
        self.kube.apply(urgent)
        self.console.say(
            "", f"    All nodes are busy. Now {URGENT} is applied, with a higher priority than all that wait:"
        )
        self.watch(watcher, start, lambda: URGENT in watcher.jobs and watcher.finished)
        self.check_queue(watcher)
        return watcher.jobs

    def watch(self, watcher: Watcher, start: float, until: Callable[[], bool]) -> None:
        """Show the queue until something is true.

        Raises:
            DemoError: It takes too long.
        """
        pending, printed = True, -PRINT_SECONDS
        while not until():
            items = self.kube.get("-n", NAMESPACE, "gpubatchjobs")["items"]
            pending = watcher.look([Job(item["metadata"]["name"], item) for item in items]) or pending
            elapsed = time.monotonic() - start
            quiet = elapsed - printed
            due = quiet >= HEARTBEAT_SECONDS or (pending and (quiet >= PRINT_SECONDS or watcher.finished))
            self.console.show(watcher.lines(elapsed), changed=due)
            if due:
                pending, printed = False, elapsed
            if elapsed > QUEUE_SECONDS:
                raise DemoError(f"the jobs didn't end within {QUEUE_SECONDS:.0f} s")
            time.sleep(1)

    def check_queue(self, watcher: Watcher) -> None:
        """What was promised of the queue."""
        checks, jobs = self.checks, watcher.jobs
        phases = {name: job.phase for name, job in jobs.items()}
        failing = {"chat-missing-input", "training-crash"}
        expected = {name: "Failed" if name in failing else "Succeeded" for name in jobs}
        checks.that(f"{len(jobs)} jobs ended as they should, two of them by failing", phases == expected, phases)
        checks.that("no node ever ran two jobs", not watcher.crowded, watcher.crowded)
        checks.that("two nodes ran two jobs side by side", bool(watcher.side_by_side))
        overtook = any(first == URGENT for first, _ in watcher.waited_together)
        checks.that(f"{URGENT} waited with others and went before them", overtook, watcher.waited_together)
        wrong = watcher.overtakings()
        checks.that("jobs started by priority, then in the order of their creation", not wrong, wrong)
        checks.that("positions in status were in that order", not watcher.out_of_line, watcher.out_of_line)
        unknown = watcher.waited - watcher.estimated
        checks.that("jobs that waited had an estimated start and finish", bool(watcher.waited) and not unknown, unknown)
        checks.that("no estimate was ever in the past", not watcher.outdated, watcher.outdated)

    def check_refusal(self) -> None:
        """A manifest with a mistake is refused by the API server, with the field's name."""
        manifest = (
            (CHART.parents[1] / "examples" / "training.yaml").read_text().replace("spec:\n", "spec:\n  gpus: 0\n", 1)
        )
        try:
            self.kube.apply(manifest, "--dry-run=server", "--namespace", NAMESPACE)
            said = "it was accepted"
        except DemoError as error:
            said = str(error).partition(": ")[2]
        self.console.say(f"    With a mistake in it: {said.strip().splitlines()[-1]}")
        self.checks.that("a manifest with `gpus: 0` is refused by name of the field", "spec.gpus" in said, said)

    def check_operator(self) -> None:
        """The operator runs as two ordinary, locked-down pods."""
        pods = self.kube.get("-n", SYSTEM, "pods", "-l", "app.kubernetes.io/component=operator")["items"]
        contexts = [p["spec"]["containers"][0]["securityContext"] for p in pods]
        locked = all(p["spec"]["securityContext"]["runAsNonRoot"] for p in pods)
        locked = locked and all(c["readOnlyRootFilesystem"] for c in contexts)
        self.checks.that("the operator ran in the cluster as non-root on a read-only root", locked, contexts)
        self.checks.that("two replicas of it ran", len(pods) == 2, f"{len(pods)} replicas")
        restarts = sum(p["status"]["containerStatuses"][0]["restartCount"] for p in pods)
        self.checks.that("the operator was never restarted", restarts == 0, f"{restarts} restarts")
        events = self.kube.get("-n", NAMESPACE, "events.events.k8s.io")["items"]
        told = {event["reason"] for event in events if event["regarding"]["kind"] == "GPUBatchJob"}
        self.checks.that("Events tell of the jobs' phases", {"Running", "Succeeded", "Failed"} <= told, told)


def made_cluster(kube: Kube) -> bool:
    """Whether an earlier demo made this cluster."""
    return kube.has("namespace", "-l", OWNER_LABEL)


def remove_leftovers(kube: Kube, console: Console) -> None:
    """The demo's namespace, as this or an earlier run left it."""
    if not kube.has("namespace", NAMESPACE):
        return
    with console.waiting(f"removing namespace {NAMESPACE}"):
        kube.kubectl("delete", "namespace", NAMESPACE, "--wait=false")

        def gone() -> bool:
            # Template pods keep a finalizer until an operator has recorded their outcome; there may be none any more.
            for pod in kube.get("-n", NAMESPACE, "pods")["items"]:
                if pod["metadata"].get("deletionTimestamp") and pod["metadata"].get("finalizers"):
                    patch = '{"metadata": {"finalizers": null}}'
                    kube.kubectl("-n", NAMESPACE, "patch", "pod", pod["metadata"]["name"], "--type=merge", "-p", patch)
            return not kube.has("namespace", NAMESPACE)

        wait_for(f"namespace {NAMESPACE} to be gone", 240, gone)


def uninstall(kube: Kube, console: Console) -> None:
    """Take the demo out of a cluster that goes on."""
    remove_leftovers(kube, console)
    kube.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait")
    kube.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found")


def _is_crowded(jobs: Sequence[Job]) -> bool:
    """Whether two nodes run jobs while others, already inspected, wait."""
    waiting = [job for job in jobs if job.phase == "Queued" and job.status.get("inspection")]
    return sum(job.phase in ACTIVE for job in jobs) >= 2 and len(waiting) >= 1


def _flat(values: JSON, prefix: str = "") -> list[tuple[str, str]]:
    return [
        pair
        for key, value in values.items()
        for pair in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))])
    ]


def _namespace(owns_cluster: bool) -> str:
    labels = {OWNER_LABEL: "true"} if owns_cluster else {}
    return json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})


def _secret(name: str, data: dict[str, str], labels: dict[str, str] | None = None) -> str:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels or {}}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})

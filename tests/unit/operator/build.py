"""Short ways to make the core's values and Kubernetes' raw objects, with everything a test doesn't care about set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import Attempt, AttemptState, Job, Node, Pod, Shape, Taint, Toleration, shape
from gpubatch_operator.core.order import rank
from gpubatch_operator.core.phases import Phase

JSON = dict[str, Any]

GPU = "nvidia.com/gpu"
EPOCH = 1_800_000_000.0
"""When all tests happen."""

ONE_GPU = shape(GPU, 1)
ENGINE_TAINT = Taint(GPU, "present", "NoSchedule")


def gpu_shape(gpus: int = 1, resource: str = GPU, tolerations: tuple[Toleration, ...] = (), **selector: str) -> Shape:
    return shape(resource, gpus, tuple(sorted(selector.items())), tolerations)


def node(name: str = "node-a", gpus: int = 1, **changes: Any) -> Node:
    base = Node(name, ready=True, unschedulable=False, labels={}, taints=(), capacity={GPU: gpus} if gpus else {})
    return replace(base, **changes)


def job(
    name: str = "job",
    *,
    phase: Phase | None = Phase.QUEUED,
    priority: int = 0,
    queued_at: float = EPOCH,
    ticket: int = 1,
    of: Shape = ONE_GPU,
    **changes: Any,
) -> Job:
    uid = changes.pop("uid", f"uid-{name}")
    status = changes.pop("status", {"phase": phase.value} if phase else {})
    attempt = changes.pop("attempt", None)
    base = Job(
        uid=uid,
        namespace="default",
        name=name,
        resource_version=str(ticket),
        generation=1,
        created=queued_at,
        priority=priority,
        shape=of,
        inference=True,
        model="minilm",
        live=None,
        hint=None,
        webhooks=(),
        phase=phase,
        queued_at=queued_at,
        ticket=ticket,
        position=None,
        estimated_start=None,
        estimated_completion=None,
        requests=None,
        attempt=attempt,
        attempts=attempt.number if attempt else 0,
        status=status,
        rank=rank(priority, queued_at, ticket, uid),
    )
    return replace(base, **changes)


def attempt(number: int = 1, **changes: Any) -> Attempt:
    base = Attempt(number, "node-a", 0, f"job-{number}-abc", None, EPOCH, AttemptState.ACTIVE)
    return replace(base, **changes)


def pod(**changes: Any) -> Pod:
    """A runner pod of the first attempt of `job()`, created and not yet bound."""
    base = Pod(
        uid="pod-1",
        namespace="default",
        name="job-1-abc",
        job_uid="uid-job",
        kind="run",
        attempt=1,
        node=None,
        slot=0,
        target="node-a",
        resource=GPU,
        gpus=1,
        created=EPOCH,
        phase="Pending",
        deleting=False,
        killed=False,
        gone=False,
        has_finalizer=False,
        address=None,
        started=False,
        restarts=0,
        terminated_message=None,
        failure=None,
        trouble=None,
        unschedulable=None,
        disrupted=False,
        engine_restarts=0,
        engine_down=False,
        engine_end=None,
    )
    return replace(base, **changes)


def inference_spec(**changes: Any) -> JSON:
    return {
        "inference": {
            "model": "minilm",
            "input": {"url": "s3://batches/in.jsonl"},
            "output": {"url": "s3://batches/out.jsonl"},
        }
    } | changes


def template_spec(pod_spec: JSON | None = None, **changes: Any) -> JSON:
    return {"template": {"spec": {"containers": [{"name": "train", "image": "train:1"}]} | (pod_spec or {})}} | changes


def raw_job(name: str = "job", spec: JSON | None = None, status: JSON | None = None, version: int = 1) -> JSON:
    return {
        "apiVersion": "gpubatch.dev/v1alpha1",
        "kind": "GPUBatchJob",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": iso(EPOCH),
        },
        "spec": spec or inference_spec(),
        "status": status or {},
    }


def raw_node(name: str = "node-a", gpus: int = 1, version: int = 1) -> JSON:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "labels": {}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "8", "memory": "32Gi"} | ({GPU: str(gpus)} if gpus else {}),
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def spec_of(raw: JSON) -> JobSpec:
    return JobSpec.model_validate(raw["spec"])

"""The pods of a job: what runs in them, and the locks that the cluster itself holds for us.

Two jobs can't share a slot even if two operators disagree: the pod's name is derived from job and attempt, a required
anti-affinity lets a node have one pod of each slot's index, and the GPUs are requested from the scheduler.
"""

from __future__ import annotations

import copy
import hashlib
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gpubatch_operator.api.crd import API_VERSION, KIND
from gpubatch_operator.api.inference import Checkpoint, Inference, Input, Live, Output, SecretKey, Upload
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.endings import run_name
from gpubatch_operator.core.model import Attempt
from gpubatch_operator.core.running import Deadline
from gpubatch_operator.kube import convert, modelcache, templates
from gpubatch_operator.settings import Settings
from gpubatch_runner import contract

JSON = dict[str, Any]

USER = 65532
GRACE_SECONDS = 120
LOCKED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ENGINE_ENV = {
    "HOME": "/tmp",
    "HF_HOME": "/tmp/huggingface",
    "VLLM_CACHE_ROOT": "/tmp/vllm",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # vLLM closes idle connections after 5 s by default, under the feet of its clients.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
}


@lru_cache(maxsize=8192)
def pod_name(job_name: str, job_uid: str, suffix: str) -> str:
    """The name of an attempt's pod (`suffix` its number) or of the inspect pod; at most 63 characters.

    The hash makes it unique where long names of jobs are cut or a job is created anew under an old name.
    """
    digest = hashlib.sha256(f"{job_uid}/{suffix}".encode()).hexdigest()[:8]
    return f"{job_name[:40].rstrip('-.')}-{suffix}-{digest}"


def runner_pod(
    raw: JSON,
    spec: JobSpec,
    attempt: Attempt,
    settings: Settings,
    end: Deadline | None = None,
    key_digest: str | None = None,
) -> JSON:
    """The pod of an attempt, with all its locks.

    Args:
        raw: The job.
        spec: Its spec.
        attempt: Which.
        settings: The operator's.
        end: When the runner has to stop by itself.
        key_digest: Of the key for live requests, where the job names no Secret.
    """
    if spec.inference is not None:
        pod = _skeleton(raw, spec, attempt.pod_name, "run", settings)
        run = run_spec(raw, spec.inference, attempt.number, settings, end, key_digest)
        pod["spec"] |= _inference_spec(spec, spec.inference, run, settings)
        [engine] = pod["spec"]["initContainers"]
        modelcache.add_to(pod["spec"], engine, {e.name for e in spec.inference.engine.env}, settings)
    else:
        pod = _template_pod(raw, spec, attempt, settings)
    pod["metadata"]["labels"] |= {convert.ATTEMPT: str(attempt.number), convert.SLOT: str(attempt.slot)}
    pod["metadata"]["annotations"] |= {
        convert.NODE: attempt.node,
        convert.RESOURCE: spec.gpu_resource,
        convert.GPUS: str(spec.gpus),
        # An autoscaler must not tidy a running job away.
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    body = pod["spec"]
    body["priorityClassName"] = settings.priority_class
    body["tolerations"] = [
        *body.get("tolerations", []),
        *(t.model_dump(by_alias=True, exclude_none=True) for t in spec.tolerations),
        {"key": spec.gpu_resource, "operator": "Exists"},
    ]
    body["nodeSelector"] = body.get("nodeSelector", {}) | spec.node_selector
    body["affinity"] = _locked_to(body.get("affinity", {}), attempt)
    return pod


def inspect_pod(raw: JSON, spec: JobSpec, settings: Settings) -> JSON:
    """The small CPU-only pod that reads and checks the input once, before the job waits."""
    assert spec.inference is not None, "only inference jobs are inspected"
    meta = raw["metadata"]
    pod = _skeleton(raw, spec, pod_name(meta["name"], meta["uid"], "inspect"), "inspect", settings)
    run = run_spec(raw, spec.inference, 0, settings)
    runner, volumes = _runner(spec.inference, run, settings, "inspect")
    pod["spec"] |= {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 5,
        "containers": [runner],
        "volumes": volumes,
    }
    if (spec.inference.input.url or "").startswith("pvc://"):
        # A volume may be reachable only from where the job itself can run.
        pod["spec"]["nodeSelector"] = dict(spec.node_selector)
        pod["spec"]["tolerations"] = [t.model_dump(by_alias=True, exclude_none=True) for t in spec.tolerations] + [
            {"key": spec.gpu_resource, "operator": "Exists"}
        ]
    return pod


def _skeleton(raw: JSON, spec: JobSpec, name: str, kind: str, settings: Settings) -> JSON:
    meta = raw["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": {
                "app.kubernetes.io/managed-by": "gpubatch",
                convert.JOB_UID: meta["uid"],
                convert.KIND: kind,
            },
            "annotations": {"gpubatch.dev/job": meta["name"]},
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": KIND, "name": meta["name"], "uid": meta["uid"], "controller": True}
            ],
        },
        "spec": {
            "enableServiceLinks": False,
            "automountServiceAccountToken": spec.service_account_name is not None,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        | ({"serviceAccountName": spec.service_account_name} if spec.service_account_name else {})
        | ({"imagePullSecrets": pull} if (pull := templates.pull_secrets(spec, settings)) else {}),
    }


def _inference_spec(spec: JobSpec, work: Inference, run: contract.RunSpec, settings: Settings) -> JSON:
    runner, volumes = _runner(work, run, settings, "run")
    engine = work.engine
    given = [e.raw() for e in engine.env]
    gpus = {spec.gpu_resource: spec.gpus}
    resources: JSON = engine.resources.model_dump(exclude_none=True)
    resources["limits"] = resources.get("limits", {}) | gpus
    resources["requests"] = resources.get("requests", {}) | gpus
    return {
        # The kubelet restarts a crashed runner, which then goes on from its journal; verdicts exit with 0.
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": [
            {
                "name": convert.ENGINE,
                "image": engine.image or settings.engine_image,
                "imagePullPolicy": settings.image_pull_policy,
                "restartPolicy": "Always",  # a native sidecar
                "args": [
                    *("--model", work.model),
                    *("--served-model-name", work.served_model_name or work.model),
                    *("--host", "127.0.0.1", "--port", str(contract.ENGINE_PORT)),
                    *engine.args,
                ],
                "env": [{"name": k, "value": v} for k, v in ENGINE_ENV.items() if k not in {e["name"] for e in given}]
                + given,
                "resources": resources,
                "securityContext": LOCKED,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                # While Python imports it has no handler for SIGTERM, and a container's first process doesn't die of a
                # signal without one. For SIGINT it has one from its first moment.
                "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "kill -INT 1"]}}},
                "volumeMounts": [
                    {"name": "gpubatch-tmp", "mountPath": "/tmp"},
                    {"name": "gpubatch-shm", "mountPath": "/dev/shm"},
                    *(m.raw() for m in engine.volume_mounts),
                ],
            }
        ],
        "containers": [runner],
        "volumes": [
            *volumes,
            {"name": "gpubatch-tmp", "emptyDir": {}},
            # A container has 64 MiB there, vLLM wants more.
            {"name": "gpubatch-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            *(v.raw() for v in engine.volumes),
        ],
    }


def _runner(work: Inference, run: contract.RunSpec, settings: Settings, mode: str) -> tuple[JSON, list[JSON]]:
    """The runner's container and the volumes that it needs."""
    volumes: list[JSON] = [{"name": "gpubatch-journal", "emptyDir": {}}]
    mounts: list[JSON] = [{"name": "gpubatch-journal", "mountPath": contract.JOURNAL_DIR}]
    for i, (scheme, name) in enumerate(_sources(run)):
        volume = f"gpubatch-location-{i}"
        if scheme == "pvc":
            volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": name}})
            mounts.append({"name": volume, "mountPath": f"{contract.CLAIMS_DIR}/{name}"})
        elif scheme == contract.SECRET_SCHEME:
            keys = [{"key": key, "path": key} for key in _keys(run, name)]
            volumes.append({"name": volume, "secret": {"secretName": name, "optional": True, "items": keys}})
            mounts.append({"name": volume, "mountPath": f"{contract.SECRETS_DIR}/{name}", "readOnly": True})
        else:
            # Optional, so that the pod starts and the runner can say in status what is missing.
            volumes.append({"name": volume, "configMap": {"name": name, "optional": True}})
            mounts.append({"name": volume, "mountPath": f"{contract.CONFIGMAPS_DIR}/{name}", "readOnly": True})
    container: JSON = {
        "name": convert.RUNNER,
        "image": settings.runner_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [mode],
        "env": [
            {"name": contract.SPEC_ENV, "value": run.to_json()},
            # The only place that it can write to.
            {"name": "HOME", "value": contract.JOURNAL_DIR},
            {"name": "TMPDIR", "value": contract.JOURNAL_DIR},
        ],
        "ports": [{"name": "progress", "containerPort": contract.PROGRESS_PORT}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": settings.runner_memory}},
        "securityContext": LOCKED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if secret := work.storage.secret_name:
        container["envFrom"] = [{"secretRef": {"name": secret, "optional": True}}]
        # As files too: these show a renewed key to a run that takes hours.
        volumes.append({"name": "gpubatch-credentials", "secret": {"secretName": secret, "optional": True}})
        mounts.append({"name": "gpubatch-credentials", "mountPath": contract.CREDENTIALS_DIR, "readOnly": True})
    if mode == "run":
        note = {"fieldPath": f"metadata.annotations['{contract.STOP_ANNOTATION}']"}
        told = {"items": [{"path": contract.STOP_FILE, "fieldRef": note}]}
        volumes.append({"name": "gpubatch-pod", "downwardAPI": told})
        mounts.append({"name": "gpubatch-pod", "mountPath": contract.POD_DIR, "readOnly": True})
        container["livenessProbe"] = {
            "httpGet": {"path": "/healthz", "port": contract.PROGRESS_PORT},
            "initialDelaySeconds": 30,
            "periodSeconds": 30,
            "timeoutSeconds": 10,
            "failureThreshold": 5,
        }
    return container, volumes


def run_spec(
    raw: JSON,
    work: Inference,
    attempt: int,
    settings: Settings,
    end: Deadline | None = None,
    key_digest: str | None = None,
) -> contract.RunSpec:
    """What the runner is told; see `runner_pod`."""
    meta = raw["metadata"]
    stop: dict[str, Any] = {"stop_at": end.at, "stop_reason": end.reason.value} if end else {}
    return contract.RunSpec(
        job=contract.JobRef(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"]),
        run=run_name(meta["uid"], (raw.get("status") or {}).get("runId")),
        attempt=attempt,
        served_model_name=work.served_model_name or work.model,
        live=_live(work.input.live, key_digest) if work.input.live else None,
        input=None if work.input.live else _url(work.input),
        output=_url(work.output) if work.output else None,
        errors=_url(work.errors) if work.errors else None,
        checkpoint=_url(work.checkpoint) if work.checkpoint else None,
        checkpoint_seconds=settings.checkpoint_seconds,
        output_order=work.output_order,
        upload=_upload(work.upload, settings),
        storage=contract.Storage(endpoint=work.storage.endpoint, region=work.storage.region),
        invalid_requests=work.invalid_requests,
        max_requests=settings.max_requests_per_job,
        max_input_bytes=settings.max_input_bytes_per_job,
        max_file_bytes=settings.max_file_bytes,
        request_order=work.request_order,
        max_concurrent_requests=work.max_concurrent_requests,
        max_queue_size=work.max_queue_size,
        request_timeout_seconds=work.request_timeout_seconds,
        max_retries=work.max_request_retries,
        engine_start_timeout_seconds=work.engine.start_timeout_seconds,
        **stop,
    )


def _url(location: Input | Output | Checkpoint) -> str:
    """A location's URL, or the key of a Secret that the runner will find it in."""
    if location.url_from is None:
        assert location.url is not None, "the CRD demands one of the two"
        return location.url
    return _secret_url(location.url_from.secret_key_ref)


def _secret_url(ref: SecretKey) -> str:
    return f"{contract.SECRET_SCHEME}://{ref.name}/{ref.key}"


def _live(given: Live, key_digest: str | None) -> contract.Live:
    return contract.Live(
        idle_timeout_seconds=given.idle_timeout_seconds,
        drain_seconds=GRACE_SECONDS - 20,  # it still has to say how it ended
        key=_secret_url(given.key_from.secret_key_ref) if given.key_from else None,
        key_digest=None if given.key_from else key_digest,
    )


def _upload(given: Upload, settings: Settings) -> contract.Upload:
    """The job's time limits, and the operator's where it has none."""
    defaults = {name: getattr(settings, f"upload_{name}") for name in contract.Upload.model_fields}
    return contract.Upload(**(defaults | given.model_dump(exclude_none=True)))


def _locations(run: contract.RunSpec) -> list[SplitResult]:
    key = run.live.key if run.live else None
    return [urlsplit(url) for url in (run.input, run.output, run.errors, run.checkpoint, key) if url]


def _sources(run: contract.RunSpec) -> list[tuple[str, str]]:
    """The claims, ConfigMaps and Secrets that the run's locations name, each once."""
    mounted = ("pvc", "configmap", contract.SECRET_SCHEME)
    return list(dict.fromkeys((p.scheme, p.netloc) for p in _locations(run) if p.scheme in mounted))


def _keys(run: contract.RunSpec, secret: str) -> list[str]:
    """The keys of a Secret that hold the run's URLs."""
    named = [p.path[1:] for p in _locations(run) if (p.scheme, p.netloc) == (contract.SECRET_SCHEME, secret)]
    return list(dict.fromkeys(named))


def _template_pod(raw: JSON, spec: JobSpec, attempt: Attempt, settings: Settings) -> JSON:
    assert spec.template is not None, "the CRD demands one of the two"
    pod = _skeleton(raw, spec, attempt.pod_name, "run", settings)
    ours, theirs = pod["metadata"], spec.template.metadata
    ours["labels"] = theirs.labels | ours["labels"]
    ours["annotations"] = theirs.annotations | ours["annotations"]
    # The outcome of such a pod is nowhere but in its status: it stays until that is recorded.
    ours["finalizers"] = [convert.FINALIZER]
    pod["spec"] = templates.pod_spec(raw["spec"]["template"]["spec"], spec, settings, USER, GRACE_SECONDS)
    return pod


def _locked_to(affinity: JSON, attempt: Attempt) -> JSON:
    """The template's own affinity to pods, and: this node (if any), and no other pod of this slot's index on it."""
    alone = {
        "labelSelector": {"matchLabels": {convert.SLOT: str(attempt.slot)}},
        "topologyKey": "kubernetes.io/hostname",
        "namespaceSelector": {},  # of all namespaces
    }
    affinity = copy.deepcopy(affinity)
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    if attempt.node:  # else kube-scheduler chooses, among nodes that don't exist yet
        here = {"key": "metadata.name", "operator": "In", "values": [attempt.node]}
        affinity["nodeAffinity"] = {required: {"nodeSelectorTerms": [{"matchFields": [here]}]}}
    anti = affinity.get("podAntiAffinity") or {}
    if isinstance(anti, dict) and isinstance(own := anti.get(required) or [], list):
        affinity["podAntiAffinity"] = anti | {required: [*own, alone]}
    return affinity  # with what is no affinity left in it the API server refuses the pod

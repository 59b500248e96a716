"""The pod of a template job: the user's own, with what the operator adds.

It adds GPUs, restart policy and grace period, and a native sidecar that shows how far the pod's containers are: by a
file on a shared volume, by HTTP on the pod's loopback, and by the contract of Kubeflow's Trainer.
"""

from __future__ import annotations

import copy
from typing import Any

from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.kube import convert
from gpubatch_operator.settings import Settings, listed
from gpubatch_runner import contract

JSON = dict[str, Any]

FILE_VOLUME = "gpubatch-progress"
TOKEN_VOLUME = "gpubatch-token"
TOKEN_DIR = "/gpubatch/token"
PUSH_URL = f"http://127.0.0.1:{contract.PUSH_PORT}/progress"

ENV = {
    contract.PROGRESS_FILE_ENV: contract.PROGRESS_FILE,
    "GPUBATCH_PROGRESS_URL": PUSH_URL,
    # The contract's first name, and the one that the released Kubeflow SDK and Hugging Face's Transformers read.
    "KUBEFLOW_TRAINER_STATUS_URL": PUSH_URL,
    "KUBEFLOW_TRAINER_STATUS_TOKEN": f"{TOKEN_DIR}/token",
    "KUBEFLOW_TRAINER_SERVER_URL": PUSH_URL,
    "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{TOKEN_DIR}/token",
}
"""What the template's containers get, unless they set it themselves. No CA certificate: the loopback needs no TLS."""

# The shell is there before anybody can send SIGTERM, and Python is not: the first process of a container ignores
# signals that it has no handler for, and the pod of a job that ends at once would last for all of its grace period.
# One signal isn't enough: it is lost on a child that is still a copy of the shell, handlers and all.
COMMAND = "trap 'while kill $! 2>&-; do sleep 0.1; done; exit 0' TERM; python -m gpubatch_runner.sidecar & wait $!"


def pull_secrets(spec: JobSpec, settings: Settings) -> list[JSON]:
    """The job's, and those that the installation's own images need."""
    ours = listed(settings.image_pull_secrets)
    return [{"name": name} for name in dict.fromkeys([*(s.name for s in spec.image_pull_secrets), *ours])]


def pod_spec(template: JSON, spec: JobSpec, settings: Settings, user: int, grace_seconds: int) -> JSON:
    """The `spec` of the pod of `template` (a pod's spec as the user wrote it, left as it is).

    Args:
        template: `spec.template.spec` of the job.
        spec: The job's spec.
        settings: Whether there is a sidecar, and its image.
        user: Uid of the sidecar, where the template names none.
        grace_seconds: Between SIGTERM and SIGKILL, where the template says nothing.
    """
    body = copy.deepcopy(template)
    if spec.service_account_name:
        body.setdefault("serviceAccountName", spec.service_account_name)
    own_secrets = body.get("imagePullSecrets") or []
    if secrets := [*own_secrets, *(s for s in pull_secrets(spec, settings) if s not in own_secrets)]:
        body["imagePullSecrets"] = secrets
    if "serviceAccountName" not in body:
        body.setdefault("automountServiceAccountToken", False)
    body["restartPolicy"] = "Never"
    body.setdefault("terminationGracePeriodSeconds", grace_seconds)
    own = [*(body.get("initContainers") or []), *body["containers"]]
    for container in own:
        container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    _give_gpus(body["containers"][0], {spec.gpu_resource: spec.gpus})
    if not settings.progress_sidecar:
        return body
    for container in own:
        _tell_where(container)
    body["initContainers"] = [_sidecar(body, settings, user), *(body.get("initContainers") or [])]
    token = {"path": "token", "fieldRef": {"fieldPath": "metadata.uid"}}
    body["volumes"] = [
        *(body.get("volumes") or []),
        {"name": FILE_VOLUME, "emptyDir": {}},
        {"name": TOKEN_VOLUME, "downwardAPI": {"items": [token]}},
    ]
    return body


# What the CRD's schema doesn't know may have any form. What isn't as in a pod is left as it is: the API server refuses
# the pod, and says why.


def _tell_where(container: JSON) -> None:
    env, mounts = container.get("env") or [], container.get("volumeMounts") or []
    if isinstance(env, list):
        given = {e.get("name") for e in env if isinstance(e, dict)}
        # Ours first: theirs may refer to them.
        container["env"] = [{"name": k, "value": v} for k, v in ENV.items() if k not in given] + env
    if isinstance(mounts, list):
        container["volumeMounts"] = [
            *mounts,
            {"name": FILE_VOLUME, "mountPath": contract.PROGRESS_DIR},
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": True},
        ]


def _give_gpus(container: JSON, gpus: JSON) -> None:
    resources = container.get("resources") or {}
    if isinstance(resources, dict):
        given = {part: resources.get(part) or {} for part in ("limits", "requests")}
        container["resources"] = resources | {k: v | gpus if isinstance(v, dict) else v for k, v in given.items()}


def _sidecar(body: JSON, settings: Settings, user: int) -> JSON:
    """First of the init containers, so that it is there for all others; a native sidecar never keeps a pod alive."""
    return {
        "name": convert.SIDECAR,
        "image": settings.runner_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["sh", "-c", COMMAND],
        "ports": [{"name": "progress", "containerPort": contract.PROGRESS_PORT}],
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **_same_user(body, user),
        },
        "volumeMounts": [{"name": FILE_VOLUME, "mountPath": contract.PROGRESS_DIR, "readOnly": True}],
    }


def _same_user(body: JSON, user: int) -> JSON:
    """The first container's uid and gid: many programs write files that nobody else may read. Never root's."""
    found: JSON = {}
    for security in (body.get("securityContext"), body["containers"][0].get("securityContext")):
        if isinstance(security, dict):
            found |= {k: v for k in ("runAsUser", "runAsGroup") if isinstance(v := security.get(k), int)}
    return {"runAsUser": found.get("runAsUser") or user, "runAsGroup": found.get("runAsGroup") or user}

"""What a job's pod may not ask for, unless the operator's settings allow it.

The rules are those of the Pod Security Standards' level `baseline`, and a little stricter: no capability is added at
all. The operator creates pods for whoever may create jobs, so a cluster whose namespaces enforce nothing must not hand
out its nodes with its GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpubatch_operator.core.model import Job

JSON = Mapping[str, Any]

SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


MAX_MESSAGE = 4096


def refusal(job: Job, allowed: bool) -> str | None:
    """Why a job can't have the pod that it asks for; None if it can."""
    if job.extra_gpus:
        return f"GPUs are asked for by spec.gpus and given to the first container; remove {', '.join(job.extra_gpus)}"
    if not job.privileges or allowed:
        return None
    return (
        "the job's pod asks for what this operator doesn't allow; remove it, or ask the administrator for the setting "
        f"allowPrivilegedPods: {'; '.join(job.privileges)}"
    )[:MAX_MESSAGE]


def asked_for(spec: JSON) -> tuple[str, ...]:
    """Each privilege that a job's pod asks for, as the field's path and the value: empty for nearly all jobs."""
    if template := _map(spec.get("template")):
        return tuple(_of_template(template))
    engine = _map(_map(spec.get("inference")).get("engine"))
    return tuple(_of_volumes(engine.get("volumes"), "spec.inference.engine"))


def extra_gpus(spec: JSON, resource: str) -> tuple[str, ...]:
    """Containers of a template, beside the first, that ask for GPUs: more than the job was given."""
    pod = _map(_map(spec.get("template")).get("spec"))
    others = [(f"containers[{i}]", c) for i, c in enumerate(_dicts(pod.get("containers")))][1:]
    others += [
        (f"initContainers[{i}]", c)
        for i, c in enumerate(_dicts(pod.get("initContainers")))
        if c.get("restartPolicy") == "Always"
    ]
    return tuple(
        f"spec.template.spec.{where}.resources.{part}[{resource}]"
        for where, container in others
        for part in ("limits", "requests")
        if resource in _map(_map(container.get("resources")).get(part))
    )


def _of_template(template: JSON) -> Iterator[str]:
    pod, path = _map(template.get("spec")), "spec.template.spec"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{path}.{field}: true"
    security = _map(pod.get("securityContext"))
    yield from _of_profiles(security, f"{path}.securityContext")
    for sysctl in _dicts(security.get("sysctls")):
        if sysctl.get("name") not in SAFE_SYSCTLS:
            yield f"{path}.securityContext.sysctls: {sysctl.get('name')}"
    yield from _of_volumes(pod.get("volumes"), path)
    for kind in ("initContainers", "containers"):
        for i, container in enumerate(_dicts(pod.get(kind))):
            yield from _of_container(container, f"{path}.{kind}[{i}]")
    for key, value in _map(_map(template.get("metadata")).get("annotations")).items():
        if str(key).startswith(APPARMOR) and value == "unconfined":
            yield f"spec.template.metadata.annotations[{key}]: unconfined"


def _of_container(container: JSON, path: str) -> Iterator[str]:
    security = _map(container.get("securityContext"))
    if security.get("privileged"):
        yield f"{path}.securityContext.privileged: true"
    if added := _map(security.get("capabilities")).get("add"):
        yield f"{path}.securityContext.capabilities.add: {added}"
    if security.get("procMount") not in (None, "Default"):
        yield f"{path}.securityContext.procMount: {security['procMount']}"
    yield from _of_profiles(security, f"{path}.securityContext")
    for port in _dicts(container.get("ports")):
        if port.get("hostPort"):
            yield f"{path}.ports: hostPort {port['hostPort']}"


def _of_profiles(security: JSON, path: str) -> Iterator[str]:
    for profile in ("seccompProfile", "appArmorProfile"):
        if _map(security.get(profile)).get("type") == "Unconfined":
            yield f"{path}.{profile}.type: Unconfined"
    if _map(security.get("windowsOptions")).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess: true"
    linux = _map(security.get("seLinuxOptions"))
    for field in ("user", "role"):
        if linux.get(field):
            yield f"{path}.seLinuxOptions.{field}: {linux[field]}"


def _of_volumes(volumes: Any, path: str) -> Iterator[str]:
    for i, volume in enumerate(_dicts(volumes)):
        if "hostPath" in volume:
            yield f"{path}.volumes[{i}].hostPath: {_map(volume['hostPath']).get('path')}"


def _map(value: Any) -> JSON:
    return value if isinstance(value, Mapping) else {}


def _dicts(items: Any) -> Sequence[JSON]:
    """Only what can be looked into: the API server judges the shape of the rest when the pod is created."""
    return [i for i in items if isinstance(i, Mapping)] if isinstance(items, list) else []

"""Template jobs on a real API server: what it says of the pods that we make of them, and what becomes of those that ask
for the node itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gpubatch_runner.contract import Progress
from support.api import JSON, Api, eventually, template_job
from support.process import OperatorProcess

AddNode = Callable[..., Awaitable[str]]


def on(node: str, name: str, **pod: Any) -> JSON:
    job = template_job(name, nodeSelector={"kubernetes.io/hostname": node})
    job["spec"]["template"]["spec"] |= pod
    return job


async def test_a_pod_with_the_sidecar_passes_the_strictest_pod_security(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    namespace = f"/api/v1/namespaces/{api.namespace}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.client.patch(namespace, {"metadata": {"labels": labels}})
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {"name": "main", "image": "gpubatch.dev/test", "securityContext": locked}
    fetch = main | {"name": "fetch"}
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    await api.create(on(node, "job", containers=[main], initContainers=[fetch], securityContext=security))
    pod = await api.bound("job")
    assert [c["name"] for c in pod["spec"]["initContainers"]] == ["gpubatch-progress", "fetch"]
    assert pod["spec"]["initContainers"][0]["securityContext"]["runAsUser"] == 1000


async def test_the_sidecars_last_words_are_in_status(api: Api, operator: OperatorProcess, add_node: AddNode) -> None:
    node = await add_node()
    await api.create(on(node, "job"))
    pod = await api.bound("job")
    last = Progress.model_validate({"stage": "Training", "percent": 100, "time": "2026-01-01T00:00:00Z"})
    last = last.model_copy(update={"metrics": {"loss": 0.25, "accuracy": 1.0}})
    ended = {"exitCode": 0, "reason": "Completed", "message": last.to_json()}
    sidecar = {"name": "gpubatch-progress", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    main = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {
        "phase": "Succeeded",
        "initContainerStatuses": [sidecar | {"state": {"terminated": ended}}],
        "containerStatuses": [main | {"state": {"terminated": {"exitCode": 0}}, "started": False}],
    }
    await api.client.patch(f"{api.pods_path}/{pod['metadata']['name']}/status", {"status": status})
    progress = (await api.phase("job", "Succeeded"))["status"]["progress"]
    assert (progress["stage"], progress["summary"]) == ("Done", "100%")
    assert progress["metrics"] == {"loss": 0.25, "accuracy": 1.0}


async def test_what_asks_for_the_node_fails_at_first_sight_and_when_it_is_edited_so(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    root = [{"name": "root", "hostPath": {"path": "/"}}]
    await api.create(on(node, "bad", volumes=root))
    failed = (await api.phase("bad", "Failed"))["status"]
    (condition,) = [c for c in failed["conditions"] if c["type"] == "Failed"]
    assert condition["reason"] == "PodNotAllowed"
    assert "spec.template.spec.volumes[0].hostPath: /" in condition["message"]
    assert "attempts" not in failed

    await api.create(on(node, "first"))
    await api.bound("first")
    await api.create(on(node, "edited"))
    await api.phase("edited", "Queued")
    await api.client.patch(f"{api.jobs_path}/edited", {"spec": {"template": {"spec": {"hostPID": True}}}})
    failed = (await api.phase("edited", "Failed"))["status"]
    assert "spec.template.spec.hostPID: true" in failed["conditions"][0]["message"]

    async def gone() -> bool:
        return len(await api.pods()) == 1

    await eventually("no pod but the first job's", gone)

"""A job's pod gets nothing of the node but its GPUs, unless the operator's settings allow it."""

from __future__ import annotations

from typing import Any

import pytest

from gpubatch_operator.core import lifecycle
from gpubatch_operator.core.model import AttemptState
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from unit.operator.build import EPOCH, GPU, inference_spec, raw_job, template_spec

JSON = dict[str, Any]
SPEC = "spec.template.spec"


def security(**context: Any) -> JSON:
    return {"containers": [{"name": "train", "securityContext": context}]}


ASKED = [
    ({"hostNetwork": True}, f"{SPEC}.hostNetwork: true"),
    ({"hostPID": True}, f"{SPEC}.hostPID: true"),
    ({"hostIPC": True}, f"{SPEC}.hostIPC: true"),
    ({"volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/"}}]}, f"{SPEC}.volumes[1].hostPath: /"),
    (security(privileged=True), f"{SPEC}.containers[0].securityContext.privileged: true"),
    (security(capabilities={"add": ["SYS_ADMIN"]}), f"{SPEC}.containers[0].securityContext.capabilities.add"),
    (security(procMount="Unmasked"), f"{SPEC}.containers[0].securityContext.procMount: Unmasked"),
    (security(seccompProfile={"type": "Unconfined"}), f"{SPEC}.containers[0].securityContext.seccompProfile.type"),
    ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, f"{SPEC}.securityContext.appArmorProfile.type"),
    ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, f"{SPEC}.securityContext.sysctls: kernel.msgmax"),
    ({"securityContext": {"seLinuxOptions": {"user": "x"}}}, f"{SPEC}.securityContext.seLinuxOptions.user: x"),
    (
        {"containers": [{"name": "train", "ports": [{"containerPort": 1, "hostPort": 80}]}]},
        f"{SPEC}.containers[0].ports: hostPort 80",
    ),
    (
        {"initContainers": [{"name": "i", "securityContext": {"privileged": True}}]},
        f"{SPEC}.initContainers[0].securityContext.privileged: true",
    ),
]


def with_engine(volume: JSON) -> JSON:
    spec = inference_spec()
    spec["inference"]["engine"] = {"volumes": [volume]}
    return spec


def advanced(spec: JSON, status: JSON | None = None, **limits: Any) -> lifecycle.Step:
    job = convert.job_of(raw_job(spec=spec, status=status))
    return lifecycle.advance(job, [], None, EPOCH, Limits(**limits))


@pytest.mark.parametrize(("pod_spec", "field"), ASKED, ids=[f for _, f in ASKED])
def test_what_asks_for_the_node_fails_at_first_sight_with_the_field_and_the_remedy(pod_spec: JSON, field: str):
    status = advanced(template_spec(pod_spec)).status
    (condition,) = (c for c in status["conditions"] if c["type"] == "Failed")
    assert (status["phase"], condition["type"], condition["reason"]) == ("Failed", "Failed", "PodNotAllowed")
    assert field in condition["message"]
    assert "allowPrivilegedPods" in condition["message"]


@pytest.mark.parametrize(("pod_spec", "field"), ASKED, ids=[f for _, f in ASKED])
def test_and_is_taken_where_the_administrator_allows_it(pod_spec: JSON, field: str):
    assert advanced(template_spec(pod_spec), allow_privileged_pods=True).status["phase"] == "Queued"


def test_the_same_holds_for_the_engines_volumes():
    status = advanced(with_engine({"name": "models", "hostPath": {"path": "/models"}})).status
    assert "spec.inference.engine.volumes[0].hostPath: /models" in status["conditions"][0]["message"]
    assert advanced(with_engine({"name": "models", "emptyDir": {}})).status["phase"] == "Validating"


@pytest.mark.parametrize(
    "pod_spec",
    [
        {},
        security(privileged=False, capabilities={"drop": ["ALL"]}, seccompProfile={"type": "RuntimeDefault"}),
        {"hostNetwork": False, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
        {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies"}], "runAsUser": 0}},
        {"securityContext": "nonsense", "containers": [{"name": "train", "ports": 1, "securityContext": []}]},
    ],
    ids=str,
)
def test_ordinary_pods_are_taken_and_nonsense_is_left_to_the_api_server(pod_spec: JSON):
    assert advanced(template_spec(pod_spec)).status["phase"] == "Queued"


def test_a_job_edited_while_it_waits_is_judged_anew():
    bad = template_spec({"hostPID": True})
    assert advanced(bad, {"phase": "Queued"}).status["phase"] == "Failed"


def test_a_job_edited_in_the_moment_of_its_admission_gets_no_pod():
    made = {"number": 1, "node": "n", "slot": 0, "podName": "p", "startTime": "2027-01-15T08:00:00Z", "state": "Active"}
    step = advanced(template_spec({"hostPID": True}), {"phase": "Starting", "attempts": [made]})
    assert step.status["phase"] == "Failed"
    assert step.status["attempts"][-1]["state"] == AttemptState.FAILED
    assert not any(isinstance(a, lifecycle.Run) for a in step.actions)


def test_a_pod_that_runs_is_not_ended_by_a_stricter_setting():
    raw = raw_job(spec=template_spec({"hostPID": True}), status={"phase": "Running"})
    job = convert.job_of(raw)
    assert (job.phase, job.privileges) == (Phase.RUNNING, (f"{SPEC}.hostPID: true",))
    finished = convert.job_of(raw | {"status": {"phase": "Succeeded"}})
    assert lifecycle.advance(finished, [], None, EPOCH, Limits()).status["phase"] == "Succeeded"


@pytest.mark.parametrize(
    ("pod_spec", "field"),
    [
        (
            {"containers": [{"name": "train"}, {"name": "b", "resources": {"limits": {GPU: 1}}}]},
            f"{SPEC}.containers[1].resources.limits[{GPU}]",
        ),
        (
            {"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {GPU: "1"}}}]},
            f"{SPEC}.initContainers[0].resources.requests[{GPU}]",
        ),
    ],
)
def test_gpus_beside_those_of_the_job_are_refused_whatever_the_settings(pod_spec: JSON, field: str):
    status = advanced(template_spec(pod_spec), allow_privileged_pods=True).status
    assert status["conditions"][0]["reason"] == "PodNotAllowed"
    assert field in status["conditions"][0]["message"]

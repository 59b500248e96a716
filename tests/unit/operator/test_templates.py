"""The pod of a template job: what the user wrote, a sidecar that shows its progress, and what is read from both."""

from __future__ import annotations

import copy
import os
from datetime import UTC, datetime
from typing import Any

import pytest

from gpubatch_operator.core import lifecycle
from gpubatch_operator.core.model import AttemptState
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert, templates
from gpubatch_operator.kube.pods import runner_pod
from gpubatch_operator.settings import Settings
from gpubatch_runner import contract
from unit.operator.build import EPOCH, GPU, attempt, job, raw_job, spec_of, template_spec

JSON = dict[str, Any]
SETTINGS = Settings(runner_image="runner:1")
NOW = datetime(2027, 1, 15, 8, 1, tzinfo=UTC)


def made(pod_spec: JSON | None = None, **changes: Any) -> JSON:
    raw = raw_job(spec=template_spec(pod_spec, **changes))
    before = copy.deepcopy(raw)
    pod = runner_pod(raw, spec_of(raw), attempt(1, pod_name="job-1-abc"), SETTINGS)
    assert raw == before, "the job in the store is left as it is"
    pod["metadata"] |= {"uid": "pod-1", "creationTimestamp": "2027-01-15T08:00:00Z", "resourceVersion": "9"}
    return pod


def seen(pod: JSON, phase: str = "Running", init: list[JSON] | None = None, main: JSON | None = None):
    statuses = [{"name": "train", "state": main or {}}]
    status = {"phase": phase, "initContainerStatuses": init or [], "containerStatuses": statuses}
    return convert.pod_of(pod | {"status": status})


def ended(name: str, code: int, message: str = "") -> JSON:
    return {"name": name, "state": {"terminated": {"exitCode": code, "message": message, "reason": "Error"}}}


def env_of(container: JSON) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container["env"]}


# --- what is added


def test_the_sidecar_can_be_left_away_and_nobody_is_asked_for_progress_then():
    raw = raw_job(spec=template_spec())
    pod = runner_pod(raw, spec_of(raw), attempt(1, pod_name="job-1-abc"), Settings(progress_sidecar=False))
    pod["metadata"] |= {"uid": "pod-1", "creationTimestamp": "2027-01-15T08:00:00Z", "resourceVersion": "9"}
    assert "initContainers" not in pod["spec"]
    assert "volumes" not in pod["spec"]
    [container] = pod["spec"]["containers"]
    assert "env" not in container
    assert container["resources"]["limits"] == {GPU: 1}
    assert not seen(pod).reports
    assert seen(made()).reports


def test_each_container_is_told_where_to_write_and_push_its_progress():
    pod = made(
        {"initContainers": [{"name": "fetch", "image": "i"}], "containers": [{"name": "train"}, {"name": "log"}]}
    )
    own = [*pod["spec"]["initContainers"][1:], *pod["spec"]["containers"]]
    assert [c["name"] for c in own] == ["fetch", "train", "log"]
    for container in own:
        env = env_of(container)
        assert env["GPUBATCH_PROGRESS_FILE"] == contract.PROGRESS_FILE
        assert env["KUBEFLOW_TRAINER_STATUS_URL"] == env["KUBEFLOW_TRAINER_SERVER_URL"] == templates.PUSH_URL
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        assert volumes[mounts[os.path.dirname(env["GPUBATCH_PROGRESS_FILE"])]]["emptyDir"] == {}
        assert "downwardAPI" in volumes[mounts[os.path.dirname(env["KUBEFLOW_TRAINER_SERVER_TOKEN"])]]


def test_what_a_container_sets_itself_is_kept():
    own = [{"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "https://elsewhere"}, {"name": "A", "value": "b"}]
    env = made({"containers": [{"name": "train", "env": own}]})["spec"]["containers"][0]["env"]
    assert env[-2:] == own
    assert len({e["name"] for e in env}) == len(env)


def test_the_sidecar_is_a_native_one_first_of_all_small_and_locked_down():
    pod = made({"initContainers": [{"name": "fetch", "image": "i"}]}, gpus=2)["spec"]
    sidecar = pod["initContainers"][0]
    assert (sidecar["restartPolicy"], sidecar["image"]) == ("Always", "runner:1")
    assert GPU not in str(sidecar["resources"])
    security = sidecar["securityContext"]
    assert security["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert [m["readOnly"] for m in sidecar["volumeMounts"]] == [True]
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & sidecar.keys(), "nothing may wait for it"


@pytest.mark.parametrize(
    ("pod_spec", "user"),
    [
        ({}, 65532),
        ({"securityContext": {"runAsUser": 1000}}, 1000),
        ({"containers": [{"name": "train", "securityContext": {"runAsUser": 7}}]}, 7),
        ({"securityContext": {"runAsUser": 0}}, 65532),
    ],
)
def test_the_sidecar_reads_with_the_eyes_of_the_first_container_but_never_as_root(pod_spec: JSON, user: int):
    assert made(pod_spec)["spec"]["initContainers"][0]["securityContext"]["runAsUser"] == user


@pytest.mark.parametrize("value", [None, "text", 7, ["text"], {"A": "b"}, {"limits": None}, {"limits": 7}], ids=str)
@pytest.mark.parametrize("field", ["env", "volumeMounts", "resources", "securityContext", "ports"])
def test_what_is_not_as_in_a_pod_is_left_to_the_api_server_to_refuse(field: str, value: Any):
    container = made({"containers": [{"name": "train", field: value}]})["spec"]["containers"][0]
    if field in ("env", "volumeMounts") and not isinstance(value, list) and value is not None:
        assert container[field] == value
    if field == "resources" and not isinstance(value, dict) and value is not None:
        assert container[field] == value


@pytest.mark.parametrize(
    "affinity", [{}, {"podAntiAffinity": None}, {"podAntiAffinity": "x"}, {"podAffinity": 7}], ids=str
)
def test_the_locks_are_there_whatever_the_templates_affinity(affinity: JSON):
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    got = made({"affinity": affinity})["spec"]["affinity"]
    assert got["nodeAffinity"][required]["nodeSelectorTerms"]
    if affinity.get("podAntiAffinity") != "x":
        assert got["podAntiAffinity"][required][0]["topologyKey"] == "kubernetes.io/hostname"


def test_time_to_save_a_checkpoint_unless_the_template_says_otherwise():
    assert made()["spec"]["terminationGracePeriodSeconds"] == 120
    assert made({"terminationGracePeriodSeconds": 7})["spec"]["terminationGracePeriodSeconds"] == 7


# --- what is read back


def test_the_sidecars_last_words_are_the_last_progress():
    last = contract.Progress(stage="Training", percent=41.5, metrics={"loss": 0.25}, time=NOW).to_json()
    pod = seen(made(), "Succeeded", [ended("gpubatch-progress", 0, last)], ended("train", 0)["state"])
    assert pod.last_report is not None
    assert (pod.last_report.percent, pod.last_report.metrics) == (41, {"loss": 0.25})
    assert (pod.failure, pod.started, pod.finished) == (None, True, True)


@pytest.mark.parametrize("words", ["", "Traceback (most recent call last)", "{}", '{"stage": 1}'])
def test_a_sidecar_without_last_words_changes_nothing(words: str):
    assert seen(made(), "Succeeded", [ended("gpubatch-progress", 0, words)]).last_report is None


def test_a_sidecar_that_fails_is_no_failure_of_the_pod():
    sick = ended("gpubatch-progress", 1) | {"restartCount": 9}
    pod = seen(made(), "Succeeded", [sick], ended("train", 0)["state"])
    assert (pod.failure, pod.restarts, pod.engine_restarts) == (None, 0, 0)


def test_a_templates_own_container_may_be_called_engine():
    spec = {"initContainers": [{"name": "engine", "image": "i", "restartPolicy": "Always"}]}
    crashed = ended("engine", 1) | {"restartCount": 9}
    pod = seen(made(spec), "Running", [crashed], {"running": {}})
    assert (pod.engine_restarts, pod.engine_down, pod.engine_end) == (0, False, None)


def test_a_failed_init_container_is_the_jobs_own_failure_and_not_a_lost_attempt():
    pod = seen(made({"initContainers": [{"name": "fetch"}]}), "Failed", [ended("fetch", 3, "no such bucket")])
    assert pod.started
    assert pod.failure == "container fetch exited with code 3 (Error): no such bucket"


def test_a_pod_whose_init_container_works_has_started_and_one_whose_sidecar_runs_has_not():
    raw = made({"initContainers": [{"name": "fetch"}]})
    running = {"state": {"running": {}}, "started": True}
    assert not seen(raw, "Pending", [{"name": "gpubatch-progress"} | running]).started
    assert seen(raw, "Pending", [{"name": "gpubatch-progress"} | running, {"name": "fetch"} | running]).started


# --- and the end of such a job


def end_of(pod: Any) -> JSON:
    active = attempt(1, pod_name="job-1-abc", pod_uid="pod-1", state=AttemptState.ACTIVE)
    status = {"phase": "Running", "progress": {"stage": "Training", "percent": 10}, "attempts": []}
    running = job("job", phase=Phase.RUNNING, inference=False, attempt=active, status=status)
    return lifecycle.advance(running, [pod], None, EPOCH, Limits()).status


def test_a_job_that_succeeded_is_done_with_what_was_told_last():
    last = contract.Progress(stage="Training", percent=100, metrics={"loss": 0.25}, time=NOW).to_json()
    status = end_of(seen(made(), "Succeeded", [ended("gpubatch-progress", 0, last)], ended("train", 0)["state"]))
    assert status["phase"] == "Succeeded"
    assert status["progress"]["stage"] == "Done"
    assert (status["progress"]["summary"], status["progress"]["metrics"]) == ("100%", {"loss": 0.25})


def test_a_job_that_failed_shows_how_far_it_came():
    last = contract.Progress(stage="Training", total=10, completed=4, time=NOW).to_json()
    status = end_of(seen(made(), "Failed", [ended("gpubatch-progress", 0, last)], ended("train", 1)["state"]))
    assert status["phase"] == "Failed"
    assert (status["progress"]["stage"], status["progress"]["summary"]) == ("Training", "4/10 (40%)")

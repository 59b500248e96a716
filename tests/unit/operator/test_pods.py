"""Runner pods carry the locks that the cluster holds for us; what a user asked for is kept beside them."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.model import AttemptState
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.pods import inspect_pod, pod_name, run_spec, runner_pod
from gpubatch_operator.settings import Settings
from gpubatch_runner import contract
from unit.operator.build import EPOCH, GPU, attempt, inference_spec, raw_job, raw_node, spec_of, template_spec

JSON = dict[str, Any]
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
job_names = st.from_regex(DNS_NAME, fullmatch=True).filter(lambda n: len(n) <= 253) | st.just("a" * 253)
uids = st.uuids().map(str)
SETTINGS = Settings()
WORKERS = (convert.ENGINE, "train")
BOTH = pytest.mark.parametrize("spec", [inference_spec(gpus=2), template_spec(gpus=2)], ids=["inference", "template"])


def made(spec: JSON | None = None, **changes: Any) -> JSON:
    raw = raw_job(spec=spec)
    return runner_pod(raw, spec_of(raw), attempt(3, slot=1, pod_name="job-3-abc", **changes), SETTINGS)


def gpu_container(pod: JSON) -> JSON:
    return next(c for c in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]] if c["name"] in WORKERS)


# --- names


@given(job_names, uids, st.sampled_from(["inspect", "1", "10", "999999"]))
def test_names_are_valid_and_at_most_63_characters(name: str, uid: str, suffix: str):
    got = pod_name(name, uid, suffix)
    assert len(got) <= 63
    assert DNS_NAME.fullmatch(got)
    assert got == pod_name(name, uid, suffix), "deterministic: a second creation is refused by the API server"


@given(job_names, uids, uids, st.integers(1, 20), st.integers(1, 20))
def test_names_differ_between_jobs_and_between_attempts(name: str, uid: str, other: str, n: int, m: int):
    if n != m:
        assert pod_name(name, uid, str(n)) != pod_name(name, uid, str(m))
    if uid != other:
        assert pod_name(name, uid, str(n)) != pod_name(name, other, str(n)), "created anew under an old name"


# --- the locks


@BOTH
def test_a_pod_can_run_only_on_the_node_that_it_was_admitted_to(spec: JSON):
    terms = made(spec)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    here = {"key": "metadata.name", "operator": "In", "values": ["node-a"]}
    assert terms == {"nodeSelectorTerms": [{"matchFields": [here]}]}


@BOTH
def test_no_two_pods_of_one_slot_on_a_node_in_whatever_namespaces(spec: JSON):
    pod = made(spec)
    (term,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert term["labelSelector"] == {"matchLabels": {convert.SLOT: "1"}}
    assert term["namespaceSelector"] == {}, "all namespaces"
    assert term["topologyKey"] == "kubernetes.io/hostname"


@BOTH
def test_gpus_are_requested_and_limited(spec: JSON):
    resources = gpu_container(made(spec))["resources"]
    assert resources["requests"][GPU] == resources["limits"][GPU] == 2


@BOTH
def test_a_pod_never_preempts_and_is_not_tidied_away(spec: JSON):
    pod = made(spec)
    assert pod["spec"]["priorityClassName"] == SETTINGS.priority_class
    notes = pod["metadata"]["annotations"]
    assert notes["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert notes["karpenter.sh/do-not-disrupt"] == "true"


@BOTH
def test_the_gpus_taint_and_those_of_the_job_are_tolerated(spec: JSON):
    tolerations = made(spec | {"tolerations": [{"key": "spot", "operator": "Exists"}]})["spec"]["tolerations"]
    assert {"key": "spot", "operator": "Exists"} in tolerations
    assert {"key": GPU, "operator": "Exists"} in tolerations


@BOTH
def test_a_pod_belongs_to_its_job_which_can_be_deleted_without_waiting_for_it(spec: JSON):
    (owner,) = made(spec)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("GPUBatchJob", "uid-job", True)
    assert not owner.get("blockOwnerDeletion")


@BOTH
def test_a_service_account_is_the_jobs_own_choice(spec: JSON):
    pod = made(spec | {"serviceAccountName": "trainer"})
    assert pod["spec"]["serviceAccountName"] == "trainer"
    assert pod["spec"].get("automountServiceAccountToken", True)


def test_an_inference_pod_gets_no_token_by_default():
    assert made(inference_spec())["spec"]["automountServiceAccountToken"] is False


@BOTH
def test_time_to_save_what_there_is(spec: JSON):
    assert made(spec)["spec"]["terminationGracePeriodSeconds"] == 120


# --- inference


def test_the_engine_is_a_native_sidecar_and_the_runner_is_restarted_on_failure():
    pod = made(inference_spec())["spec"]
    assert (pod["restartPolicy"], pod["initContainers"][0]["restartPolicy"]) == ("OnFailure", "Always")
    assert [c["name"] for c in pod["containers"]] == ["runner"]
    assert "finalizers" not in made(inference_spec())["metadata"]


def test_the_runner_sees_when_it_is_told_to_stop_and_the_engine_does_not():
    pod = made(inference_spec())["spec"]
    (volume,) = [v for v in pod["volumes"] if "downwardAPI" in v]
    (item,) = volume["downwardAPI"]["items"]
    assert item == {"path": "stop", "fieldRef": {"fieldPath": "metadata.annotations['gpubatch.dev/stop']"}}
    mount = {"name": volume["name"], "mountPath": contract.POD_DIR, "readOnly": True}
    assert mount in pod["containers"][0]["volumeMounts"]
    assert mount not in pod["initContainers"][0]["volumeMounts"]


def test_both_containers_are_locked_down():
    pod = made(inference_spec())["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert pod["securityContext"]["runAsNonRoot"]


def test_the_users_engine_settings_win():
    spec = inference_spec()
    env = [{"name": "HF_HOME", "value": "/models"}]
    spec["inference"] |= {"engine": {"image": "mine:1", "args": ["--max-model-len", "9"], "env": env}}
    engine = made(spec)["spec"]["initContainers"][0]
    assert (engine["image"], engine["args"][-2:]) == ("mine:1", ["--max-model-len", "9"])
    assert [e for e in engine["env"] if e["name"] == "HF_HOME"] == env


def test_the_run_reaches_the_runner_as_it_was_specified():
    raw = raw_job(spec=inference_spec())
    raw["spec"]["inference"] |= {"servedModelName": "mini", "maxConcurrentRequests": 7, "requestTimeoutSeconds": 9}
    (env,) = (e for e in made(raw["spec"])["spec"]["containers"][0]["env"] if e["name"] == contract.SPEC_ENV)
    read = contract.RunSpec.model_validate_json(env["value"])
    assert read == run_spec(raw, spec_of(raw).inference, 3, SETTINGS)
    assert (read.attempt, read.run, read.job.name) == (3, "uid-job", "job")
    assert (read.served_model_name, read.max_concurrent_requests, read.request_timeout_seconds) == ("mini", 7, 9)
    assert read.errors is None, "the runner knows where they go, also where the output's URL is in a Secret"


def test_claims_and_configmaps_of_the_locations_are_mounted_once_each():
    spec = inference_spec()
    spec["inference"] |= {"input": {"url": "pvc://data/in"}, "output": {"url": "pvc://data/out"}}
    pod = made(spec)["spec"]
    assert [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v] == [
        {"claimName": "data"}
    ]
    mounts = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]]
    assert f"{contract.CLAIMS_DIR}/data" in mounts
    assert len({v["name"] for v in pod["volumes"]}) == len(pod["volumes"])


def test_an_inspect_pod_takes_no_gpu_and_goes_anywhere_unless_the_input_is_on_a_claim():
    raw = raw_job(spec=inference_spec(nodeSelector={"gpu": "h100"}))
    pod = inspect_pod(raw, spec_of(raw), SETTINGS)
    assert GPU not in json.dumps(pod["spec"])
    assert "nodeSelector" not in pod["spec"]
    assert convert.SLOT not in pod["metadata"]["labels"]
    raw["spec"]["inference"]["input"]["url"] = "pvc://data/in.jsonl"
    assert inspect_pod(raw, spec_of(raw), SETTINGS)["spec"]["nodeSelector"] == {"gpu": "h100"}


# --- templates


AFFINITY = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}


def test_a_templates_own_affinity_to_pods_is_kept_beside_our_locks():
    spec = template_spec({"affinity": AFFINITY})
    before = copy.deepcopy(spec)
    affinity = made(spec)["spec"]["affinity"]
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}
    assert len(affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]) == 2
    assert spec == before, "the job in the store is left as it is"


def test_a_template_has_no_token_unless_it_names_a_service_account():
    assert made(template_spec())["spec"]["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in made(template_spec({"serviceAccountName": "trainer"}))["spec"]


def test_what_a_template_asks_of_its_node_counts_in_the_choice_of_the_node():
    asked = {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
    raw = raw_job(spec=template_spec(asked) | {"nodeSelector": {"rack": "7"}})
    shape = convert.job_of(raw).shape
    assert dict(shape.selector) == {"zone": "a", "rack": "7"}
    assert [t.key for t in shape.tolerations] == ["spot"]


def test_a_template_runs_once_and_is_held_until_its_outcome_is_recorded():
    pod = made(template_spec())
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["metadata"]["finalizers"] == [convert.FINALIZER]


def test_a_template_cannot_take_our_labels():
    spec = template_spec()
    mine = {convert.SLOT: "7", convert.JOB_UID: "other", convert.KIND: "inspect", "team": "search"}
    spec["template"]["metadata"] = {"labels": mine, "annotations": {convert.NODE: "elsewhere", "note": "kept"}}
    pod = made(spec)
    labels = pod["metadata"]["labels"]
    assert (labels[convert.SLOT], labels[convert.JOB_UID], labels[convert.KIND]) == ("1", "uid-job", "run")
    assert (labels["team"], pod["metadata"]["annotations"]["note"]) == ("search", "kept")
    assert pod["metadata"]["annotations"][convert.NODE] == "node-a"


def test_what_a_template_says_is_kept():
    own = {"volumes": [{"name": "data"}], "nodeSelector": {"disk": "ssd"}, "terminationGracePeriodSeconds": 600}
    pod = made(template_spec(own, nodeSelector={"gpu": "h100"}))["spec"]
    assert pod["volumes"][0] == {"name": "data"}
    assert pod["nodeSelector"] == {"disk": "ssd", "gpu": "h100"}
    assert pod["terminationGracePeriodSeconds"] == 600


# --- and back


@BOTH
def test_what_a_pod_was_made_for_can_be_read_back_from_it(spec: JSON):
    raw = made(spec)
    raw["metadata"] |= {"uid": "pod-1", "creationTimestamp": "2027-01-15T08:00:00Z", "resourceVersion": "9"}
    pod = convert.pod_of(raw)
    assert (pod.job_uid, pod.kind, pod.attempt, pod.slot) == ("uid-job", "run", 3, 1)
    assert (pod.target, pod.node, pod.resource, pod.gpus) == ("node-a", None, GPU, 2)
    assert (pod.created, pod.phase, pod.finished) == (EPOCH, "Pending", False)


def pod_with(**status: Any):
    raw = made(inference_spec())
    raw["metadata"] |= {"uid": "pod-1", "creationTimestamp": "2027-01-15T08:00:00Z"}
    return convert.pod_of(raw | {"status": status})


def test_only_a_peaceful_end_has_last_words():
    ended = {"exitCode": 0, "message": '{"succeeded": true}'}
    assert pod_with(containerStatuses=[{"name": "runner", "state": {"terminated": ended}}]).terminated_message
    crash = {"exitCode": 137, "message": "tail of the log"}
    killed = pod_with(containerStatuses=[{"name": "runner", "restartCount": 1, "lastState": {"terminated": crash}}])
    assert (killed.terminated_message, killed.restarts) == (None, 1)
    assert "exited with code 137" in (killed.failure or "")


def test_the_engines_end_and_a_containers_trouble_are_seen():
    engine = {"name": "engine", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    engine["lastState"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    sick = pod_with(initContainerStatuses=[engine])
    assert (sick.engine_down, sick.engine_restarts, sick.engine_end) == (True, 2, ("OOMKilled", ""))
    assert sick.trouble is None, "its end is the news"
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    stuck = pod_with(containerStatuses=[{"name": "runner", "state": waiting}]).trouble
    assert stuck is not None
    assert (stuck.container, stuck.reason) == ("runner", "ErrImagePull")


def test_a_disruption_is_told_from_a_failure():
    assert pod_with(phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True"}]).disrupted
    assert not pod_with(phase="Failed").disrupted


def test_a_node_is_read_with_its_extended_resources_only():
    raw = raw_node("node-a", 4)
    raw["spec"] = {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule"}]}
    node = convert.node_of(raw, 2)
    assert (node.capacity, node.slots, node.ready, node.unschedulable) == ({GPU: 4}, 2, True, True)
    assert (node.taints[0].key, node.taints[0].value) == ("k", "")
    assert not convert.node_of({"metadata": {"name": "new"}}, 1).ready


def test_a_job_is_read_with_its_recorded_place_in_the_queue():
    fresh = convert.job_of(raw_job(version=42))
    assert (fresh.phase, fresh.ticket, fresh.queued_at) == (None, 42, EPOCH)
    status = {"phase": "Queued", "queuedAt": "2027-01-15T08:00:05Z", "queueTicket": "7"}
    seen = convert.job_of(raw_job(status=status, spec=inference_spec(priority=3), version=99))
    assert (seen.ticket, seen.queued_at, seen.rank) == (7, EPOCH + 5, (-3, EPOCH + 5, 7, "uid-job"))
    last = {
        "number": 4,
        "node": "n",
        "slot": 0,
        "podName": "p",
        "startTime": "2027-01-15T08:00:00Z",
        "state": "Stopping",
    }
    assert convert.job_of(raw_job(status={"attempts": [last]})).attempt.state is AttemptState.STOPPING


# --- where its files are


def secret_url(name: str, key: str) -> JSON:
    return {"urlFrom": {"secretKeyRef": {"name": name, "key": key}}}


def test_urls_in_secrets_reach_the_runner_as_files_and_never_as_text():
    spec = inference_spec()
    spec["inference"] |= {
        "input": secret_url("links", "in"),
        "output": secret_url("links", "out"),
        "errors": secret_url("others", "errors"),
        "checkpoint": {"url": "pvc://kept/dir/job"},
    }
    pod = made(spec)["spec"]
    runner = pod["containers"][0]
    run = contract.RunSpec.model_validate_json(runner["env"][0]["value"])
    assert (run.input, run.output, run.errors) == ("secret://links/in", "secret://links/out", "secret://others/errors")
    mounted = {m["mountPath"]: m["name"] for m in runner["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    links = volumes[mounted[f"{contract.SECRETS_DIR}/links"]]["secret"]
    assert links["items"] == [{"key": "in", "path": "in"}, {"key": "out", "path": "out"}]
    assert links["optional"], "so that the runner can say what is missing"
    assert f"{contract.SECRETS_DIR}/others" in mounted
    assert f"{contract.CLAIMS_DIR}/kept" in mounted
    assert not [m for m in pod["initContainers"][0]["volumeMounts"] if "gpubatch-location" in m["name"]]


def test_the_keys_of_storage_are_files_too_so_that_renewed_ones_are_seen():
    spec = inference_spec()
    spec["inference"] |= {"storage": {"secretName": "s3"}}
    pod = made(spec)["spec"]
    runner = pod["containers"][0]
    (mount,) = [m for m in runner["volumeMounts"] if m["mountPath"] == contract.CREDENTIALS_DIR]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["secret"] == {"secretName": "s3", "optional": True}
    assert mount["name"] not in [m["name"] for m in pod["initContainers"][0]["volumeMounts"]]


def test_a_jobs_time_limits_of_uploads_win_over_the_operators():
    spec = inference_spec()
    spec["inference"] |= {"upload": {"attempts": 7, "totalSeconds": 60}}
    raw = raw_job(spec=spec)
    run = run_spec(raw, spec_of(raw).inference, 1, SETTINGS.model_copy(update={"upload_read_seconds": 5.0}))
    assert (run.upload.attempts, run.upload.total_seconds, run.upload.read_seconds) == (7, 60, 5)
    assert run.upload.connect_seconds == 30

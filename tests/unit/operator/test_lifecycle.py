"""The life of one job, step by step: what is recorded, when, and what is done after it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core import endings, lifecycle
from gpubatch_operator.core.actions import Inspect, Release, Remove, Run, Step
from gpubatch_operator.core.lifecycle import advance
from gpubatch_operator.core.model import AttemptState, ContainerTrouble, Job, Pod
from gpubatch_operator.core.phases import ACTIVE, CHANGES, Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from unit.operator.build import EPOCH, inference_spec, pod, raw_job, template_spec
from unit.operator.fake import inspection, outcome
from unit.operator.schema import check_status

JSON = dict[str, Any]
NOW = EPOCH + 100
LIMITS = Limits()
EVERYTHING = ["queued", "started", "progress", "succeeded", "failed", "cancelled", "retrying"]
HOOKS = {
    "webhooks": [
        {"name": "a", "url": "https://a.example"},
        {"name": "b", "url": "https://b.example", "events": ["failed"]},
        {"name": "c", "url": "https://c.example", "events": EVERYTHING},
    ]
}


def a_job(status: JSON | None = None, spec: JSON | None = None) -> Job:
    return convert.job_of(raw_job(spec=spec, status=status))


def queued(spec: JSON | None = None) -> Job:
    return a_job({"phase": "Queued", "queuedAt": "2027-01-15T08:00:00Z", "queueTicket": "1"}, spec)


def admitted(spec: JSON | None = None, *, times: int = 1) -> Job:
    """A job whose attempt is recorded, the earlier ones lost."""
    job = queued(spec)
    for number in range(1, times + 1):
        job = a_job(lifecycle.admit(job, "node-a", 0, f"job-{number}-abc", NOW), spec)
        if number < times:
            lost = pod(attempt=number, gone=True, node="node-a")
            job = a_job(step(job, lost).status, spec)
    return job


def step(job: Job, *pods: Pod, report: ProgressReport | None = None, now: float = NOW) -> Step:
    """One step; its status is one that the API server takes, and the phase may change so."""
    out = advance(job, pods, report, now, LIMITS)
    check_status(out.status)
    after = Phase(out.status["phase"])
    assert after is job.phase or after in CHANGES[job.phase]
    return out


def after(job: Job, *pods: Pod, spec: JSON | None = None, **more: Any) -> Job:
    return a_job(step(job, *pods, **more).status, spec)


def condition(status: JSON, kind: str) -> JSON:
    return next(c for c in status["conditions"] if c["type"] == kind)


def newest(status: JSON) -> JSON:
    return status["attempts"][-1]


# --- first sight and validation


def test_on_first_sight_place_and_ticket_are_recorded():
    status = step(a_job()).status
    assert (status["phase"], status["queuedAt"], status["queueTicket"]) == ("Validating", "2027-01-15T08:00:00Z", "1")
    assert step(a_job(spec=template_spec())).status["phase"] == "Queued"


def test_the_input_is_inspected_before_the_job_waits():
    job = after(a_job())
    assert step(job).actions == (Inspect(),)
    inspect = pod(kind="inspect", attempt=0, terminated_message=inspection(requests=7), phase="Succeeded")
    done = step(job, inspect)
    assert (done.status["phase"], done.status["inspection"]["requests"]) == ("Queued", 7)
    assert condition(done.status, "Validated")["status"] == "True"
    assert done.actions == (Remove(inspect),)


def test_the_verdict_of_an_inspect_pod_that_is_gone_already_counts():
    inspect = pod(kind="inspect", attempt=0, terminated_message=inspection(), phase="Succeeded", gone=True)
    assert step(after(a_job()), inspect).status["phase"] == "Queued"


def test_a_broken_input_fails_the_job_with_its_line_numbers():
    errors = [{"line": n, "code": "invalid_json", "message": "x" * 3000} for n in range(1, 20)]
    verdict = inspection(valid=False, invalid=19, reason="InvalidRequests", message="19 lines", firstErrors=errors)
    status = step(after(a_job()), pod(kind="inspect", terminated_message=verdict, phase="Succeeded")).status
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "InvalidRequests")
    assert status["inspection"]["firstErrors"][0].startswith("line 1: invalid_json: ")
    assert len(status["inspection"]["firstErrors"]) == 10


def test_skipped_lines_are_said_and_the_job_is_queued():
    status = step(
        after(a_job()), pod(kind="inspect", terminated_message=inspection(invalid=2), phase="Succeeded")
    ).status
    assert status["phase"] == "Queued"
    assert condition(status, "Validated")["reason"] == "InvalidLinesSkipped"


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_an_inspect_pod_that_ended_without_a_verdict_is_replaced(phase: str):
    job, silent = after(a_job()), pod(kind="inspect", phase=phase)
    assert step(job, silent).actions == (Remove(silent),)
    assert step(job, replace(silent, deleting=True)).actions == ()
    assert step(job, replace(silent, gone=True)).actions == (Inspect(),)


def test_an_image_that_cannot_be_pulled_is_said_at_once_and_given_up_in_the_end():
    stuck = pod(kind="inspect", trouble=ContainerTrouble("runner", "ImagePullBackOff", "nope:1: not found"))
    early = step(after(a_job()), stuck)
    assert (early.status["phase"], early.status["pending"]["reason"]) == ("Validating", "ImagePullFailed")
    assert early.retry_at == NOW + LIMITS.image_pull_seconds, "however long ago the pod was made"
    again = replace(stuck, trouble=ContainerTrouble("runner", "ErrImagePull", "nope:1: not found"))
    assert step(a_job(early.status), again, now=NOW + 100).retry_at == early.retry_at
    late = step(a_job(early.status), stuck, now=NOW + LIMITS.image_pull_seconds)
    assert (late.status["phase"], condition(late.status, "Failed")["reason"]) == ("Failed", "ImagePullFailed")
    assert late.actions == (Remove(stuck),)


def test_an_inspection_that_crashes_is_shown_at_once_and_given_up_soon():
    crashed = pod(kind="inspect", restarts=1, failure="container runner exited with code 1 (Error)")
    early = step(after(a_job()), crashed)
    assert (early.status["phase"], early.status["pending"]["reason"]) == ("Validating", "RunnerCrashed")
    late = step(after(a_job()), replace(crashed, restarts=3))
    assert (late.status["phase"], condition(late.status, "Failed")["reason"]) == ("Failed", "RunnerCrashed")


# --- admission


def test_the_attempt_is_recorded_before_its_pod_is_created():
    status = lifecycle.admit(queued(), "node-a", 1, "job-1-abc", NOW)
    check_status(status)
    assert (status["phase"], status["queuePosition"], status["nodeName"]) == ("Starting", 0, "node-a")
    assert (newest(status)["number"], newest(status)["slot"], newest(status)["state"]) == (1, 1, "Active")
    job = a_job(status)
    assert step(job).actions == (Run(job.attempt),), "a crash before the pod was created: it is created now"
    assert step(job, pod()).actions == (), "and once it exists, no second one"


def test_the_pods_uid_is_recorded_once_it_is_bound():
    assert "podUid" not in newest(step(admitted(), pod()).status)
    assert newest(step(admitted(), pod(node="node-a")).status)["podUid"] == "pod-1"


def test_a_pod_that_was_seen_bound_and_vanished_is_a_lost_attempt():
    job = after(admitted(), pod(node="node-a"))
    status = step(job).status
    assert (status["phase"], newest(status)["state"]) == ("Queued", "Lost")
    assert not {"nodeName", "podName", "startTime", "progress", "queuePosition"} & status.keys()
    assert condition(status, "Admitted")["status"] == "False"


def test_a_lost_job_keeps_its_place_and_its_next_attempt_has_the_next_number():
    job = after(after(admitted(), pod(node="node-a")))
    assert (job.queued_at, job.ticket) == (EPOCH, 1)
    again = lifecycle.admit(job, "node-b", 0, "job-2-abc", NOW)
    assert [a["number"] for a in again["attempts"]] == [1, 2]


def test_lost_attempts_are_capped():
    job = admitted(times=endings.MAX_LOST)
    assert job.attempts == endings.MAX_LOST
    status = step(job, pod(attempt=10, gone=True)).status
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "TooManyLostAttempts")
    assert len(status["attempts"]) <= 10


def test_nothing_but_the_recorded_attempt_may_run():
    old = pod(uid="old", attempt=1, node="node-a", phase="Running")
    assert Remove(old) in step(admitted(times=2), old, pod(attempt=2)).actions
    assert step(queued(), old).actions == (Remove(old),)


# --- running


def report(stage: str = "Processing", completed: int = 10, at: float = NOW, **more: Any) -> ProgressReport:
    base = ProgressReport(stage, "", 100, completed, 0, 2.0, 5, 6, 7.0, at)
    return replace(base, **more)


def test_a_job_runs_when_its_first_request_does():
    bound, up = pod(node="node-a"), pod(node="node-a", started=True, phase="Running")
    assert step(admitted(), bound).status["progress"] == {"stage": "PullingImages"}
    loading = after(admitted(), up)
    assert (loading.phase, loading.status["progress"]) == (Phase.STARTING, {"stage": "LoadingModel"})
    assert step(loading, up, report=report("LoadingModel")).status["phase"] == "Starting"
    running = step(loading, up, report=report()).status
    assert (running["phase"], running["progress"]["summary"]) == ("Running", "10/100 (10%)")


def test_a_template_runs_when_its_container_does():
    spec = template_spec()
    assert step(admitted(spec), pod(node="node-a", started=True, phase="Running")).status["phase"] == "Running"


def test_progress_is_written_at_a_change_of_stage_at_each_percent_and_every_30_seconds_no_oftener():
    up = pod(node="node-a", started=True, phase="Running")
    job = after(admitted(), up, report=report())
    same = dict(job.status)
    assert step(job, up, report=report(at=NOW + 29, rate=9.0, total=100)).status == same
    assert step(job, up, report=report(at=NOW + 30)).status != same
    assert step(job, up, report=report(completed=11, at=NOW + 1)).status["progress"]["percent"] == 11
    assert step(job, up, report=report("Uploading", at=NOW + 1)).status["progress"]["stage"] == "Uploading"


def test_trouble_of_a_running_pod_is_said_and_taken_back_when_it_heals():
    sick = pod(node="node-a", phase="Running", engine_restarts=1, engine_down=True, engine_end=("OOMKilled", ""))
    job = after(admitted(), sick)
    assert job.status["pending"]["reason"] == "EngineOutOfMemory"
    assert "nextStep" in job.status["pending"]
    assert "pending" not in step(job, replace(sick, engine_down=False)).status


def test_an_engine_that_ends_again_and_again_fails_the_job_and_frees_the_slot():
    sick = pod(node="node-a", phase="Running", engine_restarts=5, engine_end=("OOMKilled", "killed"))
    stop = step(admitted(), sick)
    assert (newest(stop.status)["state"], stop.status["phase"]) == ("Stopping", "Starting")
    assert stop.actions == (Remove(sick),)
    job = a_job(stop.status)
    saved = pod(
        node="node-a", phase="Succeeded", terminated_message=outcome(succeeded=False, completed=2, reason="Interrupted")
    )
    status = step(job, saved).status
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "EngineOutOfMemory")
    assert status["results"]["completed"] == 2, "partial results are results"
    assert step(job, replace(saved, terminated_message=None, gone=True)).status["phase"] == "Failed"
    assert step(job).status["phase"] == "Failed"


def test_an_engine_that_answers_between_its_ends_is_not_given_up():
    """Requests that kill it may lie far apart: each has to be found out, by three ends, before the run goes on."""
    job = admitted()
    for restarts in (2, 4, 6, 8):
        sick = pod(node="node-a", phase="Running", engine_restarts=restarts, engine_end=("exit code 1", "poison"))
        out = step(job, sick, report=replace(report(), engine_proven=False))
        assert newest(out.status)["state"] == "Active"
        out = step(a_job(out.status), sick, report=replace(report(), engine_proven=True))
        assert newest(out.status)["engineRestartsSurvived"] == restarts
        job = a_job(out.status)
    sick = pod(node="node-a", phase="Running", engine_restarts=12, engine_end=("exit code 1", "broken"))
    assert newest(step(job, sick).status)["state"] == "Active", "also after a restart of the operator, without a report"
    stop = step(job, replace(sick, engine_restarts=13))
    assert newest(stop.status)["state"] == "Stopping"


def test_a_pod_that_waits_for_somebody_elses_gpu_is_no_reason_to_fail():
    waits = pod(unschedulable="0/3 nodes are available: insufficient nvidia.com/gpu")
    status = step(admitted(), waits, now=NOW + 10**6).status
    assert (status["phase"], status["pending"]["reason"]) == ("Starting", "Unschedulable")


# --- the end


def test_success_is_recorded_with_its_results():
    status = step(
        admitted(), pod(phase="Succeeded", terminated_message=outcome(output="s3://b/out", usage={"inputTokens": 9}))
    ).status
    assert (status["phase"], newest(status)["state"]) == ("Succeeded", "Succeeded")
    assert status["results"] == {
        "output": "s3://b/out",
        "total": 3,
        "completed": 3,
        "failed": 0,
        "usage": {"inputTokens": 9},
    }
    assert condition(status, "Complete")["status"] == "True"
    assert status["progress"]["percent"] == 100
    assert not {"queuePosition", "pending", "estimatedCompletionTime"} & status.keys()


def test_a_failed_run_keeps_its_partial_results_and_says_why():
    words = outcome(succeeded=False, completed=2, failed=1, reason="OutputNotWritable", message="bucket is gone")
    status = step(admitted(), pod(phase="Succeeded", terminated_message=words)).status
    assert (status["phase"], status["results"]["completed"]) == ("Failed", 2)
    assert (newest(status)["reason"], newest(status)["message"]) == ("OutputNotWritable", "bucket is gone")
    assert condition(status, "Failed")["message"] == "bucket is gone"


def test_the_reason_of_a_failed_run_is_shown_while_its_engine_still_ends():
    words = outcome(succeeded=False, reason="EngineNotReady", message="no answer within 5 s")
    status = step(admitted(), pod(node="node-a", phase="Running", terminated_message=words)).status
    assert (status["phase"], status["pending"]["reason"]) == ("Starting", "EngineNotReady")
    assert status["pending"]["message"] == "no answer within 5 s"


def test_an_interrupted_run_goes_back_into_the_queue():
    words = outcome(succeeded=False, completed=1, reason="Interrupted")
    assert step(admitted(), pod(phase="Succeeded", terminated_message=words, deleting=True)).status["phase"] == "Queued"


def test_a_run_that_finished_while_its_pod_was_deleted_has_finished():
    done = pod(phase="Succeeded", terminated_message=outcome(), deleting=True, gone=True)
    assert step(admitted(), done).status["phase"] == "Succeeded"


@pytest.mark.parametrize("words", [None, "", "OCI runtime error", "[1]", '"succeeded"', "{}", '{"valid'])
def test_words_that_are_not_the_runners_are_no_outcome(words: str | None):
    assert newest(step(admitted(), pod(phase="Failed", terminated_message=words)).status)["state"] == "Lost"


def test_a_template_succeeds_or_fails_with_its_pod():
    spec, held = template_spec(), {"has_finalizer": True, "node": "node-a"}
    assert step(admitted(spec), pod(phase="Succeeded", **held)).status["phase"] == "Succeeded"
    died = pod(phase="Failed", started=True, failure="container train exited with code 3", **held)
    failed = step(admitted(spec), died).status
    assert (failed["phase"], newest(failed)["reason"]) == ("Failed", "PodFailed")
    assert condition(failed, "Failed")["message"] == "container train exited with code 3"


@pytest.mark.parametrize(
    "how",
    [{"deleting": True}, {"disrupted": True}, {"deleting": True, "gone": True}, {"deleting": True, "killed": True}],
)
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_template_pod_ended_from_outside_is_lost_even_with_exit_code_0(how: JSON, phase: str):
    status = step(admitted(template_spec()), pod(phase=phase, **how)).status
    assert (status["phase"], newest(status)["state"]) == ("Queued", "Lost")


def test_a_template_pod_that_had_ended_before_it_was_deleted_has_its_outcome():
    ended = pod(phase="Succeeded", deleting=True, started=True, ended_at=NOW - 60, deleted_at=NOW - 5)
    assert step(admitted(template_spec()), ended).status["phase"] == "Succeeded"
    stopped = replace(ended, ended_at=NOW - 4)
    assert step(admitted(template_spec()), stopped).status["phase"] == "Queued"


def test_a_pod_that_the_kubelet_refuses_is_a_lost_attempt():
    refused = pod(phase="Failed", node="node-a", failure="Pod was rejected: Allocate failed")
    status = step(admitted(template_spec()), refused).status
    assert (status["phase"], newest(status)["state"]) == ("Queued", "Lost")
    assert "Allocate failed" in newest(status)["message"]


def test_a_runner_pod_that_stays_unschedulable_gives_its_slot_up():
    stuck = pod(unschedulable="0/1 nodes are available: 1 Insufficient memory.")
    shown = step(admitted(), stuck)
    assert shown.status["pending"]["reason"] == "Unschedulable"
    late = step(a_job(shown.status), stuck, now=NOW + LIMITS.unschedulable_seconds)
    assert late.actions == (Remove(stuck),)
    lost = step(a_job(late.status), replace(stuck, gone=True), now=NOW + LIMITS.unschedulable_seconds).status
    check_status(lost)
    assert (lost["phase"], newest(lost)["state"], newest(lost)["reason"]) == ("Queued", "Lost", "Unschedulable")


def test_a_job_over_its_quota_holds_no_slot():
    status = lifecycle.over_quota(admitted(), "pods is forbidden: exceeded quota", NOW)
    check_status(status)
    assert (status["phase"], newest(status)["state"], newest(status)["reason"]) == ("Queued", "Lost", "Quota")


def test_a_template_pods_finalizer_goes_only_when_its_outcome_is_recorded():
    spec, running = template_spec(), pod(has_finalizer=True, node="node-a", phase="Running", started=True)
    ending = replace(running, deleting=True)
    done = replace(running, phase="Succeeded")
    assert step(admitted(spec), running).actions == ()
    assert step(admitted(spec), ending).actions == (), "it still runs: its outcome is not known"
    end = step(admitted(spec), done)  # actions follow the write of the status
    assert (end.status["phase"], end.actions) == ("Succeeded", (Release(done),))
    assert step(a_job(end.status, spec), done).actions == (Release(done),), "until it is gone, after a crash as well"
    assert step(a_job(end.status, spec), replace(done, has_finalizer=False)).actions == ()


def test_a_template_pod_deleted_by_force_is_lost_and_let_go():
    """Nobody waits for its containers any more: only our finalizer holds the object, and its phase stays as it was."""
    killed = pod(has_finalizer=True, node="node-a", phase="Running", deleting=True, killed=True)
    end = step(admitted(template_spec()), killed)
    assert (end.status["phase"], end.actions) == ("Queued", (Release(killed),))


def test_the_pods_of_a_deleted_job_are_let_go():
    held = pod(has_finalizer=True)
    assert lifecycle.orphan(held) == (Release(held),)
    assert lifecycle.orphan(replace(held, gone=True)) == lifecycle.orphan(pod()) == ()


def test_a_pod_that_the_api_server_refuses_fails_the_job():
    status = lifecycle.rejected(admitted(), "pods is forbidden: " + "x" * 9000, NOW, final=True)
    check_status(status)
    assert (status["phase"], newest(status)["state"]) == ("Failed", "Failed")


def test_a_pod_that_the_api_server_refuses_for_now_is_shown_and_its_attempt_goes_on():
    status = lifecycle.rejected(admitted(), "pods is forbidden: " + "x" * 9000, NOW, final=False)
    check_status(status)
    assert (status["phase"], newest(status)["state"]) == ("Starting", "Active")
    assert status["pending"]["reason"] == "PodRejected"
    assert status["pending"]["nextStep"]


def test_deliveries_follow_the_event_filter_and_have_stable_ids():
    spec = inference_spec(**HOOKS)
    bad = pod(phase="Succeeded", terminated_message=outcome(succeeded=False, reason="EngineFailed"))
    good = pod(phase="Succeeded", terminated_message=outcome())
    failed = step(admitted(spec), bad).status["webhookDeliveries"]
    assert [(d["webhook"], d["event"], d["state"], d["attempts"]) for d in failed] == [
        ("c", "started", "Pending", 0),
        ("a", "failed", "Pending", 0),
        ("b", "failed", "Pending", 0),
        ("c", "failed", "Pending", 0),
    ]
    assert [d["webhook"] for d in step(admitted(spec), good).status["webhookDeliveries"]] == ["c", "a", "c"]
    later = step(admitted(spec), bad, now=NOW + 60).status["webhookDeliveries"]
    assert [d["id"] for d in later] == [d["id"] for d in failed], "a decision made twice is the same message"
    assert len({d["id"] for d in failed}) == 4


# --- always


pods_of_a_run = st.builds(
    pod,
    attempt=st.sampled_from([1, 1, 1, 2]),
    uid=st.sampled_from(["pod-1", "pod-2"]),
    kind=st.sampled_from(["run", "run", "run", "inspect"]),
    node=st.sampled_from([None, "node-a"]),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    deleting=st.booleans(),
    killed=st.sampled_from([False, False, True]),
    gone=st.booleans(),
    has_finalizer=st.booleans(),
    started=st.booleans(),
    disrupted=st.booleans(),
    restarts=st.sampled_from([0, 1, 10]),
    failure=st.sampled_from([None, "exit code 1", "x" * 9000]),
    terminated_message=st.sampled_from(
        [
            *(None, "gibberish", outcome(), outcome(succeeded=False), inspection(), inspection(valid=False)),
            outcome(succeeded=False, reason="Interrupted"),
            json.dumps({"succeeded": False, "message": "é" * 5000}),
        ]
    ),
    trouble=st.sampled_from(
        [
            None,
            ContainerTrouble("engine", "ErrImagePull", "y" * 9000),
            ContainerTrouble("runner", "InvalidImageName", ""),
        ]
    ),
    unschedulable=st.sampled_from([None, "0/1 nodes"]),
    engine_restarts=st.sampled_from([0, 1, 5]),
    engine_down=st.booleans(),
    engine_end=st.sampled_from([None, ("OOMKilled", "z" * 9000), ("exit code 1", "")]),
)
some_jobs = st.sampled_from(
    [
        *(a_job(), after(a_job()), queued(), admitted(), admitted(times=2), admitted(times=10)),
        *(admitted(template_spec(**HOOKS)), admitted(inference_spec(**HOOKS))),
        after(admitted(), pod(node="node-a")),
        after(admitted(), pod(phase="Succeeded", terminated_message=outcome())),
        after(admitted(), pod(node="node-a", engine_restarts=5, engine_end=("OOMKilled", ""))),
    ]
)


def respec(job: Job) -> JSON:
    return (inference_spec() if job.inference else template_spec()) | (HOOKS if job.webhooks else {})


@given(some_jobs, st.lists(pods_of_a_run, max_size=3), st.booleans(), st.sampled_from([0, 61, 10**6]))
def test_whatever_the_pods_say_the_status_is_valid_and_a_second_look_changes_nothing(
    job: Job, pods: list[Pod], reported: bool, late: float
):
    said, now = report() if reported else None, NOW + late
    before = copy.deepcopy(dict(job.status))
    first = step(job, *pods, report=said, now=now)
    assert job.status == before, "advance is pure"
    assert advance(job, pods, said, now, LIMITS) == first
    then = a_job(first.status, respec(job))
    if job.phase is then.phase and (job.attempt is None or job.attempt.state is then.attempt.state):
        assert step(then, *pods, report=said, now=now).status == first.status
    runs = [a for a in first.actions if isinstance(a, Run)]
    assert len(runs) <= 1
    if runs:
        assert then.phase in ACTIVE
        assert then.attempt == runs[0].attempt
        assert then.attempt.state is AttemptState.ACTIVE
        assert not [p for p in pods if p.kind == "run" and p.attempt == then.attempt.number]
    for action in first.actions:
        if isinstance(action, Release):
            current = job.attempt is not None and action.pod.attempt == job.attempt.number
            assert not current or then.phase not in ACTIVE


@given(some_jobs, st.lists(pods_of_a_run, min_size=1, max_size=3))
def test_steps_come_to_rest(job: Job, pods: list[Pod]):
    """However often the job is looked at while its pods stay as they are, its status settles in a few steps."""
    seen: list[JSON] = []
    for _ in range(6):
        seen.append(step(job, *pods).status)
        job = a_job(seen[-1], respec(job))
    assert seen[-1] == seen[-2]

"""What users can wish of a job's life, on a real API server; the kubelet is played by the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gpubatch_operator.kube.client import ApiError
from support.api import JSON, Api, eventually, inference_job, template_job
from support.process import OperatorProcess
from support.story import (
    NOWHERE,
    condition,
    drained,
    inference_running,
    on,
    outcome,
    receiver,
    recorded,
    run_spec,
    states,
    validated,
)

AddNode = Callable[..., Awaitable[str]]

SETTINGS: dict[str, Any] = {
    "stop_seconds": 5,
    "image_pull_seconds": 4,
    "scale_up_pods": 0,
    "webhook_backoff_seconds": 2,
    "webhook_allowed_networks": "127.0.0.0/8",
}


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("life") / "operator.log", **SETTINGS) as process:
        yield process


async def asked_to_stop(api: Api, pod: JSON, reason: str) -> None:
    """The pod as it is when its runner is asked to stop: nobody has told it yet by deleting it."""

    async def there() -> JSON | None:
        now = await api.pod(pod["metadata"]["name"])
        assert now is not None, "the pod is gone before its runner was asked"
        return now if now["metadata"]["annotations"].get("gpubatch.dev/stop") else None

    now = await eventually("the runner to be asked to stop", there)
    assert now["metadata"]["annotations"]["gpubatch.dev/stop"] == reason
    assert "deletionTimestamp" not in now["metadata"]


async def refusal(what: Awaitable[Any]) -> str:
    """The sentence with which the API server refuses."""
    with pytest.raises(ApiError) as refused:
        await what
    assert refused.value.status == 422
    return refused.value.message


# --- suspend


async def test_a_suspended_job_leaves_the_queue_and_comes_back_to_the_place_of_its_creation(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("runs", **on(node)))
    running = await api.bound("runs")
    for name in "abc":
        await api.create(template_job(name, **on(node)))
    await api.positions("a", "b", "c")
    await api.edit("a", suspend=True)
    suspended = await api.phase("a", "Suspended")
    assert suspended["status"]["pending"]["reason"] == "Suspended"
    assert "suspend" in suspended["status"]["pending"]["nextStep"]
    assert "queuePosition" not in suspended["status"]
    assert "estimatedStartTime" not in suspended["status"]
    await api.positions("b", "c")
    await api.edit("a", suspend=False)
    await api.positions("a", "b", "c")
    await api.play_end(running)
    await api.bound("a")


async def test_a_job_that_is_created_suspended_does_nothing_until_it_may(api: Api, add_node: AddNode) -> None:
    await api.create(inference_job("job", suspend=True, **NOWHERE))
    await api.phase("job", "Suspended")
    await api.create(inference_job("later", **NOWHERE))
    await validated(api, "later")
    assert {p["metadata"]["annotations"]["gpubatch.dev/job"] for p in await api.pods()} <= {"later"}
    await api.edit("job", suspend=False)
    await validated(api, "job")
    await api.positions("job", "later")


async def test_a_running_runner_is_asked_to_save_and_its_slot_goes_to_the_next(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    pod = await inference_running(api, "job", **on(node))
    await api.create(template_job("next", **on(node)))
    await api.edit("job", suspend=True)
    await asked_to_stop(api, pod, "Suspended")
    assert (await api.job("job"))["status"]["pending"]["reason"] == "Stopping"
    assert (await api.job("next"))["status"]["phase"] == "Queued"  # as long as the runner saves
    await api.play_end(pod, message=outcome("Suspended", completed=4))
    suspended = await api.phase("job", "Suspended")
    assert states(suspended) == ["Stopped"]
    assert suspended["status"]["attempts"][0]["reason"] == "Suspended"
    assert suspended["status"]["results"]["completed"] == 4
    await api.edit("job", suspend=False)
    again = await api.phase("job", "Queued")  # what was validated is not validated again
    assert again["status"]["inspection"]["requests"] == 10
    await api.play_end(await api.bound("next"))
    second = await api.bound("job")
    assert run_spec(second)["attempt"] == 2
    assert run_spec(second)["run"] == run_spec(pod)["run"]  # it goes on from what the first has saved
    await api.play_end(second, message=outcome())
    job = await api.phase("job", "Succeeded")
    assert states(job) == ["Stopped", "Succeeded"]
    assert not job["status"].get("failedAttempts")
    assert not job["status"].get("lostAttempts")


async def test_a_template_pod_is_ended_by_suspending_its_job_and_runs_again(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    await api.create(template_job("job", **on(node)))
    await api.create(template_job("next", **on(node)))
    pod = await api.bound("job")
    await api.play_running(pod)
    await api.edit("job", suspend=True)
    await api.terminating(pod)
    await api.play_end(pod, code=143)
    await api.play_gone(pod)
    assert states(await api.phase("job", "Suspended")) == ["Stopped"]
    running = await api.bound("next")
    await api.edit("job", suspend=False)
    await api.phase("job", "Queued")
    await api.play_end(running)
    await api.play_end(await api.bound("job"))
    assert states(await api.phase("job", "Succeeded")) == ["Stopped", "Succeeded"]


# --- cancel and delete


async def test_a_cancelled_job_keeps_what_was_answered_tells_its_webhooks_and_runs_no_more(
    api: Api, add_node: AddNode, unused_tcp_port: int
) -> None:
    node = await add_node()
    async with receiver(unused_tcp_port) as received:
        hook = {"webhooks": [{"url": f"http://127.0.0.1:{unused_tcp_port}/"}]}
        pod = await inference_running(api, "runs", **on(node), **hook)
        await api.create(template_job("waits", **on(node), **hook))
        await api.create(template_job("next", **on(node), webhooks=[{**hook["webhooks"][0], "events": ["failed"]}]))
        await api.edit("waits", cancel=True)
        waited = await api.phase("waits", "Cancelled")
        assert condition(waited, "Failed")["reason"] == "Cancelled"  # `kubectl wait` comes to an end
        assert not waited["status"].get("attempts")
        await api.edit("runs", cancel=True)
        await asked_to_stop(api, pod, "Cancelled")
        await api.play_end(pod, message=outcome("Cancelled", completed=4))
        ran = await api.phase("runs", "Cancelled")
        assert condition(ran, "Failed")["reason"] == "Cancelled"
        assert ran["status"]["results"]["completed"] == 4
        assert ran["status"]["results"]["output"] == "s3://bucket/out.jsonl"
        assert states(ran) == ["Stopped"]
        last = await api.bound("next")
        await api.edit("next", cancel=True)  # its webhook doesn't want to know
        await eventually("the webhooks", lambda: arrived(received, 2))
        assert {(b["type"], b["data"]["job"]["name"], b["data"]["phase"]) for b in received} == {
            ("gpubatchjob.cancelled", "waits", "Cancelled"),
            ("gpubatchjob.cancelled", "runs", "Cancelled"),
        }
        assert {b["data"]["error"]["reason"] for b in received} == {"Cancelled"}
        await api.terminating(last)
        await api.play_gone(last)
        ended = await api.phase("next", "Cancelled")
        assert not ended["status"].get("webhookDeliveries")
    for name in ("runs", "waits", "next"):
        assert "spec.cancel can't be taken back" in await refusal(api.edit(name, cancel=False))


async def arrived(received: list[JSON], count: int) -> bool:
    return len(received) >= count


async def test_a_runner_that_does_not_stop_when_asked_is_told(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    pod = await inference_running(api, "job", **on(node))
    await api.create(template_job("next", **on(node)))
    await api.edit("job", cancel=True)
    await asked_to_stop(api, pod, "Cancelled")
    await api.terminating(pod)
    await api.play_gone(pod)
    assert states(await api.phase("job", "Cancelled")) == ["Stopped"]
    await api.bound("next")


async def test_a_waiting_job_that_is_deleted_leaves_its_place_to_the_next(api: Api) -> None:
    for name in "abc":
        await api.create(template_job(name, **NOWHERE))
    await api.positions("a", "b", "c")
    job = await api.job("a")
    assert not job["metadata"].get("finalizers")
    await api.delete("a")
    await api.gone("a")
    await api.positions("b", "c")


# --- order


async def test_an_edited_priority_reorders_the_queue_at_once(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    await api.create(template_job("runs", **on(node)))
    running = await api.bound("runs")
    for name in "abcd":
        await api.create(template_job(name, **on(node)))
    await api.positions("a", "b", "c", "d")
    await api.edit("d", priority=10)
    await api.positions("d", "a", "b", "c")
    await api.edit("a", priority=-1)
    await api.positions("d", "b", "c", "a")
    await api.edit("runs", priority=-1000)  # what runs goes on running
    await api.edit("c", priority=10)
    await api.play_end(running)  # without waiting: the plan counts, not what is published
    for name in ("c", "d", "b", "a"):
        pod = await api.bound(name)
        live = [p for p in await api.pods() if p["status"]["phase"] in ("Pending", "Running")]
        assert [p["metadata"]["name"] for p in live] == [pod["metadata"]["name"]]
        await api.play_end(pod)


# --- run again


async def test_a_new_run_id_runs_a_finished_job_again_at_the_end_of_the_queue_with_any_field_changed(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node(gpus=2)
    await api.create(inference_job("job", runId="1", **on(node)))
    await validated(api, "job")
    first = await api.bound("job")
    assert "spec.runId can't be changed while the job runs" in await refusal(api.edit("job", runId="2"))
    assert "spec.gpus can't be changed once" in await refusal(api.edit("job", gpus=2))
    await api.create(template_job("next", **on(node)))
    await api.create(template_job("last", **on(node)))
    await api.play_end(first, message=outcome())
    done = await api.phase("job", "Succeeded")
    assert done["status"]["runId"] == "1"
    for change in (
        {"gpus": 2},
        {"nodeSelector": {"a": "b"}},
        {"serviceAccountName": "x"},
        {"inference": {"model": "x"}},
    ):
        said = await refusal(api.edit("job", **change))
        assert f"spec.{next(iter(change))} can't be changed" in said
        assert "runId" in said  # what one can do
    await asyncio.sleep(1.1)  # times in status have whole seconds
    await api.edit("job", runId="2", gpus=2, inference={"model": "other", "servedModelName": "m"})
    again = await api.phase("job", "Validating")
    assert "results" not in again["status"]
    assert "completionTime" not in again["status"]
    assert [c["type"] for c in again["status"]["conditions"]] == ["Reconciling"], "nothing of the first run"
    assert again["status"]["runId"] == "2"
    await validated(api, "job")
    running = await api.bound("next")
    await api.positions("last", "job")
    await api.play_end(running)
    await api.play_end(await api.bound("last"))
    second = await api.bound("job")
    limits = [c["resources"]["limits"].get("nvidia.com/gpu") for c in second["spec"]["initContainers"]]
    assert limits == ["2"]
    assert run_spec(second)["attempt"] == 2
    assert run_spec(second)["run"] != run_spec(first)["run"]  # nothing of the first run is taken for its own
    await api.play_end(second, message=outcome())
    assert states(await api.phase("job", "Succeeded")) == ["Succeeded", "Succeeded"]


async def test_jobs_that_failed_or_were_cancelled_run_again_too_and_others_are_left_alone(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("failed", **on(node)))
    await api.play_end(await api.bound("failed"), code=1)
    await api.phase("failed", "Failed")
    await api.create(template_job("cancelled", cancel=True, **on(node)))
    await api.phase("cancelled", "Cancelled")
    await api.create(template_job("waits", **NOWHERE))
    await api.phase("waits", "Queued")
    assert "spec.cancel must be removed" in await refusal(api.edit("cancelled", runId="again"))
    queued = (await api.job("waits"))["status"]["queuedAt"]
    await api.edit("waits", runId="named")
    await api.edit("failed", runId="again")
    await api.play_end(await api.bound("failed"))
    job = await api.phase("failed", "Succeeded")
    assert states(job) == ["Failed", "Succeeded"]
    assert [c["type"] for c in job["status"]["conditions"] if c["status"] == "True"] == ["Admitted", "Complete"]
    assert not job["status"].get("failedAttempts")
    await api.edit("cancelled", runId="again", cancel=None)
    await api.play_end(await api.bound("cancelled"))
    await api.phase("cancelled", "Succeeded")
    waits = await api.phase("waits", "Queued")
    assert waits["status"]["runId"] == "named"  # the run that it will be
    assert waits["status"]["queuedAt"] == queued


# --- attempts


async def test_a_failure_of_the_job_counts_against_backoff_limit_and_one_of_the_cluster_does_not(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("fails", backoffLimit=1, **on(node)))
    await api.create(template_job("next", **on(node)))
    await api.play_end(await api.bound("fails"), code=3, message="no such file")
    waits = await api.pending("fails", "Backoff")
    assert "until 20" in waits["message"]
    assert "no such file" in waits["message"]
    assert waits["nextStep"]
    await api.play_end(await api.bound("next"))  # it blocks nobody
    # The seconds until it runs again are enough to see how the cluster's failures are taken.
    losses = {"drained": _drain, "preempted": _preempt, "registry": _registry_down}
    nodes = [await add_node() for _ in losses]
    await asyncio.gather(*(_lost_once(api, name, n, losses[name]) for name, n in zip(losses, nodes, strict=True)))
    again = await api.phase("fails", "Starting")
    assert again["status"]["failedAttempts"] == 1
    await api.play_end(await api.bound("fails"), code=4)
    failed = await api.phase("fails", "Failed")
    assert states(failed) == ["Failed", "Failed"]
    assert [a["reason"] for a in failed["status"]["attempts"]] == ["PodFailed", "PodFailed"]
    assert "code 4" in condition(failed, "Failed")["message"]
    assert not failed["status"].get("lostAttempts")


async def _lost_once(api: Api, name: str, node: str, lose: Callable[[Api, JSON], Awaitable[None]]) -> None:
    await api.create(template_job(name, **on(node)))
    pod = await api.bound(name)
    await recorded(api, name)
    await lose(api, pod)
    await eventually(f"the second attempt of {name}", lambda: _attempt(api, name, 2))
    await api.play_end(await api.bound(name))
    job = await api.phase(name, "Succeeded")
    assert states(job) == ["Lost", "Succeeded"]
    assert job["status"]["attempts"][0]["message"]
    assert job["status"]["lostAttempts"] == 1
    assert not job["status"].get("failedAttempts")


async def _attempt(api: Api, name: str, number: int) -> bool:
    return bool((await api.job(name))["status"]["attempts"][-1]["number"] == number)


async def _drain(api: Api, pod: JSON) -> None:
    await api.play_running(pod)
    await drained(api, pod)
    await api.terminating(pod)
    await api.play_end(pod, code=143)
    await api.play_gone(pod)


async def _preempt(api: Api, pod: JSON) -> None:
    """Its kubelet has killed it and says whose decision that was."""
    ended = {"exitCode": 137, "reason": "Error"}
    main = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "preempted"}
    status = {
        "phase": "Failed",
        "reason": "Preempting",
        "conditions": [*pod["status"]["conditions"], target],
        "containerStatuses": [{**main, "state": {"terminated": ended}, "started": False}],
    }
    await api.client.patch(f"{api.pods_path}/{pod['metadata']['name']}/status", {"status": status})


async def _registry_down(api: Api, pod: JSON) -> None:
    said = "failed to pull image: dial tcp 192.0.2.1:443: connect: connection refused"
    await api.play(pod, "Pending", {"waiting": {"reason": "ImagePullBackOff", "message": said}})
    name = pod["metadata"]["annotations"]["gpubatch.dev/job"]
    await api.pending(name, "ImagePullFailed")
    await api.terminating(pod)
    await api.play_gone(pod)


# --- deadlines and the end


async def test_deadlines_end_a_job_wherever_it_is_and_say_which(api: Api, add_node: AddNode) -> None:
    for name in ("active", "window"):
        await api.create(template_job(name, **on(await add_node()), **DEADLINES[name]))
    await api.create(template_job("queue", queueDeadlineSeconds=2, **NOWHERE))
    await api.create(template_job("window-waiting", completionWindowSeconds=2, **NOWHERE))
    await api.create(template_job("window-suspended", completionWindowSeconds=2, suspend=True, **NOWHERE))
    for name in ("active", "window"):
        pod = await api.bound(name)
        await api.play_running(pod)
        await api.terminating(pod)
        await api.play_end(pod, code=143)
        await api.play_gone(pod)
    reasons = {
        "active": "DeadlineExceeded",
        "window": "CompletionWindowExceeded",
        "queue": "QueueDeadlineExceeded",
        "window-waiting": "CompletionWindowExceeded",
        "window-suspended": "CompletionWindowExceeded",
    }
    for name, reason in reasons.items():
        job = await api.phase(name, "Failed")
        assert condition(job, "Failed")["reason"] == reason, name
        assert len(job["status"].get("attempts", [])) == (name in DEADLINES)


DEADLINES: dict[str, JSON] = {
    "active": {"activeDeadlineSeconds": 2, "backoffLimit": 3},
    "window": {"completionWindowSeconds": 8, "backoffLimit": 3},
}


async def test_a_runner_is_told_when_to_stop_and_what_it_answered_until_then_is_kept(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    limits = {"activeDeadlineSeconds": 300, "completionWindowSeconds": 3600, "backoffLimit": 2}
    pod = await inference_running(api, "job", **on(node), **limits)
    spec = run_spec(pod)
    started = (await api.job("job"))["status"]["startTime"]
    assert spec["stopReason"] == "DeadlineExceeded"
    assert abs(spec["stopAt"] - 300 - _epoch(started)) < 2
    assert "spec.activeDeadlineSeconds can't be changed" in await refusal(api.edit("job", activeDeadlineSeconds=600))
    await api.play_end(pod, message=outcome("DeadlineExceeded", completed=7))
    job = await api.phase("job", "Failed")  # more attempts can't mend it
    assert condition(job, "Failed")["reason"] == "DeadlineExceeded"
    assert job["status"]["results"]["completed"] == 7


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_a_job_that_has_run_is_not_failed_by_its_queue_deadline(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    await api.create(template_job("job", queueDeadlineSeconds=6, **on(node)))
    pod = await api.bound("job")
    await recorded(api, "job")
    await api.create(template_job("urgent", priority=1, **on(node)))
    await api.phase("urgent", "Queued")
    await api.play_gone(pod)  # lost: it waits again, behind the other one
    urgent = await api.bound("urgent")
    await asyncio.sleep(6)
    assert (await api.job("job"))["status"]["phase"] == "Queued"
    await api.play_end(urgent)
    await api.play_end(await api.bound("job"))
    await api.phase("job", "Succeeded")


async def test_a_finished_job_is_deleted_after_its_time_unless_a_gitops_tool_tracks_it(
    api: Api, add_node: AddNode, unused_tcp_port: int
) -> None:
    node = await add_node()
    marks = {
        "argo": {"annotations": {"argocd.argoproj.io/tracking-id": "app:gpubatch.dev/GPUBatchJob:ns/argo"}},
        "flux": {"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}},
        "flux-helm": {"labels": {"helm.toolkit.fluxcd.io/name": "apps"}},
    }
    hook = {"url": f"http://127.0.0.1:{unused_tcp_port}/"}
    await api.create(template_job("succeeded", ttlSecondsAfterFinished=1, webhooks=[hook], **on(node)))
    for name, mark in marks.items():
        job = template_job(name, ttlSecondsAfterFinished=0, cancel=True)
        await api.create({**job, "metadata": {"name": name, **mark}})
    await api.create(template_job("cancelled", ttlSecondsAfterFinished=0, cancel=True))
    await api.create(template_job("kept", cancel=True))
    await api.play_end(await api.bound("succeeded"))
    await api.phase("succeeded", "Succeeded")
    await api.gone("cancelled")
    await asyncio.sleep(1.5)
    assert "succeeded" in await api.jobs()  # nobody has answered its webhook yet
    async with receiver(unused_tcp_port) as received:
        await api.gone("succeeded")
        assert [b["type"] for b in received] == ["gpubatchjob.succeeded"]
    for name in marks:
        ignored = condition(await api.job(name), "TTLIgnored")
        assert ignored["status"] == "True"
        assert "kept" in ignored["message"]
    assert sorted(await api.jobs()) == sorted([*marks, "kept"])

"""The operator on a real API server and a real scheduler; the kubelet is played by the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpubatch_operator.kube.client import ApiError
from support.api import Api, at_rest, eventually, inference_job, template_job
from support.process import OperatorProcess

AddNode = Callable[..., Awaitable[str]]

VALID = json.dumps({"valid": True, "requests": 10, "inputTokens": 100})
DONE = json.dumps({"succeeded": True, "total": 10, "completed": 9, "failed": 1, "output": "s3://bucket/out.jsonl"})


async def position(api: Api, name: str, expected: int) -> None:
    async def there() -> bool:
        return (await api.job(name)).get("status", {}).get("queuePosition") == expected

    await eventually(f"{name} to have position {expected}", there)


async def validated(api: Api, name: str, verdict: str = VALID) -> None:
    """Play the inspection of a job's input."""
    await api.play_end(await api.pod_of(name, "inspect"), message=verdict)


def own(api: Api, node: str, **kwargs: object) -> dict[str, object]:
    """Keep a job on this test's nodes."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}, **kwargs}


async def test_jobs_run_one_after_another_by_priority_and_creation(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("first", **own(api, node)))
    running = await api.bound("first")
    for name, priority in (("low", -1), ("normal-1", 0), ("normal-2", 0), ("high", 1)):
        await api.create(template_job(name, **own(api, node, priority=priority)))
    order = ["high", "normal-1", "normal-2", "low"]
    for place, name in enumerate(order, 1):
        await position(api, name, place)
    await position(api, "first", 0)
    for name in order:
        await api.play_running(running)
        await api.play_end(running)
        running = await api.bound(name)
        live = [p for p in await api.pods() if p["status"]["phase"] in ("Pending", "Running")]
        assert [p["metadata"]["name"] for p in live] == [running["metadata"]["name"]]
    await api.play_end(running)
    await api.phase("low", "Succeeded")
    assert all(j["status"]["phase"] == "Succeeded" for j in (await api.jobs()).values())


async def test_jobs_of_the_same_second_run_in_the_order_of_their_creation(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node()
    names = ["e", "c", "a", "d", "b"]
    while True:  # all of them before the operator sees one, and within one second of the API server's clock
        made = [await api.create(template_job(n, **own(api, node))) for n in names]
        if len({j["metadata"]["creationTimestamp"] for j in made}) == 1:
            break
        await asyncio.gather(*(api.client.request("DELETE", f"{api.jobs_path}/{n}") for n in names))
    with OperatorProcess(kubeconfig, tmp_path / "log"):
        for name in names:
            pod = await api.bound(name)
            await api.play_end(pod)
        await api.phase(names[-1], "Succeeded")


async def test_a_failed_job_says_why_and_does_not_block_the_queue(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("broken", **own(api, node)))
    await api.create(template_job("next", **own(api, node)))
    await api.play_end(await api.bound("broken"), code=3, message="no such file: train.py")
    broken = await api.phase("broken", "Failed")
    [failed] = [c for c in broken["status"]["conditions"] if c["type"] == "Failed"]
    assert failed["status"] == "True"
    assert failed["reason"] == "PodFailed"
    assert "code 3" in failed["message"]
    assert "no such file: train.py" in failed["message"]
    await api.bound("next")


async def test_an_inference_job_is_validated_then_run_and_its_results_are_in_status(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(inference_job("job", **own(api, node)))
    job = await api.phase("job", "Validating")
    assert job["status"]["pending"]["reason"] == "Validating"
    await validated(api, "job")
    await api.phase("job", "Starting")
    job = await api.job("job")
    assert job["status"]["inspection"]["requests"] == 10
    pod = await api.bound("job")
    assert [c["name"] for c in pod["spec"]["initContainers"]] == ["engine"]
    await api.play_end(pod, message=DONE)
    job = await api.phase("job", "Succeeded")
    status = job["status"]
    assert status["results"]["completed"] == 9
    assert status["results"]["output"] == "s3://bucket/out.jsonl"
    assert status["progress"]["summary"] == "10/10 (100%)"
    assert status["attempts"][0]["state"] == "Succeeded"
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Validated": "True",
        "Admitted": "True",
        "Complete": "True",
    }

    async def tidied() -> bool:
        return [p["metadata"]["name"] for p in await api.pods()] == [pod["metadata"]["name"]]

    await eventually("the inspect pod to be removed", tidied)


async def test_a_job_whose_input_is_broken_fails_before_it_is_queued(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    await api.create(inference_job("job"))
    errors = [{"line": 3, "code": "invalid_json_line", "message": "not JSON"}]
    verdict = {"valid": False, "reason": "InvalidRequests", "message": "1 of 1 lines", "invalid": 1}
    await validated(api, "job", json.dumps({**verdict, "firstErrors": errors, "errors": "s3://bucket/errors.jsonl"}))
    job = await api.phase("job", "Failed")
    assert job["status"]["inspection"]["firstErrors"] == ["line 3: invalid_json_line: not JSON"]
    assert job["status"]["results"]["errors"] == "s3://bucket/errors.jsonl"
    assert not job["status"].get("attempts")


async def test_at_most_eight_inputs_are_inspected_at_a_time_the_first_in_order_first(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    names = [f"job-{i:02d}" for i in range(12)]
    for i, name in enumerate(names):
        await api.create(inference_job(name, priority=-i))
    seen: set[str] = set()

    async def all_inspected() -> bool:
        pods = [p for p in await api.pods() if p["status"]["phase"] in ("Pending", "Running")]
        assert len(pods) <= 8
        for pod in pods:
            seen.add(pod["metadata"]["annotations"]["gpubatch.dev/job"])
        for pod in pods[:2] if len(pods) == 8 else pods if len(seen) == 12 else []:
            await api.play_end(pod, message=VALID)
        return len(seen) == 12

    await eventually("all to be inspected", all_inspected)


async def test_a_node_without_a_gpu_never_gets_a_job_and_status_says_so(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node(gpus=0)
    await api.create(template_job("job", **own(api, node)))

    async def explained() -> bool:
        return (await api.job("job")).get("status", {}).get("pending", {}).get("reason") in (
            "NoMatchingNode",
            "NoGPUNodes",
        )

    await eventually("the reason to be shown", explained)
    job = await api.job("job")
    assert job["status"]["queuePosition"] == 1
    assert "estimatedStartTime" not in job["status"]
    assert job["status"]["pending"]["nextStep"]
    assert await api.pods() == []


async def test_the_scheduler_itself_refuses_a_second_pod_in_a_slot(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node(gpus=2)  # room enough for two: only the lock of the slot keeps them apart
    await api.create(template_job("job", **own(api, node)))
    pod = await api.bound("job")
    twin = {"apiVersion": "v1", "kind": "Pod", "spec": {k: v for k, v in pod["spec"].items() if k != "nodeName"}}
    twin["metadata"] = {"name": "twin", "labels": {"gpubatch.dev/slot": pod["metadata"]["labels"]["gpubatch.dev/slot"]}}
    await api.client.create(api.pods_path, twin)

    async def refused() -> bool:
        status = (await api.client.get(f"{api.pods_path}/twin"))["status"]
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        return "anti-affinity" in conditions.get("PodScheduled", {}).get("message", "")

    await eventually("the scheduler to refuse the twin", refused)


async def test_an_operator_killed_at_any_moment_loses_doubles_and_reorders_nothing(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    nodes = [await add_node(labels={"pool": api.namespace}) for _ in range(2)]
    pool = {"nodeSelector": {"pool": api.namespace}}
    operator = OperatorProcess(kubeconfig, tmp_path / "log")
    names = [f"job-{i:02d}" for i in range(10)]
    started: list[str] = []
    operator.start()
    try:
        for i, name in enumerate(names):
            await api.create(template_job(name, **pool))
            if i in (3, 6):
                operator.kill()
                operator.start()
        kills = 0
        while len(started) < len(names) or any(
            j["status"]["phase"] not in ("Succeeded", "Failed") for j in (await api.jobs()).values()
        ):
            live = [p for p in await api.pods() if p["status"]["phase"] in ("Pending", "Running")]
            bound = [p for p in live if p["spec"].get("nodeName")]
            where = [p["spec"]["nodeName"] for p in bound]
            assert len(where) == len(set(where)), "two pods on one node"
            for pod in sorted(bound, key=lambda p: p["metadata"]["annotations"]["gpubatch.dev/job"]):
                job = pod["metadata"]["annotations"]["gpubatch.dev/job"]
                assert job not in started, f"{job} ran twice"
                started.append(job)
                await api.play_end(pod)
                if len(started) in (2, 5, 7):
                    kills += 1
                    operator.kill()
                    operator.start()
            await asyncio.sleep(0.05)
        assert sorted(started) == names
        # Two at a time may be seen in one look, so neighbours may change places; nobody else may.
        assert all(abs(started.index(n) - names.index(n)) <= 1 for n in names), started
        assert kills == 3
        assert set(nodes) == {j["status"]["attempts"][0]["node"] for j in (await api.jobs()).values()}
        assert all(len(j["status"]["attempts"]) == 1 for j in (await api.jobs()).values())
    finally:
        operator.kill()


async def test_a_pod_that_vanishes_is_run_again_and_its_attempt_is_lost_not_failed(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(inference_job("job", **own(api, node)))
    await validated(api, "job")
    pod = await api.bound("job")

    async def recorded() -> bool:
        return "podUid" in (await api.job("job"))["status"]["attempts"][0]

    await eventually("the pod to be recorded", recorded)
    await api.play_gone(pod)
    again = await eventually("a second pod", lambda: _other_pod(api, "job", pod["metadata"]["uid"]))
    assert again["metadata"]["labels"]["gpubatch.dev/attempt"] == "2"
    await api.play_end(again, message=DONE)
    job = await api.phase("job", "Succeeded")
    assert [a["state"] for a in job["status"]["attempts"]] == ["Lost", "Succeeded"]


async def _other_pod(api: Api, job: str, uid: str) -> object:
    pod = await api.pod_of(job)
    return pod if pod["metadata"]["uid"] != uid else None


async def test_the_outcome_of_a_template_pod_is_recorded_before_the_pod_may_go(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node()
    operator = OperatorProcess(kubeconfig, tmp_path / "log")
    operator.start()
    try:
        await api.create(template_job("job", **own(api, node)))
        pod = await api.bound("job")
        operator.kill()
        await api.play_end(pod)
        await api.play_gone(pod)  # deleted while nobody looks: the finalizer holds it
        operator.start()
        await api.phase("job", "Succeeded", "Queued", "Starting")

        async def gone() -> bool:
            return all(p["metadata"]["uid"] != pod["metadata"]["uid"] for p in await api.pods())

        await eventually("the pod to be released", gone)
    finally:
        operator.kill()


async def test_a_deleted_job_takes_its_pods_with_it_and_frees_the_slot(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("job", **own(api, node)))
    await api.create(template_job("next", **own(api, node)))
    pod = await api.bound("job")
    await api.client.request("DELETE", f"{api.jobs_path}/job")

    async def terminating() -> bool:
        try:
            return (
                "deletionTimestamp" in (await api.client.get(f"{api.pods_path}/{pod['metadata']['name']}"))["metadata"]
            )
        except ApiError as e:
            return e.status == 404

    await eventually("the garbage collector to delete the pod", terminating)
    await api.play_gone(pod)
    await api.bound("next")


async def test_an_image_that_cannot_be_pulled_is_shown_at_once_and_fails_the_job_after_a_while(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    node = await add_node()
    with OperatorProcess(kubeconfig, tmp_path / "log", image_pull_seconds=4):
        await api.create(template_job("job", **own(api, node)))
        pod = await api.bound("job")
        trouble = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image nope:1: not found"}}
        await api.play(pod, "Pending", trouble)

        async def shown() -> bool:
            return (await api.job("job"))["status"].get("pending", {}).get("reason") == "ImagePullFailed"

        await eventually("the reason to be shown", shown)

        async def stopping() -> bool:
            return (
                "deletionTimestamp" in (await api.client.get(f"{api.pods_path}/{pod['metadata']['name']}"))["metadata"]
            )

        await eventually("the pod to be stopped", stopping)
        await api.play_gone(pod)
        job = await api.phase("job", "Failed")
        [failed] = [c for c in job["status"]["conditions"] if c["type"] == "Failed"]
        assert failed["reason"] == "ImagePullFailed"


async def test_a_pod_that_the_api_server_refuses_fails_the_job_with_its_sentence(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    job = template_job("job", **own(api, node))
    job["spec"]["template"]["spec"]["containers"][0]["image"] = ""
    await api.create(job)
    await api.create(template_job("next", **own(api, node)))
    failed = await api.phase("job", "Failed")
    [condition] = [c for c in failed["status"]["conditions"] if c["type"] == "Failed"]
    assert condition["reason"] == "PodRejected"
    assert "image" in condition["message"]
    await api.bound("next")


async def test_a_job_that_comes_with_its_namespace_waits_for_the_service_account(
    api: Api, operator: OperatorProcess, add_node: AddNode
) -> None:
    node = await add_node()
    account = f"/api/v1/namespaces/{api.namespace}/serviceaccounts/default"
    # The controller makes it again, but later than the operator makes the pod.
    await api.create(template_job("job", **own(api, "no-node-yet")))
    await position(api, "job", 1)
    await api.client.request("DELETE", account)
    await api.client.patch(f"{api.jobs_path}/job", {"spec": own(api, node)})
    await api.bound("job")


async def test_an_idle_operator_writes_nothing(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode, unused_tcp_port: int
) -> None:
    node = await add_node()
    with OperatorProcess(kubeconfig, tmp_path / "log", metrics_port=unused_tcp_port, resync_seconds=2):
        await api.create(template_job("done", **own(api, node)))
        await api.play_end(await api.bound("done"))
        await api.phase("done", "Succeeded")
        # One that no node fits and one whose input is being inspected: both wait, and nothing changes.
        await api.create(template_job("waiting", nodeSelector={"no": "such-node"}))
        await api.create(inference_job("validating"))
        await api.pod_of("validating", "inspect")
        await position(api, "waiting", 1)
        before = await at_rest(lambda: versions(api))  # events, the last positions
        writes = written(unused_tcp_port)
        assert writes > 5
        await asyncio.sleep(8)
        assert await versions(api) == before, "somebody has written: kopf, for instance, which counts nothing"
        assert written(unused_tcp_port) == writes


async def versions(api: Api) -> dict[str, str]:
    """The version of each job and pod of the namespace, and how many Events there are of ours."""
    found = {n: j["metadata"]["resourceVersion"] for n, j in (await api.jobs()).items()}
    found |= {p["metadata"]["name"]: p["metadata"]["resourceVersion"] for p in await api.pods()}
    events, _ = await api.client.list(f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events")
    ours = [e for e in events if e.get("reportingController") == "gpubatch.dev/operator"]
    return {**found, "events": str(len(ours))}


def written(port: int) -> float:
    """Writes to the API server, as the operator counts them at its /metrics; without the Lease's, which never end."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    ours = [s for s in lines if s.startswith("gpubatch_api_writes_total{") and 'resource="leases"' not in s]
    return sum(float(line.rsplit(" ", 1)[1]) for line in ours)


async def test_the_operator_as_a_program_stops_in_peace_on_sigterm(kubeconfig: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        command = [sys.executable, "-m", "gpubatch_operator"]
        process = await asyncio.create_subprocess_exec(
            *command, env=OperatorProcess(kubeconfig, path).env, stdout=log, stderr=log
        )

    async def synced() -> bool:
        return "synced" in path.read_text()

    try:
        await eventually("the operator to sync", synced)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0, path.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()

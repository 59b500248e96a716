"""The CRD on a real API server: what is refused, with which sentence, and what may be edited when."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gpubatch_operator.kube.client import ApiError
from support.api import JSON, Api, inference_job, template_job


def with_value(job: JSON, path: str, value: Any) -> JSON:
    """A copy of the job with one field set."""
    job = copy.deepcopy(job)
    *parents, last = path.split(".")
    at: Any = job
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[last] = value
    return job


REFUSED = [
    ("spec.gpus", 0, "spec.gpus"),
    ("spec.priority", 1001, "spec.priority"),
    ("spec.priority", "high", "spec.priority"),
    ("spec.gpuResource", "not a name", "spec.gpuResource"),
    ("spec.estimatedDurationSeconds", -1, "spec.estimatedDurationSeconds"),
    ("spec.template", {"spec": {"containers": [{"name": "c"}]}}, "set exactly one of inference and template"),
    ("spec.inference.model", "", "spec.inference.model"),
    ("spec.inference.input.url", "ftp://host/file", "input.url must be s3://"),
    ("spec.inference.output.url", "configmap://name/key", "url must be s3://BUCKET/KEY, gs://BUCKET/KEY"),
    ("spec.inference.output", {}, "set exactly one of url and urlFrom"),
    (
        "spec.inference.input.urlFrom",
        {"secretKeyRef": {"name": "a", "key": "b"}},
        "one of url, urlFrom and live",
    ),
    ("spec.inference.errors", {"urlFrom": {"secretKeyRef": {"name": "a", "key": "../b"}}}, "secretKeyRef.key"),
    ("spec.inference.checkpoint", {"url": "https://host/file"}, "url must be s3://BUCKET/KEY, gs://BUCKET/KEY"),
    ("spec.inference.upload.attempts", 0, "spec.inference.upload.attempts"),
    ("spec.inference.outputOrder", "Random", "spec.inference.outputOrder"),
    ("spec.inference.requestTimeoutSeconds", 0, "spec.inference.requestTimeoutSeconds"),
    ("spec.inference.invalidRequests", "Ignore", "spec.inference.invalidRequests"),
    ("spec.inference.maxConcurrentRequests", 0, "spec.inference.maxConcurrentRequests"),
    ("spec.inference.storage.endpoint", "example.com", "spec.inference.storage.endpoint"),
    ("spec.inference.engine.volumes", [{"name": "gpubatch-tmp", "emptyDir": {}}], "are reserved"),
    ("spec.webhooks", [{"url": "gopher://x"}], "spec.webhooks[0].url"),
    ("spec.webhooks", [{"url": "https://x", "events": ["begun"]}], "spec.webhooks[0].events[0]"),
    ("spec.webhooks", [{"url": "https://x", "progressAt": [100]}], "spec.webhooks[0].progressAt[0]"),
    ("spec.webhooks", [{"url": "https://x", "name": "a"}, {"url": "https://y", "name": "a"}], "names of webhooks"),
    ("spec.nodeSelector", {str(i): "x" for i in range(33)}, "spec.nodeSelector"),
]


@pytest.mark.parametrize(("path", "value", "said"), REFUSED, ids=[f"{p}={str(v)[:30]}" for p, v, _ in REFUSED])
async def test_a_bad_manifest_is_refused_with_a_sentence_that_names_the_field(
    api: Api, path: str, value: Any, said: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        await api.create(with_value(inference_job("bad"), path, value))
    assert refusal.value.status == 422
    assert said in refusal.value.message


@pytest.mark.parametrize("field", ["nodeName", "schedulerName", "priorityClassName", "restartPolicy"])
async def test_a_template_may_not_set_what_the_operator_sets(api: Api, field: str) -> None:
    with pytest.raises(ApiError, match=f"{field} is set by the operator; remove it from the template"):
        await api.create(with_value(template_job("bad"), f"spec.template.spec.{field}", "x"))


async def test_a_template_may_not_choose_its_node_by_affinity(api: Api) -> None:
    with pytest.raises(ApiError, match=r"use spec\.nodeSelector to restrict it"):
        await api.create(with_value(template_job("bad"), "spec.template.spec.affinity.nodeAffinity", {}))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("containers", [{"name": "gpubatch-x"}], "container names that begin with 'gpubatch-' are reserved"),
        ("initContainers", [{"name": "gpubatch-progress"}], "container names that begin with 'gpubatch-' are reserved"),
        ("volumes", [{"name": "gpubatch-progress", "emptyDir": {}}], "volume names that begin with 'gpubatch-'"),
        ("terminationGracePeriodSeconds", 3601, "spec.template.spec.terminationGracePeriodSeconds"),
    ],
)
async def test_what_a_template_may_not_say_is_refused_with_the_field(
    api: Api, path: str, value: Any, said: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        await api.create(with_value(template_job("bad"), f"spec.template.spec.{path}", value))
    assert refusal.value.status == 422
    assert said in refusal.value.message


async def test_a_template_can_be_changed_until_the_job_is_admitted(api: Api) -> None:
    await api.create(template_job("job"))
    path = f"{api.jobs_path}/job"

    def container(**changes: Any) -> JSON:
        main = {"name": "main", "image": "gpubatch.dev/test", "command": ["true"]} | changes
        return {"spec": {"template": {"spec": {"containers": [main]}}}}

    await api.client.patch(path, container(image="gpubatch.dev/other"))
    await api.client.patch(f"{path}/status", {"status": {"phase": "Starting"}})
    for edit in (
        container(image="gpubatch.dev/again"),
        container(image="gpubatch.dev/other", command=["false"]),
        container(image="gpubatch.dev/other", env=[{"name": "A", "value": "b"}]),
        {"spec": {"template": {"spec": {"hostNetwork": True}}}},
        {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}},
    ):
        with pytest.raises(ApiError, match=r"spec.template can't be changed once the job has been admitted"):
            await api.client.patch(path, edit)
    await api.client.patch(path, container(image="gpubatch.dev/other") | {"metadata": {"labels": {"a": "b"}}})


async def test_a_template_cannot_be_changed_while_the_job_waits_for_another_attempt(api: Api) -> None:
    await api.create(template_job("job"))
    path = f"{api.jobs_path}/job"
    edit = {"spec": {"template": {"spec": {"hostNetwork": True}}}}
    await api.client.patch(f"{path}/status", {"status": {"phase": "Queued", "lostAttempts": 1}})
    with pytest.raises(ApiError, match=r"spec.template can't be changed once the job has been admitted"):
        await api.client.patch(path, edit)
    await api.client.patch(path, {"spec": {"nodeSelector": {"gpu": "healthy"}}})
    await api.client.patch(f"{path}/status", {"status": {"phase": "Failed"}})
    await api.client.patch(path, edit | {"spec": edit["spec"] | {"runId": "again"}})


async def test_defaults_are_filled_in(api: Api) -> None:
    job = await api.create(inference_job("job"))
    assert job["spec"]["priority"] == 0
    assert job["spec"]["gpus"] == 1
    assert job["spec"]["gpuResource"] == "nvidia.com/gpu"
    assert job["spec"]["inference"]["invalidRequests"] == "Skip"


async def test_the_work_of_a_job_cannot_be_changed(api: Api) -> None:
    await api.create(inference_job("job"))
    with pytest.raises(ApiError, match=r"spec.inference can't be changed; when the job has finished it can"):
        await api.client.patch(f"{api.jobs_path}/job", {"spec": {"inference": {"model": "other"}}})


async def test_placement_can_be_changed_until_the_job_is_admitted(api: Api) -> None:
    await api.create(template_job("job"))
    path = f"{api.jobs_path}/job"
    await api.client.patch(path, {"spec": {"gpus": 2}})
    await api.client.patch(f"{path}/status", {"status": {"phase": "Running"}})
    with pytest.raises(ApiError, match=r"spec.gpus can't be changed once the job has been admitted"):
        await api.client.patch(path, {"spec": {"gpus": 1}})
    await api.client.patch(path, {"spec": {"priority": 5}})

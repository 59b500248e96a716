"""What the commands print and ask of the API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpubatch_cli.render import HEADINGS
from unit.cli.conftest import Run
from unit.cli.fakeapi import JOBS, Asked, FakeApi, job, status

ENDED = {"completionTime": "2026-01-01T11:00:00Z"}


def changed(asked: Asked) -> tuple[int, Any]:
    return 200, job(asked.path.rpartition("/")[2])


def patchable(api: FakeApi, *found: dict[str, Any]) -> None:
    api.jobs(*found)
    for one in found:
        api.answers["PATCH", f"{JOBS}/{one['metadata']['name']}"] = changed


# --- queue


def test_the_queue_shows_what_waits_and_runs_and_with_all_what_has_ended(api: FakeApi, run: Run) -> None:
    api.jobs(
        job("done", "Succeeded", **ENDED),
        job("next", queuePosition=1, pending={"reason": "NodesBusy", "message": "both nodes"}),
        job("runs", "Running", queuePosition=0, nodeName="gpu-a", progress={"summary": "5/10 (50%)", "percent": 50}),
    )
    lines = run("queue").out.splitlines()
    assert tuple(lines[0].split()) == HEADINGS
    assert [line.split()[0] for line in lines[1:]] == ["runs", "next"]
    assert "5/10 (50%)" in lines[1]
    assert lines[2].rstrip().endswith("NodesBusy")
    assert "NodesBusy: both nodes" in run("queue", "-o", "wide").out
    assert [line.split()[0] for line in run("queue", "--all").out.splitlines()[1:]] == ["runs", "next", "done"]
    assert run("queue", "-A").out.splitlines()[1].split()[:2] == ["team", "runs"]


def test_the_queue_for_programs_has_the_names_of_the_status(api: FakeApi, run: Run) -> None:
    api.jobs(job("next", queuePosition=1, estimatedStartTime="2026-01-01T12:00:00Z", estimatedStartTimeP90="later"))
    [found] = json.loads(run("queue", "-o", "json").out)["jobs"]
    assert (found["name"], found["phase"], found["position"]) == ("next", "Queued", 1)
    assert (found["start"], found["startP90"]) == ("2026-01-01T12:00:00Z", "later")


def test_an_empty_queue_says_what_it_hides(api: FakeApi, run: Run) -> None:
    api.jobs(job("done", "Succeeded", **ENDED))
    told = run("queue")
    assert (told.code, told.out) == (0, "")
    assert told.err == "no jobs in namespace team wait or run; 1 finished (--all)\n"


def test_a_long_list_is_read_page_by_page(api: FakeApi, run: Run) -> None:
    def page(asked: Asked) -> tuple[int, Any]:
        begin = int(asked.query.get("continue", "0"))
        more = {"continue": str(begin + 1)} if begin < 2 else {}
        return 200, {"metadata": {"resourceVersion": "1", **more}, "items": [job(f"job-{begin}", queuePosition=begin)]}

    api.answers["GET", JOBS] = page
    assert run("queue", "-o", "name").out.count("gpubatchjob.gpubatch.dev/job-") == 3


# --- wishes


@pytest.mark.parametrize(
    ("command", "before", "patch"),
    [
        (["cancel", "a"], job("a", "Running"), {"cancel": True}),
        (["suspend", "a"], job("a", "Queued"), {"suspend": True}),
        (["resume", "a"], job("a", "Suspended", spec={"suspend": True}), {"suspend": False}),
        (["priority", "a", "-7"], job("a"), {"priority": -7}),
        (["priority", "gbj/a", "high"], job("a"), {"priority": 1}),
        (["rerun", "a"], job("a", "Succeeded", **ENDED), {"runId": "2"}),
        (
            ["rerun", "a"],
            job("a", "Cancelled", spec={"runId": "9", "cancel": True}, runId="9", **ENDED),
            {"runId": "10", "cancel": None},
        ),
        (["rerun", "a", "--run-id", "june"], job("a", "Failed", **ENDED), {"runId": "june"}),
    ],
)
def test_a_wish_is_one_patch_of_the_spec(
    api: FakeApi, run: Run, command: list[str], before: dict[str, Any], patch: dict[str, Any]
) -> None:
    patchable(api, before)
    told = run(*command)
    assert told.code == 0, told.err
    assert told.out.startswith("a: ")
    assert api.patched() == [{"spec": patch, "metadata": {"uid": "uid-a"}}]  # of this job, not of a namesake
    assert api.asked[-1].query["fieldManager"] == "gpubatch-cli"


@pytest.mark.parametrize(
    ("command", "before"),
    [
        (["cancel", "a"], job("a", "Succeeded", **ENDED)),
        (["suspend", "a"], job("a", "Suspended", spec={"suspend": True})),
        (["resume", "a"], job("a", "Queued")),
        (["priority", "a", "3"], job("a", spec={"priority": 3})),
    ],
)
def test_a_wish_that_is_fulfilled_changes_nothing(
    api: FakeApi, run: Run, command: list[str], before: dict[str, Any]
) -> None:
    patchable(api, before)
    told = run(*command)
    assert (told.code, told.out) == (0, "")
    assert told.err.startswith("a: ")
    assert api.patched() == []


def test_a_failed_job_is_retried_by_a_new_value_each_time(api: FakeApi, run: Run) -> None:
    patchable(api, job("a", "Failed", **ENDED), job("b", "Succeeded", **ENDED))
    run("retry", "a")
    run("retry", "a")
    values = [patch["metadata"]["annotations"]["gpubatch.dev/retry"] for patch in api.patched()]
    assert len(set(values)) == 2
    assert all(len(value) <= 63 for value in values)
    told = run("retry", "b")
    assert told.code == 3
    assert "gpubatch rerun b" in told.err


def test_a_job_that_runs_cannot_run_again(api: FakeApi, run: Run) -> None:
    patchable(api, job("a", "Running"))
    told = run("rerun", "a")
    assert told.code == 3
    assert "hasn't ended (Running)" in told.err
    assert api.patched() == []


def test_one_refusal_does_not_keep_other_jobs_from_their_wish(api: FakeApi, run: Run) -> None:
    patchable(api, job("a"), job("b"))
    told = run("cancel", "x", "a", "b")
    assert told.code == 3
    assert "no job 'x'" in told.err
    assert len(api.patched()) == 2


def test_what_a_gitops_tool_tracks_is_said_to_be_changed_there_too(api: FakeApi, run: Run) -> None:
    tracked = job("a")
    tracked["metadata"]["labels"] = {"kustomize.toolkit.fluxcd.io/name": "jobs"}
    patchable(api, tracked)
    assert "Flux tracks this job" in run("cancel", "a").err


# --- results


def test_results_tell_counts_places_and_how_the_job_ended(api: FakeApi, run: Run) -> None:
    found = {
        "output": "s3://b/o.jsonl", "errors": "s3://b/e.jsonl", "total": 10, "completed": 9, "failed": 1,
        "usage": {"inputTokens": 100, "outputTokens": 50}, "timings": {"loadingModel": 40.2, "processing": 5.0},
    }  # fmt: skip
    api.jobs(job("a", "Succeeded", results=found, **ENDED), job("b", "Failed", results=found, **ENDED), job("c"))
    told = run("results", "a")
    assert told.code == 0
    assert told.out == (
        "a: Succeeded\n  9 of 10 requests answered, 1 failed\n  tokens: 100 in, 50 out\n"
        "  times: 40 s loading the model, 5 s processing, 0 s uploading\n"
        "  output: s3://b/o.jsonl\n  errors: s3://b/e.jsonl\n"
    )
    assert run("results", "b").code == 1
    assert json.loads(run("results", "a", "-o", "json").out)["usage"]["outputTokens"] == 50
    told = run("results", "c")
    assert told.code == 3
    assert "`gpubatch wait c` waits for them" in told.err


def test_results_on_a_volume_say_how_they_are_read(api: FakeApi, run: Run, tmp_path: Path) -> None:
    api.jobs(job("a", "Succeeded", results={"output": "pvc://claim/o.jsonl"}, **ENDED))
    told = run("results", "a", "--fetch", str(tmp_path / "here"))
    assert told.code == 3
    assert "kubectl cp" in told.err


# --- webhooks


def deliveries(name: str = "a") -> dict[str, Any]:
    listed = [
        {"id": "m1", "webhook": "x1", "event": "started", "state": "Delivered", "attempts": 1},
        {"id": "m2", "webhook": "x1", "event": "failed", "state": "DeadLettered", "attempts": 3, "lastError": "410"},
    ]
    at = {"time": "2026-01-01T11:00:00Z"}
    hooks = [{"url": "https://example.com/hook"}]
    return job(name, "Failed", spec={"webhooks": hooks}, webhookDeliveries=[d | at for d in listed], **ENDED)


def test_deliveries_are_listed_with_those_that_were_given_up(api: FakeApi, run: Run) -> None:
    api.jobs(deliveries())
    lines = run("deliveries", "a").out.splitlines()
    assert lines[0].split() == ["JOB", "EVENT", "STATE", "ATTEMPTS", "AT", "NEXT", "WEBHOOK", "ID", "ERROR"]
    assert "https://example.com/hook" in lines[1]
    [dead] = run("deliveries", "--dead").out.splitlines()[1:]
    assert dead.split()[:3] == ["a", "failed", "DeadLettered"]
    assert dead.rstrip().endswith("410")
    [found] = json.loads(run("deliveries", "-A", "--dead", "-o", "json").out)["deliveries"]
    assert (found["id"], found["lastError"]) == ("m2", "410")
    assert run("deliveries", "a", "-A").code == 2


def test_redelivery_asks_for_all_that_was_given_up_or_for_one(api: FakeApi, run: Run) -> None:
    patchable(api, deliveries())
    assert run("redeliver", "a").out == "a: sending 1 again\n"
    assert run("redeliver", "a", "m1").code == 0
    values = [patch["metadata"]["annotations"]["gpubatch.dev/redeliver"].split() for patch in api.patched()]
    assert [v[0] for v in values] == ["all", "m1"]
    assert values[0][1] != values[1][1], "the same value again would be heeded once"
    told = run("redeliver", "a", "m9")
    assert told.code == 3
    assert "no delivery 'm9'" in told.err


# --- submit


def line(n: int, **body: Any) -> str:
    messages = [{"role": "user", "content": f"say {n}"}]
    request = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(request | {"body": {"model": "tiny", "messages": messages, **body}}) + "\n"


def test_a_dry_run_prints_the_whole_manifest_and_asks_nobody(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "Night chats.jsonl"
    file.write_text(line(1) + line(2))
    told = run(
        "submit", str(file), "--model", "org/model", "--output", "s3://b/dir/out.jsonl", "-n", "team",
        "--priority", "-1", "--gpus", "2", "--node-selector", "gpu=h100", "--endpoint", "http://s3:7070",
        "--secret", "keys", "--engine-arg=--max-model-len", "--engine-arg=4096", "--completion-window", "24h",
        "--webhook", "https://example.com/h", "--webhook-secret", "hook", "--dry-run=client", "-o", "json",
    )  # fmt: skip
    assert told.code == 0, told.err
    manifest = json.loads(told.out)
    assert manifest["metadata"]["name"].startswith("night-chats-")
    assert manifest["metadata"]["namespace"] == "team"
    assert manifest["spec"] == {
        "priority": -1,
        "gpus": 2,
        "nodeSelector": {"gpu": "h100"},
        "completionWindowSeconds": 86400,
        "inference": {
            "model": "org/model",
            "servedModelName": "tiny",
            "engine": {"args": ["--max-model-len", "4096"]},
            "input": {"url": "s3://b/dir/out.jsonl.input.jsonl"},
            "output": {"url": "s3://b/dir/out.jsonl"},
            "storage": {"endpoint": "http://s3:7070", "secretName": "keys"},
        },
        "webhooks": [{"url": "https://example.com/h", "secretName": "hook"}],
    }
    assert api.asked == []


def test_a_broken_file_never_reaches_the_cluster_unless_its_lines_shall_be_skipped(
    api: FakeApi, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(line(1) + "{\n")
    arguments = ["submit", str(file), "--model", "m", "--output", "s3://b/o.jsonl", "--dry-run=client"]
    told = run(*arguments)
    assert (told.code, told.out) == (1, "")
    assert "line 2: invalid_json_line" in told.err
    assert "1 of 2 lines are invalid" in told.err
    assert "--skip-invalid" in told.err
    assert run(*arguments, "--skip-invalid").code == 0
    file.write_text("{\n")
    assert run(*arguments, "--skip-invalid").code == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent.jsonl", "--model", "m", "--output", "s3://b/o"], "absent.jsonl can't be read: No such file"),
        (["in.jsonl", "--output", "s3://b/o"], "--model is missing"),
        (["in.jsonl", "--model", "m"], "--output is missing"),
        (["in.jsonl", "--model", "m", "--output", "o.jsonl"], "spec.inference.output.url o.jsonl: expected a URL"),
        (["in.jsonl", "--model", "m", "--output", "pvc://claim/o.jsonl"], "nothing can be uploaded beside it"),
        (["in.jsonl", "--model", "m", "--output", "s3://b/o", "--input", "s3://b/o"], "must not overwrite"),
        (["in.jsonl", "--model", "m", "--output", "s3://b/o", "--node-selector", "x"], "no KEY=VALUE"),
        (["in.jsonl", "--model", "m", "--output", "s3://b/o", "--name", "Not_A_Name"], "metadata.name"),
        (["job.yaml"], "job.yaml can't be read"),
    ],
)
def test_mistakes_are_told_before_anything_happens(
    api: FakeApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(line(1))
    found = run("submit", *arguments, "--dry-run=client")
    assert found.code == 2, found.err
    assert told in found.err
    assert "Traceback" not in found.err
    assert api.asked == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no YAML"),
        ("", "holds no job"),
        ("{apiVersion: v1, kind: Secret}", "holds v1 Secret"),
        ("{apiVersion: gpubatch.dev/v1alpha1, kind: GPUBatchJob, spec: {}}", "metadata.name is missing"),
        (
            "{apiVersion: gpubatch.dev/v1alpha1, kind: GPUBatchJob, metadata: {name: a}, spec: {priority: 5000}}",
            "spec.priority",
        ),
    ],
)
def test_a_manifest_with_a_mistake_is_told_which(api: FakeApi, run: Run, tmp_path: Path, text: str, told: str) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(text)
    found = run("submit", str(manifest), "--dry-run=client")
    assert found.code == 2
    assert told in found.err


def test_a_job_that_exists_is_not_overwritten_by_a_file_of_requests(api: FakeApi, run: Run) -> None:
    patchable(api, job("a", "Running"))
    told = run("submit", "s3://b/in.jsonl", "--model", "m", "--output", "s3://b/o", "--name", "a")
    assert told.code == 2
    assert "there is a job 'a' in namespace 'team' already (Running)" in told.err
    assert api.patched() == []


def test_the_cluster_judges_a_job_before_it_is_created(api: FakeApi, run: Run, tmp_path: Path) -> None:
    sentence = 'GPUBatchJob.gpubatch.dev "a" is invalid: spec: set exactly one of inference and template'
    manifest = tmp_path / "job.yaml"
    manifest.write_text("{apiVersion: gpubatch.dev/v1alpha1, kind: GPUBatchJob, metadata: {name: a}, spec: {}}")
    api.answers["PATCH", f"{JOBS}/a"] = status(422, "Invalid", sentence)
    told = run("submit", str(manifest))
    assert told.code == 3
    assert sentence in told.err
    assert [a.query.get("dryRun") for a in api.asked] == ["All"]

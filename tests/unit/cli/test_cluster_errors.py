"""Whatever the cluster refuses: one sentence that names it, one that says what to do, and never a traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from unit.cli.conftest import Run
from unit.cli.fakeapi import JOBS, FakeApi, absent, job, status


def test_a_refused_connection_is_told_with_the_address_and_the_context(api: FakeApi, run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        api.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        file = api.kubeconfig(tmp_path)
    told = run("--kubeconfig", str(file), "queue")
    assert told.code == 3
    assert f"the cluster at {api.url} (context here) can't be reached: " in told.err
    assert "onnection refused" in told.err
    assert "--context" in told.err
    assert "Traceback" not in told.err


def test_a_cluster_without_the_crd_says_how_it_is_installed(api: FakeApi, run: Run) -> None:
    told = run("queue")
    assert told.code == 3
    assert "GPUBatch isn't installed in this cluster (context here)" in told.err
    assert "helm install gpubatch" in told.err


def test_a_name_that_is_nearly_right_is_corrected(api: FakeApi, run: Run) -> None:
    api.jobs(job("nightly-chats"), job("embeddings"))
    told = run("why", "nigthly-chats")
    assert told.code == 3
    assert "there is no job 'nigthly-chats' in namespace 'team'" in told.err
    assert "Did you mean nightly-chats?" in told.err


def test_a_job_of_another_namespace_is_found_there(api: FakeApi, run: Run) -> None:
    api.jobs()
    elsewhere = job("nightly")
    elsewhere["metadata"]["namespace"] = "search"
    everywhere = {"metadata": {"resourceVersion": "1"}, "items": [elsewhere]}
    api.answers["GET", JOBS.replace("/namespaces/team", "")] = (200, everywhere)
    assert "There is one in namespace search: add -n search." in run("why", "nightly").err


def test_what_is_forbidden_names_the_role_that_would_allow_it(api: FakeApi, run: Run) -> None:
    sentence = 'gpubatchjobs.gpubatch.dev is forbidden: User "eve" cannot list resource "gpubatchjobs"'
    api.answers["GET", JOBS] = status(403, "Forbidden", sentence)
    told = run("queue")
    assert told.code == 3
    assert sentence in told.err
    assert "role `edit`" in told.err


def test_a_user_whom_the_cluster_does_not_know_shall_log_in(api: FakeApi, run: Run) -> None:
    api.answers["GET", JOBS] = status(401, "Unauthorized", "Unauthorized")
    assert "Log in anew" in run("queue").err


def test_a_full_queue_is_told_as_it_says_itself(api: FakeApi, run: Run, tmp_path: Path) -> None:
    sentence = 'admission webhook "x" denied the request: Queue full (20/20 jobs). Try again later.'
    api.answers["GET", f"{JOBS}/one"] = absent("one")
    api.answers["PATCH", f"{JOBS}/one"] = status(429, "TooManyRequests", sentence)
    told = run("submit", "s3://b/in.jsonl", "--model", "m", "--output", "s3://b/out.jsonl", "--name", "one")
    assert told.code == 3
    assert told.err.startswith("gpubatch: Queue full (20/20 jobs). Try again later.")
    assert "gpubatch queue -A" in told.err


def test_a_field_of_another_manager_is_not_taken_over_silently(api: FakeApi, run: Run, tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text("{apiVersion: gpubatch.dev/v1alpha1, kind: GPUBatchJob, metadata: {name: one}, spec: {}}")
    api.answers["PATCH", f"{JOBS}/one"] = status(409, "Conflict", 'conflict with "argocd": .spec.priority')
    told = run("submit", str(manifest))
    assert told.code == 3
    assert "argocd" in told.err
    assert "--force" in told.err
    assert api.asked[-1].query["force"] == "false"


@pytest.mark.parametrize("body", ["<html>Bad Gateway</html>", ""])
def test_what_something_else_answers_in_the_api_servers_place_is_shown(api: FakeApi, run: Run, body: str) -> None:
    api.answers["GET", JOBS] = (502, body)
    told = run("queue")
    assert told.code == 3
    assert "the API server answered 502" in told.err
    assert (body or "HTTP 502") in told.err


def test_a_defect_of_ours_is_one_line_too(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["GET", JOBS] = (200, {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {}}]})
    told = run("queue")
    assert told.code == 3
    assert "unexpected: KeyError" in told.err
    assert "Traceback" not in told.err
    monkeypatch.setenv("GPUBATCH_DEBUG", "1")
    with pytest.raises(KeyError):
        run("queue")


def test_a_wrong_option_is_a_mistake_of_use(api: FakeApi, run: Run) -> None:
    assert run("queue", "--frob").code == 2
    assert run("priority", "one", "urgent").code == 2
    assert run("wait", "one", "--timeout", "soon").code == 2
    assert run("queue", "-n", "No/Name").code == 2

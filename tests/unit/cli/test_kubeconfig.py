"""The kubeconfig counts as for kubectl."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from unit.cli.conftest import Run
from unit.cli.fakeapi import JOBS, FakeApi, document, job, serving


def test_of_several_files_the_first_current_context_counts(
    api: FakeApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.jobs(job("here"))
    with serving() as other:
        other.jobs(job("there"))
        first, second = tmp_path / "first", tmp_path / "second"
        first.write_text(yaml.safe_dump(document(api.url, "a")))
        second.write_text(yaml.safe_dump(document(other.url, "b")))
        monkeypatch.setenv("KUBECONFIG", os.pathsep.join(["/nowhere", str(first), str(second)]))
        assert run("queue", "-o", "name").out == "gpubatchjob.gpubatch.dev/here\n"
        assert run("--context", "b", "queue", "-o", "name").out == "gpubatchjob.gpubatch.dev/there\n"
        assert run("queue", "--context", "b", "-o", "name").out == "gpubatchjob.gpubatch.dev/there\n"
        told = run("queue", "--context", "c")
        assert told.code == 2
        assert "has no context 'c'" in told.err
        assert "a, b" in told.err


def test_the_namespace_is_the_contexts_unless_the_command_names_one(api: FakeApi, run: Run) -> None:
    api.jobs()
    run("queue")
    assert api.asked[-1].path == JOBS
    run("queue", "-n", "search")
    assert api.asked[-1].path == JOBS.replace("team", "search")
    run("queue", "-A")
    assert api.asked[-1].path == JOBS.replace("/namespaces/team", "")


def plugin(folder: Path, text: str) -> dict[str, object]:
    program = folder / "login"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(program), "interactiveMode": "Never"}}


def test_an_exec_plugin_brings_the_token(api: FakeApi, run: Run, tmp_path: Path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "of-the-plugin"},
    }
    api.kubeconfig(tmp_path, **plugin(tmp_path, f"import json; print(json.dumps({credential!r}))"))
    api.jobs()
    assert run("queue").code == 0
    assert api.asked[-1].headers["authorization"] == "Bearer of-the-plugin"


def test_an_exec_plugin_that_fails_or_is_missing_is_told(api: FakeApi, run: Run, tmp_path: Path) -> None:
    api.kubeconfig(tmp_path, **plugin(tmp_path, "raise SystemExit('your session has expired')"))
    told = run("queue")
    assert told.code == 3
    assert "your session has expired" in told.err
    assert "log in anew" in told.err
    (tmp_path / "login").unlink()
    told = run("queue")
    assert told.code == 3
    assert str(tmp_path / "login") in told.err
    assert "install it" in told.err


def test_a_user_may_stand_for_another(api: FakeApi, run: Run, tmp_path: Path) -> None:
    api.kubeconfig(tmp_path, token="t", **{"as": "night-shift"})
    api.jobs()
    run("queue")
    assert api.asked[-1].headers["impersonate-user"] == "night-shift"


def test_the_clusters_proxy_is_used(api: FakeApi, run: Run, tmp_path: Path) -> None:
    with serving() as proxy:
        config = document("http://cluster.invalid:6443")
        config["clusters"][0]["cluster"]["proxy-url"] = proxy.url
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        items = {"metadata": {"resourceVersion": "1"}, "items": [job("behind")]}
        proxy.answers["GET", JOBS] = (200, items)
        assert run("queue", "-o", "name").out == "gpubatchjob.gpubatch.dev/behind\n"
        assert proxy.asked[0].headers["host"] == "cluster.invalid:6443"


def test_a_proxy_of_the_environment_is_used_unless_no_proxy_excludes_the_host(
    api: FakeApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.jobs(job("straight"))
    with serving() as proxy:
        proxy.jobs(job("behind"))
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert "behind" in run("queue", "-o", "name").out
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "straight" in run("queue", "-o", "name").out


def test_in_a_pod_its_service_account_is_used(
    api: FakeApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    told = run("queue")
    assert told.code == 2
    assert "in this pod there is no access to its cluster" in told.err
    token, namespace, ca = (tmp_path / name for name in ("token", "namespace", "ca.crt"))
    token.write_text("of-the-pod")
    namespace.write_text("team\n")
    ca.write_text("none")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(ca))
    monkeypatch.setattr("gpubatch_cli.kubeconfig.ACCOUNT_NAMESPACE", namespace)
    told = run("queue")  # over TLS, which nobody here speaks: who is called is what counts
    assert "the cluster at https://127.0.0.1:1 (context in-cluster)" in told.err


@pytest.mark.parametrize("text", ["{", "- a list", "clusters: 3", ""])
def test_a_file_that_is_no_kubeconfig_is_told(api: FakeApi, run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    told = run("queue")
    assert told.code == 2, told.err
    assert str(tmp_path / "kubeconfig") in told.err


def test_without_a_kubeconfig_it_says_where_it_looked(api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    told = run("queue")
    assert told.code == 2
    assert "there is no kubeconfig at /nowhere/config" in told.err

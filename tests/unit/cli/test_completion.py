"""Completion, in shells and through kubectl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpubatch_cli import completion
from gpubatch_cli.app import gpubatch
from unit.cli.conftest import Run
from unit.cli.fakeapi import FakeApi, job


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBATCH_COMPLETION_SECONDS", "600")


def test_commands_options_and_names_of_jobs_are_completed_as_kubectl_asks(api: FakeApi) -> None:
    api.jobs(job("nightly", "Running"), job("night-two"), job("embeddings"))
    assert completion.candidates(["wh"]) == (["why\tTell why a job waits, runs or failed."], completion.NO_FILES)
    assert completion.candidates(["why", "nig"]) == (["nightly\tRunning", "night-two\tQueued"], completion.NO_FILES)
    names = [line.partition("\t")[0] for line in completion.candidates(["cancel", "nightly", ""])[0]]
    assert sorted(names) == ["embeddings", "night-two"], "what is named already isn't offered again"
    assert "--container" in "\n".join(completion.candidates(["logs", "--con"])[0])
    assert completion.candidates(["queue", "-o", "w"]) == (["wide"], completion.NO_FILES)
    assert completion.candidates(["--context", ""]) == (["here"], completion.NO_FILES)
    assert completion.candidates(["submit", ""]) == ([], completion.FILES)
    assert completion.candidates([])[0][0].startswith("inspect\t")


def test_the_namespace_that_was_typed_is_asked(api: FakeApi) -> None:
    api.jobs(job("nightly"))
    completion.candidates(["why", "-n", "search", ""])
    assert api.asked[-1].path == "/apis/gpubatch.dev/v1alpha1/namespaces/search/gpubatchjobs"


def test_a_cluster_that_refuses_completes_nothing_and_says_nothing(
    api: FakeApi, capfd: pytest.CaptureFixture[str]
) -> None:
    assert completion.candidates(["why", ""]) == ([], completion.NO_FILES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_takes_its_script(api: FakeApi, run: Run, tmp_path: Path, shell: str) -> None:
    text = run("completion", shell).out
    assert "_GPUBATCH_COMPLETE" in text
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(text)
    subprocess.run([program, "-n", script], check=True)


def test_every_argument_that_is_a_job_is_completed() -> None:
    from gpubatch_cli.options import complete_jobs

    for command in gpubatch.commands.values():
        for parameter in command.params:
            if "JOB" in str(parameter.metavar):
                assert parameter._custom_shell_complete is complete_jobs, f"{command.name}: {parameter.name}"

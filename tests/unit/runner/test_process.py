"""The runner as a process, as the kubelet meets it: killed at any moment and started again, and stopped by SIGTERM."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubatch_runner.contract import Inspection, Outcome, Reason
from gpubatch_runner.journal import header_of
from unit.runner import fake_engine
from unit.runner.jobs import Job, ids, records, request


class EngineProcess:
    """A fake engine that can be killed; remembers on disk what it answered."""

    def __init__(self, folder: Path, delay: float) -> None:
        self._log, self._delay, self._port = folder / "engine.log", delay, 0
        self._log.touch()
        self.start()

    def start(self) -> None:
        command = [sys.executable, fake_engine.__file__, str(self._port), str(self._log), str(self._delay)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout
        self._port = json.loads(self._process.stdout.readline())["port"]
        self.url = f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def answered(self) -> Counter[str]:
        return Counter(self._log.read_text().split())

    def has_answered(self, requests: int) -> None:
        while self.answered.total() < requests:
            time.sleep(0.005)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess(tmp_path, delay=0.02)
    yield engine
    engine.kill()


def outcome_of(job: Job) -> Outcome:
    return Outcome.model_validate_json(job.environment.termination_log.read_text())


def journaled(job: Job) -> set[str]:
    """The requests that were finished according to the journal."""
    text = (job.environment.journal_dir / "journal").read_text()
    return {found[1] for line in text.splitlines() if line.endswith("}") and (found := re.search(r'"r(\d+)"', line))}


def test_after_kill_9_each_request_is_in_the_output_once_and_a_finished_one_is_not_sent_again(
    job: Job, engine: EngineProcess
) -> None:
    job.write([request(n) for n in range(300)])
    spec = job.spec(engine_url=engine.url, max_concurrent_requests=8)
    finished: set[str] = set()
    for kills in (60, 140, 220):
        process = job.start("run", spec)
        engine.has_answered(kills)
        process.kill()
        process.wait()
        finished = journaled(job)
        assert finished, "killed too early to prove anything"
    before = engine.answered
    assert job.start("run", spec).wait(60) == 0
    assert outcome_of(job).succeeded
    assert ids(job.output) == sorted(f"r{n}" for n in range(300))
    assert {n for n in finished if engine.answered[n] > before[n]} == set()
    assert engine.answered.total() <= 300 + 3 * 8


def test_an_engine_killed_and_started_again_costs_nothing_but_what_was_in_flight(
    job: Job, engine: EngineProcess
) -> None:
    job.write([request(n) for n in range(300)])
    process = job.start("run", job.spec(engine_url=engine.url, max_concurrent_requests=8, max_retries=0))
    for kills in (80, 160):
        engine.has_answered(kills)
        engine.kill()
        engine.start()
    assert process.wait(60) == 0
    assert (outcome_of(job).completed, outcome_of(job).failed) == (300, 0)
    assert ids(job.output) == sorted(f"r{n}" for n in range(300))
    assert engine.answered.total() <= 300 + 2 * 8


def test_sigterm_ends_with_exit_status_0_and_an_outcome(job: Job, engine: EngineProcess) -> None:
    job.write([request(n) for n in range(1000)])
    process = job.start("run", job.spec(engine_url=engine.url, max_concurrent_requests=4))
    engine.has_answered(30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    outcome = outcome_of(job)
    assert outcome.reason is Reason.INTERRUPTED
    assert outcome.completed == len(records(job.claim / "out.jsonl.partial")) >= 26
    [checkpoint] = job.claim.glob("*.checkpoint")
    assert header_of(checkpoint)


def test_an_inspection_ends_with_exit_status_0_and_a_verdict(job: Job) -> None:
    job.write([request(1), "{"])
    assert job.start("inspect", job.spec(attempt=0)).wait(30) == 0
    verdict = Inspection.model_validate_json(job.environment.termination_log.read_text())
    assert verdict.valid
    assert (verdict.requests, verdict.invalid) == (1, 1)


def test_logs_are_json_and_name_job_run_and_attempt(job: Job) -> None:
    job.write([request(1)])
    job.start("inspect", job.spec(attempt=0)).wait(30)
    lines = [json.loads(line) for line in (job.folder / "runner.log").read_text().splitlines()]
    assert {(line["job"], line["run"], line["attempt"]) for line in lines} == {("ns/job", "u-1/run-1", 0)}


def test_a_specification_of_another_version_is_a_verdict_and_no_crash_loop(job: Job) -> None:
    code = "import os; os.environ['GPUBATCH_RUN'] = '{}'; from gpubatch_runner.__main__ import main; main(['run'])"
    process = job.start("run", job.spec(), "-c", code)
    process.communicate(timeout=20)
    assert process.returncode == 0
    outcome = outcome_of(job)
    assert outcome.reason is Reason.INTERNAL_ERROR
    assert "GPUBATCH_RUN" in outcome.message

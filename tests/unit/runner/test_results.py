"""Publishing: whatever races and crashes there are, a run has one result, whole or not there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubatch_runner.contract import Outcome
from gpubatch_runner.failures import OutputNotWritable
from gpubatch_runner.locations import of_job
from gpubatch_runner.puts import Chunks
from gpubatch_runner.results import Publication
from gpubatch_runner.stores import ClaimStore
from unit.runner.jobs import Job


def publication(job: Job, attempt: int) -> Publication:
    spec = job.spec(attempt=attempt)
    return Publication(spec, of_job(spec, job.environment), job.environment)


def lines(*records: bytes) -> Chunks:
    """A file of these records."""

    async def chunks() -> AsyncIterator[bytes]:
        for record in records:
            yield record + b"\n"

    return chunks


def outcome(attempt: int, failed: int = 1) -> Outcome:
    return Outcome(succeeded=True, total=2, completed=1, failed=failed, message=f"by {attempt}")


async def conclude(job: Job, attempt: int, failed: int = 1) -> Outcome:
    output, errors = f"output {attempt}".encode(), f"errors {attempt}".encode()
    return await publication(job, attempt).conclude(
        lambda: outcome(attempt, failed), lines(output), lines(errors), "digest"
    )


async def test_of_two_attempts_that_race_one_publishes_and_both_report_it(job: Job) -> None:
    for round in range(10):
        job.spec_changes = {"run": f"run-{round}"}
        first, second = await asyncio.gather(conclude(job, 1), conclude(job, 2))
        assert first == second
        winner = first.message[-1]
        assert job.output.read_text() == f"output {winner}\n"
        assert job.errors.read_text() == f"errors {winner}\n"
        assert not list(job.claim.glob("*.staged"))


async def test_results_that_the_storage_has_lost_are_no_success(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> bool:
        return False

    monkeypatch.setattr(ClaimStore, "move", lost)
    with pytest.raises(OutputNotWritable, match=r"-a1\.staged, which was to be moved there, is gone"):
        await conclude(job, 1)


class CrashError(Exception):
    """The attempt's process ends here."""


@pytest.mark.parametrize("failed", [0, 1])
async def test_after_a_crash_at_any_step_the_next_attempt_publishes_one_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: int
) -> None:
    """Kills attempt 1 after each of its writes in turn; attempt 2 then concludes the run."""
    steps = ("write", "create", "move", "delete")
    originals: dict[str, Any] = {name: getattr(ClaimStore, name) for name in steps}
    for survived in itertools.count():
        job = Job(tmp_path / str(survived))
        job.claim.mkdir(parents=True)
        job.output.write_text("of an older run\n")
        job.errors.write_text("of an older run\n")
        left = iter(range(survived))

        def crashing(name: str, left: Iterator[int] = left) -> Any:
            async def step(*arguments: Any) -> Any:
                result = await originals[name](*arguments)
                if next(left, None) is None:
                    raise CrashError
                return result

            return step

        for name in steps:
            monkeypatch.setattr(ClaimStore, name, crashing(name))
        crashed = False
        try:
            await conclude(job, 1, failed)
        except CrashError:
            crashed = True
        monkeypatch.undo()
        assert job.output.read_text() in ("of an older run\n", "output 1\n")

        seen = await publication(job, 2).finished() or await conclude(job, 2, failed)
        winner = seen.message[-1]
        assert job.output.read_text() == f"output {winner}\n"
        assert (job.errors.read_text() if failed else job.errors.exists()) == (
            f"errors {winner}\n" if failed else False
        )
        assert not [path for path in job.claim.iterdir() if path.suffix in (".staged", ".tmp", ".checkpoint")]
        if not crashed:
            assert survived >= 6
            return


async def test_an_old_attempt_that_wakes_up_late_changes_nothing(job: Job) -> None:
    await conclude(job, 2)
    journal = job.folder / "journal"
    journal.write_bytes(b"old")
    old = publication(job, 1)
    ends = [
        await conclude(job, 1),
        await old.give_up(outcome(1), lines(b"late"), lines(b"late"), journal),
        await old.suspend(outcome(1), lines(b"late"), lines(b"late"), journal),
    ]
    assert [end.message for end in ends] == ["by 2"] * 3
    assert job.output.read_text() == "output 2\n"
    assert job.errors.read_text() == "errors 2\n"
    assert len(list(job.claim.iterdir())) == 3  # output, errors, manifest


async def test_a_failing_upload_is_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    write, failures = ClaimStore.write, iter(range(2))

    async def outage(*arguments: Any) -> None:
        if next(failures, None) is not None:
            raise OutputNotWritable("the storage could not be reached")
        await write(*arguments)

    async def sleep(seconds: float) -> None:
        if seconds:
            sleeps.append(seconds)

    monkeypatch.setattr(ClaimStore, "write", outage)
    monkeypatch.setattr("gpubatch_runner.patience.asyncio.sleep", sleep)
    await conclude(job, 1)
    first, second = sleeps
    assert first < second
    assert job.output.read_text() == "output 1\n"


async def test_an_attempt_whose_upload_is_cleaned_up_by_the_winner_reports_the_winners_outcome(job: Job) -> None:
    meanwhile: list[Outcome] = []

    async def overtaken() -> AsyncIterator[bytes]:
        if not meanwhile:
            meanwhile.append(await conclude(job, 2))
        yield b"late\n"

    end = await publication(job, 1).conclude(lambda: outcome(1), overtaken, lines(b"late"), None)
    assert end == meanwhile[0]
    assert job.output.read_text() == "output 2\n"
    assert len(list(job.claim.iterdir())) == 3  # output, errors, manifest


async def test_a_reader_never_sees_half_an_output(job: Job) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield b"x" * 1000 + b"\n"
            assert not job.output.exists()

    await publication(job, 1).conclude(lambda: outcome(1, failed=0), slowly, lines(), None)
    assert job.output.stat().st_size == 2000 * 1001

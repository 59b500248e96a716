"""How an attempt ends: what it publishes, and the outcome that it reports, for each kind of end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpubatch_runner import records
from gpubatch_runner.content import Content
from gpubatch_runner.contract import EngineInfo, LineError, Outcome, Reason, RunSpec, code_of
from gpubatch_runner.failures import Ended, RunnerError, Stopped
from gpubatch_runner.journal import Destination, Journal
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.puts import Chunks
from gpubatch_runner.requests import Request
from gpubatch_runner.results import Publication

log = logging.getLogger(__name__)

NOTHING_KEPT = "Nothing of its work is kept, since spec.inference.checkpoint is not set; a later attempt starts anew."


Unanswered = Callable[[], Iterator[Request | LineError]]
"""Yields the lines of the input that have no result."""


@dataclass(frozen=True)
class _Files:
    journal: Journal
    output: Content
    errors: Content

    @property
    def chunks(self) -> tuple[Chunks, Chunks]:
        return self.output.chunks, self.errors.chunks


class Ending:
    """Publishes what an attempt has.

    Args:
        spec: The run and attempt.
        publication: Where to.
        progress: The counts and times to report.
    """

    def __init__(self, spec: RunSpec, publication: Publication, progress: RunProgress) -> None:
        self._spec = spec
        self._publication = publication
        self._progress = progress
        self._files: _Files | None = None
        self.engine: EngineInfo | None = None
        """What answers, once that is known."""

    def follow(self, journal: Journal) -> None:
        """Begins to upload the results, as the journal gets them."""
        both = frozenset((Destination.OUTPUT, Destination.ERRORS))
        in_order = self._spec.output_order == "Input"
        merged = self._publication.errors_in_output
        output = Content(journal, both if merged else frozenset((Destination.OUTPUT,)), in_order)
        errors = Content(journal, frozenset((Destination.ERRORS,)), in_order)
        self._files = _Files(journal, output, errors)
        self._publication.follow(output.chunks, None if merged else errors.chunks)

    async def of(self, error: RunnerError | None, unanswered: Unanswered) -> Outcome:
        """Ends the attempt; never raises a `RunnerError`.

        Args:
            error: Why it failed; None if every request has its result.
            unanswered: The lines without a result.
        """
        try:
            if (files := self._files) is None:
                assert error is not None
                return await self._without_results(error)
            if isinstance(error, Stopped) and not isinstance(error, Ended):
                return await self._suspend(files, error)
            if error is None:
                self._complete(files)
                return await self._conclude(files, *self._verdict(files.journal))
            code = error.code if isinstance(error, Ended) else code_of(error.reason)
            self._complete(files, self._answers_of(unanswered, code, str(error)))
            self._progress.failed += sum(1 for _ in unanswered())
            if isinstance(error, Ended):
                return await self._conclude(files, error.reason, str(error))
            outcome = self._outcome(error.reason, str(error))
            return await self._publication.give_up(outcome, *files.chunks, files.journal.path)
        except RunnerError as problem:
            log.error("publishing failed", extra={"problem": str(problem)})
            if error is not None:
                return self._outcome(error.reason, f"{error} Nor could the results be saved: {problem}")
            return self._outcome(problem.reason, str(problem))

    async def close(self) -> None:
        """Ends uploads that are still under way, and removes what they have sent."""
        if self._files:
            self._files.output.abandon()
            self._files.errors.abandon()
        await self._publication.drop()

    def _complete(self, files: _Files, tail: Callable[[], Iterator[bytes]] | None = None) -> None:
        """The files get what the journal has, and error records for all else."""
        files.output.complete(tail if self._publication.errors_in_output else None)
        if self._progress.failed or tail:
            files.errors.complete(tail)
        else:
            files.errors.abandon()

    def _answers_of(self, unanswered: Unanswered, code: str, message: str) -> Callable[[], Iterator[bytes]]:
        """Each request without an answer gets an error record: in the file, not in the journal."""

        def found() -> Iterator[bytes]:
            for line in unanswered():
                if isinstance(line, Request):
                    yield records.unanswered(self._publication.token, line, code, message)
                else:
                    yield records.invalid(self._publication.token, line)

        return found

    def _verdict(self, journal: Journal) -> tuple[Reason | None, str]:
        if journal.completed:
            return None, ""
        first = next(journal.records(Destination.ERRORS), b"").decode()
        return Reason.ALL_REQUESTS_FAILED, f"All {journal.failed} requests failed; the first: {first[:1000]}"

    async def _conclude(self, files: _Files, reason: Reason | None, message: str) -> Outcome:
        """The run is over: no later attempt goes on."""
        digest = files.journal.header.input_digest
        return await self._publication.conclude(
            lambda: self._outcome(reason, message), *files.chunks, digest, self.engine
        )

    async def _suspend(self, files: _Files, error: RunnerError) -> Outcome:
        message = str(error)
        if not self._publication.keeps_work:
            message = f"{error} {NOTHING_KEPT}"
        outcome = self._outcome(error.reason, message)
        if not files.journal.completed and not files.journal.failed:
            return outcome
        files.journal.sync()
        self._complete(files)
        return await self._publication.suspend(outcome, *files.chunks, files.journal.path)

    async def _without_results(self, error: RunnerError) -> Outcome:
        outcome = self._outcome(error.reason, str(error))
        if isinstance(error, Stopped) and not isinstance(error, Ended):
            return outcome
        try:
            if concluded := await self._publication.finished():
                return concluded
            document = [records.job_failed(self._publication.token, self._spec.job, error, outcome)]
            return outcome.model_copy(update={"errors": await self._publication.report(document)})
        except RunnerError as problem:
            log.warning("error document not written", extra={"problem": str(problem)})
            return outcome

    def _outcome(self, reason: Reason | None, message: str) -> Outcome:
        progress = self._progress
        return Outcome(
            succeeded=reason is None,
            reason=reason,
            message=message,
            total=progress.total,
            completed=progress.completed,
            failed=progress.failed,
            usage=progress.usage,
            timings=progress.timings,
        )

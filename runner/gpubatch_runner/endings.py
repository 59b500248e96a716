"""How an attempt ends: what it publishes, and the outcome that it reports, for each kind of end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from gpubatch_runner import records
from gpubatch_runner.contract import LineError, Outcome, Reason
from gpubatch_runner.failures import Ended, RunnerError, Stopped
from gpubatch_runner.journal import Destination, Journal
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.requests import Request
from gpubatch_runner.results import Publication

log = logging.getLogger(__name__)


Unanswered = Callable[[], Iterator[Request | LineError]]
"""Yields the lines of the input that have no result."""

Files = tuple[Callable[[], Iterator[bytes]], Callable[[], Iterator[bytes]]]
"""The records of the output and of the error file."""


class Ending:
    """Publishes what an attempt has.

    Args:
        publication: Where to.
        progress: The counts and times to report.
    """

    def __init__(self, publication: Publication, progress: RunProgress) -> None:
        self._publication = publication
        self._progress = progress

    async def of(self, error: RunnerError | None, journal: Journal | None, unanswered: Unanswered) -> Outcome:
        """Ends the attempt; never raises a `RunnerError`.

        Args:
            error: Why it failed; None if every request has its result.
            journal: The results; None if it did not come so far.
            unanswered: The lines without a result.
        """
        try:
            if journal is None:
                assert error is not None
                return await self._without_results(error)
            if isinstance(error, Ended):
                return await self._conclude_early(journal, error, unanswered)
            if isinstance(error, Stopped):
                return await self._suspend(journal, error)
            if error is not None:
                return await self._give_up(journal, error, unanswered)
            return await self._conclude(journal)
        except RunnerError as problem:
            log.error("publishing failed", extra={"problem": str(problem)})
            if error is not None:
                return self._outcome(error.reason, f"{error} Nor could the results be saved: {problem}")
            return self._outcome(problem.reason, str(problem))

    async def _conclude(self, journal: Journal) -> Outcome:
        reason, message = None, ""
        if not journal.completed:
            first = next(journal.records(Destination.ERRORS), b"").decode()
            reason = Reason.ALL_REQUESTS_FAILED
            message = f"All {journal.failed} requests failed; the first: {first[:1000]}"
        output, errors = _files(journal)
        return await self._publication.conclude(
            lambda: self._outcome(reason, message), output, errors, journal.header.input_digest
        )

    async def _conclude_early(self, journal: Journal, error: Ended, unanswered: Unanswered) -> Outcome:
        """The run is over: no later attempt goes on."""
        output, errors = self._with_unanswered(journal, error, error.code, unanswered)
        return await self._publication.conclude(
            lambda: self._outcome(error.reason, str(error)), output, errors, journal.header.input_digest
        )

    async def _give_up(self, journal: Journal, error: RunnerError, unanswered: Unanswered) -> Outcome:
        output, errors = self._with_unanswered(journal, error, records.code_of(error.reason), unanswered)
        outcome = self._outcome(error.reason, str(error))
        return await self._publication.give_up(outcome, output, errors, journal.path)

    def _with_unanswered(self, journal: Journal, error: RunnerError, code: str, unanswered: Unanswered) -> Files:
        """Each request without an answer gets an error record: in the error file, not in the journal."""
        token, (output, journaled) = self._publication.token, _files(journal)

        def errors() -> Iterator[bytes]:
            yield from journaled()
            for line in unanswered():
                if isinstance(line, Request):
                    yield records.unanswered(token, line, code, str(error))
                else:
                    yield records.invalid(token, line)

        self._progress.failed += sum(1 for _ in unanswered())
        return output, errors

    async def _suspend(self, journal: Journal, error: RunnerError) -> Outcome:
        outcome = self._outcome(error.reason, str(error))
        if not journal.completed and not journal.failed:
            return outcome
        journal.sync()
        return await self._publication.suspend(outcome, *_files(journal), journal.path)

    async def _without_results(self, error: RunnerError) -> Outcome:
        outcome = self._outcome(error.reason, str(error))
        if isinstance(error, Stopped) and not isinstance(error, Ended):
            return outcome
        try:
            if concluded := await self._publication.finished():
                return concluded
            code = error.code if isinstance(error, Ended) else records.code_of(error.reason)
            document = [records.job_failed(self._publication.token, code, str(error))]
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


def _files(journal: Journal) -> Files:
    return lambda: journal.records(Destination.OUTPUT), lambda: journal.records(Destination.ERRORS)

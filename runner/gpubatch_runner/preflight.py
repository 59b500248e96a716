"""The inspection: read the whole input once, before the job may wait for a GPU, and say what is in it, what wrong."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from gpubatch_runner import prompts, records, sources
from gpubatch_runner.contract import Inspection, LineError, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InvalidRequests, RunnerError, TooManyRequests
from gpubatch_runner.lines import LineSplitter
from gpubatch_runner.locations import JobLocations, of_job
from gpubatch_runner.requests import Checked, Validator
from gpubatch_runner.results import Publication

log = logging.getLogger(__name__)

FIRST_ERRORS = 10


class Tally:
    """What the lines of an input add up to, and the verdict on them.

    Args:
        spec: The limits and policy.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self.requests = 0
        self.invalid = 0
        self.prompt_bytes = 0
        self.max_output_tokens = 0
        self.first_errors: list[LineError] = []

    def add(self, judged: Checked | LineError) -> int:
        """Counts one line; returns the bytes of its prompt.

        Raises:
            TooManyRequests: The line is one too many.
        """
        size = 0
        if isinstance(judged, Checked):
            size = prompts.prompt_bytes(judged)
            self.requests += 1
            self.prompt_bytes += size
            self.max_output_tokens += prompts.max_output_tokens(judged)
        else:
            self.invalid += 1
            if len(self.first_errors) < FIRST_ERRORS:
                self.first_errors.append(judged)
        if self.requests + self.invalid > self._spec.max_requests:
            raise TooManyRequests(
                f"The input has more than {self._spec.max_requests} requests, the limit of one job (the operator's "
                "setting maxRequestsPerJob); split it into several jobs, or ask for a higher limit."
            )
        return size

    def check(self) -> None:
        """The verdict on the whole input.

        Raises:
            InvalidRequests: No line is valid, or one is not and the job refuses those.
        """
        if not self.requests and not self.invalid:
            raise InvalidRequests("The input is empty; write one request a line.")
        if not self.invalid:
            return
        first = self.first_errors[0]
        example = f"line {first.line}: {first.code}: {first.message}"
        if not self.requests:
            raise InvalidRequests(f"None of the {self.invalid} lines is a valid request; {example}")
        if self._spec.invalid_requests == "Fail":
            raise InvalidRequests(
                f"{self.invalid} of {self.requests + self.invalid} lines are invalid; {example}. Correct them, or set "
                "spec.inference.invalidRequests to Skip."
            )


async def inspect(spec: RunSpec, environment: Environment) -> Inspection:
    """Inspects a job's input and its outputs' locations; writes the list of all errors if the job must fail."""
    tally = Tally(spec)
    try:
        locations = of_job(spec, environment)
        publication = Publication(spec, locations, environment)
        await publication.check_writable()
    except RunnerError as error:
        return _verdict(tally, error, None)
    with tempfile.TemporaryFile() as found:
        try:
            await _read(spec, environment, locations, tally, found, publication.token)
            tally.check()
        except RunnerError as error:
            if not found.tell():
                found.write(records.job_failed(publication.token, spec.job, error) + b"\n")
            return _verdict(tally, error, await _report(publication, found))
    return _verdict(tally, None, None)


async def _read(
    spec: RunSpec, environment: Environment, locations: JobLocations, tally: Tally, found: IO[bytes], token: str
) -> None:
    validator = Validator(spec.served_model_name)
    chunks = sources.limited(sources.read(locations.input, spec.storage, environment), spec.max_input_bytes)
    async for number, line in _lines(chunks):
        judged = validator.check(number, line)
        if isinstance(judged, LineError):
            found.write(records.invalid(token, judged) + b"\n")
        if judged is not None:
            tally.add(judged)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    splitter, number = LineSplitter(), 0
    async for chunk in chunks:
        for line in splitter.feed(chunk):
            number += 1
            yield number, line
    for line in splitter.finish():
        yield number + 1, line


async def _report(publication: Publication, found: IO[bytes]) -> str | None:
    """Writes the error document; an error of that must not hide the verdict."""
    found.seek(0)
    try:
        return await publication.report(line.rstrip(b"\n") for line in found)
    except RunnerError as error:
        log.warning("error document not written", extra={"problem": str(error)})
        return None


def _verdict(tally: Tally, error: RunnerError | None, errors: str | None) -> Inspection:
    return Inspection(
        valid=error is None,
        reason=error.reason if error else None,
        message=str(error) if error else "",
        requests=tally.requests,
        invalid=tally.invalid,
        input_tokens=-(-tally.prompt_bytes // prompts.BYTES_PER_TOKEN),
        max_output_tokens=tally.max_output_tokens,
        first_errors=tuple(tally.first_errors),
        errors=errors,
    )

"""Publishing a run's results: whole, once, and by one attempt only, even if an old attempt still runs somewhere.

    OUTPUT, ERRORS                      the results, visible only when they are complete
    OUTPUT.TOKEN-aN.staged (and ERRORS) what attempt N has to offer
    OUTPUT.TOKEN.manifest.json          made only if absent: which attempt's files are the result, and the outcome
    OUTPUT.TOKEN.checkpoint             the journal of an attempt that did not come to its end
    OUTPUT.partial (and ERRORS)         for people: the results of an interrupted attempt

TOKEN stands for the run. An attempt that comes to a conclusion stages its files, then tries to create the manifest.
Exactly one succeeds; it moves its files to their final names. Any other removes its own files, completes that move if
its winner could not, and reports the winner's outcome as its own. An attempt that merely failed makes no manifest, so
that a later one can go on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from gpubatch_runner.contract import Model, Outcome, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, NoCredentials, OutputNotWritable
from gpubatch_runner.journal import Header, header_of
from gpubatch_runner.locations import JobLocations, Location, run_token
from gpubatch_runner.stores import Store, open_store

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long a failing upload is tried again before the run gives it up."""

CHUNK = 256 * 1024

T = TypeVar("T")

Records = Callable[[], Iterator[bytes]]
"""Yields the records of one file from the start; called again when an upload is tried again."""


class Manifest(Model):
    """Which attempt's files are a run's result."""

    run: str
    attempt: int
    time: datetime
    output_staged: str
    errors_staged: str | None
    input_digest: str | None = None
    outcome: Outcome


class Publication:
    """The files that one attempt of a run may leave behind.

    Args:
        spec: The run and attempt.
        locations: Where the job wants its files.
        environment: Where claims are mounted.
    """

    def __init__(self, spec: RunSpec, locations: JobLocations, environment: Environment) -> None:
        self.token = run_token(spec.run)
        self._spec = spec
        self._output, self._errors = locations.output, locations.errors
        self._store: dict[str, Store] = {
            location.field: open_store(location, spec.storage, environment) for location in (self._output, self._errors)
        }
        self._manifest = self._output.beside(f".{self.token}.manifest.json")
        self._checkpoint = self._output.beside(f".{self.token}.checkpoint")

    async def check_writable(self) -> None:
        """Tries both locations with a probe beside them, and takes it away again.

        Raises:
            AccessDenied, OutputNotWritable: One cannot be written, read back and cleaned up, or lets two create a file.
        """
        for location in (self._output, self._errors):
            probe, store = location.beside(f".{self.token}-a{self._spec.attempt}.probe"), self._of(location)
            await store.delete(probe)
            if not await store.create(probe, b"gpubatch\n") or await store.create(probe, b"gpubatch\n"):
                raise OutputNotWritable(
                    f"{location.field} {location.shown}: this storage lets two writers create the same file (it "
                    "ignores If-None-Match), so an old attempt could overwrite a result; use one that has "
                    "conditional writes"
                )
            if not await store.exists(probe):
                raise OutputNotWritable(f"{location.field} {location.shown}: what was written cannot be read back")
            await store.delete(probe)

    async def finished(self) -> Outcome | None:
        """The outcome of the run if an attempt has concluded it; completes its move if need be."""
        data = await self._of(self._manifest).read_small(self._manifest)
        if data is None:
            return None
        manifest = Manifest.model_validate_json(data)
        await self._promote(manifest.attempt, manifest.outcome)
        await self._clean_up()
        return manifest.outcome

    async def conclude(
        self, report: Callable[[], Outcome], output: Records, errors: Records, digest: str | None
    ) -> Outcome:
        """Publishes the run's results and its outcome, unless another attempt has; returns the outcome that counts.

        Args:
            report: Gives the outcome of this attempt; its timings grow with the upload.
            output: The records of the output file.
            errors: The records of the error file.
            digest: SHA-256 of the input.
        """
        staged = await self._stage(self._with_files(report(), self._output, self._errors), output, errors)
        outcome = self._with_files(report(), self._output, self._errors)
        manifest = Manifest(
            run=self._spec.run,
            attempt=self._spec.attempt,
            time=datetime.now(UTC),
            output_staged=staged[0].url,
            errors_staged=staged[1].url if outcome.errors else None,
            input_digest=digest,
            outcome=outcome,
        )
        text = manifest.model_dump_json(by_alias=True, indent=2).encode() + b"\n"
        await _patiently(lambda: self._of(self._manifest).create(self._manifest, text))
        return await _patiently(self.finished) or outcome

    async def give_up(self, outcome: Outcome, output: Records, errors: Records, journal: Path) -> Outcome:
        """Publishes what a failed attempt has, and a checkpoint for the next; unless the run is concluded."""
        if concluded := await _patiently(self.finished):
            return concluded
        outcome = self._with_files(outcome, self._output, self._errors)
        await self.write_checkpoint(journal)
        await self._stage(outcome, output, errors)
        if concluded := await _patiently(self.finished):
            return concluded
        await _patiently(lambda: self._promote(self._spec.attempt, outcome))
        return outcome

    async def suspend(self, outcome: Outcome, output: Records, errors: Records, journal: Path) -> Outcome:
        """Leaves a checkpoint for the next attempt, and the partial results beside the final names for people."""
        if concluded := await self.finished():
            return concluded
        partial = [location.beside(".partial") for location in (self._output, self._errors)]
        outcome = self._with_files(outcome, *partial)
        await self.write_checkpoint(journal)
        await self._of(partial[0]).write(partial[0], _chunks(output()))
        if outcome.failed:
            await self._of(partial[1]).write(partial[1], _chunks(errors()))
        return outcome

    async def write_checkpoint(self, journal: Path) -> None:
        """Saves the journal beside the output, for an attempt in another pod."""
        await _patiently(lambda: self._of(self._checkpoint).write(self._checkpoint, _file_chunks(journal)))

    async def restore(self, journal: Path, header: Header) -> bool:
        """Takes over an earlier attempt's checkpoint as this attempt's journal, if it is of the same run and input."""
        fetched = journal.with_suffix(".fetched")
        try:
            await _save(self._of(self._checkpoint).read(self._checkpoint), fetched)
        except FileNotFoundError:
            return False
        if header_of(fetched) != header:
            log.warning("checkpoint ignored: the input changed since")
            fetched.unlink()
            return False
        fetched.replace(journal)
        return True

    async def report(self, records: Iterable[bytes]) -> str:
        """Writes the error document of a job that produced no results; returns its URL."""
        await self._of(self._errors).write(self._errors, _chunks(iter(records)))
        return self._errors.url

    def _of(self, location: Location) -> Store:
        return self._store[location.field]

    def _staged(self, location: Location, attempt: int) -> Location:
        return location.beside(f".{self.token}-a{attempt}.staged")

    def _with_files(self, outcome: Outcome, output: Location, errors: Location) -> Outcome:
        return outcome.model_copy(update={"output": output.url, "errors": errors.url if outcome.failed else None})

    async def _stage(self, outcome: Outcome, output: Records, errors: Records) -> tuple[Location, Location]:
        staged = self._staged(self._output, self._spec.attempt), self._staged(self._errors, self._spec.attempt)
        await _patiently(lambda: self._of(staged[0]).write(staged[0], _chunks(output())))
        if outcome.errors:
            await _patiently(lambda: self._of(staged[1]).write(staged[1], _chunks(errors())))
        return staged

    async def _promote(self, attempt: int, outcome: Outcome) -> None:
        """Moves an attempt's files to their final names; the output last: its presence means that all is there."""
        output, errors = self._staged(self._output, attempt), self._staged(self._errors, attempt)
        if not await self._of(output).exists(output):
            return  # done before
        if outcome.errors:
            await self._of(errors).move(errors, self._errors)
        else:
            await self._of(self._errors).delete(self._errors)  # of an earlier run
        await self._of(output).move(output, self._output)

    async def _clean_up(self) -> None:
        """Removes what attempts left, as far as it can; the manifest stays."""
        leftovers = [self._checkpoint, self._output.beside(".partial"), self._errors.beside(".partial")]
        for attempt in range(1, self._spec.attempt + 1):
            leftovers += [self._staged(self._output, attempt), self._staged(self._errors, attempt)]
        for location in leftovers:
            try:
                await self._of(location).delete(location)
            except (AccessDenied, OutputNotWritable) as error:
                log.warning("left behind", extra={"url": location.url, "problem": str(error)})


async def _patiently(action: Callable[[], Awaitable[T]]) -> T:
    """Tries again while the storage fails; results are not given up for an outage of minutes."""
    begin, delay = time.monotonic(), 1.0
    while True:
        try:
            return await action()
        except (OutputNotWritable, NoCredentials) as error:
            if time.monotonic() - begin + delay > PATIENCE_SECONDS:
                raise
            log.warning("upload failed; trying again", extra={"problem": str(error), "seconds": delay})
            await asyncio.sleep(delay)
            delay = min(delay * 2, 60.0)


def _chunks(records: Iterator[bytes]) -> Iterator[bytes]:
    """JSON Lines in chunks of a size worth writing."""
    parts: list[bytes] = []
    size = 0
    for record in records:
        parts += (record, b"\n")
        size += len(record) + 1
        if size >= CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def _save(chunks: AsyncIterator[bytes], path: Path) -> None:
    with path.open("wb") as file:
        async for chunk in chunks:
            file.write(chunk)

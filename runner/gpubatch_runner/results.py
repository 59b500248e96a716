"""Publishing a run's results: whole, once, and by one attempt only, even if an old attempt still runs somewhere.

    OUTPUT, ERRORS                      the results, visible only when they are complete
    OUTPUT.TOKEN-aN.staged (and ERRORS) what attempt N has to offer; uploaded while the run goes on
    OUTPUT.TOKEN.manifest.json          made only if absent: which attempt's files are the result, and the outcome
    OUTPUT.TOKEN.checkpoint             the journal of an attempt that did not come to its end
    OUTPUT.partial (and ERRORS)         for people: the results of an interrupted attempt

TOKEN stands for the run. An attempt that comes to a conclusion stages its files, then tries to create the manifest.
Exactly one succeeds; it moves its files to their final names. Any other removes its own files, completes that move if
its winner could not, and reports the winner's outcome as its own. An attempt that merely failed makes no manifest, so
that a later one can go on from its checkpoint.

An output that can only be PUT (a presigned URL) has nothing beside it: all these stand beside the checkpoint's location
then, and to move means to PUT. Where there is no checkpoint's location either, the files are PUT from the journal, and
nothing is decided between attempts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from gpubatch_runner import puts
from gpubatch_runner.contract import EngineInfo, Model, Outcome, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, OutputNotWritable, RunnerError
from gpubatch_runner.journal import Header, header_of
from gpubatch_runner.locations import JobLocations, Location, run_token
from gpubatch_runner.patience import patiently
from gpubatch_runner.puts import Chunks
from gpubatch_runner.stores import Store, open_store
from gpubatch_runner.uploading import Uploads

log = logging.getLogger(__name__)

CHUNK = 256 * 1024


class Manifest(Model):
    """Which attempt's files are a run's result."""

    run: str
    attempt: int
    time: datetime
    output_staged: str
    errors_staged: str | None
    input_digest: str | None = None
    engine: EngineInfo | None = None
    outcome: Outcome


class Publication:
    """The files that one attempt of a run may leave behind.

    Args:
        spec: The run and attempt.
        locations: Where the job wants its files.
        environment: Where claims and Secrets are mounted.
    """

    def __init__(self, spec: RunSpec, locations: JobLocations, environment: Environment) -> None:
        self.token = run_token(spec.run)
        self._spec, self._environment = spec, environment
        self._output, self._errors = locations.output, locations.errors
        self._limits = spec.upload
        base = locations.output if locations.output.is_place else locations.checkpoint
        keep = locations.checkpoint or base
        self._stores: dict[str, Store] = {}
        for location in (self._output, self._errors, base, keep):
            if location is not None and location.is_place:
                self._stores[location.field] = open_store(location, spec.storage, spec.upload, environment)
        self._base, self._keep = base, keep
        self._manifest = base.beside(f".{self.token}.manifest.json") if base else None
        self._checkpoint = keep.beside(f".{self.token}.checkpoint") if keep else None
        self._uploads = Uploads(spec.upload)

    @property
    def keeps_work(self) -> bool:
        """Whether a later attempt can go on where this one ends."""
        return self._checkpoint is not None

    @property
    def errors_in_output(self) -> bool:
        """Whether failed requests stand in the output, for want of a file of their own."""
        return self._errors is None

    # --- before

    async def check_writable(self) -> None:
        """Tries each place with a probe, and takes it away again; of URLs that are PUT to, looks at their expiry.

        Raises:
            AccessDenied, OutputNotWritable: One cannot be written, read back and cleaned up, or lets two create a file.
            OutputExpired: A presigned URL is past its end.
        """
        for location in (*self._final, *([self._keep] if self._keep and self._keep is not self._output else [])):
            if not location.is_place:
                puts.check_expiry(location)
                continue
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

    async def sweep(self) -> None:
        """Removes what killed attempts of this run left half uploaded, as far as it can."""
        for location in dict.fromkeys(filter(None, (self._base, self._errors, self._keep))):
            if location.is_place:
                await self._of(location).sweep(location.beside(f".{self.token}"))

    # --- meanwhile

    def follow(self, output: Chunks, errors: Chunks | None) -> None:
        """Begins to upload files that are still growing."""
        for location, chunks in ((self._output, output), (self._errors, errors)):
            if location and chunks and (staged := self._staged(location, self._spec.attempt)):
                self._uploads.begin(self._of(staged), staged, chunks)

    async def write_checkpoint(self, journal: Path) -> None:
        """Saves the journal for an attempt in another pod, where there is a place for it."""
        if (place := self._checkpoint) is not None:
            store = self._of(place)
            await patiently(lambda: self._uploads.write(store, place, lambda: _file_chunks(journal)), self._limits)

    async def restore(self, journal: Path, header: Header) -> bool:
        """Takes over an earlier attempt's checkpoint as this attempt's journal, if it is of the same run and input."""
        if self._checkpoint is None:
            return False
        fetched, place = journal.with_suffix(".fetched"), self._checkpoint
        try:
            await patiently(lambda: _save(self._of(place).read(place), fetched), self._limits)
        except FileNotFoundError:
            return False
        if header_of(fetched) != header:
            log.warning("checkpoint ignored: the input changed since")
            fetched.unlink()
            return False
        fetched.replace(journal)
        return True

    # --- at the end

    async def finished(self) -> Outcome | None:
        """The outcome of the run if an attempt has concluded it; completes its move if need be."""
        return await patiently(self._finished, self._limits)

    async def _finished(self) -> Outcome | None:
        if self._manifest is None:
            return None
        data = await self._of(self._manifest).read_small(self._manifest)
        if data is None:
            return None
        manifest = Manifest.model_validate_json(data)
        try:
            await self._promote(manifest.attempt, manifest.outcome)
        except OutputNotWritable as error:
            if self._output.is_place:
                raise
            return self._undelivered(manifest.outcome, error)
        await self._clean_up()
        return manifest.outcome

    async def conclude(
        self,
        report: Callable[[], Outcome],
        output: Chunks,
        errors: Chunks,
        digest: str | None = None,
        engine: EngineInfo | None = None,
    ) -> Outcome:
        """Publishes the run's results and its outcome, unless another attempt has; returns the outcome that counts.

        Args:
            report: Gives the outcome of this attempt; its timings grow with the upload.
            output: The bytes of the output file.
            errors: The bytes of the error file.
            digest: SHA-256 of the input.
            engine: What answered.
        """
        place = self._manifest
        if place is None:
            return await self._hand_over(report, output, errors)
        await self._stage(self._with_files(report()), output, errors)
        outcome = self._with_files(report())
        staged = [self._staged(location, self._spec.attempt) for location in self._final]
        manifest = Manifest(
            run=self._spec.run,
            attempt=self._spec.attempt,
            time=datetime.now(UTC),
            output_staged=staged[0].url if staged[0] else "",
            errors_staged=staged[1].url if outcome.errors and staged[1:] and staged[1] else None,
            input_digest=digest,
            engine=engine,
            outcome=outcome,
        )
        text = manifest.model_dump_json(by_alias=True, indent=2).encode() + b"\n"
        await patiently(lambda: self._of(place).create(place, text), self._limits)
        return await self.finished() or outcome

    async def give_up(self, outcome: Outcome, output: Chunks, errors: Chunks, journal: Path) -> Outcome:
        """Publishes what a failed attempt has, and a checkpoint for the next; unless the run is concluded."""
        if self._manifest is None:
            return await self._hand_over(lambda: outcome, output, errors)
        if concluded := await self.finished():
            return concluded
        outcome = self._with_files(outcome)
        await self.write_checkpoint(journal)
        await self._stage(outcome, output, errors)
        if concluded := await self.finished():
            return concluded
        try:
            await self._promote(self._spec.attempt, outcome)
        except OutputNotWritable as error:
            if self._output.is_place:
                raise
            return self._undelivered(outcome, error)
        return outcome

    async def suspend(self, outcome: Outcome, output: Chunks, errors: Chunks, journal: Path) -> Outcome:
        """Leaves a checkpoint for the next attempt, and the partial results beside the final names for people."""
        if concluded := await self.finished():
            return concluded
        await self.write_checkpoint(journal)
        if not self._output.is_place:
            return outcome
        whole = self._with_files(outcome)
        await self._stage(whole, output, errors)
        shown = {}
        for name, location in (("output", self._output), ("errors", self._errors if whole.errors else None)):
            if location and location.is_place and (staged := self._staged(location, self._spec.attempt)):
                partial = location.beside(".partial")
                await self._of(location).move(staged, partial)
                shown[name] = partial.shown
        return outcome.model_copy(update=shown)

    async def drop(self) -> None:
        """Ends the uploads of this attempt that nobody wants any more."""
        await self._uploads.drop()

    async def report(self, document: Iterable[bytes]) -> str:
        """Writes the error document of a job that produced no results; returns its URL."""
        location = self._errors or self._output
        lines = list(document)
        await self._deliver(location, lambda: _lines(lines))
        return location.shown

    # --- in detail

    @property
    def _final(self) -> list[Location]:
        return [self._output, self._errors] if self._errors else [self._output]

    def _of(self, location: Location) -> Store:
        return self._stores[location.field]

    def _staged(self, location: Location, attempt: int) -> Location | None:
        """Where an attempt's file stands until it is decided on; None if there is no such place."""
        if location.is_place:
            return location.beside(f".{self.token}-a{attempt}.staged")
        role = "output" if location is self._output else "errors"
        return self._base.beside(f".{self.token}-a{attempt}.{role}.staged") if self._base else None

    def _with_files(self, outcome: Outcome) -> Outcome:
        errors = self._errors.shown if self._errors and outcome.failed else None
        return outcome.model_copy(update={"output": self._output.shown, "errors": errors})

    async def _stage(self, outcome: Outcome, output: Chunks, errors: Chunks) -> None:
        for location, chunks in ((self._output, output), (self._errors if outcome.errors else None, errors)):
            if location and (staged := self._staged(location, self._spec.attempt)):
                await self._uploads.finish(self._of(staged), staged, chunks)

    async def _promote(self, attempt: int, outcome: Outcome) -> None:
        """Moves an attempt's files to their final names; the output last: its presence means that all is there."""
        staged = self._staged(self._output, attempt)
        if staged is None or not await self._of(staged).exists(staged):
            return  # done before
        if self._errors and outcome.errors:
            await self._put_in_place(self._staged(self._errors, attempt), self._errors)
        elif self._errors and self._errors.is_place:
            await self._of(self._errors).delete(self._errors)  # of an earlier run
        await self._put_in_place(staged, self._output)

    async def _put_in_place(self, staged: Location | None, target: Location) -> None:
        assert staged is not None
        store = self._of(staged)
        if target.is_place:

            async def move() -> None:
                # Another attempt may have moved it just now. If nobody has, the storage lost it: that is no success.
                if not await store.move(staged, target) and not await self._of(target).exists(target):
                    raise target.problem(f"{staged.shown}, which was to be moved there, is gone")

            await patiently(move, self._limits)
            return

        async def put() -> None:
            if (size := await store.size(staged)) is not None:  # else another attempt has done it
                await puts.put(target, size, lambda: store.read(staged), self._limits, self._environment)

        await patiently(put, self._limits, renewable=target.secret is not None)
        await store.delete(staged)

    async def _deliver(self, target: Location, chunks: Chunks) -> None:
        """Writes a complete file to its final place."""
        if target.is_place:
            await patiently(lambda: self._uploads.write(self._of(target), target, chunks), self._limits)
            return
        size = sum([len(chunk) async for chunk in chunks()])
        await patiently(
            lambda: puts.put(target, size, chunks, self._limits, self._environment),
            self._limits,
            renewable=target.secret is not None,
        )

    async def _hand_over(self, report: Callable[[], Outcome], output: Chunks, errors: Chunks) -> Outcome:
        """PUTs the files from this pod: there is no place to keep them at. What a restarted container finds to have
        been taken is not sent again, since some URLs are good for one time only."""
        outcome = self._with_files(report())
        try:
            for location, chunks in ((self._errors if outcome.errors else None, errors), (self._output, output)):
                if location is None:
                    continue
                receipt = self._environment.journal_dir / f"{self.token}-a{self._spec.attempt}.{location.field}.taken"
                if not receipt.exists():
                    await self._deliver(location, chunks)
                    receipt.touch()
        except OutputNotWritable as error:
            lost = (
                f"{error} The results are lost with this pod: spec.inference.checkpoint, where they would be kept, is "
                "not set."
            )
            return report().model_copy(update={"succeeded": False, "reason": error.reason, "message": lost})
        return self._with_files(report())

    def _undelivered(self, outcome: Outcome, error: RunnerError) -> Outcome:
        """The outcome of a run that is done and whose results nobody took yet."""
        assert self._base is not None
        text = (
            f"{error} All {outcome.completed + outcome.failed} results are kept beside {self._base.shown}; a new "
            "attempt uploads them without computing anything again."
        )
        reason = error.reason
        if outcome.reason is not None:
            reason, text = outcome.reason, f"{outcome.message} And the results could not be delivered: {text}"
        update = {"succeeded": False, "reason": reason, "message": text, "output": None, "errors": None}
        return outcome.model_copy(update=update)

    async def _clean_up(self) -> None:
        """Removes what attempts left, as far as it can; the manifest stays."""
        leftovers = [self._checkpoint] if self._checkpoint else []
        for location in self._final:
            leftovers += [location.beside(".partial")] if location.is_place else []
            leftovers += [
                staged for n in range(1, self._spec.attempt + 1) if (staged := self._staged(location, n)) is not None
            ]
        for location in leftovers:
            try:
                await self._of(location).delete(location)
            except (AccessDenied, OutputNotWritable) as error:
                log.warning("left behind", extra={"url": location.shown, "problem": str(error)})
        if self._uploads.disturbed:
            await self.sweep()


async def _lines(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line + b"\n"


async def _file_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


async def _save(chunks: AsyncIterator[bytes], path: Path) -> None:
    with path.open("wb") as file:
        async for chunk in chunks:
            await asyncio.to_thread(file.write, chunk)

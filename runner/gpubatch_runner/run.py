"""One attempt at a run, from its specification to its outcome.

    concluded before? -> input, journal, engine (at the same time) -> requests -> publish

Each step is resumable: a restarted container finds the input and the journal in its work folder, a new pod finds the
manifest or a checkpoint at the output. Told to stop, the attempt ends with what there is; once all requests have their
result it is too late to stop, and publishing goes on within the grace period.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator

from gpubatch_runner import sources
from gpubatch_runner.answering import Answering, judge, new_queue, without_result
from gpubatch_runner.contract import STOP_FILE, EngineInfo, LineError, Outcome, RunSpec, Stage
from gpubatch_runner.endings import NOTHING_KEPT, Ending
from gpubatch_runner.engine import EngineClient
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import RunnerError
from gpubatch_runner.journal import Header, Journal
from gpubatch_runner.locations import JobLocations, of_job
from gpubatch_runner.patience import patiently
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.request_queue import RequestQueue
from gpubatch_runner.requests import Request
from gpubatch_runner.results import Publication
from gpubatch_runner.server import serving
from gpubatch_runner.stopping import Stop, unless
from gpubatch_runner.supervisor import Supervisor
from gpubatch_runner.workdir import Workdir

log = logging.getLogger(__name__)

PREPARE_SECONDS = 45.0
"""How long an attempt that is to stop may still fetch the input and an earlier attempt's results, to publish those."""

SAVE_SECONDS = 5

CHECKPOINT_SHARE = 20
"""A checkpoint is a whole copy: the pause after it is at least so many times the seconds that it took."""


async def run(spec: RunSpec, environment: Environment, terminated: asyncio.Event) -> Outcome:
    """Runs one attempt to its outcome.

    Args:
        spec: What to do.
        environment: The container's places.
        terminated: Set on SIGTERM.
    """
    progress, queue = RunProgress(), new_queue(spec)
    stop = Stop(terminated, environment.pod_dir / STOP_FILE, spec.stop_at, spec.stop_reason)
    async with serving(progress, queue, environment.progress_port), stop.watching():
        try:
            locations = of_job(spec, environment)
            publication = Publication(spec, locations, environment)
            if concluded := await unless(stop, publication.finished(), PREPARE_SECONDS):
                log.info("the run was concluded by an earlier attempt")
                return concluded
            workdir = Workdir(environment.journal_dir, spec.run, spec.attempt)
        except RunnerError as error:
            return Outcome(succeeded=False, reason=error.reason, message=str(error))
        progress.adopt(workdir.state.seconds)
        attempt = Attempt(spec, environment, locations, publication, workdir, progress, queue, stop)
        async with _background(_tick(progress, workdir)):
            outcome = await attempt.run()
        progress.enter(Stage.DONE)
        return outcome


class Attempt:
    """One attempt at a run that nobody has concluded yet."""

    def __init__(
        self,
        spec: RunSpec,
        environment: Environment,
        locations: JobLocations,
        publication: Publication,
        workdir: Workdir,
        progress: RunProgress,
        queue: RequestQueue,
        stop: Stop,
    ) -> None:
        self._spec = spec
        self._environment = environment
        self._locations = locations
        self._publication = publication
        self._workdir = workdir
        self._progress = progress
        self._queue = queue
        self._stop = stop
        self._token = publication.token
        self._journal: Journal | None = None
        self._ending = Ending(spec, publication, progress)

    async def run(self) -> Outcome:
        """The attempt's outcome; never raises a `RunnerError`."""
        problem: RunnerError | None = None
        try:
            try:
                await self._answer_all()
            except RunnerError as error:
                log.warning("attempt failed", extra={"reason": error.reason, "problem": str(error)})
                problem = error
            self._progress.enter(Stage.UPLOADING)
            return await self._ending.of(problem, self._without_result)
        finally:
            await self._ending.close()
            if self._journal is not None:
                self._journal.close()

    async def _answer_all(self) -> None:
        async with EngineClient(self._spec.engine_url) as client:
            supervisor = Supervisor(client, self._workdir, self._spec.engine_start_timeout_seconds, self._show_engine)
            supervisor.start()
            try:
                self._journal = await unless(self._stop, self._prepare(), PREPARE_SECONDS)
                async with _background(self._journal.keep_synced()), _background(self._keep_checkpoint(self._journal)):
                    answering = Answering(
                        self._spec,
                        self._environment,
                        self._workdir,
                        self._journal,
                        self._progress,
                        self._queue,
                        self._token,
                    )
                    await answering.all(client, supervisor, self._stop, self._note_engine)
            finally:
                await supervisor.stop()

    async def _prepare(self) -> Journal:
        """Checks the outputs, fetches and judges the input, and opens the journal."""
        await patiently(self._publication.check_writable, self._spec.upload, renewable=False)
        await self._publication.sweep()
        if self._spec.attempt > 1 and not self._publication.keeps_work:
            self._progress.note = f"Attempt {self._spec.attempt - 1} was lost. {NOTHING_KEPT}"
        chunks = sources.read(self._locations.input, self._spec.storage, self._environment)
        digest = await self._workdir.keep_input(sources.limited(chunks, self._spec.max_input_bytes))
        if self._workdir.state.total is None:
            self._workdir.state.total = await asyncio.to_thread(judge, self._spec, self._workdir)
            self._workdir.save()
        self._progress.total = self._workdir.state.total
        self._progress.metrics.total.set(self._workdir.state.total)
        header = Header(self._spec.run, digest)
        if not self._workdir.journal.exists() and await self._publication.restore(self._workdir.journal, header):
            log.info("going on from an earlier attempt's checkpoint")
        journal = Journal(self._workdir.journal, header)
        self._progress.completed, self._progress.failed = journal.completed, journal.failed
        self._progress.input_tokens, self._progress.output_tokens = journal.input_tokens, journal.output_tokens
        self._ending.follow(journal)
        log.info("input ready", extra={"total": self._progress.total, "done": journal.completed + journal.failed})
        return journal

    def _without_result(self) -> Iterator[Request | LineError]:
        """The lines without a result."""
        assert self._journal is not None
        return without_result(self._workdir, self._journal)

    async def _keep_checkpoint(self, journal: Journal) -> None:
        """Saves the journal to the output's location from time to time: the node may be lost with it."""
        pause, saved = self._spec.checkpoint_seconds, 0
        while True:
            await asyncio.sleep(pause)
            done = journal.completed + journal.failed
            if done == saved:
                continue
            begin = time.monotonic()
            try:
                await self._publication.write_checkpoint(journal.path)
            except RunnerError as error:
                log.warning("checkpoint not written", extra={"problem": str(error)})
                continue
            saved, pause = done, max(self._spec.checkpoint_seconds, CHECKPOINT_SHARE * (time.monotonic() - begin))

    def _note_engine(self, engine: EngineInfo) -> None:
        self._ending.engine = engine

    def _show_engine(self, up: bool, message: str) -> None:
        self._progress.engine_changed(up, self._workdir.state.engine_answered)
        processing = up and self._journal is not None
        self._progress.enter(Stage.PROCESSING if processing else Stage.LOADING_MODEL, message)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Does something endless until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _tick(progress: RunProgress, workdir: Workdir) -> None:
    """Keeps the rate current, and the times on disk."""
    for second in itertools.count(1):
        await asyncio.sleep(1)
        progress.tick()
        if second % SAVE_SECONDS == 0:
            workdir.save()

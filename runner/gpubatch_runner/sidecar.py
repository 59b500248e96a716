"""`python -m gpubatch_runner.sidecar`: beside the containers of a template pod, shows the operator how far they are.

It reads the file that they write (`GPUBATCH_PROGRESS_FILE`), takes what they push to the pod's loopback, and serves the
picture at the same port and in the same form as the inference runner. On SIGTERM, which the kubelet sends it when the
other containers have ended, it leaves the last picture as its termination message. Whatever goes wrong in it is only
ever said in the picture's message: the pod's work and its end are none of its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import stat
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from gpubatch_runner import contract, told
from gpubatch_runner.contract import Progress, Stage
from gpubatch_runner.told import Told, Unreadable

LOOK_SECONDS = 0.5
RATE_SECONDS = 300.0
"""How much of the past tells when it will be done."""

log = logging.getLogger(__name__)


class Picture:
    """All that was told, as one picture."""

    def __init__(self) -> None:
        self.told = Told()
        self.problem = ""
        self._since = self._told_at = time.monotonic()
        self._shares: deque[tuple[float, float]] = deque()

    def take(self, new: Told) -> None:
        """One message of the program."""
        before, self.told = self.told, told.merge(self.told, new)
        self.problem = ""
        now, share = time.monotonic(), self.told.share
        self._told_at = now
        if self.told.stage != before.stage or (share is not None and self._shares and share < self._shares[-1][1]):
            self._shares.clear()
        if share is not None:
            self._shares.append((now, share))
            while now - self._shares[0][0] > RATE_SECONDS and len(self._shares) > 2:
                self._shares.popleft()

    def now(self) -> Progress:
        """The contract's picture of this moment."""
        t = self.told
        rate = self._per_second()
        return Progress(
            stage=t.stage or Stage.PROCESSING.value,
            message=self.problem or t.message or "",
            total=t.total,
            completed=t.completed or 0,
            failed=t.failed or 0,
            rate=round(rate * t.total, 3) if rate is not None and t.total else None,
            percent=t.percent,
            remaining_seconds=self._remaining(rate),
            metrics=t.metrics or {},
            processing_seconds=round(time.monotonic() - self._since, 1),
            time=datetime.now(UTC),
        )

    def _per_second(self) -> float | None:
        """The share of the work that is done in a second, by what was seen: work resumed at the half isn't fast."""
        if len(self._shares) < 2:
            return None
        (begin, before), (end, after) = self._shares[0], self._shares[-1]
        return (after - before) / (end - begin) if end - begin >= 1.0 and after > before else None

    def _remaining(self, rate: float | None) -> float | None:
        """What the program said, else what the rate says, less the time since."""
        if (left := self.told.remaining_seconds) is not None:
            return round(max(0.0, left - (time.monotonic() - self._told_at)), 1)
        if rate is None:
            return None
        at, share = self._shares[-1]
        return round(max(0.0, (1 - share) / rate - (time.monotonic() - at)), 1)


class File:
    """The progress file: read when it has changed, whoever writes it in whatever way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def news(self) -> Told | None:
        """What it says, if that has changed.

        Raises:
            Unreadable: It says nothing that can be understood; only once for each version of it, and not at the first
                sight, since it may be half written.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(
                (error.errno or 0,),
                "it is a link; write a file in its place"
                if error.errno == errno.ELOOP
                else f"{error.strerror}; it must be readable for others (chmod o+r)",
            )
            return None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                self._complain((found.st_mode,), "it is no regular file")
                return None
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version == self._seen:
                return None
            start = max(0, found.st_size - told.MAX_BYTES)
            text = os.pread(descriptor, told.MAX_BYTES, start).decode(errors="replace")
        finally:
            os.close(descriptor)
        try:
            news = told.read(text)
        except Unreadable as error:
            self._complain(version, str(error))
            return None
        self._seen = version
        return news

    def _complain(self, version: tuple[int, ...], problem: str) -> None:
        suspect = (-1, *version)
        if self._seen == version:
            return
        if self._seen == suspect:
            self._seen = version
            raise Unreadable(f"{contract.PROGRESS_FILE_ENV}: {problem}")
        self._seen = suspect


def application(picture: Picture) -> web.Application:
    """What the operator, and the kubelet, may ask."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=picture.now().to_json(), content_type="application/json")

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/progress", show)
    app.router.add_get("/healthz", health)
    return app


def pushes(picture: Picture) -> web.Application:
    """Where the pod's own containers push. No token is asked for: nobody else reaches the pod's loopback."""

    async def take(request: web.Request) -> web.Response:
        try:
            if news := told.read((await request.read()).decode(errors="replace")):
                picture.take(news)
        except Unreadable as error:
            picture.problem = f"POST {request.path}: {error}"
            return web.json_response({"error": str(error)}, status=422)
        return web.json_response({})

    app = web.Application(client_max_size=told.MAX_BYTES)
    app.router.add_post("/progress", take)
    return app


async def watch(
    file: File, picture: Picture, stop: asyncio.Event, places: tuple[tuple[web.Application, str, int], ...]
) -> None:
    """Serve and look until `stop`, and then a last time."""
    runners = []
    for app, host, port in places:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        runners.append(runner)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:  # a container of the template listens there: then only this way is lost
            picture.problem = f"port {port} of the pod is taken: {error.strerror}"
            log.warning("%s", picture.problem)
            continue
        log.info("listening at %s:%d", host, runner.addresses[0][1])
    try:
        while not stop.is_set():
            look(file, picture)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await stop.wait()
        look(file, picture)
    finally:
        for runner in runners:
            await runner.cleanup()


def look(file: File, picture: Picture) -> None:
    """Take what the file says, if that is new."""
    try:
        if news := file.news():
            picture.take(news)
    except Unreadable as error:
        picture.problem = str(error)
        log.warning("%s", error)


async def main() -> None:
    """The whole sidecar; places are overridden by environment, for tests."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop, loop, picture = asyncio.Event(), asyncio.get_running_loop(), Picture()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    get = os.environ.get
    file = File(Path(get(contract.PROGRESS_FILE_ENV, contract.PROGRESS_FILE)))
    places = (
        (application(picture), "0.0.0.0", int(get("GPUBATCH_PROGRESS_PORT", contract.PROGRESS_PORT))),
        (pushes(picture), "127.0.0.1", int(get("GPUBATCH_PUSH_PORT", contract.PUSH_PORT))),
    )
    await watch(file, picture, stop, places)
    leave(picture.now(), Path(get("GPUBATCH_TERMINATION_LOG", "/dev/termination-log")))


def leave(last: Progress, where: Path) -> None:
    """The last picture as the container's termination message, of which the kubelet keeps so many bytes."""
    if len(text := last.to_json().encode()) > contract.TERMINATION_LIMIT:
        text = last.model_copy(update={"message": "", "metrics": {}}).to_json().encode()
    with contextlib.suppress(OSError):
        where.write_bytes(text)


if __name__ == "__main__":
    asyncio.run(main())

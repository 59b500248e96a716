"""A TCP proxy between one operator and the API server, to cut or to stall what is between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Proxy:
    """Passes bytes on. `stall()`: everything hangs, silently; `cut()`: connections break and none is accepted."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def stall(self) -> None:
        self._open.clear()

    def cut(self) -> None:
        self._refusing = True
        for task in self._tasks:
            task.cancel()

    def heal(self) -> None:
        self._refusing = False
        self._open.set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._refusing:
                return
            await self._open.wait()
            there = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
            finally:
                there[1].transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()


@asynccontextmanager
async def proxied(kubeconfig: Path, folder: Path) -> AsyncIterator[tuple[Proxy, Path]]:
    """A proxy to the API server, and a kubeconfig that goes through it."""
    config = yaml.safe_load(kubeconfig.read_text())  # noqa: ASYNC240
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    assert server.hostname is not None
    async with Proxy(server.hostname, server.port or 443) as proxy:
        for key in ("certificate-authority", "certificate-authority-data"):  # it doesn't know this address
            cluster.pop(key, None)
        cluster |= {"server": f"https://127.0.0.1:{proxy.port}", "insecure-skip-tls-verify": True}
        path = folder / "proxied.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield proxy, path

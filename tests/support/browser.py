"""A real browser, driven over its own protocol (CDP): Chromium without a window."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from localcluster import packages

JSON = dict[str, Any]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)
PATIENCE = 120.0


def executable() -> str:
    """Chromium's path; Debian's package is installed if there is none.

    Raises:
        SetupError: It can't be: the message names what is missing.
    """
    if not any(map(shutil.which, NAMES)):
        packages.require({"chromium": "chromium"})
    return next(path for name in NAMES if (path := shutil.which(name)))


class Page:
    """One tab."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[JSON]] = {}
        self.complaints: list[str] = []
        """What the page's console said of errors, what the policy refused among it."""
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def call(self, method: str, **parameters: Any) -> JSON:
        """One command of the protocol."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def js(self, expression: str) -> Any:
        """The value of an expression, or of its promise."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait for an expression to become true; its value."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (value := await self.js(expression)):  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited in vain: {expression}; the page complains: {self.complaints}") from None
        return value

    async def press(self, key: str, code: int = 0, text: str = "") -> None:
        """A key, as the user's keyboard sends it."""
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)
            more = {}

    async def look(self, width: int = 1400, height: int = 900, scheme: str = "light") -> None:
        """The size of the window, and whether the user wants it light or dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is to be seen."""
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(answer["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            data = message.json()
            if (number := data.get("id")) in self._answers:
                future = self._answers.pop(number)
                if "error" in data:
                    future.set_exception(RuntimeError(str(data["error"])))
                else:
                    future.set_result(data["result"])
            elif data.get("method") == "Log.entryAdded" and data["params"]["entry"]["level"] == "error":
                self.complaints.append(data["params"]["entry"]["text"])
            elif data.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(data["params"]["exceptionDetails"]))


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Page]:
    """A browser that shows this page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its children may outlive it by a moment
        command = [executable(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = _start(command)
        try:
            port = await _port(process, Path(folder) / "DevToolsActivePort")
            async with ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    [tab] = [t for t in await answer.json() if t["type"] == "page"]
                async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await page.call(f"{domain}.enable")
                    await page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # there is no window to have it
                    await page.look()
                    await page.call("Page.navigate", url=url)
                    await page.until("location.href !== 'about:blank' && document.readyState === 'complete'")
                    yield page
                    await page.close()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _written(file: Path) -> str | None:
    text = file.read_text() if file.exists() else ""
    return text.splitlines()[0] if "\n" in text else None


async def _port(process: subprocess.Popen[bytes], file: Path) -> str:
    async with asyncio.timeout(PATIENCE):
        while (port := _written(file)) is None:
            assert process.poll() is None, "Chromium has ended at its start"
            await asyncio.sleep(0.05)
    return port

"""The page in a real browser, with a board that the test fills."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import axe_core_python
from aiohttp import web

from bench_lib.crowd import crowd
from gpubatch_operator.core.model import Job
from gpubatch_operator.settings import Settings
from gpubatch_operator.web import server
from gpubatch_operator.web.board import Board
from gpubatch_operator.web.problems import no_token
from gpubatch_operator.web.routes import Routes
from support.browser import Page, browsing

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
NASTY = "<img src=x onerror=document.title='taken'>"
ROWS = "document.querySelectorAll('#body tr').length"


class Site:
    """The page with its board."""

    def __init__(self, board: Board, jobs: list[Job], page: Page) -> None:
        self.board, self.jobs, self.page = board, jobs, page
        self.token = ""

    def put(self, job: Job) -> None:
        self.board.put(job, time.time())


@asynccontextmanager
async def shown(jobs: int, nodes: int, token: str = "") -> AsyncIterator[Site]:
    board, now = Board(), time.time()
    there, machines = crowd(jobs, nodes, now)
    board.put_nodes(machines)
    for job in there:
        board.put(job, now)

    async def scope(request: web.Request, asked: tuple[str, ...]) -> frozenset[str] | None:
        if token and request.headers.get("Authorization") != f"Bearer {token}":
            raise no_token()
        return frozenset(asked) if asked else None

    routes = Routes(board, Settings(), scope, lambda: (True, True), lambda: "")
    app = server.application(routes, local=True)
    async with server.listening(app, "127.0.0.1", 0) as port, browsing(f"http://127.0.0.1:{port}/") as page:
        yield Site(board, there, page)


async def problems(page: Page) -> list[Any]:
    """What axe-core finds wrong for people with disabilities."""
    await page.call("Runtime.evaluate", expression=AXE)
    found = await page.js("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    assert isinstance(found, list)
    return found


async def test_the_queue_is_shown_moves_live_and_tells_why_to_mouse_and_keyboard() -> None:
    async with shown(5, 3) as site:
        page = site.page
        await page.until(f"{ROWS} === 3")
        # Progress moves without anybody doing anything.
        job = next(j for j in site.jobs if j.phase == "Running")
        moved = {**job.status["progress"], "percent": 99}
        site.put(replace(job, status={**job.status, "progress": moved}))
        await page.until("[...document.querySelectorAll('progress')].some(p => p.value === 99)")
        # Why a job waits: on focus, gone by Escape.
        await page.js("document.querySelector('.why:not([hidden])').focus()")
        await page.until("document.getElementById('tip').textContent.includes('matching nodes are busy')")
        assert await page.js("document.activeElement.getAttribute('aria-describedby')") == "tip"
        await page.press("Escape", 27)
        await page.until("document.getElementById('tip').hidden")
        await page.js(
            "document.querySelector('.why:not([hidden])').blur();document.querySelector('.why:not([hidden])').focus()"
        )
        await page.until("!document.getElementById('tip').hidden")
        assert await problems(page) == []
        # A job in full, by the keyboard; the focus comes back.
        await page.js("document.querySelector('#body .link').focus()")
        await page.press("Enter", 13, "\r")
        await page.until("document.getElementById('detail').open")
        assert await problems(page) == []
        await page.press("Escape", 27)
        await page.until("document.activeElement.matches('#body .link')")
        # What users write is text, whatever it says.
        site.put(replace(job, model=NASTY))
        await page.until("document.getElementById('body').textContent.includes('onerror')")
        assert await page.js("document.title") == "GPUBatch queue"
        assert page.complaints == []


async def test_without_a_token_the_page_asks_for_one() -> None:
    async with shown(5, 3, token="good") as site:
        page = site.page
        await page.until("!document.getElementById('login').hidden")
        await page.js("document.getElementById('token').value = 'good'")
        await page.js("document.getElementById('login').requestSubmit()")
        await page.until(f"{ROWS} === 3 && document.getElementById('notice').hidden")
        assert all("401" in complaint for complaint in page.complaints), page.complaints

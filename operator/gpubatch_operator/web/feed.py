"""From the store, in the operator's event loop, to the board, in that of the HTTP listeners: what has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpubatch_operator.core.model import Job, Node
from gpubatch_operator.kube.store import Store
from gpubatch_operator.web.board import Board

PAUSE = 0.1  # seconds that what is shown may be behind
PART = 200  # jobs that are taken over at a time, so that requests get in between


@dataclass(frozen=True, slots=True)
class News:
    """Jobs by uid (None: gone), and all nodes if one has changed."""

    jobs: tuple[tuple[str, Job | None], ...]
    nodes: tuple[Node, ...] | None = None


async def follow(store: Store, tell: Callable[[News], None]) -> None:
    """Tell what changes in the store, for ever, beginning with all that there is."""
    touched = store.followed()
    touched.update(store.jobs)
    known: tuple[Node, ...] = ()
    while True:
        nodes = tuple(store.nodes.values())
        uids = list(touched)
        touched.clear()
        for start in range(0, len(uids), PART):
            tell(News(tuple((uid, store.jobs.get(uid)) for uid in uids[start : start + PART])))
        if nodes != known:
            tell(News((), nodes))
            known = nodes
        await asyncio.sleep(PAUSE)


def take(board: Board, news: News) -> None:
    """Put what is told on the board."""
    now = time.time()
    for uid, job in news.jobs:
        if job is None:
            board.drop(uid)
        else:
            board.put(job, now)
    if news.nodes is not None:
        board.put_nodes(news.nodes)

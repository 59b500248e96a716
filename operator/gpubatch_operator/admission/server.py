"""The webhook's HTTPS server, in each replica: the API server asks whichever it reaches."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Sequence

from aiohttp import web

from gpubatch_operator.admission.advice import Sightings
from gpubatch_operator.admission.reviewer import Reviewer
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.kube.store import Store
from gpubatch_operator.metrics import REVIEWS

PATH = "/validate"
MAX_BODY = 8 * 2**20  # two versions of an object, each as large as etcd takes

log = logging.getLogger(__name__)


async def serve(
    port: int, context: ssl.SSLContext, reviewer: Reviewer, needs: Sequence[asyncio.Event], serving: asyncio.Event
) -> None:
    """Serve for ever, from when all is set that it needs; requests under way are answered before it ends."""

    async def validate(request: web.Request) -> web.Response:
        review = json.loads(await request.read())
        try:
            response = await reviewer.review(review["request"])
        except (ApiError, OSError) as e:  # the webhook's failurePolicy says what follows
            REVIEWS.labels("error").inc()
            return web.Response(status=503, text=f"whether there is room can't be told: {e}")
        answer = {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
        return web.json_response(answer)

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post(PATH, validate)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    for need in needs:
        await need.wait()
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        serving.set()
        log.info("the admission webhook is served at port %d", port)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def keep_sight(store: Store, sightings: Sightings, clock: Callable[[], float] = time.time) -> None:
    """Note which nodes are there, for ever."""
    while True:
        sightings.note(store.nodes.values(), clock())
        await asyncio.sleep(1.0)

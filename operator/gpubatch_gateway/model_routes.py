"""The endpoints of models: those of the administrator's templates, and those that live jobs of the namespace serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gpubatch_gateway.answering import of_json
from gpubatch_gateway.auth import Act, Gate
from gpubatch_gateway.live.lives import Lives
from gpubatch_gateway.models import Models
from gpubatch_gateway.problems import RequestError


class ModelRoutes:
    """The handlers.

    Args:
        gate: Lets requests in.
        models: The templates that there are now.
        lives: The live jobs.
    """

    def __init__(self, gate: Gate, models: Callable[[], Models], lives: Lives) -> None:
        self._gate, self._models, self._lives = gate, models, lives
        self._began = int(time.time())

    def add_to(self, app: web.Application) -> None:
        """Serve them."""
        app.router.add_get("/v1/models", self.list_models, name="list_models")
        app.router.add_get("/v1/models/{model:.+}", self.model, name="model")

    async def list_models(self, request: web.Request) -> web.Response:
        """The models that requests may name."""
        there = await self._there(request)
        return of_json({"object": "list", "data": [self._model(name) for name in sorted(there)]})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        name = request.match_info["model"]
        if name not in await self._there(request):
            raise RequestError(404, "model_not_found", f"The model {name[:100]!r} isn't served.", "model")
        return of_json(self._model(name))

    async def _there(self, request: web.Request) -> set[str]:
        namespace = await self._gate.enter(request.headers, Act("list"))
        return {*self._models().templates, *(job.model for job in self._lives.wanted(namespace))}

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "gpubatch"}

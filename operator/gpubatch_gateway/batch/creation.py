"""Making batches, exactly once: what is made has a name that follows from what was asked for, and the API server takes
each name once. A replica may die at any point: the file was whole before, and the job is one write.

A client that repeats its request gets the batch that it has made before. With an Idempotency-Key that is the one of
this key, for as long as it is there; without, the one of the same content, for as long as that isn't finished.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from gpubatch_gateway import kube, manifest, names, refusals
from gpubatch_gateway.batch import batches
from gpubatch_gateway.batch.board import Board, Entry
from gpubatch_gateway.batch.files import File
from gpubatch_gateway.batch.storage import Files
from gpubatch_gateway.batch.wishes import Wish
from gpubatch_gateway.batch.workers import Workers
from gpubatch_gateway.models import Models
from gpubatch_gateway.problems import DONT_RETRY, RequestError, invalid, no_file, unavailable
from gpubatch_gateway.settings import Settings
from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
MAX_KEY = 255  # characters
GPU = "nvidia.com/gpu"

log = logging.getLogger(__name__)


class Creation:
    """Makes batches.

    Args:
        client: To the API server.
        board: Told of what is made, so that it can be read at once.
        files: Where inputs are.
        models: The templates that there are now.
        workers: The nodes; None: nothing is known of them.
        settings: See there.
    """

    def __init__(
        self,
        client: Client,
        board: Board,
        files: Files,
        models: Callable[[], Models],
        workers: Workers | None,
        settings: Settings,
    ) -> None:
        self._client, self._board, self._files, self._models = client, board, files, models
        self._workers, self._settings = workers, settings

    async def create(self, namespace: str, wish: Wish, key: str | None) -> tuple[JSON, bool]:
        """The job of a wish, and whether it is new.

        Args:
            namespace: In which the caller may create jobs.
            wish: What they ask for.
            key: By which they will know it again.

        Raises:
            RequestError: It can't be made.
        """
        if key is not None and not 0 < len(key) <= MAX_KEY:
            raise invalid(f"The Idempotency-Key has {len(key)} characters; 1 to {MAX_KEY} are allowed.")
        try:
            if key is not None:
                name = manifest.keyed_name(namespace, key)
                found = await kube.job(self._client, namespace, name)
            else:
                name, found = await self._same(namespace, wish)
            if found is not None:
                return self._known(found, wish), False
            job = await self._job(name, namespace, wish)
            made, new = await kube.create_once(self._client, namespace, job)
            return (made, True) if new else (self._known(made, wish), False)
        except ApiError as e:
            raise refusals.told(e) from e

    # --- what was made before

    async def _same(self, namespace: str, wish: Wish) -> tuple[str, JSON | None]:
        """The batch of this content that isn't finished, else the name of the next one."""
        path, query = kube.collection(namespace), {"labelSelector": f"{batches.BATCH}={wish.content}"}
        there, _ = await self._client.list(path, **query)
        there.sort(key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["uid"]))
        last = there[-1]["metadata"]["uid"] if there else ""
        unfinished = [j for j in there if not batches.finished(j) and "deletionTimestamp" not in j["metadata"]]
        return manifest.following_name(namespace, wish, last), unfinished[-1] if unfinished else None

    @staticmethod
    def _known(job: JSON, wish: Wish) -> JSON:
        try:
            same = batches.request_of(job).get("content") == wish.content
        except ValueError:
            same = False
        if not same:
            raise RequestError(
                400,
                "idempotency_key_in_use",
                f"This Idempotency-Key was used for {names.batch_id(job['metadata']['name'])}, with other parameters. "
                "Use another key.",
            )
        return job

    # --- what is new

    async def _job(self, name: str, namespace: str, wish: Wish) -> JSON:
        if self._files.in_claim and namespace != self._settings.namespace:
            raise other_namespace(namespace, self._settings.namespace)
        file = await self._files.find(namespace, wish.input_file_id)
        if file is None:
            raise no_file(wish.input_file_id, 400)
        models = self._models()
        model = await self._model(file, wish, models)
        warning = self._warning(models.templates[model].get("gpuResource", GPU))
        places = manifest.Places(
            self._files.url(file.key),
            *(self._files.url(names.result_key(namespace, name, role)) for role in (names.OUTPUT, names.ERRORS)),
        )
        return manifest.job(name, namespace, wish, model, models, places, self._settings, warning, time.time())

    async def _model(self, file: File, wish: Wish, models: Models) -> str:
        """The model that the file's first request names."""
        try:
            line = await self._files.first_line(file)
        except FileNotFoundError:
            raise no_file(file.id, 400) from None
        model = model_of(line, wish.endpoint)
        if model not in models.templates:
            raise invalid(refusals.not_served(model, models.templates), "body.model", "model_not_found")
        return model

    def _warning(self, resource: str) -> str:
        """What there is to say of the workers.

        Raises:
            RequestError: 503; none is alive, and the settings say that then no batch is taken.
        """
        now = time.time()
        silent = self._workers.silent(resource, now) if self._workers else None
        if silent is None or silent < self._settings.worker_offline_seconds:
            return ""
        said = f"Worker offline (last seen {silent:.0f}s ago)"
        if self._settings.worker_policy == "Refuse":
            raise unavailable(said, "worker_offline", retry_after=30)
        return said


class Known:
    """Finds batches: on the board, and for what another replica has just made, at the API server.

    Args:
        client: To the API server.
        board: What is known.
    """

    def __init__(self, client: Client, board: Board) -> None:
        self._client, self._board = client, board

    async def find(self, namespace: str, batch: str) -> Entry | None:
        """A batch by its id.

        Raises:
            RequestError: 503; the API server doesn't say.
        """
        if (name := names.job_of(batch)) is None:
            return None
        if found := self._board.get(namespace, name):
            return found
        try:
            job = await kube.job(self._client, namespace, name)
        except ApiError as e:
            raise refusals.told(e) from e
        if job is None:
            return None
        return self._board.put(job) if batches.BATCH in (job["metadata"].get("labels") or {}) else None

    async def cancel(self, entry: Entry) -> Entry | None:
        """Have a batch end; None if it is gone.

        Raises:
            RequestError: 409 if it has ended in another way, 503 if the API server doesn't answer.
        """
        if entry.status in ("cancelling", "cancelled"):
            return entry
        if entry.finished:
            message = f"Cannot cancel a batch with status '{entry.status}'."
            raise RequestError(409, "batch_finished", message, headers=DONT_RETRY)
        body = {"metadata": {"annotations": {batches.CANCELLING: str(int(time.time()))}}, "spec": {"cancel": True}}
        try:
            return self._board.put(await self._client.patch(kube.jobs_path(entry.namespace, entry.name), body))
        except ApiError as e:
            if e.status == 404:
                return None
            raise refusals.told(e) from e

    async def users(self, namespace: str, file_id: str) -> list[str]:
        """The unfinished batches that read a file, by their ids.

        Raises:
            RequestError: 503; the API server doesn't say.
        """
        try:
            there, _ = await self._client.list(kube.collection(namespace), labelSelector=f"{batches.INPUT}={file_id}")
        except ApiError as e:
            raise refusals.told(e) from e
        return [names.batch_id(job["metadata"]["name"]) for job in there if not batches.finished(job)]


def model_of(line: bytes, endpoint: str) -> str:
    """The model that a file's first request names.

    Raises:
        RequestError: 400; it is no request, or one for another endpoint.
    """

    def flaw(message: str, code: str) -> RequestError:
        return invalid(f"Line 1 of the input file: {message}.", "input_file_id", code)

    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise flaw(f"it is not JSON: {str(e)[:200]}", "invalid_json_line") from None
    if not isinstance(request, dict) or not isinstance(body := request.get("body"), dict):
        raise flaw('expected {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}', "invalid_body")
    if (url := request.get("url")) != endpoint:
        raise flaw(f"url is {str(url)[:100]!r}, and the batch's endpoint {endpoint!r}", "mismatched_endpoint")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise flaw("body.model is missing", "missing_model")
    return model


def other_namespace(namespace: str, own: str) -> RequestError:
    """Files are in a claim, and only pods of its own namespace can mount it."""
    return RequestError(
        403,
        "namespace_not_served",
        f"This gateway keeps its files in a volume of namespace {own!r}, and serves only that; the request is "
        f"for {namespace!r}. An administrator can give it a bucket: gateway.settings.storageUrl.",
    )

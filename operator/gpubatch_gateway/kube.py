"""Where jobs are at the API server, and what is followed of it."""

from __future__ import annotations

from typing import Any

from gpubatch_gateway.batch.batches import BATCH
from gpubatch_gateway.batch.board import Board
from gpubatch_gateway.batch.workers import Workers
from gpubatch_gateway.live.lives import Lives
from gpubatch_operator.api.crd import API_VERSION, PLURAL
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.following import Collection

JSON = dict[str, Any]


def collection(namespace: str = "") -> str:
    """The jobs of a namespace, or all."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}" if namespace else f"/apis/{API_VERSION}/{PLURAL}"


def jobs_path(namespace: str, name: str) -> str:
    """One job."""
    return f"{collection(namespace)}/{name}"


async def job(client: Client, namespace: str, name: str) -> JSON | None:
    """A job as the API server has it; None if there is none.

    Raises:
        ApiError: It doesn't say.
    """
    try:
        return await client.get(jobs_path(namespace, name))
    except ApiError as e:
        if e.status != 404:
            raise
        return None


async def create_once(client: Client, namespace: str, body: JSON) -> tuple[JSON, bool]:
    """Create a job whose name says what it is for; the one of this name, and whether it is new.

    Raises:
        ApiError: It is refused, or whether it was made can't be known.
    """
    try:
        return await client.create(collection(namespace), body), True
    except ApiError as e:
        if 400 <= e.status < 500 and e.status != 409:
            raise
        # Somebody else has made it, or whether it was made isn't known.
        found = await job(client, namespace, body["metadata"]["name"])
        if found is None:
            raise
        return found, False


def jobs(board: Board, lives: Lives, namespace: str = "") -> Collection:
    """All jobs, of one namespace or of all: the batches, and those that take live requests. The others are left out."""

    def held() -> set[str]:
        return board.held(namespace) | lives.held(namespace)

    def put(job: JSON) -> None:
        if BATCH in (job["metadata"].get("labels") or {}):
            board.put(job)
        else:
            board.drop(job)
            lives.put(job)

    def lose(uid: str) -> None:
        board.lose(uid)
        lives.lose(uid)

    def drop(job: JSON) -> None:
        lose(job["metadata"]["uid"])

    return Collection(collection(namespace), {}, "uid", put, drop, lose, held)


def nodes(workers: Workers) -> Collection:
    """All nodes."""

    def drop(raw: dict[str, dict[str, str]]) -> None:
        workers.lose(raw["metadata"]["name"])

    return Collection("/api/v1/nodes", {}, "name", workers.put, drop, workers.lose, workers.held)

"""Where jobs are at the API server, and what is followed of it."""

from __future__ import annotations

from typing import Any

from gpubatch_gateway.batch.batches import BATCH
from gpubatch_gateway.batch.board import Board
from gpubatch_gateway.batch.workers import Workers
from gpubatch_gateway.live.lives import Lives
from gpubatch_operator.api.crd import API_VERSION, PLURAL
from gpubatch_operator.kube.following import Collection

JSON = dict[str, Any]


def collection(namespace: str = "") -> str:
    """The jobs of a namespace, or all."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}" if namespace else f"/apis/{API_VERSION}/{PLURAL}"


def jobs_path(namespace: str, name: str) -> str:
    """One job."""
    return f"{collection(namespace)}/{name}"


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

"""Where the batches' jobs are at the API server, and what is followed of it."""

from __future__ import annotations

from gpubatch_gateway.batches import BATCH
from gpubatch_gateway.board import Board
from gpubatch_gateway.workers import Workers
from gpubatch_operator.api.crd import API_VERSION, PLURAL
from gpubatch_operator.kube.following import Collection


def collection(namespace: str = "") -> str:
    """The jobs of a namespace, or all."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}" if namespace else f"/apis/{API_VERSION}/{PLURAL}"


def jobs_path(namespace: str, name: str) -> str:
    """One job."""
    return f"{collection(namespace)}/{name}"


def batches(board: Board, namespace: str = "") -> Collection:
    """The jobs that are batches, of one namespace or of all."""

    def held() -> set[str]:
        return board.held(namespace)

    def put(job: dict[str, object]) -> None:
        board.put(job)

    return Collection(collection(namespace), {"labelSelector": BATCH}, "uid", put, board.drop, board.lose, held)


def nodes(workers: Workers) -> Collection:
    """All nodes."""

    def drop(raw: dict[str, dict[str, str]]) -> None:
        workers.lose(raw["metadata"]["name"])

    return Collection("/api/v1/nodes", {}, "name", workers.put, drop, workers.lose, workers.held)

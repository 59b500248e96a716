"""Nodes with what ran on them lately, as the page's timelines show them."""

from __future__ import annotations

from typing import Any

from gpubatch_operator.core.model import Job, Node
from gpubatch_operator.web.board import Board, Namespaces

JSON = dict[str, Any]
ATTEMPTS = 8  # shown of each node
LOOKED_AT = 1000  # nodes, for one page of a caller who sees few
ESTIMATES = ("estimatedCompletionTime", "estimatedCompletionTimeP90")


def page(board: Board, namespaces: Namespaces, after: str, limit: int) -> tuple[list[JSON], str | None]:
    """Nodes behind this name; and the name that was looked at last, if there are more.

    Which nodes there are is the cluster's: who doesn't see all namespaces sees those that jobs of theirs ran on.
    """
    found: list[JSON] = []
    last = after
    for looked, name in enumerate(board.gpu_nodes(after)):
        if len(found) == limit or looked == LOOKED_AT:
            return found, last
        last = name
        bars = board.bars(name, namespaces, ATTEMPTS)
        if bars or namespaces is None:
            found.append(_document(board.nodes[name], bars))
    return found, None


def _document(node: Node, bars: list[tuple[Job, int]]) -> JSON:
    return {
        "name": node.name,
        "ready": node.ready,
        "unschedulable": node.unschedulable,
        "slots": node.slots,
        "gpus": {resource: count for resource, count in node.capacity.items() if count},
        "attempts": [_attempt(job, number) for job, number in bars],
    }


def _attempt(job: Job, number: int) -> JSON:
    attempt = next(a for a in job.status["attempts"] if a["number"] == number)
    out: JSON = {
        "namespace": job.namespace,
        "name": job.name,
        "uid": job.uid,
        "attempt": number,
        "slot": attempt["slot"],
        "state": attempt["state"],
        "startTime": attempt["startTime"],
    }
    if "endTime" in attempt:
        out["endTime"] = attempt["endTime"]
    else:
        out |= {key: at for key in ESTIMATES if (at := job.status.get(key)) is not None}
        if (percent := (job.status.get("progress") or {}).get("percent")) is not None:
            out["percent"] = percent
    return out

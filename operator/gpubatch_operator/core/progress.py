"""How far a run has come, as its runner tells it and as status shows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubatch_operator.core.clock import iso, seconds

JSON = dict[str, Any]
HEARTBEAT_SECONDS = 30
PULLING, LOADING, PROCESSING, DONE = "PullingImages", "LoadingModel", "Processing", "Done"
MAX_METRICS = 16
STARTING = frozenset({PULLING, LOADING})
"""Stages in which the work hasn't begun."""


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """What a runner, or a template pod's sidecar, said: the contract's `Progress` as plain values."""

    stage: str
    message: str
    total: int | None
    completed: int
    failed: int
    rate: float | None
    input_tokens: int
    output_tokens: int
    processing_seconds: float
    at: float
    share: float | None = None  # 0 to 100, where it was said and nothing is counted
    engine_proven: bool = False  # the engine has answered a request since it last came up
    live: bool = False  # requests come over HTTP: nobody knows how many will
    remaining_seconds: float | None = None  # the program's own estimate, or by what was seen
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def percent(self) -> int | None:
        """Finished requests (or whatever is counted) of all, rounded down; None while their number isn't known."""
        if self.total:
            return min(100, 100 * (self.completed + self.failed) // self.total)
        return int(self.share) if self.share is not None else None


def update(status: JSON, report: ProgressReport | None, started: bool, inference: bool) -> None:
    """Put what a runner says into `status`, in place: at a change of stage, at each percent or every 30 s.

    Without a report (a template's pod, or a runner that doesn't answer yet) the pod itself tells the stage.
    """
    old = status.get("progress", {})
    if report is not None:
        if _newsworthy(old, report):
            status["progress"] = _document(report)
        return
    stage = PULLING if not started else LOADING if inference else PROCESSING
    if not old or (old["stage"] == PULLING and stage != PULLING):
        status["progress"] = {"stage": stage}


def finish(status: JSON, last: ProgressReport | None, succeeded: bool) -> None:
    """Put the last words of a template pod's sidecar into `status`, in place, and that it is done if it is."""
    if last is not None:
        status["progress"] = _document(last)
    if not succeeded:
        return
    status["progress"] = {**status.get("progress", {}), "stage": DONE}
    for key in ("rate", "remainingSeconds"):
        status["progress"].pop(key, None)


def conclude(status: JSON, outcome: JSON, now: float, live: bool = False) -> None:
    """Put the results and the last progress of an outcome (the runner's document) into `status`, in place."""
    keys = ("output", "errors", "total", "completed", "failed", "usage", "timings")
    status["results"] = {k: outcome[k] for k in keys if outcome.get(k) is not None}
    usage, timings = outcome.get("usage") or {}, outcome.get("timings") or {}
    report = ProgressReport(
        stage=DONE,
        message="",
        total=outcome.get("total"),
        completed=outcome.get("completed", 0),
        failed=outcome.get("failed", 0),
        rate=None,
        input_tokens=usage.get("inputTokens", 0),
        output_tokens=usage.get("outputTokens", 0),
        processing_seconds=timings.get("processing", 0.0),
        at=now,
        live=live,
    )
    status["progress"] = _document(report)


def _document(report: ProgressReport) -> JSON:
    done, percent = report.completed + report.failed, report.percent
    counted, tokens = bool(report.total or done), bool(report.input_tokens or report.output_tokens)
    left = report.remaining_seconds
    out = {
        "stage": report.stage,
        "message": report.message[:1024] or None,
        "summary": _summary(report),
        "total": report.total,
        "completed": report.completed if counted else None,
        "failed": report.failed if counted else None,
        "percent": percent,
        "rate": round(report.rate, 2) if report.rate is not None else None,
        "remainingSeconds": math.ceil(left) if left is not None else None,
        "metrics": dict(itertools.islice(report.metrics.items(), MAX_METRICS)) or None,
        "inputTokens": report.input_tokens if tokens else None,
        "outputTokens": report.output_tokens if tokens else None,
        "processingSeconds": round(report.processing_seconds, 1),
        "lastHeartbeatTime": iso(report.at),
    }
    return {k: v for k, v in out.items() if v is not None}


def _summary(report: ProgressReport) -> str | None:
    done, percent = report.completed + report.failed, report.percent
    if report.live:
        return f"{done} served" if done or report.stage not in STARTING else None
    if percent is None:
        return None
    return f"{done}/{report.total} ({percent}%)" if report.total else f"{percent}%"


def _newsworthy(old: JSON, report: ProgressReport) -> bool:
    if old.get("stage") != report.stage or old.get("percent") != report.percent:
        return True
    last = old.get("lastHeartbeatTime")
    return last is None or report.at - seconds(last) >= HEARTBEAT_SECONDS

"""A job as OpenAI's Batch object (https://platform.openai.com/docs/api-reference/batch/object), and what a job says of
the batch that it was made for. Nothing here asks anybody: a batch is what its job says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gpubatch_gateway import names
from gpubatch_operator.core import conditions
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.phases import ACTIVE, FINISHED, Phase
from gpubatch_operator.core.reasons import Reason
from gpubatch_runner.contract import PARAMS, Stage, code_of
from gpubatch_runner.contract import Reason as RunnerReason

JSON = dict[str, Any]

BATCH = "gpubatch.dev/batch"  # label: this job is a batch; its value says of what content
INPUT = "gpubatch.dev/batch-input"  # label: the file that it reads
REQUEST = "gpubatch.dev/batch-request"  # annotation: what the client asked for, as JSON
CANCELLING = "gpubatch.dev/batch-cancelling"  # annotation: since when it is being cancelled, seconds since the epoch
WARNING = "gpubatch.dev/batch-warning"  # annotation: what there was to say when it was created

_LINE = re.compile(r"line (\d+): (\w+): (.*)", re.DOTALL)
_ENDS = {"completed": "completed_at", "failed": "failed_at", "expired": "expired_at", "cancelled": "cancelled_at"}


def request_of(job: Mapping[str, Any]) -> JSON:
    """What the client asked for: input_file_id, endpoint, completion_window, metadata, model, content; and as `at` when
    the gateway made the job, in microseconds since the epoch.

    Raises:
        ValueError: Somebody else has written the annotation.
    """
    found = json.loads((job["metadata"].get("annotations") or {}).get(REQUEST) or "{}")
    if not isinstance(found, dict):
        raise ValueError(f"the annotation {REQUEST} is no object")
    return found


def born(job: Mapping[str, Any]) -> tuple[float, int]:
    """When it was created: by the API server's clock in whole seconds, and, to order those of one second, by ours in
    microseconds.

    Raises:
        ValueError: Somebody else has written the annotation.
    """
    at = request_of(job).get("at")
    return seconds(job["metadata"]["creationTimestamp"]), at if isinstance(at, int) else 0


def finished(job: Mapping[str, Any]) -> bool:
    """Whether it has come to its end."""
    return (job.get("status") or {}).get("phase") in FINISHED


def batch(job: Mapping[str, Any]) -> JSON:
    """The batch object of a job, with `queue_position`, `estimated_start_time`, `estimated_completion_time`, `pending`
    and `warning` besides OpenAI's fields. Times are seconds since the epoch.

    Raises:
        ValueError: Somebody else has written the job's annotations.
    """
    meta, spec, state = job["metadata"], job["spec"], job.get("status") or {}
    asked, notes = request_of(job), meta.get("annotations") or {}
    status, created = _status(job), int(seconds(meta["creationTimestamp"]))
    window, results = spec.get("completionWindowSeconds"), state.get("results") or {}
    found: JSON = {
        "id": names.batch_id(meta["name"]),
        "object": "batch",
        "endpoint": asked.get("endpoint"),
        "model": asked.get("model"),
        "errors": _errors(state) if status == "failed" else None,
        "input_file_id": asked.get("input_file_id"),
        "completion_window": asked.get("completion_window"),
        "status": status,
        "output_file_id": _result(meta["name"], results, names.OUTPUT, results.get("completed")),
        "error_file_id": _result(meta["name"], results, names.ERRORS, None),
        "created_at": created,
        "in_progress_at": _validated_at(state),
        "expires_at": created + window if window else None,
        "finalizing_at": _finalizing_at(state),
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": int(notes[CANCELLING]) if CANCELLING in notes else None,
        "cancelled_at": None,
        "request_counts": _counts(state),
        "usage": _usage(results),
        "metadata": asked.get("metadata"),
        "queue_position": state.get("queuePosition"),
        "estimated_start_time": _time(state.get("estimatedStartTime")),
        "estimated_completion_time": _time(state.get("estimatedCompletionTime")),
        "pending": _pending(state),
        "warning": notes.get(WARNING),
    }
    if end := _ENDS.get(status):
        found[end] = _time(state.get("completionTime"))
    return found


def _status(job: Mapping[str, Any]) -> str:
    state = job.get("status") or {}
    phase, failed = state.get("phase"), conditions.find(state, "Failed")
    if phase == Phase.SUCCEEDED:
        return "completed"
    if phase == Phase.CANCELLED:
        return "cancelled"
    if phase == Phase.FAILED:
        return "expired" if failed and failed["reason"] == Reason.COMPLETION_WINDOW_EXCEEDED else "failed"
    if job["spec"].get("cancel"):
        return "cancelling"
    if phase in ACTIVE and (state.get("progress") or {}).get("stage") in (Stage.UPLOADING, Stage.DONE):
        return "finalizing"
    return "in_progress" if phase in ACTIVE or phase == Phase.QUEUED else "validating"


def _validated_at(state: Mapping[str, Any]) -> int | None:
    valid = conditions.find(state, "Validated")
    return _time(valid["lastTransitionTime"]) if valid and valid["status"] == "True" else None


def _finalizing_at(state: Mapping[str, Any]) -> int | None:
    """Known once it is over: the end without the seconds of the upload."""
    timings = (state.get("results") or {}).get("timings") or {}
    end = _time(state.get("completionTime"))
    return int(end - timings["uploading"]) if end is not None and "uploading" in timings else None


def _result(job: str, results: Mapping[str, Any], role: str, completed: int | None) -> str | None:
    return names.result_id(job, role) if results.get(role) and completed != 0 else None


def _counts(state: Mapping[str, Any]) -> JSON:
    """As far as they are known: of the end, of the run, of the inspection."""
    inspected = {"total": (state.get("inspection") or {}).get("requests")}
    sources = (state.get("results") or {}, state.get("progress") or {}, inspected)
    return {
        name: next((v for source in sources if (v := source.get(name)) is not None), 0)
        for name in ("total", "completed", "failed")
    }


def _usage(results: Mapping[str, Any]) -> JSON | None:
    if not (usage := results.get("usage")):
        return None
    read, written = usage.get("inputTokens", 0), usage.get("outputTokens", 0)
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _errors(state: Mapping[str, Any]) -> JSON:
    failed, lines = conditions.find(state, "Failed"), list[JSON]()
    if failed and failed["reason"] == RunnerReason.INVALID_REQUESTS:
        lines = [_line_error(text) for text in (state.get("inspection") or {}).get("firstErrors") or []]
    if failed and not lines:
        lines = [{"code": code_of(failed["reason"]), "message": failed["message"], "param": None, "line": None}]
    return {"object": "list", "data": lines}


def _line_error(text: str) -> JSON:
    """An invalid line, as status tells it: `line 3: missing_model: body.model is missing`."""
    if not (found := _LINE.fullmatch(text)):
        return {"code": "invalid_request", "message": text, "param": None, "line": None}
    line, code, message = found.groups()
    return {"code": code, "message": message, "param": PARAMS.get(code), "line": int(line)}


def _pending(state: Mapping[str, Any]) -> JSON | None:
    """Why it waits."""
    waits = state.get("pending")
    return {"reason": waits["reason"], "message": waits["message"]} if waits else None


def _time(text: str | None) -> int | None:
    return int(seconds(text)) if text else None

"""The lines of the output and error files, in the format of OpenAI's batch output."""

from __future__ import annotations

import json

import msgspec

from gpubatch_runner.contract import JobRef, LineError, Outcome, code_of
from gpubatch_runner.failures import Ended, RunnerError
from gpubatch_runner.requests import Request


def record_id(token: str, line: int) -> str:
    """The record's `id`: the same for a line in all attempts of a run."""
    return f"batch_req_{token}_{line}"


def answered(token: str, request: Request, status: int, request_id: str | None, body: bytes) -> bytes:
    """A request that the engine answered; `body` is the answer as one line of JSON."""
    return b'{"id":"%s","custom_id":%s,"response":{"status_code":%d,"request_id":%s,"body":%s},"error":null}' % (
        record_id(token, request.line).encode(),
        _text(request.custom_id),
        status,
        b"null" if request_id is None else _text(request_id),
        body,
    )


def timed_out(token: str, request: Request, seconds: float) -> bytes:
    """A request that the engine did not answer in time: code 408."""
    message = f"The engine did not answer within {seconds:g} s (spec.inference.requestTimeoutSeconds)."
    error = {"code": "request_timeout", "message": message}
    body = {"error": {"message": message, "type": "timeout", "code": "request_timeout"}}
    response = {"status_code": 408, "request_id": None, "body": body}
    return _dump(_record(token, request.line, request.custom_id, response, error))


def unanswered(token: str, request: Request, code: str, message: str) -> bytes:
    """A request that got no answer at all."""
    return _dump(_record(token, request.line, request.custom_id, None, {"code": code, "message": message}))


def invalid(token: str, error: LineError) -> bytes:
    """A line of the input that is no request."""
    detail = {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
    return _dump(_record(token, error.line, error.custom_id, None, detail))


def job_failed(token: str, job: JobRef, error: RunnerError, outcome: Outcome | None = None) -> bytes:
    """The job itself failed: the only line of its error document."""
    code = error.code if isinstance(error, Ended) else code_of(error.reason)
    document = _record(token, 0, None, None, {"code": code, "message": str(error), "line": None})
    counts = {name: getattr(outcome, name, None) or 0 for name in ("total", "completed", "failed")}
    return _dump(
        document
        | {
            "code": code,
            "message": str(error),
            "reason": error.reason,
            "job": job.model_dump(),
            "request_counts": counts,
        }
    )


def _record(token: str, line: int, custom_id: str | None, response: object, error: object) -> dict[str, object]:
    return {"id": record_id(token, line), "custom_id": custom_id, "response": response, "error": error}


def _text(value: str) -> bytes:
    """A string as JSON."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a surrogate pair
        return _dump(value)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

"""The OpenAPI document of the endpoints, made from the models of their answers."""

from __future__ import annotations

from typing import Any

import orjson

from gpubatch_operator.core.phases import Phase
from gpubatch_operator.web.models import schemas
from gpubatch_operator.web.parameters import LIMIT, MAX_LIMIT, MAX_TEXT

JSON = dict[str, Any]


def _query(name: str, description: str, schema: JSON) -> JSON:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path(name: str) -> JSON:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


NAMESPACE = _query(
    "namespace",
    "Only these namespaces, separated by commas. Default: all that the caller may list jobs in.",
    {"type": "string"},
)
SEARCH = _query("q", "Only jobs with this text in NAMESPACE/NAME or model.", {"type": "string", "maxLength": MAX_TEXT})
PAGED = [
    _query(
        "limit",
        "Items of a page at most. A search may give fewer with more to come.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": LIMIT},
    ),
    _query("continue", "What `continue` was in the page before.", {"type": "string"}),
]
PHASE = _query(
    "phase", f"Only these phases, separated by commas: {', '.join(p.value for p in Phase)}.", {"type": "string"}
)
ERRORS = {
    "400": "A parameter can't be used; the message names it.",
    "401": "There is no bearer token, or the API server doesn't know it.",
    "403": "The caller may not list jobs there.",
    "503": "The API server can't be asked.",
}


def _answer(schema: str, description: str) -> JSON:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _get(summary: str, schema: str, parameters: list[JSON], **more: str) -> JSON:
    errors = {status: _answer("Error", text) for status, text in {**ERRORS, **more}.items()}
    responses = {"200": _answer(schema, "As the schema says."), **errors}
    return {"get": {"summary": summary, "parameters": parameters, "responses": responses}}


def _open(summary: str, content: JSON, **more: JSON) -> JSON:
    responses = {"200": {"description": "As it says.", "content": content}, **more}
    return {"get": {"summary": summary, "security": [], "responses": responses}}


def document() -> JSON:
    """All of it."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    health = _answer("Health", "Not everything was listed yet.")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPUBatch",
            "version": "v1",
            "description": "The queue of GPU batch jobs, read-only. Over the pod's loopback (kubectl port-forward) "
            "without a token, and all namespaces are seen.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": {
            "/v1/queue/status": _get("Counts of jobs", "QueueStatus", [NAMESPACE]),
            "/v1/queue": _get("Who runs, then who waits, in exact order", "JobList", [NAMESPACE, SEARCH, *PAGED]),
            "/v1/jobs": _get("All jobs, the newest first", "JobList", [NAMESPACE, PHASE, SEARCH, *PAGED]),
            "/v1/jobs/{namespace}/{name}": _get(
                "One job", "JobDetail", [_path("namespace"), _path("name")], **{"404": "There is no such job."}
            ),
            "/v1/nodes": _get("GPU nodes, and what ran there lately", "NodeList", [NAMESPACE, *PAGED]),
            "/health": _open(
                "How the operator is, and what limits it keeps",
                _answer("Health", "")["content"],
                **{"503": health},
            ),
            "/healthz": _open("Whether the process lives", text),
            "/readyz": _open("Whether everything was listed", text),
        },
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


DOCUMENT = orjson.dumps(document())

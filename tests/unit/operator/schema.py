"""A structural schema checked as the API server would check it, and unknown fields, which it would prune, refused."""

from __future__ import annotations

import re
from typing import Any

from gpubatch_operator.api.crd import crd
from gpubatch_operator.api.status import JobStatus

ROOT: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def violations(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """What is wrong with a value, each a sentence that begins with its path."""
    out: list[str] = []
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{path}: {value!r} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        out.append(f"{path}: {value!r} is none of {schema['enum']}")
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
            out.append(f"{path}: length {len(value)}")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            out.append(f"{path}: {value!r} doesn't match {schema['pattern']}")
        for rule in schema.get("x-kubernetes-validations", []):  # of CEL only this much
            matches = re.fullmatch(r"self\.matches\('(.*)'\)", rule["rule"])
            if matches and not re.search(matches[1], value):
                out.append(f"{path}: {rule['message']}")
    if isinstance(value, list):
        if len(value) > schema.get("maxItems", 10**9):
            out.append(f"{path}: {len(value)} items")
        for i, item in enumerate(value):
            out += violations(item, schema["items"], f"{path}[{i}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        out += [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for key, item in value.items():
            below = known.get(key) or schema.get("additionalProperties")
            if below:
                out += violations(item, below, f"{path}.{key}")
            elif not schema.get("x-kubernetes-preserve-unknown-fields"):
                out.append(f"{path}.{key}: would be pruned")
    return out


def check_status(status: dict[str, Any]) -> None:
    """A status that the API server would refuse or prune fails the test."""
    assert violations(status, ROOT["status"], "status") == []
    JobStatus.model_validate(status)

"""The CustomResourceDefinition, generated from the pydantic models: `python -m gpubatch_operator.api.crd`.

A CRD wants a *structural* schema: no references, no titles, no nulls, no unions. Pydantic's JSON schema is turned
into that here; what JSON Schema can't say (CEL rules, list types) stands in the models' `json_schema_extra`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml
from pydantic.config import JsonDict

from gpubatch_operator.api.base import rule
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.api.status import JobStatus

GROUP = "gpubatch.dev"
VERSION = "v1alpha1"
KIND = "GPUBatchJob"
PLURAL = "gpubatchjobs"
API_VERSION = f"{GROUP}/{VERSION}"

FROZEN_ONCE_ADMITTED = (
    "gpus",
    "gpuResource",
    "nodeSelector",
    "tolerations",
    "serviceAccountName",
    "imagePullSecrets",
    "activeDeadlineSeconds",  # the runner was told at its start when to stop
    "completionWindowSeconds",
)
# Each look at a field costs the API server a copy of its siblings' schemas, and these rules are asked at each write. A
# write to status takes spec as it is stored, any other takes status: where the phase differs, spec is as it was.
STATUS_WRITE = (
    "has(self.status) && (!has(oldSelf.status) || has(self.status.phase) && "
    "(!has(oldSelf.status.phase) || self.status.phase != oldSelf.status.phase))"
)
PHASE = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase"
ADMITTED = f"{PHASE} in ['Starting', 'Running', 'Succeeded', 'Failed', 'Cancelled']"
RUNS = f"{PHASE} in ['Starting', 'Running']"
TRIED = "has(oldSelf.status) && (has(oldSelf.status.lostAttempts) || has(oldSelf.status.failedAttempts))"
NEW_RUN = "has(self.spec.runId) && (!has(oldSelf.spec.runId) || self.spec.runId != oldSelf.spec.runId)"
RUN_AGAIN = f"{PHASE} in ['Succeeded', 'Failed', 'Cancelled'] && {NEW_RUN}"
CANCELLED = "has({0}.spec.cancel) && {0}.spec.cancel"


def _unchanged(field: str) -> str:
    """CEL: a field of spec is as it was."""
    return (
        f"(has(self.spec.{field}) == has(oldSelf.spec.{field}) && "
        f"(!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field}))"
    )


TRANSITIONS = {
    "spec.inference can't be changed; when the job has finished it can, together with a new runId": (
        f"({RUN_AGAIN}) || {_unchanged('inference')}"
    ),
    **{
        f"spec.{field} can't be changed once the job has been admitted, unless a new runId runs it again": (
            f"!({ADMITTED}) || ({RUN_AGAIN}) || {_unchanged(field)}"
        )
        for field in FROZEN_ONCE_ADMITTED
    },
    # Where it is placed may change for the next attempt; what runs, and what its checkpoints are of, may not.
    "spec.template can't be changed once the job has been admitted, unless a new runId runs it again": (
        f"!({ADMITTED}) && !({TRIED}) || ({RUN_AGAIN}) || {_unchanged('template')}"
    ),
    "spec.runId can't be changed while the job runs; wait for its end, or cancel it": (
        f"!({RUNS}) || {_unchanged('runId')}"
    ),
    "spec.cancel can't be taken back; when the job has ended, a new runId without it runs the job again": (
        f"!({CANCELLED.format('oldSelf')}) || ({CANCELLED.format('self')}) || ({RUN_AGAIN})"
    ),
    "spec.cancel must be removed to run the job again with a new runId": (
        f"!({RUN_AGAIN}) || !({CANCELLED.format('self')})"
    ),
}
"""What may not be changed any more, and the CEL that says whether it is as it should be."""

COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Priority", "integer", ".spec.priority", 0),
    ("Position", "integer", ".status.queuePosition", 0),
    ("Progress", "string", ".status.progress.summary", 0),
    # Strings on purpose: kubectl prints a date that lies in the future as <invalid>.
    ("Start", "string", ".status.estimatedStartTime", 0),
    ("Finish", "string", ".status.estimatedCompletionTime", 0),
    ("Node", "string", ".status.nodeName", 0),
    ("Waiting", "string", ".status.pending.reason", 1),
    ("Start-P90", "string", ".status.estimatedStartTimeP90", 1),
    ("Finish-P90", "string", ".status.estimatedCompletionTimeP90", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)

DROPPED = {"title", "$defs", "additionalProperties", "default", "discriminator", "const"}


def structural(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """One JSON schema of pydantic's as a structural schema, references resolved.

    Raises:
        TypeError: A union that a CRD can't express.
    """
    if "$ref" in schema:
        target = defs[schema["$ref"].removeprefix("#/$defs/")]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    if "anyOf" in schema:
        variants = [v for v in schema["anyOf"] if v.get("type") != "null"]
        rest = {k: v for k, v in schema.items() if k != "anyOf"}
        if rest.get("x-kubernetes-int-or-string"):
            return {"x-kubernetes-int-or-string": True}
        if len(variants) != 1:
            raise TypeError(f"a CRD has no unions: {schema}")
        return structural({**variants[0], **rest}, defs)
    out = {k: v for k, v in schema.items() if k not in DROPPED}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    default = schema.get("default")
    if default not in (None, [], {}) and not isinstance(default, dict):
        out["default"] = default
    if "properties" in schema:
        out["properties"] = {k: structural(v, defs) for k, v in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(schema["additionalProperties"], defs)
        out["maxProperties"] = out.pop("maxProperties", 64)
    if "items" in schema:
        out["items"] = structural(schema["items"], defs)
        out.setdefault("x-kubernetes-list-type", "atomic")
    if out.get("type") == "integer":
        out.setdefault("format", "int64")
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    return out


def schema_of(model: type[JobSpec] | type[JobStatus]) -> dict[str, Any]:
    """The structural schema of a model."""
    schema = model.model_json_schema(by_alias=True)
    return structural(schema, schema.get("$defs", {}))


def _transitions() -> JsonDict:
    """All transition rules as one, which is through at its first look when a phase is written."""
    rules = [f"({expression})" for expression in TRANSITIONS.values()]
    said = " : ".join(f'!{holds} ? "{sentence}"' for sentence, holds in zip(TRANSITIONS, rules[:-1], strict=False))
    *_, last = TRANSITIONS
    return rule(f"{STATUS_WRITE} || {' && '.join(rules)}", "what is fixed was changed", f'{said} : "{last}"')


def crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority}
            for name, kind, path, priority in COLUMNS
        ],
        "selectableFields": [{"jsonPath": ".status.phase"}],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": "A job that has one or more GPUs of a node to itself while it runs; until then it waits "
                "in one queue, ordered by priority and then by creation.",
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": schema_of(JobSpec),
                    # As the API server shows a job that the operator hasn't seen: not even its first generation, or
                    # tools that wait for jobs would take it for done.
                    "status": schema_of(JobStatus) | {"default": {"observedGeneration": -1}},
                },
                "x-kubernetes-validations": [_transitions()],
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "plural": PLURAL,
                "singular": "gpubatchjob",
                "shortNames": ["gbj"],
                "listKind": f"{KIND}List",
            },
            "versions": [version],
        },
    }


def main() -> None:
    """Print the CRD as YAML."""
    sys.stdout.write("# Generated by `make generate` from operator/gpubatch_operator/api; do not edit.\n")
    plain = json.loads(json.dumps(crd()))  # without YAML's anchors, for what stands in it twice
    yaml.safe_dump(plain, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()

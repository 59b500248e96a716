"""What an administrator says of each model that requests may name: how to run it, as the part of a job's spec that
isn't the batch's own, or the live job's.

    minilm:
      gpus: 1
      inference:
        model: sentence-transformers/all-MiniLM-L6-v2
        engine: {args: [--max-model-len, "512"]}

A template that can't be used takes none of the others with it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from gpubatch_operator.api.crd import schema_of
from gpubatch_operator.api.spec import JobSpec

JSON = dict[str, Any]
OWN = ("input", "output", "errors", "storage", "servedModelName", "checkpoint")
"""What of spec.inference the gateway sets for each batch."""

OF_FILES = ("invalidRequests", "outputOrder", "requestOrder")
"""What of it says nothing to a live job."""

log = logging.getLogger(__name__)


class TemplateError(Exception):
    """A model's template can't be used; the message names the field."""


@dataclass(frozen=True)
class Models:
    """The models that there are, and how each is run."""

    templates: Mapping[str, JSON]

    def spec(self, model: str, inference: JSON, wishes: JSON) -> JSON:
        """The spec of a job for a model.

        Args:
            model: One that there is; what the requests call it.
            inference: Input, output, errors and storage.
            wishes: Fields of spec that the client chose; None: as the template says.
        """
        spec = copy.deepcopy(self.templates[model])
        spec |= {name: value for name, value in wishes.items() if value is not None}
        work = {"model": model, "invalidRequests": "Fail", **spec.get("inference", {}), **inference}
        return spec | {"inference": {**work, "servedModelName": model}}

    def live(self, model: str, idle_seconds: int) -> JSON:
        """The spec of a live job for a model; it ends when nobody has wanted anything for so long."""
        spec = copy.deepcopy(self.templates[model])
        given = {name: value for name, value in spec.get("inference", {}).items() if name not in OF_FILES}
        own = {"input": {"live": {"idleTimeoutSeconds": idle_seconds}}, "servedModelName": model}
        return spec | {"inference": {"model": model, **given, **own}}


def read(text: str) -> Models:
    """The templates of a file, YAML or JSON; one that can't be used is logged and left out.

    Raises:
        TemplateError: The file as a whole isn't a map of templates.
    """
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as e:
        raise TemplateError(f"it is no YAML: {' '.join(str(e).split())}") from None
    if not isinstance(found, dict):
        raise TemplateError(f"it holds {type(found).__name__}; expected a map: model -> template")
    good = {}
    for name, template in found.items():
        try:
            check(str(name), template)
            good[str(name)] = template
        except TemplateError as e:
            log.error("the template of model %r can't be used: %s", name, e)
    return Models(good)


def check(name: str, template: object) -> None:
    """Judges a template by the models that the CRD is made from.

    Raises:
        TemplateError: A field is unknown or wrong, or isn't the template's to set.
    """
    if not isinstance(template, dict):
        raise TemplateError(f"it is {type(template).__name__}; expected a part of a GPUBatchJob's spec")
    if "template" in template:
        raise TemplateError("template: a batch is answered by spec.inference")
    work = template.get("inference") or {}
    for field in OWN:
        if isinstance(work, dict) and field in work:
            raise TemplateError(f"inference.{field}: the gateway sets it; remove it")
    if unknown := unknown_fields(template, schema_of(JobSpec), ""):
        raise TemplateError(f"{unknown[0]}: there is no such field; docs/api.md has them all")
    place = {"url": "s3://bucket/key"}
    try:
        JobSpec.model_validate(Models({name: template}).spec(name, {"input": place, "output": place}, {}))
    except (ValidationError, TypeError) as e:
        first = e.errors()[0] if isinstance(e, ValidationError) else {"loc": ("inference",), "msg": str(e)}
        raise TemplateError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def unknown_fields(value: Any, schema: JSON, path: str) -> list[str]:
    """The fields of a manifest that its schema doesn't have; the API server would drop them without a word."""
    if isinstance(value, list):
        return [f for item in value for f in unknown_fields(item, schema.get("items") or {}, path)]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    found = []
    for key, item in value.items():
        below = (schema.get("properties") or {}).get(key) or schema.get("additionalProperties")
        where = f"{path}.{key}" if path else str(key)
        found += unknown_fields(item, below, where) if below else [where]
    return found

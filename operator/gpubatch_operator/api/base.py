"""What all of the API's models stand on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=NAME)]
Seconds = Annotated[int, Field(ge=1, le=86400)]
Text = Annotated[str, Field(max_length=1024)]


def rule(expression: str, message: str, exact: str = "") -> JsonDict:
    """One CEL rule as the CRD writes it; `message` is what `kubectl apply` prints, or what the CEL in `exact` says."""
    said: JsonDict = {"rule": expression, "message": message}
    return said | {"messageExpression": exact} if exact else said


class ApiModel(BaseModel):
    """Base of the API's models: camelCase on the wire, unknown fields kept out."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")


class RawObject(BaseModel):
    """A Kubernetes object that is passed on as it is; the API server checks it when the pod is created."""

    model_config = ConfigDict(
        frozen=True, extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )

    def raw(self) -> dict[str, JsonValue]:
        """The object as it was written."""
        return self.model_dump(by_alias=True, exclude_none=True)


class LocalObject(ApiModel):
    """An object in the job's own namespace, by name."""

    name: Name

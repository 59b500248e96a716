"""What a client asks for with `POST /v1/batches`, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpubatch_gateway import names
from gpubatch_gateway.problems import RequestError, invalid
from gpubatch_runner.contract import ENDPOINTS

MAX_WINDOW = 31_536_000  # seconds, as the CRD has it
UNITS = {"m": 60, "h": 3600, "d": 86400, "s": 1}
PRIORITY, WEBHOOK = "priority", "webhook_url"

Text = Annotated[str, Field(max_length=512)]


class _Body(BaseModel):
    """The body as it comes; what isn't known is refused and never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: Annotated[str, Field(max_length=100)]
    endpoint: Annotated[str, Field(max_length=100)]
    completion_window: str
    metadata: Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Text], Field(max_length=16)] | None = (
        None
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None

    @field_validator("input_file_id")
    @classmethod
    def _is_a_file(cls, value: str) -> str:
        if not names.is_upload(value):
            raise ValueError("expected the id of a file that was uploaded, as POST /v1/files gave it")
        return value

    @field_validator("endpoint")
    @classmethod
    def _is_served(cls, value: str) -> str:
        if value not in ENDPOINTS:
            raise ValueError(f"expected one of {', '.join(ENDPOINTS)}")
        return value


@dataclass(frozen=True, slots=True)
class Wish:
    """A batch that is to be made.

    Attributes:
        window: As it was written.
        seconds: The same as a number.
        metadata: As given.
        priority: None: as the model's template says.
        webhook: A URL to be told of the batch's end.
    """

    input_file_id: str
    endpoint: str
    window: str
    seconds: int
    metadata: dict[str, str] | None
    priority: int | None
    webhook: str | None

    @property
    def content(self) -> str:
        """The same for the same wish."""
        return names.digest(self.input_file_id, self.endpoint, self.window, self.metadata, self.priority)


def wish(document: Any) -> Wish:
    """The wish in a request's body.

    Raises:
        RequestError: 400; a field can't be used, and the message names it.
    """
    if not isinstance(document, dict):
        raise invalid('The body must be a JSON object: {"input_file_id": ..., "endpoint": ...}.', code="invalid_json")
    try:
        body = _Body.model_validate(document)
    except ValidationError as e:
        raise _flaw(e) from None
    metadata = body.metadata or {}
    priority = body.priority if body.priority is not None else _priority(metadata.get(PRIORITY))
    return Wish(
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        window=body.completion_window,
        seconds=_seconds(body.completion_window),
        metadata=body.metadata,
        priority=priority,
        webhook=_webhook(metadata.get(WEBHOOK)),
    )


def _flaw(error: ValidationError) -> RequestError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return invalid(f"Unknown parameter: {field[:100]!r}. Remove it.", field, "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"Missing required parameter: {field!r}.", field, "missing_required_parameter")
    found = str(first["input"])[:100]
    return invalid(f"Invalid {field[:100]!r}: {found!r}: {first['msg'].removeprefix('Value error, ')}.", field)


def _seconds(window: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", window)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_WINDOW:
        expected = "a number and s, m, h or d, a year at most: '24h'"
        raise invalid(f"Invalid 'completion_window': {window[:100]!r}: expected {expected}.", "completion_window")
    return seconds


def _priority(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,4}", text) or not -1000 <= int(text) <= 1000:
        expected = "a whole number from -1000 to 1000: '-1' is low, '0' normal, '1' high"
        raise invalid(f"Invalid 'metadata.priority': {text[:100]!r}: expected {expected}.", "metadata.priority")
    return int(text)


def _webhook(url: str | None) -> str | None:
    if url is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise invalid(
            f"Invalid 'metadata.webhook_url': {url[:100]!r}: expected http(s)://HOST/PATH.", "metadata.webhook_url"
        )
    return url

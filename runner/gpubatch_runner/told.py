"""What a template's own program tells of its progress, by file or by HTTP, in any of the forms that are understood.

    done/total                       42/300
    one JSON object                  {"completed": 42, "total": 300, "stage": "Training", "metrics": {"loss": 0.31}}
    Kubeflow Trainer's contract      {"trainerStatus": {"progressPercentage": 14, "metrics": [...], ...}}

What is left out stays as it was, but for the time that remains. A new stage begins without the old one's counts.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from gpubatch_runner.contract import MAX_STAGE, Model

MAX_BYTES = 1 << 16
"""Bytes of a document; of a longer file the end is read."""

MAX_METRICS = 16
MAX_MESSAGE = 1024
MAX_NAME = 63
_COUNTS = re.compile(r"(\d{1,18})\s*/\s*(\d{1,18})")


class Unreadable(ValueError):  # noqa: N818 - says what is the matter with it
    """It can't be understood; the text says what was found and what is expected."""


def _numbers(value: Any) -> Any:
    """The finite numbers among a program's metrics, the first few; others can't be shown, and are no mistake."""
    if not isinstance(value, dict):
        return value
    found: dict[str, float] = {}
    for name, number in value.items():
        try:
            parsed = float(number)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(parsed) and len(found) < MAX_METRICS:
            found[str(name)[:MAX_NAME]] = parsed
    return found


def _short(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda v: v[:limit] if isinstance(v, str) else v)


class Told(Model):
    """One message of the program; None is what it didn't say."""

    percent: float | None = Field(default=None, ge=0, le=100)
    completed: int | None = Field(default=None, ge=0, lt=2**53)
    failed: int | None = Field(default=None, ge=0, lt=2**53)
    total: int | None = Field(default=None, ge=0, lt=2**53)
    stage: Annotated[str, _short(MAX_STAGE)] | None = None
    message: Annotated[str, _short(MAX_MESSAGE)] | None = None
    metrics: Annotated[dict[str, float], BeforeValidator(_numbers)] | None = None
    remaining_seconds: float | None = Field(default=None, ge=0, le=1e9)

    @property
    def share(self) -> float | None:
        """How much of it is done, 0 to 1; None if it wasn't said."""
        if self.total and self.completed is not None:
            return min(1.0, (self.completed + (self.failed or 0)) / self.total)
        return self.percent / 100 if self.percent is not None else None


def read(text: str) -> Told | None:
    """One document; of several lines that aren't one together, the last. None if there is nothing.

    Raises:
        Unreadable: It is in none of the forms.
    """
    text = text.strip("\0 \t\r\n")
    if not text:
        return None
    try:
        return _one(text)
    except Unreadable:
        *others, last = text.splitlines()
        if not others:
            raise
        return _one(last.strip())


def merge(old: Told, new: Told) -> Told:
    """The picture after `new` was told too."""
    if new.stage is not None and new.stage != old.stage:
        old = Told(metrics=old.metrics)
    kept = old.model_dump(exclude_none=True, exclude={"remaining_seconds"})  # true of its own moment alone
    if new.percent is not None and new.total is None:  # the latest word counts, not the one with more detail
        kept = {k: v for k, v in kept.items() if k not in ("completed", "failed", "total")}
    return Told(**kept | new.model_dump(exclude_none=True))


def _one(text: str) -> Told:
    if counts := _COUNTS.fullmatch(text):
        return Told(completed=int(counts[1]), total=int(counts[2]))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"expected one JSON object or done/total, found {_excerpt(text)}: {error}") from None
    if not isinstance(document, dict):
        raise Unreadable(f"expected one JSON object or done/total, found {_excerpt(text)}")
    if isinstance(status := document.get("trainerStatus"), dict):
        document = _of_kubeflow(status)
    try:
        return Told.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise Unreadable(f"{field} is {_excerpt(repr(first['input']))}: {first['msg']}") from None


def _of_kubeflow(status: dict[str, Any]) -> dict[str, Any]:
    """A `trainerStatus` of Kubeflow Trainer as our own document; its metrics are a list of names and texts."""
    metrics = status.get("metrics")
    pairs = [m for m in metrics if isinstance(m, dict) and "name" in m] if isinstance(metrics, list) else []
    return {
        "percent": status.get("progressPercentage"),
        "remainingSeconds": status.get("estimatedRemainingSeconds"),
        "metrics": {str(m["name"]): m.get("value") for m in pairs} or None,
    }


def _excerpt(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."

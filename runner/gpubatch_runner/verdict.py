"""The verdict as the container's termination message, of which the kubelet keeps only so many bytes."""

from __future__ import annotations

from pathlib import Path

from gpubatch_runner.contract import TERMINATION_LIMIT, Inspection, Outcome


def write_verdict(verdict: Outcome | Inspection, path: Path) -> None:
    """Writes the verdict, shortened if it must be."""
    path.write_text(shortened(verdict), encoding="utf-8")


def shortened(verdict: Outcome | Inspection, limit: int = TERMINATION_LIMIT) -> str:
    """The verdict as JSON of at most `limit` bytes: first errors are dropped from the end, then texts are cut."""
    text = verdict.to_json()
    if isinstance(verdict, Inspection):
        brief = [
            error.model_copy(update={"message": _cut(error.message, 200), "custom_id": _cut(error.custom_id, 64)})
            for error in verdict.first_errors
        ]
        while len(text.encode()) > limit and brief:
            verdict = verdict.model_copy(update={"first_errors": tuple(brief)})
            text = verdict.to_json()
            brief.pop()
        if len(text.encode()) > limit:
            verdict = verdict.model_copy(update={"first_errors": ()})
            text = verdict.to_json()
    length = 2048
    while len(text.encode()) > limit and length > 32:
        verdict = verdict.model_copy(update={"message": _cut(verdict.message, length)})
        text = verdict.to_json()
        length //= 2
    if len(text.encode()) > limit:  # enormous URLs: they are in the manifest too
        verdict = verdict.model_copy(update={name: None for name in ("output", "errors") if hasattr(verdict, name)})
        text = verdict.to_json()
    return text


def _cut(text: str | None, length: int) -> str | None:
    return text if text is None or len(text) <= length else text[: length - 1] + "…"

"""Times: seconds since the epoch inside the core, RFC 3339 with seconds (as Kubernetes writes them) in status."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(seconds: float) -> str:
    """`0.0` -> `1970-01-01T00:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """The inverse of `iso`; fractions and offsets are understood as well.

    Raises:
        ValueError: Not an RFC 3339 time.
    """
    return datetime.fromisoformat(text).timestamp()

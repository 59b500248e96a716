"""Logs: one handler for everything, and the job that a line is about as fields of it.

A task says once which job it works on; each line that is logged in it, by whatever module, carries that job.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from gpubatch_operator.core.model import Job

_subject: ContextVar[Mapping[str, object]] = ContextVar("subject", default=MappingProxyType({}))


def about(job: Job, attempt: int | None = None) -> None:
    """From here on, this task's lines are about `job`; attempt 0 is before its first one."""
    _subject.set(subject(job, attempt))


def subject(job: Job, attempt: int | None = None) -> dict[str, object]:
    """The fields of a line about a job, to be given as `extra` where no task is about it alone."""
    number = job.attempts if attempt is None else attempt
    return {"job": f"{job.namespace}/{job.name}", "uid": job.uid, "attempt": number}


def subject_of(raw: Mapping[str, Any]) -> dict[str, object]:
    """The same of a job as the API server has it, which may be none that can be read."""
    meta, attempts = raw["metadata"], (raw.get("status") or {}).get("attempts") or [{}]
    return {"job": f"{meta['namespace']}/{meta['name']}", "uid": meta["uid"], "attempt": attempts[-1].get("number", 0)}


class _Subject(logging.Filter):
    """Adds the fields; those that a line brings itself are left alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        for key, value in _subject.get().items():
            if not hasattr(record, key):
                setattr(record, key, value)
        return True


def setup(form: str) -> None:
    """Log as JSON or text; of kopf and of libraries only from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s %(message)s"
    fields = {"levelname": "level", "asctime": "time", "name": "logger"}
    handler.setFormatter(JsonFormatter(text, rename_fields=fields) if form == "json" else logging.Formatter(text))
    handler.addFilter(_Subject())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("kopf", "httpx", "aiohttp.access"):  # the last: the kubelet's probes
        logging.getLogger(name).setLevel(logging.WARNING)

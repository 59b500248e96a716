"""Logs as one JSON object a line, each naming the job, run and attempt."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from gpubatch_runner.contract import RunSpec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record, and all that its `extra` carries, as JSON.

    Args:
        fields: Fields that every line carries.
    """

    def __init__(self, fields: dict[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(spec: RunSpec) -> None:
    """Sends all logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter({"job": f"{spec.job.namespace}/{spec.job.name}", "run": spec.run, "attempt": spec.attempt})
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)

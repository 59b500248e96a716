"""Identifiers, and where things lie. All that isn't known by a job is known by the names in the object store:

    NAMESPACE/files/FILE_ID/NAME       an upload; NAME is the file's own, as base64
    NAMESPACE/batches/BATCH/output.jsonl, errors.jsonl
                                       results, which the runner writes, with what it keeps for other attempts beside
    NAMESPACE/transcriptions/ID/...    a transcription; records.py says what
    _transcriptions/NAMESPACE/ID       empty: one in the background isn't finished

So a file has no second object that could be missing, or be there without it: whole or not at all is what the store
itself promises of one. An identifier holds nothing but hexadecimal digits, a namespace is a DNS label: no name leads
out of its namespace's folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any

MAX_NAME = 180  # bytes; as base64 it is still a name that a file system takes
OUTPUT, ERRORS = "output", "errors"
UNFINISHED = "_transcriptions"  # no namespace can have this name
_UPLOAD = re.compile(r"file-[0-9a-f]{32}")
_RESULT = re.compile(r"file-([0-9a-f]{32})-(output|errors)")
_TRANSCRIPTION = re.compile(r"transcription-[0-9a-f]{32}")
_BATCH = re.compile(r"batch_([0-9a-f]{32})")
_JOB = re.compile(r"batch-([0-9a-f]{32})")
_RESULT_KEY = re.compile(r"[^/]+/batches/([0-9a-f]{32})/(output|errors)\.jsonl")


def new_file_id(now: float) -> str:
    """An upload's; in the order of time.

    Args:
        now: Seconds since the epoch.
    """
    return f"file-{_timed(now)}"


def new_transcription_id(now: float) -> str:
    """A transcription's; in the order of time."""
    return f"transcription-{_timed(now)}"


def _timed(now: float) -> str:
    return f"{int(now * 1000):012x}{os.urandom(10).hex()}"


def is_upload(file_id: str) -> bool:
    """Whether it can be an upload's."""
    return _UPLOAD.fullmatch(file_id) is not None


def uploaded_at(file_id: str) -> int:
    """When an upload began, seconds since the epoch."""
    return int(file_id[5:17], 16) // 1000


def is_transcription(text: str) -> bool:
    """Whether it can be a transcription's id."""
    return _TRANSCRIPTION.fullmatch(text) is not None


def came_at(transcription: str) -> float:
    """When a transcription came, seconds since the epoch."""
    return int(transcription[14:26], 16) / 1000


def result_id(job: str, role: str) -> str:
    """The file of a job's results; `role` is `OUTPUT` or `ERRORS`."""
    return f"file-{job.removeprefix('batch-')}-{role}"


def batch_id(job: str) -> str:
    """The batch of a job's name."""
    return f"batch_{job.removeprefix('batch-')}"


def job_of(batch: str) -> str | None:
    """The job's name; None: there can't be such a batch."""
    found = _BATCH.fullmatch(batch)
    return f"batch-{found[1]}" if found else None


def is_ours(job: str) -> bool:
    """Whether a job of this name can be a batch."""
    return _JOB.fullmatch(job) is not None


def digest(*parts: Any) -> str:
    """32 hexadecimal digits of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


# --- keys


def uploads(namespace: str) -> str:
    """The folder of a namespace's uploads."""
    return f"{namespace}/files"


def results(namespace: str) -> str:
    """The folder of its results."""
    return f"{namespace}/batches"


def upload_folder(namespace: str, file_id: str) -> str:
    """The folder of one upload."""
    return f"{uploads(namespace)}/{file_id}"


def upload_key(namespace: str, file_id: str, name: str) -> str:
    """An upload's own key."""
    text = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
    return f"{upload_folder(namespace, file_id)}/{text}"


def result_key(namespace: str, job: str, role: str) -> str:
    """The key of a job's results."""
    return f"{results(namespace)}/{job.removeprefix('batch-')}/{role}.jsonl"


def result_key_of(namespace: str, file_id: str) -> str | None:
    """The key of a file of results; None: it isn't the name of one."""
    found = _RESULT.fullmatch(file_id)
    return result_key(namespace, found[1], found[2]) if found else None


def transcriptions(namespace: str) -> str:
    """The folder of a namespace's transcriptions."""
    return f"{namespace}/transcriptions"


@dataclass(frozen=True, slots=True)
class Named:
    """What a key says of a file."""

    file_id: str
    filename: str
    purpose: str


def named(key: str) -> Named | None:
    """The file at a key; None: what is there is none, but something that the runner keeps, for instance."""
    if found := _RESULT_KEY.fullmatch(key):
        batch, role = found.groups()
        return Named(f"file-{batch}-{role}", f"batch_{batch}_{role}.jsonl", "batch_output")
    parts = key.split("/")
    if len(parts) != 4 or parts[1] != "files" or not is_upload(parts[2]):
        return None
    try:
        text = base64.b64decode(parts[3] + "=" * (-len(parts[3]) % 4), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Named(parts[2], text, "batch")


def plain_filename(given: str) -> str:
    """A file's name as its client knows it, without a path and without what can't be shown."""
    last = re.split(r"[/\\]", given)[-1]
    shown = "".join(c for c in last if c.isprintable())
    while len(shown.encode("utf-8", "replace")) > MAX_NAME:
        shown = shown[1:]  # the end tells what it is
    return shown.encode("utf-8", "replace").decode() or "file"

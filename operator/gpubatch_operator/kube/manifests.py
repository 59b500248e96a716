"""The jobs' manifests as they were last seen, packed: thousands wait, and few are needed at a time.

As dicts they would be most of the operator's memory.
"""

from __future__ import annotations

from typing import Any

import orjson

JSON = dict[str, Any]
DROPPED = {"managedFields"}
"""What nobody asks for of the metadata."""


class Manifests:
    """By the job's uid; what is read is the caller's own copy."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def put(self, raw: JSON) -> None:
        """Keep this version of a job."""
        meta = raw["metadata"]
        kept = {**raw, "metadata": {k: v for k, v in meta.items() if k not in DROPPED}}
        # A copy: orjson's own keeps the room that it was written in, 4 KiB for one of 700 bytes.
        self._packed[meta["uid"]] = memoryview(orjson.dumps(kept)).tobytes()

    def drop(self, uid: str) -> None:
        """Forget it, if it is known."""
        self._packed.pop(uid, None)

    def get(self, uid: str) -> JSON | None:
        """The manifest, or None if there is no such job."""
        packed = self._packed.get(uid)
        return orjson.loads(packed) if packed is not None else None

    def __getitem__(self, uid: str) -> JSON:
        raw: JSON = orjson.loads(self._packed[uid])
        return raw

"""The folder that outlives the runner's container: the input as it was when the run began, what a restart must know.

The input is copied here while the engine loads. So a slow run holds no connection open, a restart reads the same lines
under the same numbers even if the object was replaced meanwhile, and memory stays flat.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel

from gpubatch_runner.failures import InternalError


class Served(BaseModel):
    """What a live run has answered so far."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class State(BaseModel):
    """What a restarted container must know, beside the journal."""

    run: str
    attempt: int
    input_digest: str | None = None
    total: int | None = None
    loading_since: float | None = None
    """Unix time since which the engine has been waited for; None while it answers."""
    engine_answered: bool = False
    seconds: dict[str, float] = {}
    """Seconds spent in each stage so far."""
    served: Served = Served()
    """Of a live run, which keeps no journal."""


class Workdir:
    """The folder of one attempt.

    Args:
        folder: Made if absent. Remains of another attempt are removed.
    """

    def __init__(self, folder: Path, run: str, attempt: int) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.state = self._load() or State(run=run, attempt=attempt)
            if (self.state.run, self.state.attempt) != (run, attempt):
                for path in (self.journal, self.input, self.order, self.invalid, self.state_file):
                    path.unlink(missing_ok=True)
                self.state = State(run=run, attempt=attempt)
        except OSError as error:
            raise _unusable(folder, error) from error

    @property
    def journal(self) -> Path:
        return self._folder / "journal"

    @property
    def input(self) -> Path:
        return self._folder / "input"

    @property
    def order(self) -> Path:
        """Where the valid lines are, in the order in which they are sent."""
        return self._folder / "order"

    @property
    def invalid(self) -> Path:
        """What is wrong with the other lines, one `LineError` each."""
        return self._folder / "invalid"

    @property
    def files(self) -> Path:
        """Files that requests name, while they are needed."""
        return self._folder / "files"

    @property
    def state_file(self) -> Path:
        return self._folder / "state.json"

    def save(self) -> None:
        """Writes the state, whole or not at all."""
        partial = self.state_file.with_suffix(".tmp")
        try:
            partial.write_text(self.state.model_dump_json())
            partial.replace(self.state_file)
        except OSError as error:
            raise _unusable(self._folder, error) from error

    async def keep_input(self, chunks: AsyncIterator[bytes]) -> str:
        """Copies the input here, unless an earlier container did; returns its SHA-256."""
        if self.state.input_digest and self.input.exists():
            return self.state.input_digest
        digest, partial = hashlib.sha256(), self.input.with_suffix(".tmp")
        with partial.open("wb") as file:
            async for chunk in chunks:
                digest.update(chunk)
                try:
                    file.write(chunk)
                except OSError as error:
                    raise _unusable(self._folder, error) from error
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.input)
        self.state.input_digest, self.state.total = digest.hexdigest(), None
        self.save()
        return self.state.input_digest

    def _load(self) -> State | None:
        try:
            return State.model_validate(json.loads(self.state_file.read_text()))
        except (FileNotFoundError, ValueError):
            return None


def _unusable(folder: Path, error: OSError) -> InternalError:
    return InternalError(
        f"The runner's volume {folder} cannot be used ({error.strerror or error}); give the runner's pod more "
        "ephemeral storage."
    )

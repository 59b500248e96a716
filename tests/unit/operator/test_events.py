"""Events are for people: no more than they can read, and no warning is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpubatch_operator.kube import convert
from gpubatch_operator.kube.events import BURST, Recorder
from unit.operator.build import raw_job, template_spec

JSON = dict[str, Any]


class Api:
    """Takes Events."""

    def __init__(self) -> None:
        self.taken: list[JSON] = []

    async def create(self, path: str, body: JSON) -> JSON:
        self.taken.append(body)
        return body


async def test_thousands_of_transitions_at_once_are_not_thousands_of_events_but_each_warning_is_written(
    monkeypatch: pytest.MonkeyPatch,
):
    api = Api()
    recorder = Recorder(api)  # type: ignore[arg-type]
    job = convert.job_of(raw_job("job", template_spec()))
    for _ in range(2000):
        recorder.record(job, "Queued", "")
        recorder.record(job, "Failed", "", warning=True)
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert sum(e["type"] == "Warning" for e in api.taken) == 2000
    assert BURST <= sum(e["type"] == "Normal" for e in api.taken) <= 2 * BURST

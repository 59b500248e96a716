"""docs/errors.md, row by row: each cause is shown in status with its reason, within the seconds promised there."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from demo_lib import inputs
from demo_lib.queue import Job
from demo_lib.results import answered_once, ids, read_lines
from demo_lib.tools import ROOT
from support.api import Api, eventually
from support.installation import Installation
from support.workloads import BUCKET, batch

JSON = dict[str, Any]
Say = Callable[[str], None]
START_TIMEOUT = 5


@dataclass(frozen=True)
class Row:
    """One promise: the reason of this cause is in status so many seconds after something."""

    cause: str
    reason: str
    seconds: int
    after: str
    advice: str


def rows() -> list[Row]:
    """The table of docs/errors.md."""
    pattern = re.compile(
        r"\| (?P<cause>[^|]+) \| `(?P<reason>\w+)` \| (?P<start>startTimeoutSeconds \+ )?(?P<seconds>\d+) s after "
        r"(?P<after>creation|start|the engine's end) \| (?P<advice>[^|]+) \|"
    )
    lines = (ROOT / "docs" / "errors.md").read_text().partition("| Cause |")[2].partition("\n\n")[0].splitlines()[2:]
    found = [pattern.fullmatch(line) for line in lines]
    assert lines
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [
        Row(m["cause"], m["reason"], int(m["seconds"]) + (START_TIMEOUT if m["start"] else 0), m["after"], m["advice"])
        for m in found
        if m
    ]


LINES = {
    "A line that isn't JSON": "invalid_json_line",
    "A line without `custom_id`": "missing_custom_id",
    "A `custom_id` for the second time": "duplicate_custom_id",
    "A `url` that isn't served": "invalid_url",
    "A model that the job doesn't serve": "model_mismatch",
}
"""Causes that are lines of one input, and the code by which `broken_requests` has one of each."""

JOBS: dict[str, JSON] = {
    "The input doesn't exist": {"inference": {"input": {"url": f"{BUCKET}/forgotten.jsonl"}}},
    "No credentials: the Secret doesn't exist": {"storage": {"secretName": "forgotten"}},
    "Wrong credentials": {"storage": {"secretName": "s3-wrong"}},
    "The output's bucket doesn't exist": {"inference": {"output": {"url": "s3://forgotten/out.jsonl"}}},
    "The engine's image can't be pulled": {"engine": {"image": "registry.invalid/engine:forgotten"}},
    "The engine never gets ready": {"engine": {"startTimeoutSeconds": START_TIMEOUT}},
    "The engine needs more memory than it may have": {"engine": {"resources": {"limits": {"memory": "300Mi"}}}},
}
"""Causes that are in the manifest, and what makes a good job have them."""


def broken_job(cause: str) -> JSON:
    """The manifest that has it."""
    flaw = JOBS[cause]
    job = batch("good", engine=flaw.get("engine"), inference=flaw.get("inference"))
    job["spec"]["inference"]["storage"] |= flaw.get("storage", {})
    return job | {"metadata": {"name": "job"}}


def test_each_row_of_the_table_is_tested_and_each_test_is_a_row() -> None:
    assert sorted(row.cause for row in rows()) == sorted([*LINES, *JOBS])


# --- broken lines


@dataclass(frozen=True)
class Broken:
    """A job whose input had a broken line of each kind, as it ended."""

    job: Job
    shown_after: float
    answers: list[JSON]
    errors: list[JSON]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broken(installation: Installation) -> AsyncIterator[Broken]:
    lines, _ = inputs.broken_requests()
    with installation.bucket() as bucket:
        bucket.put("broken.jsonl", "\n".join([*lines, ""]).encode())
        async with installation.queue() as api:
            await api.create(batch("broken"))

            async def inspected() -> JSON | None:
                job = await api.job("broken")
                return job if "inspection" in job.get("status", {}) else None

            job = await eventually("the input to be inspected", inspected)
            shown_after = time.time() - _seconds(job["metadata"]["creationTimestamp"])
            job = await api.phase("broken", "Succeeded", "Failed", patience=300)
        answers, errors = (read_lines(bucket, f"broken.{kind}.jsonl") for kind in ("out", "errors"))
    yield Broken(Job("broken", job), shown_after, answers, errors)


@pytest.mark.parametrize("row", [row for row in rows() if row.cause in LINES], ids=lambda row: row.reason)
def test_a_broken_line_is_named_in_status_and_in_the_error_file(row: Row, broken: Broken, say: Say) -> None:
    say(f"{row.cause}: {row.reason} after {broken.shown_after:.0f} s, {row.seconds} s promised")
    assert row.reason == LINES[row.cause]
    number = next(number for number, code in inputs.broken_requests()[1].items() if code == row.reason)
    assert broken.shown_after <= row.seconds
    [shown] = [e for e in broken.job.status["inspection"]["firstErrors"] if e.startswith(f"line {number}: ")]
    assert f": {row.reason}: " in shown
    [record] = [e for e in broken.errors if e["error"]["code"] == row.reason]
    assert record["error"]["line"] == number
    assert record["error"]["message"]
    assert record["response"] is None


def test_the_valid_lines_beside_broken_ones_are_answered(broken: Broken) -> None:
    lines, flaws = inputs.broken_requests()
    assert broken.job.phase == "Succeeded"
    assert broken.job.condition("Validated")["reason"] == "InvalidLinesSkipped"
    assert not answered_once(broken.answers, ids([x for i, x in enumerate(lines, 1) if i not in flaws]))
    assert len(broken.errors) == len(flaws)
    results = broken.job.status["results"]
    assert (results["total"], results["completed"], results["failed"]) == (60, 55, 5)


# --- broken jobs


@pytest.mark.parametrize("row", [row for row in rows() if row.cause in JOBS], ids=lambda row: row.cause)
async def test_what_is_wrong_with_a_job_is_in_its_status_in_time(
    row: Row, api: Api, installation: Installation, say: Say
) -> None:
    with installation.bucket() as bucket:
        bucket.put("good.jsonl", "\n".join([*inputs.chat_requests(4), ""]).encode())
    await api.create(broken_job(row.cause))
    begun: dict[str, float] = {}

    async def shown() -> tuple[str, float] | None:
        job = Job("job", await api.job("job"))
        begun["creation"] = _seconds(job.raw["metadata"]["creationTimestamp"])
        if start := job.status.get("startTime"):
            begun["start"] = _seconds(start)
        if "the engine's end" not in begun:
            begun.update(await _engine_end(api))
        for found in (job.condition("Failed"), job.status.get("pending") or {}):
            if found.get("reason") == row.reason:
                return found["message"], time.time()
        assert job.phase not in ("Succeeded", "Failed"), job.condition("Failed")
        await asyncio.sleep(0.2)
        return None

    message, at = await eventually(f"{row.reason} in status", shown, patience=row.seconds + 120)
    say(f"{row.cause}: {row.reason} {at - begun[row.after]:.0f} s after {row.after}, {row.seconds} s promised")
    say(f"  {message[:300]}")
    job = await api.phase("job", "Failed", patience=180)
    condition = Job("job", job).condition("Failed")
    say(f"  Failed {_seconds(job['status']['completionTime']) - begun['creation']:.0f} s after creation")
    assert condition["reason"] == row.reason
    assert len(condition["message"]) > len(row.reason)
    assert at - begun[row.after] <= row.seconds
    if row.after == "creation":
        assert "attempts" not in job["status"], "it never took a GPU"


async def _engine_end(api: Api) -> dict[str, float]:
    """When the engine first ended, once it has."""
    for pod in await api.pods():
        for status in pod["status"].get("initContainerStatuses") or []:
            for state in (status.get("state") or {}, status.get("lastState") or {}):
                if status["name"] == "engine" and "terminated" in state:
                    return {"the engine's end": _seconds(state["terminated"]["finishedAt"])}
    return {}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()

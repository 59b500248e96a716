"""gs:// and az:// against Google's and Azure's emulators: read, written in parts, resumed, decided once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from gpubatch_runner.contract import Outcome, Reason, RunSpec, Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.locations import OUTPUT_FIELD, of_job, parse
from gpubatch_runner.preflight import inspect
from gpubatch_runner.results import Publication
from gpubatch_runner.run import run
from gpubatch_runner.stores import PART, BucketStore
from support.clouds import Cloud, XmlApi
from support.s3 import chunks_of, lines
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job


def spec(cloud: Cloud, **changes: Any) -> RunSpec:
    files = {name: f"{cloud.scheme}://batches/{file}" for name, file in FILES.items()}
    return Job(Path("/nowhere")).spec(**(files | {"storage": storage(cloud)} | changes))


FILES = {"input": "in.jsonl", "output": "out.jsonl", "errors": "errors.jsonl"}


def storage(cloud: Cloud) -> Storage:
    return Storage(endpoint=cloud.endpoint)


async def finish(cloud: Cloud, folder: Path, **changes: Any) -> Outcome:
    return await run(spec(cloud, **changes), Environment(journal_dir=folder, progress_port=0), asyncio.Event())


async def names(cloud: Cloud) -> list[str]:
    return [name for name in await asyncio.to_thread(cloud.names) if not name.endswith(".manifest.json")]


async def test_a_run_reads_and_writes_the_cloud_and_leaves_only_results_and_manifest(
    emptied: Cloud, tmp_path: Path
) -> None:
    cloud = emptied
    await cloud.store.put_async("in.jsonl", lines(50) + b"{\n")
    verdict = await inspect(spec(cloud, attempt=0), Environment())
    assert (verdict.requests, verdict.invalid) == (50, 1)
    async with FakeEngine() as engine:
        outcome = await finish(cloud, tmp_path, engine_url=engine.url)
    assert outcome.succeeded, outcome
    assert (outcome.completed, outcome.failed) == (50, 1)
    assert await names(cloud) == ["errors.jsonl", "in.jsonl", "out.jsonl"]
    assert len(await asyncio.to_thread(cloud.names)) == 4
    written = bytes(await (await cloud.store.get_async("out.jsonl")).bytes_async())
    assert written.count(b"\n") == 50


@pytest.mark.parametrize("size", [0, 1, PART, 2 * PART + 7])
async def test_files_of_any_size_arrive_whole_also_in_parts(emptied: Cloud, size: int) -> None:
    location = parse(f"{emptied.scheme}://batches/big", OUTPUT_FIELD, Environment())
    store = BucketStore(location, storage(emptied), Upload(), Environment())
    data = os.urandom(size)
    await store.write(location, chunks_of(*(data[at : at + 100_000] for at in range(0, size, 100_000)))())
    assert await store.read_small(location) == data
    assert await store.move(location, location.beside(".moved"))
    assert await store.read_small(location.beside(".moved")) == data
    assert not await store.exists(location)
    assert not await store.move(location, location.beside(".moved"))
    await store.delete(location)  # finding it gone is fine


async def test_of_two_attempts_that_race_one_publishes_and_both_report_it(emptied: Cloud) -> None:
    async def conclude(attempt: int) -> Outcome:
        mine = spec(emptied, attempt=attempt)
        return await Publication(mine, of_job(mine, Environment()), Environment()).conclude(
            lambda: Outcome(succeeded=True, completed=1, failed=1, message=str(attempt)),
            chunks_of(b"output %d\n" % attempt),
            chunks_of(b"errors %d\n" % attempt),
        )

    outcomes = await asyncio.gather(*(conclude(attempt) for attempt in (1, 2, 3)))
    assert len({outcome.message for outcome in outcomes}) == 1
    written = bytes(await (await emptied.store.get_async("out.jsonl")).bytes_async())
    assert written == f"output {outcomes[0].message}\n".encode()


async def test_a_new_attempt_goes_on_from_the_checkpoint(emptied: Cloud, tmp_path: Path) -> None:
    await emptied.store.put_async("in.jsonl", lines(40))
    stop = asyncio.Event()
    async with FakeEngine(delay=0.02) as engine:
        first = spec(emptied, engine_url=engine.url, max_concurrent_requests=2)
        environment = Environment(journal_dir=tmp_path / "1", progress_port=0)
        running = asyncio.create_task(run(first, environment, stop))
        await engine.has_seen(10)
        stop.set()
        assert (await running).reason is Reason.INTERRUPTED
        assert "out.jsonl.partial" in await names(emptied)
        outcome = await finish(emptied, tmp_path / "2", engine_url=engine.url, attempt=2)
    assert outcome.completed == 40
    assert set(engine.seen.values()) == {1}
    assert await names(emptied) == ["in.jsonl", "out.jsonl"]


async def test_a_missing_object_is_told(emptied: Cloud) -> None:
    verdict = await inspect(spec(emptied, attempt=0), Environment())
    assert verdict.reason is Reason.INPUT_NOT_FOUND
    assert verdict.message.startswith(f"spec.inference.input.url {emptied.scheme}://batches/in.jsonl: no such object")


@pytest.mark.parametrize("scheme", ["gs"])  # nothing stands before Azurite that could cut
async def test_a_download_that_is_cut_is_taken_up_where_it_was(emptied: Cloud, google: XmlApi) -> None:
    await emptied.store.put_async("in.jsonl", lines(20_000))
    google.cuts = 2
    verdict = await inspect(spec(emptied, attempt=0), Environment())
    assert verdict.requests == 20_000
    assert google.cuts == 0

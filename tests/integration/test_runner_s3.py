"""Object storage as it is: a real S3 server (versitygw), with its own opinions on conditions, parts and permissions."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from gpubatch_runner.contract import Outcome, Reason, Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.locations import OUTPUT_FIELD, of_job, parse
from gpubatch_runner.results import Publication
from gpubatch_runner.run import run
from gpubatch_runner.stores import PART, BucketStore
from support.s3 import S3, chunks_of, finish, lines, look, spec
from unit.runner.fake_engine import FakeEngine


async def test_a_run_reads_and_writes_s3_and_leaves_only_results_and_manifest(s3: S3, tmp_path: Path) -> None:
    s3.put("in.jsonl", lines(50) + b"{\n")
    assert (await look(s3)).requests == 50
    assert s3.names() == ["in.jsonl"]
    async with FakeEngine() as engine:
        outcome = await finish(s3, tmp_path, engine_url=engine.url)
    assert outcome.succeeded
    assert (outcome.completed, outcome.failed) == (50, 1)
    assert s3.ids("out.jsonl") == sorted(f"r{n}" for n in range(50))
    assert [name for name in s3.names() if "manifest" not in name] == ["errors.jsonl", "in.jsonl", "out.jsonl"]
    [manifest] = (s3.root / "batches").glob("out.jsonl.*.manifest.json")
    assert json.loads(manifest.read_text())["outcome"]["completed"] == 50


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 7])
async def test_files_of_any_size_arrive_whole(s3: S3, size: int) -> None:
    location = parse("s3://batches/big", OUTPUT_FIELD, Environment())
    store = BucketStore(location, s3.storage, Upload(), Environment())
    data = os.urandom(size)
    await store.write(location, chunks_of(*(data[at : at + 100_000] for at in range(0, size, 100_000)))())
    assert await store.read_small(location) == data
    assert await store.move(location, location.beside(".moved"))
    assert (s3.root / "batches" / "big.moved").read_bytes() == data
    assert not await store.exists(location)
    assert not await store.move(location, location.beside(".moved"))
    await store.delete(location)  # finding it gone is fine


async def test_of_many_that_create_an_object_exactly_one_succeeds(s3: S3) -> None:
    location = parse("s3://batches/manifest", OUTPUT_FIELD, Environment())
    stores = [BucketStore(location, s3.storage, Upload(), Environment()) for _ in range(20)]
    for round in range(5):
        target = location.beside(str(round))
        won = await asyncio.gather(*(store.create(target, b"%d" % n) for n, store in enumerate(stores)))
        assert sum(won) == 1
        assert await stores[0].read_small(target) == b"%d" % won.index(True)


async def test_of_two_attempts_that_race_one_publishes_and_both_report_it(s3: S3) -> None:
    async def conclude(attempt: int) -> Outcome:
        mine = spec(s3, attempt=attempt)
        return await Publication(mine, of_job(mine, Environment()), Environment()).conclude(
            lambda: Outcome(succeeded=True, completed=1, failed=1, message=str(attempt)),
            chunks_of(b"output %d\n" % attempt),
            chunks_of(b"errors %d\n" % attempt),
        )

    first, second = await asyncio.gather(conclude(1), conclude(2))
    assert first == second
    assert (s3.root / "batches" / "out.jsonl").read_text() == f"output {first.message}\n"
    assert (s3.root / "batches" / "errors.jsonl").read_text() == f"errors {first.message}\n"


async def test_a_new_attempt_goes_on_from_the_checkpoint_in_the_bucket(s3: S3, tmp_path: Path) -> None:
    s3.put("in.jsonl", lines(40))
    stop = asyncio.Event()
    async with FakeEngine(delay=0.02) as engine:
        first = spec(s3, engine_url=engine.url, max_concurrent_requests=2)
        environment = Environment(journal_dir=tmp_path / "1", progress_port=0)
        running = asyncio.create_task(run(first, environment, stop))
        await engine.has_seen(10)
        stop.set()
        interrupted = await running
        assert interrupted.reason is Reason.INTERRUPTED
        assert "out.jsonl.partial" in s3.names()
        outcome = await finish(s3, tmp_path / "2", engine_url=engine.url, attempt=2)
    assert outcome.completed == 40
    assert set(engine.seen.values()) == {1}
    assert s3.ids("out.jsonl") == sorted(f"r{n}" for n in range(40))
    assert len(s3.names()) == 3


async def test_a_missing_object_is_told(s3: S3) -> None:
    verdict = await look(s3)
    assert verdict.reason is Reason.INPUT_NOT_FOUND
    assert verdict.message.startswith("spec.inference.input.url s3://batches/in.jsonl: no such object")
    assert "errors.jsonl" in s3.names()


async def test_a_missing_bucket_of_the_input_is_told(s3: S3) -> None:
    verdict = await look(s3, input="s3://absent/in.jsonl")
    assert verdict.reason is Reason.INPUT_NOT_FOUND
    assert "the bucket 'absent' does not exist" in verdict.message


async def test_a_missing_bucket_of_the_output_is_told(s3: S3) -> None:
    s3.put("in.jsonl", lines(1))
    verdict = await look(s3, output="s3://absent/out.jsonl")
    assert verdict.reason is Reason.OUTPUT_NOT_WRITABLE
    assert verdict.message.startswith("spec.inference.output.url")
    assert "the bucket 'absent' does not exist" in verdict.message


@pytest.mark.parametrize(
    ("name", "code"), [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "Sig")]
)
async def test_wrong_keys_are_told(s3: S3, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    s3.put("in.jsonl", lines(1))
    monkeypatch.setenv(name, "wrong")
    verdict = await look(s3)
    assert verdict.reason is Reason.ACCESS_DENIED
    assert code in verdict.message
    assert "spec.inference.storage.secretName" in verdict.message


async def test_an_output_without_permission_to_write_is_told(s3: S3) -> None:
    s3.put("in.jsonl", lines(1))
    verdict = await look(s3, output="s3://foreign/out.jsonl")
    assert verdict.reason is Reason.ACCESS_DENIED
    assert verdict.message.startswith("spec.inference.output.url s3://foreign/out.jsonl")
    assert "put, get and delete" in verdict.message


async def test_an_input_without_permission_to_read_is_told(s3: S3) -> None:
    verdict = await look(s3, input="s3://foreign/in.jsonl")
    assert verdict.reason is Reason.ACCESS_DENIED
    assert "get the object" in verdict.message


async def test_storage_that_cannot_be_reached_is_told(s3: S3) -> None:
    verdict = await look(s3, storage=Storage(endpoint="http://127.0.0.1:1", region="us-east-1"))
    assert verdict.reason is Reason.OUTPUT_NOT_WRITABLE
    assert "could not be reached; check spec.inference.storage.endpoint" in verdict.message


async def test_an_endless_line_is_told_and_the_lines_around_it_count(s3: S3) -> None:
    s3.put("in.jsonl", lines(1) + b"x" * 50_000_000 + b"\n" + lines(2)[len(lines(1)) :])
    verdict = await look(s3)
    assert [(error.line, error.code) for error in verdict.first_errors] == [(2, "line_too_long")]
    assert verdict.requests == 2

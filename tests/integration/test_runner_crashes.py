"""kill -9 of the runner at any moment, against a real S3 server: every custom_id once, and no work twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gpubatch_runner.contract import SPEC_ENV, Outcome, Storage
from support.s3 import KEYS, S3, lines, spec
from support.storeproxy import StoreProxy
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import RUNNER_PATH

COUNT = 400
IN_FLIGHT = 8
TEXT = "x" * 30_000
"""Of each answer: 12 MB in all, so that results go out in parts while the run goes on."""


class Pod:
    """The runner's container, and what outlives it."""

    def __init__(self, folder: Path, s3: S3, engine: FakeEngine, attempt: int = 1, **changes: Any) -> None:
        self._folder = folder / f"pod{attempt}"
        self._folder.mkdir(parents=True)
        self._log = folder / "runner.log"
        values = {"engine_url": engine.url, "max_concurrent_requests": IN_FLIGHT, "attempt": attempt} | changes
        self._spec = spec(s3, **values)
        self.termination_log = self._folder / "termination-log"

    async def start(self) -> asyncio.subprocess.Process:
        environ = KEYS | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": RUNNER_PATH,
            SPEC_ENV: self._spec.to_json(),
            "GPUBATCH_JOURNAL_DIR": str(self._folder / "journal"),
            "GPUBATCH_TERMINATION_LOG": str(self.termination_log),
            "GPUBATCH_PROGRESS_PORT": "0",
        }
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gpubatch_runner", "run", env=environ, stderr=log
            )

    async def finish(self) -> Outcome:
        """The kubelet starts it until it ends by itself."""
        process = await self.start()
        assert await asyncio.wait_for(process.wait(), 120) == 0, self._log.read_text()[-3000:]
        return Outcome.model_validate_json(self.termination_log.read_text())


async def kill(process: asyncio.subprocess.Process) -> bool:
    """Whether it was still alive."""
    if process.returncode is not None:
        return False
    process.kill()
    await process.wait()
    return True


async def answer(prompt: str, before: int) -> web.Response:
    """Always the same for the same prompt, as with greedy decoding."""
    return web.json_response({"id": prompt, "echo": prompt, "text": TEXT, "usage": {"prompt_tokens": 1}})


def check(s3: S3, count: int = COUNT) -> None:
    """Every request answered once, with the body of an uninterrupted run; nothing else left behind."""
    records = [json.loads(line) for line in (s3.root / "batches" / "out.jsonl").read_text().splitlines()]
    assert sorted(record["custom_id"] for record in records) == sorted(f"r{n}" for n in range(count))
    for record in records:
        body = record["response"]["body"]
        assert (f"r{body['echo']}", len(body["text"])) == (record["custom_id"], len(TEXT))
    assert [name for name in s3.names() if not name.endswith("manifest.json")] == ["in.jsonl", "out.jsonl"]
    assert len(s3.names()) == 3
    assert s3.unfinished() == []


@pytest.mark.parametrize("seed", range(12))
async def test_after_kills_at_random_moments_each_request_is_in_the_output_once(
    s3: S3, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    s3.put("in.jsonl", lines(COUNT))
    kills = 0
    async with FakeEngine(answer, delay=0.02) as engine:
        pod = Pod(tmp_path, s3, engine)
        for _ in range(3):
            moment = sum(engine.seen.values()) + chance.randrange(COUNT // 4)
            process = await pod.start()
            while process.returncode is None and sum(engine.seen.values()) < moment:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.uniform(0, 0.1))
            kills += await kill(process)
        outcome = await pod.finish()
    assert kills, "the run was over before it was killed"
    assert (outcome.succeeded, outcome.completed, outcome.failed) == (True, COUNT, 0)
    check(s3)
    assert sum(engine.seen.values()) <= COUNT + kills * IN_FLIGHT, "finished requests were sent again"


@pytest.mark.parametrize("answered", [False, True], ids=["before-it-is-done", "after-it-is-done"])
async def test_killed_at_any_request_to_the_store_nothing_is_lost_or_doubled(
    s3: S3, tmp_path: Path, answered: bool
) -> None:
    """Counts the requests to the store and kills the runner at the first, then at the third of another run..."""
    count = 300  # with 30 kB each, two parts
    at = -1 if answered else 0
    while True:
        at += 2
        s3.clear()
        s3.put("in.jsonl", lines(count))
        async with FakeEngine(answer) as engine, StoreProxy(s3.endpoint) as proxy:
            storage = Storage(endpoint=proxy.url, region="us-east-1")
            pod = Pod(tmp_path / f"at{at}", s3, engine, storage=storage)
            process = await pod.start()
            left = iter(range(at - 1))

            async def deadly(
                request: web.Request,
                left: Any = left,
                process: asyncio.subprocess.Process = process,
                proxy: StoreProxy = proxy,
            ) -> web.StreamResponse | None:
                if next(left, None) is not None or process.returncode is not None:
                    return None
                done = await proxy.answer(request, await request.read()) if answered else web.Response(status=500)
                if process.returncode is None:
                    process.kill()
                return done

            proxy.fault = deadly
            await asyncio.wait_for(process.wait(), 60)
            proxy.fault = None
            killed = process.returncode != 0
            seen = sum(engine.seen.values())
            outcome = await pod.finish()
            assert (outcome.succeeded, outcome.completed) == (True, count)
            assert sum(engine.seen.values()) <= max(count, seen) + IN_FLIGHT
        check(s3, count)
        if not killed:
            break
    assert at > 15


async def test_killed_before_the_termination_message_it_says_the_same_when_it_is_started_again(
    s3: S3, tmp_path: Path
) -> None:
    s3.put("in.jsonl", lines(20))
    async with FakeEngine(answer) as engine:
        pod = Pod(tmp_path, s3, engine)
        os.mkfifo(pod.termination_log)  # nobody reads: the runner hangs before its last word
        process = await pod.start()
        while "out.jsonl" not in s3.names() or len(s3.names()) > 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert await kill(process)
        pod.termination_log.unlink()
        before = (s3.root / "batches" / "out.jsonl").read_bytes()
        outcome = await pod.finish()
    assert (outcome.succeeded, outcome.completed) == (True, 20)
    assert set(engine.seen.values()) == {1}
    assert (s3.root / "batches" / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("seed", range(4))
async def test_the_old_attempt_of_a_node_that_was_cut_off_cannot_change_the_result(
    s3: S3, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    s3.put("in.jsonl", lines(COUNT))
    async with FakeEngine(answer, delay=0.02) as engine:
        old = await (pod := Pod(tmp_path, s3, engine)).start()
        moment = chance.randrange(COUNT // 10, COUNT // 2)
        while sum(engine.seen.values()) < moment:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        old.send_signal(signal.SIGSTOP)  # as if the node had been cut off
        outcome = await Pod(tmp_path, s3, engine, attempt=2).finish()
        assert outcome.succeeded
        before = (s3.root / "batches" / "out.jsonl").read_bytes()
        old.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(old.wait(), 120) == 0
        late = Outcome.model_validate_json(pod.termination_log.read_text())
    assert late == outcome
    assert (s3.root / "batches" / "out.jsonl").read_bytes() == before
    check(s3)


@pytest.mark.parametrize("seed", range(3))
async def test_a_new_pod_after_a_lost_one_publishes_a_whole_result(s3: S3, tmp_path: Path, seed: int) -> None:
    """Without a checkpoint yet (they are minutes apart) it begins anew, and leaves nothing of the lost one."""
    chance = random.Random(100 + seed)
    s3.put("in.jsonl", lines(COUNT))
    async with FakeEngine(answer, delay=0.02) as engine:
        for attempt in (1, 2):
            process = await Pod(tmp_path, s3, engine, attempt=attempt).start()
            await asyncio.sleep(chance.uniform(0.8, 2.0))
            await kill(process)
        outcome = await Pod(tmp_path, s3, engine, attempt=3).finish()
    assert (outcome.succeeded, outcome.completed) == (True, COUNT)
    check(s3)

"""The runner's memory does not grow with the input."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from gpubatch_runner.contract import Outcome
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job, request


async def test_memory_stays_flat_at_50_000_requests(tmp_path: Path) -> None:
    """Peak resident memory of the whole process, with prompts of 2 kB: an input of 108 MB."""
    job = Job(tmp_path)
    job.claim.mkdir(parents=True)
    text = "x" * 2000
    with (job.claim / "in.jsonl").open("w") as file:
        for n in range(50_000):
            line = request(n)
            line["body"]["messages"].append({"role": "user", "content": text})
            file.write(json.dumps(line) + "\n")
    # Not getrusage: a process inherits the peak of the one that started it.
    measure = (
        "import re; from gpubatch_runner.__main__ import main; main(['run']);"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)"
    )
    async with FakeEngine() as engine:
        process = job.start("run", job.spec(engine_url=engine.url), "-c", measure)
        peak, _ = await asyncio.to_thread(process.communicate)
    outcome = Outcome.model_validate_json(job.environment.termination_log.read_text())
    assert outcome.completed == 50_000
    print(f"peak resident memory: {int(peak)} MiB")
    assert int(peak) < 150

"""kill -9 of runner, engine, pod and node in the middle of runs of a real vLLM: nothing lost, nothing twice.

Each round is one job. Each kind of kill strikes at it once and the runner some times more: at random moments, during
the upload, and when all is done but said. Its answers must be those of a run that nobody disturbed.

    GPUBATCH_KILLS=10    so many rounds, so kills of each kind; 2 by default, and ten of the runner
    GPUBATCH_SEED=N      replays the kills of a run that failed, as far as the machine lets it

Greedy decoding (temperature 0, float32) gives the same texts to the byte, whatever is in the batch with a request: no
tolerance is needed. Bodies differ by their ids and times.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo_lib import inputs
from demo_lib.results import answered_once, ids
from localcluster import kind
from localcluster.settings import current
from support import s3 as s3_support
from support.adversary import PATIENCE, Adversary, Kind, plan
from support.api import Api
from support.installation import Installation, secret
from support.storeproxy import StoreProxy
from support.workloads import batch, on

JSON = dict[str, Any]
ROUNDS = int(os.environ.get("GPUBATCH_KILLS") or 2)
SEED = int(os.environ.get("GPUBATCH_SEED") or random.SystemRandom().randrange(10**6))
RUNNERS = max(0, 8 // ROUNDS)
"""Kills of the runner in each round besides its one: they cost little, so there are always ten."""

VICTIM, OTHER = "gpu-b", "gpu-a"
COUNT, AT_ONCE = 360, 4
"""Many: while something is found and killed, a quick machine answers thirty."""
CREDENTIALS = "kills-credentials"


@pytest.fixture
def nodes(installation: Installation) -> Iterator[None]:
    """Two nodes, of which one may lose its power: nothing but jobs is on it."""
    if kind.is_used():
        pytest.skip("kind's nodes can't lose their power")
    installation.clear(VICTIM)
    yield
    installation.bring_back()


@pytest.fixture
def s3(tmp_path: Path, installation: Installation) -> Iterator[s3_support.S3]:
    """A store that isn't on any node."""
    installation.kube.apply(json.dumps(secret(CREDENTIALS, s3_support.KEYS)))
    with s3_support.serving(tmp_path) as server:
        yield server


def answers(s3: s3_support.S3, name: str) -> dict[str, JSON]:
    """The answers of a job by custom_id: each request has exactly one. Without ids and times."""
    lines = [json.loads(line) for line in (s3.root / "batches" / f"{name}.out.jsonl").read_text().splitlines()]
    assert not answered_once(lines, ids(requests()))
    bodies = {line["custom_id"]: line["response"]["body"] for line in lines}
    return {name: {"choices": body["choices"], "usage": body["usage"]} for name, body in bodies.items()}


def requests() -> list[str]:
    """What every job is asked."""
    return inputs.chat_requests(COUNT, max_tokens=120)


async def create(api: Api, s3: s3_support.S3, proxy: StoreProxy, name: str, node: str) -> None:
    """A job with these requests."""
    s3.put(f"{name}.jsonl", "\n".join([*requests(), ""]).encode())
    storage = {"endpoint": proxy.url, "region": "us-east-1", "secretName": CREDENTIALS}
    await api.create(batch(name, inference={"maxConcurrentRequests": AT_ONCE, "storage": storage}, **on(node)))


async def succeeded(api: Api, name: str) -> JSON:
    """The status of a job that must have answered all."""
    status: JSON = (await api.phase(name, "Succeeded", "Failed", patience=PATIENCE))["status"]
    assert status["phase"] == "Succeeded", status
    results = status["results"]
    assert (results["total"], results["completed"], results["failed"]) == (COUNT, COUNT, 0)
    return status


async def test_kill_9_of_runner_engine_pod_and_node_loses_doubles_and_changes_nothing(
    api: Api, installation: Installation, nodes: None, s3: s3_support.S3, say: Any
) -> None:
    say(f"seed {SEED} (GPUBATCH_SEED={SEED} GPUBATCH_KILLS={ROUNDS} replays the kills)")
    struck: Counter[Kind] = Counter()
    repeated = 0
    async with StoreProxy(s3.endpoint, current().host_ip) as proxy:
        await create(api, s3, proxy, "uninterrupted", OTHER)
        truth: dict[str, JSON] = {}
        for number in range(ROUNDS):
            name = f"round-{number}"
            await create(api, s3, proxy, name, VICTIM)
            adversary = Adversary(api, installation, proxy, s3, name, VICTIM, AT_ONCE, say)
            for blow in plan(random.Random(f"{SEED}/{number}"), RUNNERS):
                await adversary.strike(blow)
                struck[blow.kind] += 1
            status = await succeeded(api, name)
            adversary.listen()
            if not truth:
                await succeeded(api, "uninterrupted")
                truth = answers(s3, "uninterrupted")
            assert answers(s3, name) == truth
            left = {file.removeprefix(f"{name}.") for file in s3.names() if file.startswith(f"{name}.")}
            assert {"jsonl", "out.jsonl"} == {file for file in left if not file.endswith(".manifest.json")}
            assert len(left) == 3
            assert s3.unfinished() == []
            more = max(0, len(adversary.asked) - COUNT)
            repeated += more
            say(f"{name}: {len(status['attempts'])} attempts; {more} repeated of {adversary.may_repeat} allowed")
            assert more <= adversary.may_repeat, "what had an answer was asked again"
    say(f"killed: {', '.join(f'{kind} {count} times' for kind, count in struck.items())}; {repeated} repeated")

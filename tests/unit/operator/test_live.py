"""A job that takes its requests over HTTP: nothing to inspect, a place where it is reachable, no end to foretell."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpubatch_operator.core import lifecycle, livekey, publish
from gpubatch_operator.core.estimate import Estimate, Feed
from gpubatch_operator.core.lifecycle import advance
from gpubatch_operator.core.model import Job, Pod
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.kube.livekeys import LiveKeys
from gpubatch_operator.kube.pods import runner_pod
from gpubatch_operator.kube.store import Store
from gpubatch_operator.reconciler import Reconciler
from gpubatch_operator.settings import Settings
from gpubatch_runner import contract
from gpubatch_runner.environment import Environment
from gpubatch_runner.keys import Keys
from unit.operator.build import EPOCH, attempt, node, pod, raw_job, spec_of
from unit.operator.fake import Clock, Cluster, Recorder
from unit.operator.fake import LiveKeys as FakeKeys
from unit.operator.schema import check_status

JSON = dict[str, Any]
NOW = EPOCH + 100
LIVE: JSON = {"inference": {"model": "org/model", "servedModelName": "chat", "input": {"live": {}}}}
KEYED = copy.deepcopy(LIVE)
KEYED["inference"]["input"]["live"]["keyFrom"] = {"secretKeyRef": {"name": "chat-key", "key": "token"}}


def a_job(status: JSON | None = None, spec: JSON | None = None) -> Job:
    return convert.job_of(raw_job(spec=spec or LIVE, status=status))


def admitted(spec: JSON | None = None) -> Job:
    queued = a_job({"phase": "Queued", "queuedAt": "2027-01-15T08:00:00Z", "queueTicket": "1"}, spec)
    return a_job(lifecycle.admit(queued, "node-a", 0, "job-1-abc", NOW), spec)


def works(**changes: Any) -> Pod:
    base = pod(node="node-a", started=True, phase="Running", address="10.0.0.7:9808")
    return replace(base, **changes)


def report(completed: int = 0, stage: str = "Processing", at: float = NOW, message: str = "") -> ProgressReport:
    return ProgressReport(stage, message, None, completed, 0, None, 0, 0, 0.0, at, live=True)


def after(job: Job, *pods: Pod, says: ProgressReport | None = None, now: float = NOW) -> JSON:
    status = advance(job, pods, says, now, Limits()).status
    check_status(status)
    return status


def test_it_waits_in_the_queue_without_an_inspection():
    assert after(a_job())["phase"] == "Queued"


def test_it_says_where_it_is_reachable_once_its_runner_answers():
    job = admitted()
    assert "live" not in after(job, works())
    status = after(job, works(), says=report(stage="LoadingModel"))
    assert status["live"] == {"url": "http://10.0.0.7:9808/v1", "model": "chat"}
    # An operator that has just started hasn't asked the runner yet.
    assert after(a_job(status), works())["live"] == status["live"]


@pytest.mark.parametrize("ip", ["10.0.0.7", "fd00::7"])
def test_its_address_is_the_pods(ip: str):
    raw = runner_pod(raw_job(spec=LIVE), spec_of(raw_job(spec=LIVE)), attempt(), Settings())
    raw["metadata"] |= {"uid": "u", "creationTimestamp": "2027-01-15T08:00:00Z", "resourceVersion": "1"}
    raw["status"] = {"podIP": ip}
    assert convert.pod_of(raw).address == ("10.0.0.7:9808" if "." in ip else "[fd00::7]:9808")


def test_it_is_not_reachable_any_more_once_its_attempt_is_stopped_or_has_ended():
    running = after(admitted(), works(), says=report(3))
    assert "live" in running
    cancelled = a_job(running, LIVE | {"cancel": True})
    assert "live" not in after(cancelled, works(), says=report(3))
    for message in (None, json.dumps({"succeeded": False, "reason": "Interrupted"})):
        ended = works(phase="Failed" if message is None else "Succeeded", terminated_message=message)
        assert "live" not in after(a_job(running), ended)
    assert "live" not in after(a_job(running), works(gone=True))
    assert "live" not in after(a_job(running), works(deleting=True), says=report(3))


def test_progress_counts_what_was_served_and_says_what_it_does():
    idle = "Serving; idle for 12 s, ends after 600 s idle."
    status = after(admitted(), works(), says=report(3, message=idle))
    assert status["phase"] == "Running"
    assert (status["progress"]["summary"], status["progress"]["completed"]) == ("3 served", 3)
    assert status["progress"]["message"] == idle
    assert "percent" not in status["progress"]
    assert "summary" not in after(admitted(), works(), says=report(stage="LoadingModel"))["progress"]


def test_idle_for_long_enough_it_has_succeeded():
    running = after(admitted(), works(), says=report(3))
    said = {"succeeded": True, "message": "Nobody wanted anything for 600 s.", "completed": 7, "failed": 1}
    status = after(a_job(running), works(phase="Succeeded", terminated_message=json.dumps(said)))
    assert status["phase"] == "Succeeded"
    assert status["progress"]["summary"] == "8 served"
    assert status["results"] == {"completed": 7, "failed": 1}
    [complete] = [c for c in status["conditions"] if c["type"] == "Complete"]
    assert complete["message"] == "7 requests answered, 1 failed; Nobody wanted anything for 600 s."


def test_nobody_foretells_its_end_but_those_behind_it_are_told_when_it_will_be_their_turn():
    estimate = Estimate(NOW, NOW, NOW + 100, NOW + 200)
    job = replace(admitted(), estimated_completion=NOW + 50)
    status: JSON = {"phase": "Running", "estimatedCompletionTime": "2027-01-15T08:00:00Z"}
    publish.completing(job, status, estimate)
    assert "estimatedCompletionTime" not in status
    assert publish.completion_is_stale(job, estimate, NOW)
    assert not publish.completion_is_stale(replace(job, estimated_completion=None), estimate, NOW)
    waits = replace(a_job(), phase=Phase.QUEUED)
    publish.waiting(waits, status, 1, (Reason.NODES_BUSY, "busy"), estimate, NOW)
    assert "estimatedStartTime" in status
    assert "estimatedCompletionTime" not in status
    behind = replace(a_job(), uid="behind", phase=Phase.QUEUED)
    found = Feed().estimates([behind], [a_job(after(admitted(), works(), says=report(3)))], [node()], NOW + 30)
    assert found["behind"].start > NOW + 30


# --- keys


def told(spec: JSON, digest: str | None = None) -> tuple[contract.RunSpec, JSON]:
    raw = raw_job(spec=spec)
    made = runner_pod(raw, spec_of(raw), attempt(), Settings(), key_digest=digest)
    return contract.RunSpec.model_validate_json(made["spec"]["containers"][0]["env"][0]["value"]), made


def test_its_runner_is_told_the_digest_of_the_key_and_never_the_key():
    key = livekey.key_of(b"s" * 32, "uid-job")
    run, made = told(LIVE, livekey.digest_of(key))
    assert run.live is not None
    assert (run.live.idle_timeout_seconds, run.input, run.output) == (600, None, None)
    assert key not in json.dumps(made)
    keys = Keys(run.live, Environment())
    assert keys.allow(f"Bearer {key}")
    assert not keys.allow(f"Bearer {livekey.key_of(b's' * 32, 'uid-other')}")
    assert run.live.drain_seconds < made["spec"]["terminationGracePeriodSeconds"]


def test_a_secret_of_its_own_is_the_only_key_and_is_mounted(tmp_path: Path):
    run, made = told(KEYED, livekey.digest_of("derived"))
    assert run.live is not None
    assert (run.live.key, run.live.key_digest) == ("secret://chat-key/token", None)
    [volume] = [v["secret"] for v in made["spec"]["volumes"] if "secret" in v]
    assert volume["secretName"] == "chat-key"
    (tmp_path / "chat-key").mkdir()
    (tmp_path / "chat-key" / "token").write_text("mine\n")
    keys = Keys(run.live, Environment(secrets_dir=tmp_path))
    assert keys.allow("Bearer mine")
    assert not keys.allow("Bearer derived")


class Secrets:
    """The Secrets of a namespace."""

    def __init__(self, data: JSON | None = None) -> None:
        self.found = {"data": data} if data is not None else None
        self.race = False

    async def get(self, path: str) -> JSON:
        if self.found is None:
            raise ApiError(404, "NotFound", path)
        return self.found

    async def create(self, path: str, body: JSON) -> JSON:
        if self.race:
            self.found = {"data": {"key": base64.b64encode(b"o" * 32).decode()}}
            raise ApiError(409, "AlreadyExists", path)
        self.found = body
        return body


async def test_the_secret_is_made_once_and_whoever_was_first_counts():
    secrets = Secrets()
    keys = LiveKeys(secrets, "ns", "gpubatch-live")  # type: ignore[arg-type]
    first = await keys.key("uid")
    assert await keys.key("uid") == first
    assert await keys.key("other") != first
    assert await keys.digest("uid") == livekey.digest_of(first)
    raced = Secrets()
    raced.race = True
    key = await LiveKeys(raced, "ns", "gpubatch-live").key("uid")  # type: ignore[arg-type]
    assert key == livekey.key_of(b"o" * 32, "uid")


async def test_a_secret_that_is_too_short_says_what_to_do():
    keys = LiveKeys(Secrets({"key": "eA=="}), "ns", "gpubatch-live")  # type: ignore[arg-type]
    with pytest.raises(ApiError, match="gpubatch-live has no key 'key' of 32 bytes or more; delete it"):
        await keys.key("uid")


class World:
    """An operator and its cluster of one node."""

    def __init__(self, patch: pytest.MonkeyPatch, keys: Any) -> None:
        self.clock, store = Clock(), Store(1)
        self.clock.rule(patch)
        self.cluster = Cluster(self.clock)
        self.cluster.add_node("node-0")
        self.reconciler = Reconciler(self.cluster, store, Settings(), Recorder(), keys)  # type: ignore[arg-type]
        self.store = store
        self.cluster.apply("live", LIVE)

    async def settle(self) -> JSON:
        for _ in range(3):
            self.cluster.deliver(self.store)
            await self.reconciler.round()
        assert not self.cluster.broken
        status: JSON = self.cluster.jobs["live"]["status"]
        return status


async def test_a_job_without_a_key_of_its_own_gets_one_that_is_derived(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, FakeKeys())
    assert (await world.settle())["phase"] == "Starting"
    [made] = world.cluster.pods.values()
    run = contract.RunSpec.model_validate_json(made["spec"]["containers"][0]["env"][0]["value"])
    assert run.live is not None
    assert run.live.key_digest == f"digest-of-{world.cluster.jobs['live']['metadata']['uid']}"


async def test_a_job_whose_key_cannot_be_made_says_so_and_fails(monkeypatch: pytest.MonkeyPatch):
    class Refused:
        async def digest(self, job_uid: str) -> str:
            raise ApiError(403, "Forbidden", "secrets is forbidden")

    world = World(monkeypatch, Refused())
    status = await world.settle()
    assert not world.cluster.pods
    assert status["pending"]["reason"] == "PodRejected"
    assert "secrets is forbidden (for the key of live requests;" in status["pending"]["message"]
    world.clock.now += Settings().start_seconds + 600
    assert (await world.settle())["phase"] == "Failed"

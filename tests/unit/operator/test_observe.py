"""Metrics count what happened: each once, with few labels, and never at the cost of a look at all jobs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from gpubatch_operator import logs, metrics, observe
from gpubatch_operator.core.model import Occupant, Snapshot
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.plan import plan
from gpubatch_operator.kube.store import Store
from gpubatch_operator.reconciler import Reconciler
from gpubatch_operator.settings import Settings
from unit.operator.build import EPOCH, GPU, attempt, gpu_shape, job, node, raw_job, raw_node, template_spec
from unit.operator.fake import Clock, Cluster, LiveKeys, Recorder, finished


class Since:
    """By how much samples have grown since the test began."""

    def __init__(self) -> None:
        self._before = {(s.name, *sorted(s.labels.items())): s.value for m in REGISTRY.collect() for s in m.samples}

    def __call__(self, name: str, **labels: str) -> float:
        before = self._before.get((name, *sorted(labels.items())), 0.0)
        return (REGISTRY.get_sample_value(name, labels) or 0.0) - before


@pytest.fixture
def since() -> Since:
    return Since()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.rule(monkeypatch)
    return clock


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """What is logged as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # pytest's own, which `force` would close
    logs.setup("json")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(out := io.StringIO())
    yield out
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def store() -> Iterator[Store]:
    """One that is scraped."""
    store = Store(1)
    observe.read_from(store)
    yield store
    for metric in vars(metrics).values():
        if isinstance(metric, metrics.Scraped):
            metric.read = None


def test_a_gpu_is_idle_only_while_a_job_waits_that_could_use_it(clock: Clock, since: Since) -> None:
    nodes = [node("big", gpus=8), node("small"), node("cordoned", unschedulable=True)]
    busy = [Occupant("big", 0, GPU, 1), Occupant("small", 0, GPU, 1)]
    observer = observe.Observer()
    for waiting, idle in (
        ([], 0),
        ([job(phase=Phase.VALIDATING)], 0),
        ([job(of=gpu_shape(gpus=16))], 0),
        ([job()], 7),
        ([job("a"), job("b", of=gpu_shape(gpus=4))], 7),
    ):
        snapshot = Snapshot(waiting, nodes, busy, EPOCH)
        before = since("gpubatch_idle_gpu_seconds_total")
        observer.planned(snapshot, plan(snapshot))
        clock.now += 10
        observer.planned(Snapshot((), nodes, busy, EPOCH), plan(Snapshot((), nodes, busy, EPOCH)))
        assert since("gpubatch_idle_gpu_seconds_total") - before == 10 * idle


def test_a_plan_counts_as_an_attempt_only_while_jobs_wait(clock: Clock, since: Since) -> None:
    observer = observe.Observer()
    for waiting, nodes in (([], [node()]), ([job()], [node()]), ([job()], []), ([job()], [])):
        snapshot = Snapshot(waiting, nodes, (), EPOCH)
        observer.planned(snapshot, plan(snapshot))
    assert since("gpubatch_admission_attempts_total", result="success") == 1
    assert since("gpubatch_admission_attempts_total", result="inadmissible") == 2


def test_an_ended_job_is_counted_once_with_its_work(since: Since) -> None:
    observer = observe.Observer()
    running = job(phase=Phase.RUNNING, attempt=attempt())
    usage = {"inputTokens": 1000, "outputTokens": 200}
    results = {"completed": 9, "failed": 1, "usage": usage}
    status = {"phase": "Succeeded", "activeSeconds": 61.5, "results": results}
    observer.changed(running, status, 0.0, others_wait=False)
    observer.changed(job(phase=Phase.SUCCEEDED, status=status), status, 0.0, others_wait=False)
    assert since("gpubatch_finished_jobs_total", phase="Succeeded") == 1
    assert since("gpubatch_run_time_seconds_sum", phase="Succeeded") == 61.5
    assert (since("gpubatch_requests_total", result="completed"), since("gpubatch_tokens_total", kind="input")) == (
        9,
        1000,
    )
    assert (since("gpubatch_requests_total", result="failed"), since("gpubatch_tokens_total", kind="output")) == (
        1,
        200,
    )


def test_a_reason_that_isnt_ours_is_no_label(since: Since) -> None:
    observer = observe.Observer()
    running = job(phase=Phase.RUNNING, attempt=attempt())
    for reason in ("Lost", "a-users-own-words", "others"):
        observer.changed(running, {"phase": "Queued", "attempts": [{"reason": reason}]}, 0.0, others_wait=False)
    assert since("gpubatch_evicted_jobs_total", reason="Lost") == 1
    assert since("gpubatch_evicted_jobs_total", reason="_other") == 2


def test_a_handoff_is_from_the_end_of_a_job_to_the_pod_of_the_next(clock: Clock, since: Since) -> None:
    observer = observe.Observer()
    running = job(phase=Phase.RUNNING, attempt=attempt())
    next_one = job("next", waiting_since=EPOCH - 300, priority=5)
    for others_wait in (False, True):
        seen, clock.now = clock.now, clock.now + 0.2
        observer.changed(running, {"phase": "Succeeded"}, seen, others_wait)
        decided, clock.now = clock.now, clock.now + 0.05
        observer.admitted(next_one, attempt(), decided)
    assert since("gpubatch_handoff_gap_seconds_count") == 1, "nobody waited for the first"
    assert since("gpubatch_handoff_gap_seconds_sum") == pytest.approx(0.25)
    assert since("gpubatch_admission_duration_seconds_sum") == pytest.approx(0.1)
    assert since("gpubatch_admission_wait_time_seconds_sum", priority="high") == 600


def test_the_queue_is_counted_at_a_scrape_by_namespace_and_priority(store: Store) -> None:
    for i in range(300):
        raw = raw_job(f"j{i}", template_spec(priority=(-7, 0, 9)[i % 3]), {"phase": "Queued", "queueTicket": "1"})
        raw["metadata"]["namespace"] = f"team-{i // 2}"
        store.put_job(raw)
    store.put_node(raw_node())
    [family] = metrics.PENDING.collect()
    assert sum(s.value for s in family.samples) == 300
    assert {s.labels["priority"] for s in family.samples} == {"low", "normal", "high"}
    assert len({s.labels["namespace"] for s in family.samples}) <= observe.MAX_NAMESPACES + 1
    assert REGISTRY.get_sample_value("gpubatch_slots") == 1
    assert REGISTRY.get_sample_value("gpubatch_admitted_active_jobs") == 0


def test_a_replica_that_follows_says_nothing_of_the_queue() -> None:
    [family] = metrics.PENDING.collect()
    assert family.samples == []


async def test_each_line_about_a_job_names_it_its_uid_and_its_attempt(clock: Clock, said: io.StringIO) -> None:
    cluster, operators_store = Cluster(clock), Store(1)
    cluster.add_node("node-0")
    loop = Reconciler(cluster, operators_store, Settings(), Recorder(), LiveKeys())  # type: ignore[arg-type]
    for name in ("a", "b"):
        cluster.apply(name, template_spec())
    for _ in range(6):
        cluster.deliver(operators_store)
        await loop.round()
        for pod in [p for p in cluster.pods.values() if not finished(p)]:
            cluster.bind(pod)
            cluster.end(pod, 0)
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    told = {(line["job"], line["uid"], line["attempt"], line["message"].partition(":")[0]) for line in lines}
    for name in ("a", "b"):
        uid = cluster.jobs[name]["metadata"]["uid"]
        assert {(f"default/{name}", uid, 1, "Starting"), (f"default/{name}", uid, 1, "Succeeded")} <= told
        assert (f"default/{name}", uid, 0, "Queued") in told


async def test_a_line_of_another_task_isnt_about_the_job(said: io.StringIO) -> None:
    async def work() -> None:
        logs.about(job("a"), 3)
        logging.getLogger("any").info("mine")

    await asyncio.create_task(work())
    logging.getLogger("any").info("of nobody")
    mine, other = (json.loads(line) for line in said.getvalue().splitlines())
    assert (mine["job"], mine["uid"], mine["attempt"]) == ("default/a", "uid-a", 3)
    assert not {"job", "uid", "attempt"} & other.keys()

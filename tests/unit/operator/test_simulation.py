"""The real reconciler against a cluster in which everything goes wrong that may: no job is lost, doubled or starved.

Hypothesis draws what users, kubelets, networks and crashes do, and in which order; the cluster (`fake.py`) checks
each write of the operator. At the end the trouble stops, and every job that is still there must come to its end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubatch_operator import reconciler as reconciler_module
from gpubatch_operator.core.phases import FINISHED
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import resync
from gpubatch_operator.publisher import Publisher
from gpubatch_operator.reconciler import Reconciler
from gpubatch_operator.settings import Settings
from gpubatch_runner.contract import STOP_ANNOTATION
from unit.operator.build import inference_spec, template_spec
from unit.operator.fake import Clock, Cluster, CrashError, LiveKeys, Recorder, finished, inspection, outcome

JSON = dict[str, Any]
EVENTS = ["queued", "started", "progress", "succeeded", "failed", "cancelled", "retrying"]
WEBHOOKS = [{"url": "https://example.com/hook"}, {"name": "all", "url": "https://example.com/all", "events": EVENTS}]
TROUBLE = (None, None, "refused", "lost answer", "crash before", "crash after")
HOW = ("well", "badly", "interrupted", "silently", "evicted")
STUCK = ("ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")


class Unforeseen(logging.Handler):
    """The reconciler tries again whatever fails; but only what the cluster does may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, OSError):
            self.errors.append(error)


class Simulation:
    """One history of a cluster. Each step takes a number, which chooses among what there is to choose from."""

    def __init__(self, patch: pytest.MonkeyPatch, nodes: list[int], slots: int, depth: int) -> None:
        self.clock = Clock()
        self.clock.rule(patch)
        self.loop = asyncio.Runner()
        self.unforeseen = Unforeseen()
        patch.setattr(reconciler_module.log, "handlers", [self.unforeseen])
        self.cluster = Cluster(self.clock)
        self.settings = Settings(slots_per_node=slots, max_queue_depth=depth, max_total_queued_requests=2 * depth)
        self.born = 0
        self.nodes = {f"node-{i}": gpus for i, gpus in enumerate(nodes)}
        self.most_gpus = max(nodes)
        self.add_nodes()
        self.boot()

    def add_nodes(self) -> None:
        """Those that there should be and that aren't there."""
        for name in sorted(self.nodes.keys() - self.cluster.nodes.keys()):
            self.cluster.add_node(name, self.nodes[name])

    def boot(self) -> None:
        """The operator's process starts with an empty memory."""
        self.store = Store(self.settings.slots_per_node, self.settings.queue_limits())
        self.reconciler = Reconciler(self.cluster, self.store, self.settings, Recorder(), LiveKeys())  # type: ignore[arg-type]
        self.cluster.events.clear()
        self.loop.run(resync(self.cluster, self.store))  # type: ignore[arg-type]

    def operate(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            try:
                self.loop.run(self.reconciler.round())
            except CrashError:
                self.boot()
            for error in [*self.cluster.broken, *self.unforeseen.errors]:
                raise error

    def pods(self, *, bound: bool | None = None, kind: str | None = None) -> list[JSON]:
        return [
            p
            for p in self.cluster.pods.values()
            if not finished(p)
            and bound in (None, "nodeName" in p["spec"])
            and kind in (None, p["metadata"]["labels"][convert.KIND])
        ]

    def a_pod(self, n: int, **which: Any) -> JSON | None:
        there = self.pods(**which)
        return there[n % len(there)] if there else None

    # --- users

    def submit(self, n: int) -> None:
        self.born += 1
        more: JSON = {"priority": n % 3 - 1, "gpus": min(1 + n // 3 % 2, self.most_gpus)}
        more |= {"webhooks": WEBHOOKS} if n // 6 % 2 else {}
        more |= {"backoffLimit": 2} if n % 5 == 1 else {}
        more |= {"activeDeadlineSeconds": 60} if n % 7 == 2 else {}
        more |= {"queueDeadlineSeconds": 300} if n % 7 == 3 else {}
        more |= {"completionWindowSeconds": 400} if n % 7 == 4 else {}
        more |= {"ttlSecondsAfterFinished": 30} if n % 7 == 5 else {}
        self.cluster.apply(f"job-{self.born}", inference_spec(**more) if n // 12 % 3 else template_spec(**more))

    def delete_job(self, n: int) -> None:
        if self.cluster.jobs:
            self.cluster.delete_job(sorted(self.cluster.jobs)[n % len(self.cluster.jobs)])

    def edit(self, n: int) -> None:
        """A user changes their mind."""
        if not self.cluster.jobs:
            return
        name = sorted(self.cluster.jobs)[n // 5 % len(self.cluster.jobs)]
        match n % 5:
            case 0:
                self.cluster.edit(name, suspend=True)
            case 1:
                self.cluster.edit(name, suspend=False)
            case 2:
                self.cluster.edit(name, cancel=True)
            case 3:
                self.cluster.edit(name, runId=f"run-{n}", cancel=False)
            case 4:
                self.cluster.edit(name, priority=n % 7 - 3)

    # --- the operator

    def look(self, n: int) -> None:
        """The operator sees what happened, and acts; undisturbed."""
        self.cluster.deliver(self.store)
        self.operate(1 + n % 2)

    def act_in_trouble(self, n: int) -> None:
        """The next writes go wrong, in any way that they may."""
        self.cluster.trouble = [TROUBLE[n % 6], TROUBLE[n // 6 % 6]]
        self.cluster.deliver(self.store)
        self.operate(2)
        self.cluster.trouble = []

    def act_blindly(self, n: int) -> None:
        """The events come late."""
        self.operate(1 + n % 2)

    def lose_events(self, _: int) -> None:
        self.cluster.events.clear()

    def see_old_events_again(self, _: int) -> None:
        events = self.cluster.events
        self.cluster.deliver(self.store)
        self.cluster.events = events
        self.cluster.deliver(self.store)

    def resync(self, _: int) -> None:
        self.loop.run(resync(self.cluster, self.store))  # type: ignore[arg-type]

    def restart(self, _: int) -> None:
        self.boot()

    def wait(self, n: int) -> None:
        self.clock.now += (1, 10, 61, 301)[n % 4]

    # --- scheduler and kubelets

    def kubelets(self, n: int) -> None:
        """Every pod goes one step on; what has started may end, well or not."""
        for pod in self.pods():
            if "nodeName" not in pod["spec"]:
                self.cluster.bind(pod)
            elif pod["status"]["phase"] == "Pending":
                self.cluster.start(pod)
            elif why := pod["metadata"]["annotations"].get(STOP_ANNOTATION):
                self.cluster.end(pod, 0, outcome(succeeded=False, completed=1, reason=why, message="as told"))
            elif n % 2:
                self.finish(pod, "well")

    def end(self, n: int) -> None:
        if pod := self.a_pod(n, bound=True):
            self.finish(pod, HOW[n % len(HOW)])

    def delete_pod(self, n: int) -> None:
        if pod := self.a_pod(n // 2):
            if n % 2:
                self.cluster.vanish(pod)
            else:
                self.cluster.delete_pod(pod)

    def get_stuck(self, n: int) -> None:
        if pod := self.a_pod(n // 3, bound=True):
            waiting = {"state": {"waiting": {"reason": STUCK[n % 3], "message": "m" * 6000}}}
            self.cluster.set_status(pod, "Pending", waiting, None)

    def crash_engine(self, n: int) -> None:
        if pod := self.a_pod(n, bound=True, kind="run"):
            ended = {"exitCode": 137, "reason": ("OOMKilled", "Error")[n % 2], "message": "e" * 3000}
            engine = {"restartCount": n % 7, "state": {"waiting": {}}, "lastState": {"terminated": ended}}
            self.cluster.set_status(pod, "Running", {"state": {"running": {}}}, engine)

    def report(self, n: int) -> None:
        if raw := self.a_pod(n, bound=True, kind="run"):
            pod = convert.pod_of(raw)
            done = n % 4
            stage = ("LoadingModel", "Processing", "Processing", "Uploading")[done]
            self.store.put_report(pod, ProgressReport(stage, "", 3, done, 0, 1.5, 10, 20, 5.0, self.clock.now))

    def lose_node(self, n: int) -> None:
        """For good: at the end of the history another one comes in its place."""
        if not self.cluster.nodes:
            return
        name = sorted(self.cluster.nodes)[n % len(self.cluster.nodes)]
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        for pod in self.pods(bound=True, kind="run"):
            if pod["spec"]["nodeName"] == name:
                self.cluster.end(pod, 137, conditions=[disrupted])
                self.cluster.delete_pod(pod)
        self.cluster.drop_node(name)
        self.nodes[f"{name}-new"] = self.nodes.pop(name)

    def finish(self, pod: JSON, how: str) -> None:
        bad = {"reason": "InternalError", "message": "no luck"}
        match how:
            case "well":
                self.cluster.end(pod, 0, self.words(pod, good=True))
            case "badly":
                self.cluster.end(
                    pod, 0 if "runner" in str(pod["spec"]["containers"]) else 1, self.words(pod, good=False)
                )
            case "interrupted":
                self.cluster.end(pod, 0, outcome(succeeded=False, completed=1, **(bad | {"reason": "Interrupted"})))
            case "silently":
                self.cluster.end(pod, 137)
            case "evicted":
                disrupted = {"type": "DisruptionTarget", "status": "True"}
                self.cluster.end(pod, 143, conditions=[disrupted], reason="Evicted", message="x" * 5000)

    @staticmethod
    def words(pod: JSON, *, good: bool) -> str:
        if pod["metadata"]["labels"][convert.KIND] == "inspect":
            errors = [{"line": 2, "code": "invalid_json", "message": "y" * 2000}] * 12
            return (
                inspection()
                if good
                else inspection(valid=False, invalid=1, reason="InvalidRequests", firstErrors=errors)
            )
        return (
            outcome() if good else outcome(succeeded=False, completed=1, failed=2, reason="EngineFailed", message="z")
        )

    # --- the promise

    def all_is_well_that_ends_well(self) -> None:
        """The trouble stops: every job comes to its end, no finalizer is left behind, and then nothing is written."""
        self.add_nodes()
        for name in self.cluster.jobs:
            self.cluster.edit(name, suspend=False)
        for _ in range(30 + 25 * len(self.cluster.jobs)):
            self.clock.now += 31
            self.loop.run(resync(self.cluster, self.store))  # type: ignore[arg-type]
            self.cluster.events.clear()
            self.operate()
            for pod in self.pods():
                if "nodeName" in pod["spec"]:
                    self.finish(pod, "well")
                else:
                    self.cluster.bind(pod)
            if all(j["status"].get("phase") in FINISHED for j in self.cluster.jobs.values()):
                break
        phases = {n: j["status"].get("phase") for n, j in self.cluster.jobs.items()}
        assert set(phases.values()) <= FINISHED, phases
        for _ in range(3):
            self.loop.run(resync(self.cluster, self.store))  # type: ignore[arg-type]
            self.operate()
            self.clock.now += 31
        assert not [p for p in self.cluster.pods.values() if p["metadata"].get("finalizers") and finished(p)]
        assert not self.pods(), "a finished job left a pod that still runs"
        writes = self.cluster.writes
        publisher = Publisher(self.cluster, self.store, self.reconciler)  # type: ignore[arg-type]
        for _ in range(3):
            self.clock.now += 31
            self.operate()
            self.loop.run(publisher.once(self.clock.now))
        assert self.cluster.writes == writes, "an operator with nothing to do writes nothing"
        # Twice only if all that was seen of the first pod was its creation.
        assert max(self.cluster.bound.values(), default=0) <= 2, self.cluster.bound


STEPS = (
    # how things should go, several times as often as anything else
    *(["look"] * 8 + ["kubelets"] * 8 + ["submit"] * 2),
    *("act_in_trouble", "act_in_trouble", "act_blindly", "lose_events", "see_old_events_again", "resync", "restart"),
    *("wait", "end", "end", "delete_pod", "get_stuck", "crash_engine", "report", "delete_job", "lose_node"),
    *("edit", "edit", "edit"),
)


@settings(max_examples=settings().max_examples // 2)
@given(
    nodes=st.lists(st.sampled_from([1, 1, 2, 4]), min_size=1, max_size=3),
    slots=st.sampled_from([1, 1, 2]),
    depth=st.sampled_from([2, 20]),
    jobs=st.lists(st.integers(0, 35), min_size=1, max_size=5),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 63)), min_size=20, max_size=80),
)
def test_whatever_goes_wrong_no_job_is_lost_or_doubled(
    nodes: list[int], slots: int, depth: int, jobs: list[int], steps: list[tuple[str, int]]
):
    with pytest.MonkeyPatch.context() as patch:
        history = Simulation(patch, nodes, slots, depth)
        with history.loop:
            for n in jobs:
                history.submit(n)
            for step, n in steps:
                getattr(history, step)(n)
            history.all_is_well_that_ends_well()

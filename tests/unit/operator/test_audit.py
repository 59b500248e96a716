"""The audit of a history finds each violation that it is there to find: else its silence would prove nothing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from gpubatch_operator.core.clock import iso
from support.audit import Findings, audit
from support.history import Event
from unit.operator.build import EPOCH, inference_spec, template_spec

JSON = dict[str, Any]


class Story:
    """A history told event by event, a second apart; by default it breaks no promise."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.version = 100
        self.there: dict[str, JSON] = {}

    @property
    def now(self) -> float:
        return EPOCH + len(self.events)

    def tell(self, kind: str, what: str, raw: JSON) -> None:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.there[raw["metadata"]["name"]] = raw
        self.events.append(Event(self.version, kind, what, copy.deepcopy(raw), float(len(self.events))))

    def later(self, seconds: int) -> None:
        """Nothing happens meanwhile."""
        for _ in range(seconds):
            self.node("elsewhere")

    def node(self, name: str = "n", slots: int = 1, **spec: Any) -> None:
        raw = {
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"gpubatch.dev/slots": str(slots)}},
            "spec": spec,
            "status": {
                "allocatable": {} if name == "elsewhere" else {"nvidia.com/gpu": "2"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        self.tell("nodes", "MODIFIED" if name in self.there else "ADDED", raw)

    def job(self, name: str, namespace: str = "default", inference: bool = False, **spec: Any) -> None:
        """Created, then seen by the operator."""
        meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": iso(self.now)}
        body = inference_spec(**spec) if inference else template_spec(**spec)
        self.tell("jobs", "ADDED", {"metadata": {**meta, "resourceVersion": "0"}, "spec": body})
        self.status(name, phase="Queued", queuedAt=iso(self.now), queueTicket=str(self.version))

    def edit(self, name: str, **spec: Any) -> None:
        raw = self.there[name]
        self.tell("jobs", "MODIFIED", raw | {"spec": raw["spec"] | spec})

    def status(self, name: str, **fields: Any) -> None:
        raw = self.there[name]
        self.tell("jobs", "MODIFIED", raw | {"status": raw.get("status", {}) | fields})

    def admit(self, name: str, node: str = "n", slot: int = 0, number: int = 1, pod: bool = True) -> None:
        before = self.there[name]["status"].get("attempts", [])
        attempt = {"number": number, "node": node, "slot": slot, "podName": f"{name}-{number}", "state": "Active"}
        attempt["startTime"] = iso(self.now)
        self.status(name, phase="Starting", attempts=[*before, attempt])
        if pod:
            self.pod(name, node, slot, number)

    def pod(self, name: str, node: str = "n", slot: int = 0, number: int = 1) -> None:
        labels = {"gpubatch.dev/kind": "run", "gpubatch.dev/job-uid": f"uid-{name}"}
        labels |= {"gpubatch.dev/attempt": str(number), "gpubatch.dev/slot": str(slot)}
        meta = {"name": f"{name}-{number}", "namespace": "default", "uid": f"pod-{name}-{number}", "labels": labels}
        run = {"name": "GPUBATCH_RUN", "value": json.dumps({"run": f"uid-{name}"})}
        main = {"name": "main", "env": [run]}
        self.tell("pods", "ADDED", {"metadata": meta, "spec": {"containers": [main]}, "status": {"phase": "Pending"}})
        raw = self.there[f"{name}-{number}"]
        self.tell("pods", "MODIFIED", raw | {"spec": raw["spec"] | {"nodeName": node}})

    def pod_ends(self, name: str, number: int = 1, output: str = "") -> None:
        raw = self.there[f"{name}-{number}"]
        message = json.dumps({"succeeded": True, "output": output}) if output else ""
        end = {"exitCode": 0, "finishedAt": iso(self.now), "message": message}
        status = {"phase": "Succeeded", "containerStatuses": [{"name": "main", "state": {"terminated": end}}]}
        self.tell("pods", "MODIFIED", raw | {"status": status})

    def pod_goes(self, name: str, number: int = 1) -> None:
        self.tell("pods", "DELETED", self.there[f"{name}-{number}"])

    def close(self, name: str, phase: str = "Succeeded", **fields: Any) -> None:
        attempts = self.there[name]["status"].get("attempts", [])
        closed = [*attempts[:-1], *(a | {"state": phase} for a in attempts[-1:])]
        self.status(name, phase=phase, attempts=closed, completionTime=iso(self.now), **fields)

    def lose(self, name: str) -> None:
        """Its attempt."""
        self.status(
            name, phase="Queued", attempts=[a | {"state": "Lost"} for a in self.there[name]["status"]["attempts"]]
        )

    def lives(self, name: str, node: str = "n", slot: int = 0) -> None:
        """From its admission to its end."""
        self.admit(name, node, slot)
        self.status(name, phase="Running")
        self.pod_ends(name)
        self.close(name)

    def judge(self, **how: Any) -> Findings:
        return audit(self.events, **how)

    def broken(self, **how: Any) -> set[str]:
        return set(self.judge(**how).broken)


@pytest.fixture
def story() -> Story:
    told = Story()
    told.node()
    return told


def test_a_good_history_has_no_findings_and_says_how_much_was_looked_at(story: Story):
    for name in ("a", "b", "c"):
        story.job(name)
    story.later(6)
    for name in ("a", "b", "c"):
        story.lives(name)
    found = story.judge()
    assert not found.broken
    assert found.counts["admissions"] == 3
    assert found.counts["jobs that an admission was compared with"] == 2 + 1
    assert found.counts["Succeeded"] == 3


def test_two_pods_in_a_slot(story: Story):
    story.job("a")
    story.job("b")
    story.admit("a")
    story.close("a")  # its pod still lives
    story.admit("b")
    assert {"no two runner pods in one slot", "a slot is given to one job"} <= story.broken()


def test_a_slot_that_is_given_twice(story: Story):
    story.job("a")
    story.job("b")
    story.admit("a", pod=False)
    story.admit("b", pod=False)
    assert "a slot is given to one job" in story.broken()


def test_a_pod_without_a_recorded_attempt(story: Story):
    story.job("a")
    story.pod("a")
    assert "an attempt is recorded before its pod exists" in story.broken()


def test_a_pod_on_another_node_than_planned(story: Story):
    story.job("a")
    story.admit("a", pod=False)
    story.pod("a", node="m")
    assert "a pod runs where it was planned" in story.broken()


@pytest.mark.parametrize("late", [{}, {"priority": 0}])
def test_a_job_that_overtakes(story: Story, late: JSON):
    story.job("first")
    story.job("second", **late)
    story.later(6)
    story.lives("second")
    story.lives("first")
    assert story.broken() == {"jobs are admitted in order"}


def test_an_edited_priority_counts_once_the_operator_must_have_heard_of_it(story: Story):
    story.job("a")
    story.job("b")
    story.edit("b", priority=5)
    story.admit("a")
    story.pod_ends("a")
    story.close("a")
    story.lives("b")
    assert story.broken() == set()

    story = Story()
    story.node()
    story.job("a")
    story.job("b")
    story.edit("b", priority=5)
    story.later(6)
    story.lives("a")
    story.lives("b")
    assert story.broken() == {"jobs are admitted in order"}


def test_a_plan_s_admissions_may_land_in_any_order_if_each_has_a_slot(story: Story):
    story.node("m")
    story.job("a")
    story.job("b")
    story.admit("b", "m")
    story.admit("a", "n")
    for name in ("a", "b"):
        story.pod_ends(name)
        story.close(name)
    assert story.broken() == set()


def test_one_free_slot_is_no_excuse_for_overtaking_two(story: Story):
    story.node("m")
    for name in ("a", "b", "c"):
        story.job(name)
    story.later(6)
    story.lives("c", "m")
    story.lives("a")
    story.lives("b")
    assert story.broken() == {"jobs are admitted in order"}


def test_a_cordoned_node_is_no_excuse_once_that_is_known(story: Story):
    story.node("m", unschedulable=True)
    story.job("a")
    story.job("b")
    story.later(6)
    story.lives("b")
    story.lives("a")
    assert story.broken() == {"jobs are admitted in order"}


@pytest.mark.parametrize(
    "why",
    [{"suspend": True}, {"cancel": True}, {"nodeSelector": {"no": "such"}}, {"gpus": 3}],
)
def test_who_does_not_fit_or_may_not_run_is_not_overtaken(story: Story, why: JSON):
    story.job("first", **why)
    story.job("second")
    story.later(6)
    story.lives("second")
    story.close("first", "Cancelled")
    assert story.broken() == set()


def test_who_is_in_back_off_is_not_overtaken(story: Story):
    story.job("first")
    lost = {"number": 1, "node": "n", "slot": 0, "podName": "first-1", "startTime": iso(story.now)}
    attempts = [lost | {"state": "Failed", "endTime": iso(story.now + 20)}]
    story.status("first", attempts=attempts, firstStartTime=iso(story.now))
    story.job("second")
    story.later(6)
    story.lives("second")
    story.close("first", "Failed")
    assert story.broken() == set()


def test_a_namespace_s_share_holds_back_only_its_own(story: Story):
    story.node("m")
    story.job("running", namespace="small")
    story.admit("running", "m")
    story.job("a", namespace="small")
    story.job("b")
    story.later(6)
    story.admit("b")
    assert "jobs are admitted in order" not in story.broken(caps={"small": 1})
    assert "jobs are admitted in order" in story.broken(caps={"small": 2})


def test_a_share_that_has_just_become_free_may_be_news_to_an_older_plan(story: Story):
    story.node("m")
    story.job("running", namespace="small")
    story.admit("running", "m")
    story.job("a", namespace="small")
    story.job("b")
    story.later(6)
    story.pod_ends("running")
    story.close("running")
    story.admit("b")
    assert "jobs are admitted in order" not in story.broken(caps={"small": 1})


def test_a_job_just_queued_may_not_be_overtaken_unless_writes_land_late(story: Story):
    story.job("first")
    story.job("second")
    story.lives("second")
    story.lives("first")
    assert story.broken() == {"jobs are admitted in order"}
    assert story.broken(entered=5) == set()


def test_a_job_that_disappears(story: Story):
    story.job("a")
    story.tell("jobs", "DELETED", story.there["a"])
    assert story.broken() == {"no job is lost"}
    assert story.broken(deleted={"uid-a"}) == set()


def test_a_job_that_never_ends(story: Story):
    story.job("a")
    assert story.broken() == {"every job ends"}


def test_a_pod_that_is_left_running(story: Story):
    story.job("a")
    story.admit("a")
    story.close("a", "Cancelled")
    assert story.broken() == {"every job ends"}


def test_a_finished_job_that_changes_its_result(story: Story):
    story.job("a")
    story.lives("a")
    story.status("a", phase="Failed")
    assert story.broken() >= {"no job has two results"}


def test_a_finished_job_that_runs_again_unasked(story: Story):
    story.job("a")
    story.lives("a")
    story.status("a", phase="Queued")
    story.close("a")
    assert "no job has two results" in story.broken()


def test_a_finished_job_that_runs_again_as_asked(story: Story):
    story.job("a")
    story.lives("a")
    story.edit("a", runId="2")
    story.status("a", phase="Queued", runId="2")
    story.admit("a", number=2)
    story.pod_ends("a", 2)
    story.close("a")
    assert story.broken() == set()


def test_a_template_that_had_succeeded_and_is_run_again(story: Story):
    story.job("a")
    story.admit("a")
    story.pod_ends("a")
    story.lose("a")
    story.admit("a", number=2)
    story.pod_ends("a", 2)
    story.close("a")
    assert story.broken() == {"what succeeded is not run again"}


def test_inference_whose_work_is_done_twice(story: Story):
    story.job("a", inference=True)
    story.admit("a")
    story.pod_ends("a", output="by-1")
    story.pod_goes("a")
    story.lose("a")
    story.admit("a", number=2)
    story.pod_ends("a", 2, output="by-2")
    story.close("a")
    assert story.broken() == {"no job has two results"}


def test_inference_whose_next_attempt_finds_the_result(story: Story):
    story.job("a", inference=True)
    story.admit("a")
    story.pod_ends("a", output="by-1")
    story.pod_goes("a")
    story.lose("a")
    story.admit("a", number=2)
    story.pod_ends("a", 2, output="by-1")
    story.close("a", results={"output": "by-1"})
    assert story.broken() == set()


def test_a_new_run_with_the_result_of_the_old_one(story: Story):
    story.job("a")
    story.admit("a")
    story.pod_ends("a")
    story.close("a", results={"output": "by-1"})
    story.edit("a", runId="2")
    story.status("a", phase="Queued", runId="2", results={})
    story.admit("a", number=2)
    story.pod_ends("a", 2)
    story.close("a", results={"output": "by-1"})
    assert story.broken() == {"a new run has a result of its own"}


def test_a_phase_that_may_not_follow(story: Story):
    story.job("a")
    story.status("a", phase="Running", attempts=[])
    assert "phases change as the table says" in story.broken()


def test_an_attempt_beside_an_open_one(story: Story):
    story.job("a")
    story.admit("a", pod=False)
    first = story.there["a"]["status"]["attempts"][0]
    story.status("a", phase="Starting", attempts=[first, first | {"number": 2, "podName": "a-2"}])
    assert "one attempt at a time" in story.broken()

"""What users want of a job's life: suspend, cancel, run again, retries, deadlines, clean-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpubatch_operator.core import lifecycle, publish
from gpubatch_operator.core.actions import Expire, Inspect, Remove, Run, Step, Stop
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.limits import Gate, NamespaceCaps, QueueLimits
from gpubatch_operator.core.model import AttemptState, ContainerTrouble, Job, Pod
from gpubatch_operator.core.phases import CHANGES, FINISHED, Phase
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.pods import run_spec
from gpubatch_operator.settings import Settings
from unit.operator import build
from unit.operator.build import EPOCH, inference_spec, pod, raw_job, spec_of, template_spec
from unit.operator.fake import inspection, outcome
from unit.operator.schema import check_status

JSON = dict[str, Any]
NOW = EPOCH + 100
LIMITS = Limits()
SUSPENDED = outcome(succeeded=False, reason="Suspended", message="")


class Story:
    """One job whose user edits its spec, step by step."""

    def __init__(self, spec: JSON | None = None, **wishes: Any) -> None:
        self.spec, self.status, self.now, self.meta = (spec or inference_spec()) | wishes, {}, NOW, dict[str, Any]()

    @property
    def raw(self) -> JSON:
        raw = raw_job(spec=self.spec, status=self.status)
        return raw | {"metadata": raw["metadata"] | self.meta}

    @property
    def job(self) -> Job:
        return convert.job_of(self.raw)

    @property
    def newest(self) -> JSON:
        return self.status["attempts"][-1]

    def wish(self, **fields: Any) -> None:
        self.spec = self.spec | fields

    def step(self, *pods: Pod, gate: Gate | None = None) -> Step:
        before = self.job
        out = lifecycle.advance(before, pods, None, self.now, LIMITS, gate=gate)
        check_status(out.status)
        after = Phase(out.status["phase"])
        assert after is before.phase or after in CHANGES[before.phase]
        self.status = out.status
        again = lifecycle.advance(self.job, pods, None, self.now, LIMITS, gate=gate)
        assert again.status == self.status, "a step that is taken twice changes nothing more"
        return out

    def phase(self, *pods: Pod, **more: Any) -> str:
        return str(self.step(*pods, **more).status["phase"])

    def queue(self) -> None:
        """Until it waits for a slot."""
        self.step()
        if self.job.phase is Phase.VALIDATING:
            self.step(pod(kind="inspect", phase="Succeeded", terminated_message=inspection()))
        assert self.job.phase is Phase.QUEUED

    def admit(self) -> Pod:
        """Until its pod runs."""
        self.status = lifecycle.admit(self.job, "node-a", 0, "job-1-abc", self.now)
        number = self.job.attempts
        running = pod(uid=f"pod-{number}", attempt=number, node="node-a", phase="Running", started=True)
        self.step(running)
        return running

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]


@pytest.fixture
def running() -> tuple[Story, Pod]:
    story = Story()
    story.queue()
    return story, story.admit()


# --- suspend


def test_a_suspended_job_leaves_the_queue_and_keeps_its_place_by_creation():
    story = Story()
    story.queue()
    place = story.job.rank
    story.wish(suspend=True)
    assert story.phase() == "Suspended"
    assert (story.status["pending"]["reason"], story.condition("Suspended")) == ("Suspended", ("True", "Suspended"))
    assert "queuePosition" not in story.status
    story.now += 1000
    story.wish(suspend=False)
    assert story.phase() == "Queued", "what was found valid isn't inspected again"
    assert (story.job.rank, story.condition("Suspended")) == (place, ("False", "Resumed"))


def test_a_job_created_suspended_does_nothing_until_it_is_resumed():
    story = Story(suspend=True)
    assert story.step().actions == ()
    assert story.job.phase is Phase.SUSPENDED
    story.wish(suspend=False)
    assert story.phase() == "Validating"
    assert story.step().actions == (Inspect(),)


def test_suspending_while_its_input_is_checked_takes_the_inspect_pod_away():
    story = Story()
    story.step()
    story.wish(suspend=True)
    inspecting = pod(kind="inspect", phase="Running")
    assert Remove(inspecting) in story.step(inspecting).actions


def test_a_running_job_is_asked_to_save_before_it_gives_its_slot_up(running: tuple[Story, Pod]):
    story, there = running
    story.wish(suspend=True)
    step = story.step(there)
    assert step.actions == (Stop(there, "Suspended"),)
    assert (story.newest["state"], story.status["pending"]["reason"]) == ("Stopping", "Stopping")
    asked = replace(there, stop="Suspended")
    assert story.step(asked).actions == (), "it is asked once"
    story.now += LIMITS.stop_seconds
    assert story.step(asked).actions == (Remove(asked),), "one that doesn't hear is told"
    done = replace(asked, phase="Succeeded", terminated_message=SUSPENDED)
    assert story.phase(done) == "Suspended"
    assert (story.newest["state"], story.newest["reason"]) == ("Stopped", "Suspended")
    assert "failedAttempts" not in story.status


def test_one_that_was_resumed_while_it_stopped_waits_again(running: tuple[Story, Pod]):
    story, there = running
    story.wish(suspend=True)
    story.step(there)
    story.wish(suspend=False)
    assert story.newest["state"] == "Stopping"
    done = replace(there, phase="Succeeded", terminated_message=SUSPENDED)
    assert story.phase(done) == "Queued"


def test_a_job_that_had_succeeded_when_it_was_asked_to_stop_has_succeeded(running: tuple[Story, Pod]):
    story, there = running
    story.wish(cancel=True)
    story.step(there)
    assert story.phase(replace(there, phase="Succeeded", terminated_message=outcome())) == "Succeeded"


# --- cancel


@pytest.mark.parametrize("until", ["new", "validating", "queued", "suspended", "held"])
def test_a_job_that_waits_is_cancelled_at_once(until: str):
    story = Story(suspend=until == "suspended")
    if until == "held":
        story.step(gate=Gate(QueueLimits(max_queue_depth=0)))
        assert story.job.phase is Phase.HELD
    elif until == "queued":
        story.queue()
    elif until != "new":
        story.step()
    story.wish(cancel=True)
    assert story.phase() == "Cancelled"
    assert story.condition("Failed") == ("True", "Cancelled")
    assert "pending" not in story.status


def test_a_running_job_is_cancelled_with_what_it_has_and_never_tried_again():
    story = Story(backoffLimit=5)
    story.queue()
    there = story.admit()
    story.wish(cancel=True)
    assert story.step(there).actions == (Stop(there, "Cancelled"),)
    told = outcome(succeeded=False, reason="Cancelled", message="as asked", completed=2, output="s3://b/out.jsonl")
    assert story.phase(replace(there, phase="Succeeded", terminated_message=told)) == "Cancelled"
    assert (story.status["results"]["completed"], story.newest["state"]) == (2, "Stopped")


def test_an_attempt_without_a_pod_is_stopped_without_one():
    story = Story()
    story.queue()
    story.status = lifecycle.admit(story.job, "node-a", 0, "job-1-abc", story.now)
    story.wish(cancel=True)
    step = story.step()
    assert (step.status["phase"], step.actions) == ("Cancelled", ())


def test_a_template_is_told_at_once_whatever_its_pod_says_at_the_end():
    story = Story(template_spec())
    story.queue()
    there = story.admit()
    story.wish(cancel=True)
    assert story.step(there).actions == (Remove(there),)
    ended = replace(there, phase="Failed", deleting=True, failure="exit code 143")
    assert story.phase(ended) == "Cancelled"


def test_the_webhooks_hear_of_a_cancellation():
    story = Story(
        webhooks=[{"name": "a", "url": "https://a.example"}, {"url": "https://b.example", "events": ["failed"]}],
        cancel=True,
    )
    story.step()
    assert [(d["webhook"], d["event"]) for d in story.status["webhookDeliveries"]] == [("a", "cancelled")]


# --- run again


def finished(**wishes: Any) -> Story:
    story = Story(**wishes)
    story.queue()
    there = story.admit()
    assert story.phase(replace(there, phase="Succeeded", terminated_message=outcome())) == "Succeeded"
    story.now += 5000
    return story


def test_a_new_run_id_runs_a_finished_job_again_at_the_end_of_the_queue():
    story = finished()
    old = run_spec(story.raw, spec_of(story.raw).inference, 1, Settings()).run
    story.wish(runId="second")
    assert story.phase() == "Validating"
    assert story.status["queuedAt"] == iso(story.now)
    assert not {"results", "inspection", "completionTime", "progress", "firstStartTime"} & story.status.keys()
    assert [c["type"] for c in story.status["conditions"]] == ["Reconciling"]
    story.queue()
    again = story.admit()
    assert story.newest["number"] == 2, "no pod of the old run can be taken for one of the new"
    new = run_spec(story.raw, spec_of(story.raw).inference, 2, Settings()).run
    assert (new != old, new.startswith(old)) == (True, True), "its manifest is another"
    assert story.phase(replace(again, phase="Succeeded", terminated_message=outcome())) == "Succeeded"
    assert story.phase() == "Succeeded", "the same runId runs it once"


def test_it_runs_again_after_a_failure_or_a_cancellation_but_not_while_cancel_stays():
    story = Story(cancel=True)
    story.step()
    story.wish(runId="2")
    assert story.phase() == "Cancelled"
    story.wish(cancel=False)
    assert story.phase() == "Validating"


def test_the_messages_of_each_run_have_ids_of_their_own():
    story = finished(webhooks=[{"url": "https://a.example"}])
    first = story.status["webhookDeliveries"][0]["id"]
    story.wish(runId="second")
    story.queue()
    story.step(replace(story.admit(), phase="Succeeded", terminated_message=outcome()))
    ids = [d["id"] for d in story.status["webhookDeliveries"]]
    assert ids[0] == first
    assert len(set(ids)) == 2


def test_a_new_run_waits_until_the_old_inspect_pod_is_gone():
    story = finished()
    story.wish(runId="second")
    leftover = pod(kind="inspect", phase="Succeeded", terminated_message=inspection(requests=99), deleting=True)
    assert story.phase(leftover) == "Succeeded"
    assert story.phase() == "Validating"


def test_failures_of_an_earlier_run_are_forgotten():
    story = Story(backoffLimit=1)
    story.queue()
    bad = outcome(succeeded=False, reason="EngineFailed", message="no")
    for _ in range(2):
        story.step(replace(story.admit(), phase="Succeeded", terminated_message=bad))
        story.now += 500
    assert story.job.phase is Phase.FAILED
    story.wish(runId="second")
    story.queue()
    assert story.job.not_before <= story.now
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Queued"


# --- one more attempt


def failed(**wishes: Any) -> Story:
    story = Story(**wishes)
    story.queue()
    bad = outcome(succeeded=False, reason="OutputExpired", message="refused with 403")
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Failed"
    story.now += 5000
    return story


def test_an_annotation_lets_a_failed_run_go_on_with_what_it_has_saved():
    story = failed()
    run = run_spec(story.raw, spec_of(story.raw).inference, 1, Settings()).run
    story.meta = {"annotations": {convert.RETRY: "new-url"}}
    assert story.phase() == "Queued", "its input was found valid"
    assert (story.job.not_before, story.job.requests) == (0.0, 3)
    again = story.admit()
    assert run_spec(story.raw, spec_of(story.raw).inference, 2, Settings()).run == run
    assert story.phase(replace(again, phase="Succeeded", terminated_message=outcome())) == "Succeeded"
    story.meta = {"annotations": {convert.RETRY: "another"}}
    assert story.phase() == "Succeeded", "what has succeeded isn't tried again"


def test_the_same_annotation_is_heeded_once_and_the_second_failure_is_another_message():
    story = failed(webhooks=[{"url": "https://a.example"}])
    story.meta = {"annotations": {convert.RETRY: "1"}}
    story.step()
    bad = outcome(succeeded=False, reason="EngineFailed", message="no")
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Failed"
    assert story.phase() == "Failed"
    assert len({d["id"] for d in story.status["webhookDeliveries"]}) == 2


def test_a_job_that_failed_its_inspection_is_inspected_again():
    story = Story()
    story.step()
    denied = inspection(valid=False, reason="AccessDenied", message="403", requests=0)
    assert story.phase(pod(kind="inspect", phase="Succeeded", terminated_message=denied)) == "Failed"
    story.meta = {"annotations": {convert.RETRY: "1"}}
    assert story.phase() == "Validating"


def test_a_failure_does_not_put_a_run_that_begins_in_its_second_into_back_off():
    story = Story()
    story.queue()
    bad = outcome(succeeded=False, reason="EngineFailed", message="no")
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Failed"
    story.wish(runId="second")
    story.queue()
    assert story.job.not_before <= story.now


# --- retries


def test_a_failed_attempt_is_tried_again_as_often_as_the_job_allows():
    story = Story(backoffLimit=2)
    story.queue()
    bad = outcome(succeeded=False, reason="EngineFailed", message="no luck", completed=1)
    for failures in (1, 2):
        assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Queued"
        assert (story.status["failedAttempts"], story.newest["state"]) == (failures, "Failed")
        wait = story.job.not_before - story.now
        assert wait == 10 * 2 ** (failures - 1), "later and later"
        story.now += wait
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Failed"
    assert story.condition("Failed") == ("True", "EngineFailed")
    message = next(c["message"] for c in story.status["conditions"] if c["type"] == "Failed")
    assert message == "3 attempts failed; the last: no luck"


def test_lost_attempts_do_not_count_against_the_limit():
    story = Story(backoffLimit=1)
    story.queue()
    for _ in range(4):
        evicted = replace(story.admit(), phase="Failed", disrupted=True)
        assert story.phase(evicted) == "Queued"
        story.now += 1000
    assert (story.status["lostAttempts"], story.status.get("failedAttempts", 0)) == (4, 0)
    assert {a["state"] for a in story.status["attempts"]} == {"Lost"}


@pytest.mark.parametrize("reason", ["InvalidRequests", "TooManyRequests", "AllRequestsFailed"])
def test_what_another_attempt_cannot_mend_is_not_tried_again(reason: str):
    story = Story(backoffLimit=5)
    story.queue()
    bad = outcome(succeeded=False, reason=reason, message="no")
    assert story.phase(replace(story.admit(), phase="Succeeded", terminated_message=bad)) == "Failed"


REGISTRY_DOWN = 'failed to pull image "r/x:1": dial tcp 10.0.0.1:443: connect: connection refused'


@pytest.mark.parametrize(
    ("message", "phase"), [(REGISTRY_DOWN, "Queued"), ('failed to pull image "r/x:1": r/x:1: not found', "Failed")]
)
def test_a_registry_that_is_down_is_the_clusters_fault_and_a_wrong_name_the_jobs(message: str, phase: str):
    story = Story()
    story.queue()
    there = replace(story.admit(), trouble=ContainerTrouble("engine", "ImagePullBackOff", message), started=False)
    story.step(there)
    story.now += LIMITS.image_pull_seconds
    assert story.step(there).actions == (Remove(there),)
    assert story.phase(replace(there, gone=True)) == phase
    assert story.newest["state"] == ("Lost" if phase == "Queued" else "Failed")


# --- deadlines


def test_a_job_that_waits_too_long_without_ever_running_fails():
    story = Story(queueDeadlineSeconds=600)
    story.queue()
    step = story.step()
    assert step.retry_at == story.now + 600
    story.now += 600
    assert story.phase() == "Failed"
    assert story.condition("Failed") == ("True", "QueueDeadlineExceeded")


def test_attempts_that_never_got_onto_a_node_are_no_running():
    story = Story(queueDeadlineSeconds=600, activeDeadlineSeconds=60)
    story.queue()
    story.admit()
    story.now += 50
    story.status = lifecycle.over_quota(story.job, "pods is forbidden: exceeded quota", story.now)
    assert publish.backoff(story.job)[0] == "Quota", "which says more than that it will be tried again"
    assert (story.job.active_seconds, story.job.not_before) == (0.0, story.now)
    story.now += 600
    assert story.phase() == "Failed"
    assert story.condition("Failed") == ("True", "QueueDeadlineExceeded")


def test_the_priority_that_counts_is_shown_where_the_namespace_may_not_have_the_one_of_the_spec():
    raw = raw_job(spec=inference_spec(priority=5))
    shown = lifecycle.advance(convert.job_of(raw, max_priority=1), (), None, NOW, LIMITS).status
    assert shown["effectivePriority"] == 1
    later = lifecycle.advance(convert.job_of(raw | {"status": shown}, max_priority=9), (), None, NOW, LIMITS).status
    assert "effectivePriority" not in later


def test_one_that_has_run_is_not_given_up_for_waiting_and_suspension_is_no_waiting():
    story = Story(queueDeadlineSeconds=600)
    story.queue()
    story.wish(suspend=True)
    story.step()
    story.now += 10_000
    assert story.phase() == "Suspended"
    story.wish(suspend=False)
    assert story.phase() == "Queued"
    story.step(replace(story.admit(), phase="Failed", disrupted=True))
    story.now += 10_000
    assert story.phase() == "Queued"


def test_the_runner_is_told_its_deadline_and_stopped_only_if_it_does_not_heed_it():
    story = Story(activeDeadlineSeconds=300)
    story.queue()
    there = story.admit()
    end = lifecycle.running.deadline(story.job, story.job.attempt)
    told = run_spec(story.raw, spec_of(story.raw).inference, 1, Settings(), end)
    assert (told.stop_at, told.stop_reason) == (story.now + 300, "DeadlineExceeded")
    story.now += 300
    assert story.step(there).actions == ()
    story.now += LIMITS.stop_seconds
    assert story.step(there).actions == (Remove(there),)
    told_too_late = outcome(succeeded=False, reason="Interrupted", message="", completed=2)
    assert story.phase(replace(there, phase="Succeeded", terminated_message=told_too_late)) == "Failed"
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert story.status["results"]["completed"] == 2


def test_the_deadline_is_of_all_attempts_together():
    story = Story(activeDeadlineSeconds=300)
    story.queue()
    there = story.admit()
    story.now += 200
    story.step(replace(there, phase="Failed", disrupted=True))
    story.now += 1000
    story.admit()
    assert lifecycle.running.deadline(story.job, story.job.attempt).at == story.now + 100


def test_a_template_is_ended_at_its_deadline():
    story = Story(template_spec(), activeDeadlineSeconds=300)
    story.queue()
    there = story.admit()
    assert story.step(there).retry_at == story.now + 300
    story.now += 300
    assert story.step(there).actions == (Remove(there),)
    assert story.phase(replace(there, phase="Failed", deleting=True)) == "Failed"
    assert story.condition("Failed") == ("True", "DeadlineExceeded")


@pytest.mark.parametrize("waits", [True, False])
def test_the_completion_window_counts_from_creation(waits: bool):
    story = Story(completionWindowSeconds=3600)
    story.queue()
    if waits:
        story.now = EPOCH + 3600
        assert story.phase() == "Failed"
    else:
        there = story.admit()
        told = outcome(succeeded=False, reason="CompletionWindowExceeded", message="over", completed=1)
        assert story.phase(replace(there, phase="Succeeded", terminated_message=told)) == "Failed"
        assert story.status["results"]["completed"] == 1
    assert story.condition("Failed") == ("True", "CompletionWindowExceeded")


# --- clean-up


def test_a_finished_job_is_deleted_when_its_time_is_over():
    story = finished(ttlSecondsAfterFinished=6000)
    step = story.step()
    assert (step.actions, step.retry_at) == ((), story.now + 1000)
    story.now += 1000
    assert story.step().actions == (Expire(),)


def test_but_not_before_its_webhooks_are_delivered():
    story = finished(ttlSecondsAfterFinished=0, webhooks=[{"url": "https://a.example"}])
    assert story.step().actions == ()
    story.status["webhookDeliveries"][0]["state"] = "Delivered"
    assert story.step().actions == (Expire(),)


@pytest.mark.parametrize(("part", "name"), convert.TRACKING)
def test_and_never_if_a_gitops_tool_would_create_it_anew(part: str, name: str):
    story = finished(ttlSecondsAfterFinished=0)
    story.meta = {part: {name: "x"}}
    assert story.step().actions == ()
    assert story.condition("TTLIgnored") == ("True", "Tracked")
    assert any(name in c["message"] for c in story.status["conditions"])


# --- the queue's limits


def test_a_job_that_finds_the_queue_full_is_held_and_enters_when_there_is_room():
    gate = Gate(QueueLimits(max_queue_depth=1))
    gate.enter(build.job("other"), None)
    story = Story()
    assert story.phase(gate=gate) == "Held"
    assert story.status["pending"]["reason"] == "QueueFull"
    assert story.status["pending"]["message"] == "Queue full (1/1 jobs)"
    gate.leave("uid-other")
    assert story.phase(gate=gate) == "Validating"


def test_a_job_with_more_requests_than_the_queue_has_room_for_is_held_once_they_are_counted():
    gate = Gate(QueueLimits(max_total_requests=100))
    gate.enter(build.job("other"), 99)
    story = Story()
    story.step(gate=gate)
    gate.enter(story.job, None)
    counted = pod(kind="inspect", phase="Succeeded", terminated_message=inspection(requests=2))
    assert story.phase(counted, gate=gate) == "Held"
    gate.leave(story.job.uid)
    assert story.phase(gate=gate) == "Held"
    gate.leave("uid-other")
    assert story.phase(gate=gate) == "Queued", "it isn't inspected again"


def test_a_job_larger_than_the_whole_limit_enters_an_empty_queue():
    gate = Gate(QueueLimits(max_total_requests=100))
    assert gate.hold(build.job(phase=Phase.HELD, requests=5000), 5000) is None


def test_resuming_and_running_again_find_the_queue_full_too():
    full = Gate(QueueLimits(max_queue_depth=0))
    story = Story(suspend=True)
    story.step()
    story.wish(suspend=False)
    assert story.phase(gate=full) == "Held"
    again = finished()
    again.wish(runId="2")
    assert again.phase(gate=full) == "Held"


def test_a_lost_attempt_comes_back_to_its_place_however_full_the_queue_is(running: tuple[Story, Pod]):
    story, there = running
    assert story.phase(replace(there, phase="Failed", disrupted=True), gate=Gate(QueueLimits(max_queue_depth=0))) == (
        "Queued"
    )


def test_a_namespace_has_its_own_limit_and_the_star_is_for_the_others():
    limits = QueueLimits(namespaces={"*": NamespaceCaps(max_queue_depth=1), "team": NamespaceCaps(max_queue_depth=2)})
    gate, new = Gate(limits), replace(build.job("new"), phase=None)
    gate.enter(build.job("other"), None)
    assert gate.hold(new, None).message == "Queue full (1/1 jobs in namespace default)"
    assert gate.hold(replace(new, namespace="team"), None) is None


@pytest.mark.parametrize("phase", [*Phase, None])
def test_whatever_a_user_wishes_a_phase_changes_only_as_allowed(phase: Phase | None):
    """The wishes of all kinds at once, in each phase."""
    attempt = build.attempt(state=AttemptState.ACTIVE if phase not in FINISHED else AttemptState.SUCCEEDED)
    has_run = phase in {Phase.STARTING, Phase.RUNNING, *FINISHED}
    status: JSON = {"phase": phase.value, "queuedAt": iso(EPOCH)} if phase else {}
    if has_run:
        status["attempts"] = [lifecycle.endings.attempt_json(attempt)]
    if phase in FINISHED:
        status["completionTime"] = iso(EPOCH)
    for wishes in (
        {"suspend": True},
        {"cancel": True},
        {"runId": "x"},
        {"completionWindowSeconds": 1 if phase else 1000},
    ):
        story = Story(**wishes)
        story.status = status
        story.step()


def test_the_wishes_are_those_of_the_spec():
    told = convert.job_of(raw_job(spec=inference_spec(suspend=True, backoffLimit=3, runId="a", queueDeadlineSeconds=5)))
    assert (told.wishes.suspend, told.wishes.backoff_limit, told.wishes.run_id, told.wishes.queue_deadline) == (
        True,
        3,
        "a",
        5,
    )
    plain = convert.job_of(raw_job()).wishes
    made: Callable[[], object] = type(plain)
    assert plain == made()


def test_no_pod_is_created_for_a_job_that_was_suspended_right_after_its_admission():
    story = Story()
    story.queue()
    story.status = lifecycle.admit(story.job, "node-a", 0, "job-1-abc", story.now)
    story.wish(suspend=True)
    step = story.step()
    assert not any(isinstance(a, Run) for a in step.actions)
    assert step.status["phase"] == "Suspended"

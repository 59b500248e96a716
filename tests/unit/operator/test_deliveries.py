"""What webhooks are told of a job's life, in which order, what is given up and made again. Pure."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.api.webhooks import Event as ApiEvent
from gpubatch_operator.core import deliveries, lifecycle
from gpubatch_operator.core.announcements import Event
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.deliveries import Patience, Tried
from gpubatch_operator.core.model import Job, Pod
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from gpubatch_operator.notify import message
from unit.operator.build import EPOCH, inference_spec, pod, raw_job, template_spec
from unit.operator.fake import inspection, outcome
from unit.operator.schema import check_status

JSON = dict[str, Any]
ALL = [e.value for e in Event]
BAD = outcome(succeeded=False, reason="EngineFailed", message="out of memory", completed=1)
PATIENCE = Patience(3, 5, 86_400)


class Story:
    """One job's life, and what its webhooks hear of it."""

    def __init__(self, *hooks: JSON, spec: JSON | None = None, **wishes: Any) -> None:
        self.spec = spec or inference_spec(**wishes)
        self.spec["webhooks"] = list(hooks) or [{"name": "a", "url": "https://a.example", "events": ALL}]
        self.status: JSON = {}
        self.meta: JSON = {}
        self.now = EPOCH

    @property
    def job(self) -> Job:
        raw = raw_job(spec=self.spec, status=copy.deepcopy(self.status))
        raw["metadata"] |= self.meta
        return convert.job_of(raw)

    def look(self, *pods: Pod, report: ProgressReport | None = None) -> list[str]:
        """One step; the events that it added, each with its receiver where there are several."""
        self.now += 1
        before = {d["id"] for d in self.deliveries}
        self.status = lifecycle.advance(self.job, pods, report, self.now, Limits()).status
        check_status(self.status)
        names = len(self.spec["webhooks"]) > 1
        return [
            f"{d['event']} {d['webhook']}" if names else d["event"] for d in self.deliveries if d["id"] not in before
        ]

    def queue(self) -> list[str]:
        inspected = pod(kind="inspect", attempt=0, terminated_message=inspection(requests=40), phase="Succeeded")
        return [*self.look(), *self.look(inspected)]

    def admit(self) -> Pod:
        number = self.job.attempts + 1
        self.now += 600
        self.status = lifecycle.admit(self.job, "node-a", 0, f"job-{number}-abc", self.now)
        return pod(attempt=number, node="node-a", uid=f"pod-{number}", created=self.now)

    def run(self) -> Pod:
        there = replace(self.admit(), started=True)
        assert self.look(there, report=report(0)) == ["started"]
        return there

    @property
    def deliveries(self) -> list[JSON]:
        return self.status.get("webhookDeliveries", [])

    def told(self, event: str) -> JSON:
        """The newest of these events, as a receiver reads it."""
        pictures = {e["sequence"]: e for e in self.status["webhookEvents"]}
        newest = [d for d in self.deliveries if d["event"] == event][-1]
        return json.loads(message.payload(raw_job()["metadata"], pictures[newest["sequence"]]))["data"]

    def answer(self, webhook: str, tried: Tried, patience: Patience = PATIENCE) -> JSON:
        """Make the attempt that is due."""
        delivery, _ = deliveries.heads(self.status)[webhook]
        self.now += 1
        deliveries.attempted(self.status, delivery["id"], tried, patience, 1.0, self.now)
        deliveries.judge(self.job, self.status, self.now)
        check_status(self.status)
        return delivery

    def give_up(self, webhook: str) -> JSON:
        while True:
            delivery = self.answer(webhook, Tried(False, code=500, error="no luck"))
            if delivery["state"] == deliveries.DEAD:
                return delivery


def report(percent: int, stage: str = "Processing") -> ProgressReport:
    return ProgressReport(stage, "", 100, percent, 0, 1.5, 10, 20, 5.0, EPOCH + percent)


def condition(status: JSON) -> str | None:
    found = [c for c in status.get("conditions", []) if c["type"] == deliveries.CONDITION]
    return found[0]["status"] if found else None


# --- what is told


def test_the_api_offers_each_event_and_no_other():
    assert set(ApiEvent.__args__) == set(ALL)


def test_a_life_is_told_in_order_with_its_times_and_counts():
    story = Story()
    assert story.queue() == ["queued"]
    there = story.run()
    assert story.look(there, report=report(30)) == ["progress"]
    assert story.look(replace(there, phase="Succeeded", terminated_message=outcome(output="s3://b/o"))) == ["succeeded"]
    assert [d["sequence"] for d in story.deliveries] == [1, 2, 3, 4]
    queued, started, progress, done = (story.told(e) for e in ("queued", "started", "progress", "succeeded"))
    assert (queued["phase"], queued["counts"], queued["attempt"]) == ("Queued", {"total": 40}, None)
    assert (started["phase"], started["attempt"], started["node"]) == ("Running", 1, "node-a")
    assert seconds(started["startTime"]) == seconds(queued["queuedAt"]) + 602
    assert (progress["percent"], progress["counts"]) == (30, {"total": 100, "completed": 30, "failed": 0})
    assert (done["phase"], done["counts"]) == ("Succeeded", {"total": 3, "completed": 3, "failed": 0})
    assert done["results"]["output"] == "s3://b/o"
    assert done["completionTime"] == story.status["completionTime"]
    assert done["error"] is None
    assert queued["results"] is None


def test_what_happened_is_told_as_it_was_however_late():
    story = Story(runId="1")
    there = story.run() if story.queue() else None
    story.look(replace(there, phase="Succeeded", terminated_message=BAD))
    before = copy.deepcopy(story.told("failed"))
    assert before["error"] == {"reason": "EngineFailed", "message": "out of memory"}
    story.spec["runId"] = "2"
    story.look()
    assert story.status["phase"] == "Validating"
    assert story.told("failed") == before
    assert before["runId"] == "1"


def test_a_short_job_is_told_to_have_started_though_nobody_saw_it_run():
    story = Story(spec=template_spec())
    assert story.look() == ["queued"]
    assert story.look(replace(story.admit(), started=True, phase="Succeeded")) == ["started", "succeeded"]


def test_a_job_that_never_got_to_work_has_not_started():
    story = Story(spec=template_spec(cancel=False))
    story.look()
    there = story.admit()
    story.spec["cancel"] = True
    story.look(there)
    assert story.look(replace(there, gone=True)) == ["cancelled"]


@pytest.mark.parametrize(
    ("end", "reason"),
    [({"phase": "Succeeded", "terminated_message": BAD}, "EngineFailed"), ({"gone": True}, "Lost")],
)
def test_an_attempt_that_is_followed_by_another_is_told_as_retrying_and_why(end: JSON, reason: str):
    story = Story(backoffLimit=1)
    story.queue()
    assert story.look(replace(story.run(), **end)) == ["retrying"]
    told = story.told("retrying")
    assert (told["phase"], told["attempt"], told["error"]["reason"]) == ("Queued", 1, reason)
    story.now += 600
    story.run()
    assert story.told("started")["attempt"] == 2


def test_an_attempt_that_never_had_a_node_is_not_worth_a_word():
    story = Story()
    story.queue()
    story.admit()
    story.status = lifecycle.over_quota(story.job, "exceeded quota", story.now)
    assert story.status["phase"] == "Queued"
    assert [d["event"] for d in story.deliveries] == ["queued"]


def test_a_job_whose_pod_is_refused_for_good_is_told_to_have_failed():
    story = Story()
    story.queue()
    story.admit()
    story.status = lifecycle.rejected(story.job, "no such field", story.now, final=True)
    assert [d["event"] for d in story.deliveries] == ["queued", "failed"]


def test_a_failed_run_that_is_told_to_go_on_is_retrying_and_a_resumed_one_is_queued():
    story = Story()
    story.queue()
    story.look(replace(story.run(), phase="Succeeded", terminated_message=BAD))
    story.meta = {"annotations": {convert.RETRY: "1"}}
    assert story.look() == ["retrying"]
    assert story.told("retrying")["error"]["reason"] == "EngineFailed"
    story.spec["suspend"] = True
    assert story.look() == []
    story.spec["suspend"] = False
    assert story.look() == ["queued"]


def test_each_webhook_hears_what_it_asked_for():
    story = Story(
        {"name": "ends", "url": "https://a.example"},
        {"name": "starts", "url": "https://a.example", "events": ["started", "queued"]},
    )
    assert story.queue() == ["queued starts"]
    there = replace(story.admit(), started=True)
    assert story.look(there, report=report(0)) == ["started starts"]
    assert story.look(replace(there, phase="Succeeded", terminated_message=outcome())) == ["succeeded ends"]


# --- progress


def test_progress_is_told_once_at_each_webhooks_own_percentages():
    story = Story(
        {"name": "a", "url": "https://a.example", "events": ["progress"]},
        {"name": "b", "url": "https://b.example", "events": ["progress"], "progressAt": [10, 60, 61, 62]},
    )
    story.queue()
    there = replace(story.admit(), started=True)
    heard = [(p, story.look(there, report=report(p))) for p in (0, 9, 10, 24, 25, 25, 49, 60, 74, 99)]
    assert [(p, events) for p, events in heard if events] == [
        (10, ["progress b"]),
        (25, ["progress a"]),
        (60, ["progress a", "progress b"]),
        (74, ["progress b"]),
        (99, ["progress a"]),
    ]


def test_progress_adds_no_write_beside_those_of_progress_itself():
    """A report that isn't worth a write of its own isn't made one by webhooks."""
    loud, quiet = Story(), Story({"name": "a", "url": "https://a.example", "events": ["failed"]})
    writes = []
    for story in (loud, quiet):
        story.queue()
        there, count = replace(story.admit(), started=True), 0
        for tenth in range(1000):
            before = copy.deepcopy(story.status)
            said = ProgressReport("Processing", "", 1000, tenth, 0, 1.5, 10, 20, 5.0, EPOCH)
            story.look(there, report=said)
            count += before != story.status
        writes.append(count)
    assert writes[0] == writes[1]
    assert 100 <= writes[0] <= 103


def test_progress_that_was_never_offered_gives_way_to_newer_progress():
    story = Story({"name": "a", "url": "https://a.example", "events": ["started", "progress"]})
    story.queue()
    there = story.run()
    for percent in (25, 50, 75):
        story.look(there, report=report(percent))
    assert [d["event"] for d in story.deliveries] == ["started", "progress"]
    assert story.told("progress")["percent"] == 75


def test_an_attempt_that_begins_anew_tells_no_percentage_twice_but_a_new_run_does():
    story = Story({"name": "a", "url": "https://a.example", "events": ["started", "progress"]}, runId="1")
    story.queue()
    there = story.run()
    assert story.look(there, report=report(60)) == ["progress"]
    story.look(replace(there, gone=True))
    again = story.run()
    assert story.look(again, report=report(50)) == []
    assert story.look(again, report=report(80)) == ["progress"]
    story.look(replace(again, phase="Succeeded", terminated_message=outcome()))
    story.spec["runId"] = "2"
    story.queue()
    assert story.look(story.run(), report=report(30)) == ["progress"]


# --- which webhook is which


def test_a_named_webhook_keeps_its_deliveries_when_its_url_is_mended():
    story = Story(cancel=True)
    story.look()
    story.spec["webhooks"][0]["url"] = "https://mended.example"
    story.spec["webhooks"].insert(0, {"name": "new", "url": "https://new.example"})
    assert story.look() == []
    assert list(deliveries.heads(story.status)) == ["a"]


def test_what_waits_for_a_webhook_that_was_taken_out_is_dropped_with_its_dead_letters():
    story = Story({"url": "https://a.example"}, {"url": "https://b.example"}, cancel=True)
    story.look()
    first, second = story.deliveries
    story.answer(first["webhook"], Tried(False, code=410))
    story.answer(second["webhook"], Tried(True, code=200))
    assert condition(story.status) == "True"
    story.spec["webhooks"] = [{"url": "https://other.example"}]
    story.look()
    assert [d["webhook"] for d in story.deliveries] == [second["webhook"]]
    assert condition(story.status) == "False"
    assert len(story.status["webhookEvents"]) == 1


def test_two_webhooks_with_one_url_are_two():
    story = Story({"url": "https://a.example"}, {"url": "https://a.example"}, cancel=True)
    story.look()
    assert len({d["webhook"] for d in story.deliveries}) == len({d["id"] for d in story.deliveries}) == 2


# --- attempts


def test_only_the_oldest_of_a_receiver_is_due_and_another_receiver_does_not_wait_for_it():
    story = Story(*({"name": n, "url": f"https://{n}.example", "events": ALL} for n in "ab"))
    story.queue()
    story.look(replace(story.admit(), started=True), report=report(0))
    story.answer("a", Tried(False, code=500, error="x"))
    story.answer("b", Tried(True, code=200))
    heads = deliveries.heads(story.status)
    assert {key: d["event"] for key, (d, _) in heads.items()} == {"a": "queued", "b": "started"}
    assert heads["a"][1] == story.now - 1 + 5


def test_a_dead_letter_lets_the_next_delivery_pass():
    story = Story()
    story.queue()
    story.run()
    story.give_up("a")
    assert deliveries.heads(story.status)["a"][0]["event"] == "started"


def test_the_delay_doubles_up_to_its_bound_and_goes_on_for_days():
    story, patience = Story(cancel=True), Patience(20, 60, 43_200)
    story.look()
    start, delays = story.now, []
    while (delivery := story.answer("a", Tried(False), patience))["state"] == "Pending":
        delays.append(seconds(delivery["nextAttemptTime"]) - story.now)
        story.now = seconds(delivery["nextAttemptTime"])
    assert delays[:4] == [60, 120, 240, 480]
    assert max(delays) == 43_200
    assert story.now - start > 4 * 86_400


def test_a_receiver_is_never_asked_earlier_than_it_wants():
    story = Story(cancel=True)
    story.look()
    delivery = story.answer("a", Tried(False, code=429, retry_after=900))
    assert seconds(delivery["nextAttemptTime"]) == story.now + 900


def test_410_ends_it_for_this_receiver_and_no_other():
    story = Story(*({"name": n, "url": f"https://{n}.example", "events": ALL} for n in "ab"))
    story.queue()
    there = replace(story.admit(), started=True)
    story.look(there, report=report(0))
    story.answer("a", Tried(False, code=410, error="the receiver answered 410"))
    assert [d["state"] for d in story.deliveries if d["webhook"] == "a"] == ["DeadLettered", "DeadLettered"]
    assert story.look(there, report=report(30)) == ["progress b"]
    story.meta = {"annotations": {convert.REDELIVER: "all"}}
    story.look(there, report=report(30))
    assert story.look(there, report=report(60)) == ["progress a", "progress b"], "asked again, it is told again"


# --- dead letters


def test_a_dead_letter_is_a_condition_until_it_is_sent_again():
    story = Story(cancel=True)
    story.look()
    assert condition(story.status) is None
    story.give_up("a")
    assert condition(story.status) == "True"
    settled = copy.deepcopy(story.status)
    story.look()
    assert story.status == settled, "nothing is written again"
    story.meta = {"annotations": {convert.REDELIVER: "all 1"}}
    story.look()
    [delivery] = story.deliveries
    assert (delivery["state"], delivery["attempts"]) == ("Pending", 0)
    assert delivery["id"] == settled["webhookDeliveries"][0]["id"]
    assert "lastError" not in delivery
    assert condition(story.status) == "False"
    story.answer("a", Tried(True, code=204))
    story.look()
    assert story.deliveries[0]["state"] == "Delivered"


def test_an_annotation_is_heeded_once_and_a_new_value_again():
    story = Story(cancel=True)
    story.look()
    for value in ("all", "all 2026-11-23T09:00:00Z"):
        story.give_up("a")
        story.meta = {"annotations": {convert.REDELIVER: value}}
        story.look()
        assert story.deliveries[0]["state"] == "Pending"
        story.give_up("a")
        story.look()
        assert story.deliveries[0]["state"] == "DeadLettered"
        story.status["webhookDeliveries"][0] |= {"state": "Pending", "attempts": 0}


def test_one_delivery_is_sent_again_by_its_id_even_one_that_arrived():
    story = Story()
    story.queue()
    story.spec["cancel"] = True
    story.look()
    story.answer("a", Tried(True, code=200))
    story.give_up("a")
    first, _ = story.deliveries
    story.meta = {"annotations": {convert.REDELIVER: f"{first['id']} now"}}
    story.look()
    assert [d["state"] for d in story.deliveries] == ["Pending", "DeadLettered"]
    assert deliveries.heads(story.status)["a"][0]["id"] == first["id"]
    assert story.told("queued")["phase"] == "Queued"


# --- bounds


def test_a_list_that_is_too_long_loses_what_matters_least():
    story = Story(runId="0")
    for run in range(30):
        story.spec["runId"] = str(run)
        story.queue()
        story.look(replace(story.run(), phase="Succeeded", terminated_message=outcome()))
        if run < 3:
            for _ in range(3):
                story.answer("a", Tried(True, code=200))
    assert len(story.deliveries) == deliveries.MAX_DELIVERIES
    assert not [d for d in story.deliveries if d["state"] == "Delivered"]
    assert len([d for d in story.deliveries if d["event"] == "succeeded"]) == 27, "the ends of all runs"
    sequences = [d["sequence"] for d in story.deliveries]
    assert sequences == sorted(sequences)
    assert {e["sequence"] for e in story.status["webhookEvents"]} == set(sequences)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["ok", "bad", "gone", "redeliver", "life"])), max_size=60)
)
def test_whatever_receivers_answer_each_hears_a_jobs_events_in_order(steps: list[tuple[str, str]]):
    """Unless it was asked to hear something again."""
    story = Story(*({"name": n, "url": f"https://{n}.example", "events": ALL} for n in "ab"), backoffLimit=10)
    heard: dict[str, list[int]] = {"a": [], "b": []}
    story.queue()
    for i, (webhook, step) in enumerate(steps):
        match step:
            case "life" if story.status["phase"] == "Queued":
                story.now += 600
                there = story.admit()
                story.look(replace(there, started=True), report=report(0))
                story.look(replace(there, phase="Succeeded", terminated_message=BAD))
            case "redeliver":
                story.meta = {"annotations": {convert.REDELIVER: f"all {i}"}}
                story.look()
                heard[webhook].clear()
                heard["b" if webhook == "a" else "a"].clear()
            case "ok" | "bad" | "gone" if webhook in deliveries.heads(story.status):
                answer = {"ok": Tried(True, code=200), "bad": Tried(False), "gone": Tried(False, code=410)}[step]
                heard[webhook].append(story.answer(webhook, answer)["sequence"])
    for sequences in heard.values():
        assert sequences == sorted(sequences)
    dead = any(d["state"] == "DeadLettered" for d in story.deliveries)
    assert (condition(story.status) == "True") is dead
    assert Reason.DELIVERY_GIVEN_UP in str(story.status) or not dead

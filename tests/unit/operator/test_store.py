"""The store: the newest that was seen of each object, whatever the order in which it was seen."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.limits import NamespaceCaps, QueueLimits
from gpubatch_operator.core.model import Occupant
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.pods import pod_name, runner_pod
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import resync
from gpubatch_operator.settings import Settings
from unit.operator.build import GPU, attempt, inference_spec, raw_job, raw_node, spec_of, template_spec
from unit.operator.fake import Clock, Cluster

JSON = dict[str, Any]
ATTEMPT = {
    "number": 1,
    "node": "node-a",
    "slot": 0,
    "podName": "p",
    "startTime": "2027-01-15T08:00:00Z",
    "state": "Active",
}
STARTING = {"phase": "Starting", "attempts": [ATTEMPT]}
DONE = {"phase": "Succeeded", "startTime": "2027-01-15T08:00:00Z", "completionTime": "2027-01-15T08:01:00Z"}
TAKEN = [Occupant("node-a", 0, GPU, 1)]


def raw_pod(version: int = 5, phase: str = "Pending", number: int = 1, uid: str = "pod-1") -> JSON:
    raw = raw_job(spec=inference_spec())
    name = pod_name("job", "uid-job", str(number))
    pod = runner_pod(raw, spec_of(raw), replace(attempt(number), pod_name=name), Settings())
    if phase != "Pending":
        pod["spec"]["nodeName"] = "node-a"
    meta = {"uid": uid, "resourceVersion": str(version), "creationTimestamp": "2027-01-15T08:00:00Z"}
    return pod | {"metadata": pod["metadata"] | meta, "status": {"phase": phase}}


def occupied(store: Store) -> list[Occupant]:
    return list(store.snapshot(0.0).occupied)


def phase(store: Store) -> Phase | None:
    return store.jobs["uid-job"].phase


def test_older_versions_are_ignored_and_versions_are_numbers():
    store = Store(1)
    store.put_job(raw_job(status={"phase": "Queued"}, version=10))
    store.put_job(raw_job(status={"phase": "Validating"}, version=9))
    assert phase(store) is Phase.QUEUED
    store.put_pod(raw_pod(10, "Running"))
    store.put_pod(raw_pod(9, "Pending"))
    assert store.pods["pod-1"].phase == "Running"


@given(st.randoms(use_true_random=False))
def test_whatever_the_order_of_events_the_newest_counts(rng: random.Random):
    events = [raw_job(status={"phase": p}, version=8 + i) for i, p in enumerate(["Validating", "Queued", "Queued"])]
    events.append(raw_job(status=STARTING, version=11))
    rng.shuffle(events)
    store = Store(1)
    for event in events:
        store.put_job(event)
    assert phase(store) is Phase.STARTING
    assert (list(store.waiting), list(store.active)) == ([], ["uid-job"])


def test_what_is_deleted_does_not_come_back():
    store = Store(1)
    store.put_job(raw_job(status={"phase": "Queued"}, version=3))
    store.drop_job("uid-job")
    store.put_job(raw_job(status={"phase": "Queued"}, version=4))
    assert (store.jobs, store.snapshot(0.0).waiting) == ({}, ())
    store.put_pod(raw_pod(5))
    store.drop_pod(raw_pod(6))
    store.put_pod(raw_pod(7))
    assert store.pods["pod-1"].gone


def test_a_job_created_anew_under_an_old_name_is_another_job():
    store = Store(1)
    store.drop_job("uid-job")
    raw = raw_job(version=2)
    raw["metadata"]["uid"] = "another"
    store.put_job(raw)
    assert list(store.jobs) == ["another"]


def test_a_slot_is_taken_from_the_moment_the_attempt_is_recorded_until_its_end_is_recorded():
    store = Store(1)
    store.put_job(raw_job(status=STARTING, version=4))
    assert occupied(store) == TAKEN, "the pod isn't there yet"
    store.put_pod(raw_pod(5))
    assert occupied(store) == TAKEN, "and not twice now that it is"
    store.put_pod(raw_pod(6, "Running"))
    assert occupied(store) == TAKEN
    store.put_pod(raw_pod(7, "Succeeded"))
    assert occupied(store) == TAKEN, "a restarted operator would still look for the end of it"
    store.put_job(raw_job(status=STARTING | {"phase": "Succeeded"}, version=8))
    assert occupied(store) == []


def test_the_pod_of_a_deleted_job_holds_its_slot_while_it_lives():
    store = Store(1)
    store.put_job(raw_job(status=STARTING, version=4))
    store.put_pod(raw_pod(5, "Running"))
    store.drop_job("uid-job")
    assert occupied(store) == TAKEN
    store.drop_pod(raw_pod(6))
    assert occupied(store) == []


def test_a_deletion_that_was_missed_frees_the_slot():
    store = Store(1)
    store.put_pod(raw_pod(5, "Running"))
    store.lose_pod("pod-1")
    assert occupied(store) == []
    assert store.pods["pod-1"].gone
    store.lose_pod("pod-2")  # never heard of


def test_a_gone_pod_is_kept_until_its_job_has_taken_note():
    store = Store(1)
    store.drop_pod(raw_pod(5))
    (pod,) = store.pods_for("uid-job")
    assert store.take_dirty() == {"uid-job"}
    store.forget_pod(pod)
    assert (store.pods_for("uid-job"), store.pods, store.pods_of) == ([], {}, {})


def test_heartbeats_of_nodes_wake_nobody():
    store = Store(1)
    store.put_node(raw_node(version=1))
    store.changed.clear()
    store.put_node(raw_node(version=2))
    assert not store.changed.is_set()
    store.put_node(raw_node(gpus=2, version=3))
    assert store.changed.is_set()
    store.changed.clear()
    store.drop_node("node-a")
    assert store.changed.is_set()
    assert store.snapshot(0.0).nodes == ()


def test_finished_jobs_are_handed_out_once_to_learn_from():
    store = Store(1)
    store.put_job(raw_job(status=DONE, version=4))
    store.put_job(raw_job(status=DONE | {"observedGeneration": 1}, version=5))
    assert [j.uid for j in store.take_finished()] == ["uid-job"]
    assert store.take_finished() == []


def test_a_job_with_webhooks_to_deliver_is_found():
    store = Store(1)
    delivery = {"id": "m", "webhook": "a", "event": "succeeded", "state": "Pending", "time": "2027-01-15T08:01:00Z"}
    store.put_job(raw_job(status=DONE | {"webhookDeliveries": [delivery]}, version=4))
    assert store.deliverable == {"uid-job"}
    assert store.take_deliverable() == {"uid-job"}
    assert store.take_deliverable() == set(), "nobody looks at it again until it changes"
    store.put_job(raw_job(status=DONE | {"webhookDeliveries": [delivery | {"state": "Delivered"}]}, version=5))
    assert store.deliverable == set()


def test_a_job_that_cannot_be_read_is_left_alone():
    store = Store(1)
    store.put_job(raw_job(spec={"gpus": "many"}))
    assert store.jobs == {}


async def test_a_list_heals_what_events_missed():
    cluster, store = Cluster(Clock()), Store(1)
    cluster.add_node("gone")
    cluster.apply("gone", template_spec())
    cluster.apply("kept", template_spec())
    await resync(cluster, store)  # type: ignore[arg-type]
    store.put_pod(raw_pod(5, "Running"))
    cluster.drop_node("gone")
    cluster.add_node("new")
    cluster.delete_job("gone")
    cluster.apply("new", template_spec())
    await resync(cluster, store)  # type: ignore[arg-type]
    assert {j.name for j in store.jobs.values()} == {"kept", "new"}
    assert list(store.nodes) == ["new"]
    assert store.pods["pod-1"].gone


def test_a_pod_with_our_labels_that_is_not_ours_is_left_alone():
    store = Store(1)
    store.put_job(raw_job(status=STARTING, version=4))
    copied = raw_pod(5, "Running")
    copied["metadata"] |= {"name": "debug-copy", "uid": "copy"}
    store.put_pod(copied)
    assert store.pods_for("uid-job") == [], "it doesn't speak for the job"
    store.drop_pod(copied)
    assert store.pods == {}, "and isn't kept until somebody takes note of its end"
    garbage = raw_pod(6)
    garbage["metadata"] |= {"uid": "garbage", "labels": garbage["metadata"]["labels"] | {convert.ATTEMPT: "first"}}
    store.put_pod(garbage)
    assert "garbage" not in store.pods


def test_a_label_gives_a_node_its_slots_and_nonsense_counts_as_none():
    def slots(label: str) -> int:
        raw = raw_node()
        raw["metadata"]["labels"] = {convert.SLOTS: label}
        return convert.node_of(raw, 2).slots

    assert [slots(s) for s in ("3", "0", "64", "65", "-1", "many", "")] == [3, 0, 64, 2, 2, 2, 2]


def test_an_attempt_without_a_node_takes_no_slot_but_is_reckoned_with():
    store = Store(1)
    store.put_node(raw_node())
    store.put_job(raw_job(status={"phase": "Starting", "attempts": [ATTEMPT | {"node": ""}]}))
    snapshot = store.snapshot(0.0)
    assert (snapshot.occupied, [s.gpus for s in snapshot.floating]) == ((), [1])


def test_slots_are_counted_by_namespace():
    store = Store(1)
    store.put_job(raw_job(status=STARTING))
    assert store.snapshot(0.0).active_in == {"default": 1}
    store.put_job(raw_job(status=DONE, version=2))
    assert store.snapshot(0.0).active_in["default"] == 0


def test_a_namespace_is_given_no_higher_priority_than_it_may_have():
    store = Store(1, QueueLimits(namespaces={"default": NamespaceCaps(max_priority=1)}))
    store.put_job(raw_job(spec=inference_spec(priority=5)))
    assert (store.jobs["uid-job"].priority, store.jobs["uid-job"].rank[0]) == (1, -1)


def test_held_jobs_are_looked_at_when_somebody_has_left_and_only_then():
    store = Store(1, QueueLimits(max_queue_depth=1))
    store.put_job(raw_job("first", status={"phase": "Queued", "queueTicket": "1"}))
    for i in (3, 2):
        held = {"phase": "Held", "queueTicket": str(i), "queuedAt": "2027-01-15T08:00:00Z"}
        store.put_job(raw_job(f"held-{i}", status=held))
    assert store.take_held() == [], "the queue is full"
    store.put_job(raw_job("first", status={"phase": "Queued", "queueTicket": "1", "queuePosition": 1}, version=2))
    assert store.take_held() == []
    store.put_job(raw_job("first", status=DONE, version=3))
    assert [j.name for j in store.take_held()] == ["held-2", "held-3"], (
        "in order; the gate lets in as many as there is room"
    )
    assert store.take_held() == [], "they have been looked at"

"""The totals: each job counts once, through restarts, deletions and changes of leader."""

from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.totals import EVENTS, MAX_NAMESPACES, Tally, Totals
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web.totals import Record, once
from unit.operator.build import EPOCH, job
from unit.operator.fake import JSON


def ended(name: str, at: float, phase: Phase = Phase.SUCCEEDED, queued: float = EPOCH) -> Job:
    return job(name, phase=phase, queued_at=queued, status={"phase": phase.value, "completionTime": iso(at)})


def of(tally: Tally) -> dict[str, int]:
    return {event: tally.total(event) for event in EVENTS if tally.total(event)}


class Api:
    """ConfigMaps, as the client gives them."""

    def __init__(self) -> None:
        self.stored: JSON | None = None
        self.writes = 0

    async def get(self, path: str) -> JSON:
        if self.stored is None:
            raise ApiError(404, "NotFound", path)
        return self.stored

    async def create(self, _: str, body: JSON) -> JSON:
        if self.stored is not None:
            raise ApiError(409, "AlreadyExists", "")
        return self._store(body)

    async def request(self, _: str, path: str, body: JSON) -> JSON:
        if self.stored is None or body["metadata"]["resourceVersion"] != self.stored["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", path)
        return self._store(body)

    def _store(self, body: JSON) -> JSON:
        self.writes += 1
        self.stored = body | {"metadata": body["metadata"] | {"resourceVersion": str(self.writes)}}
        return self.stored


def record(api: Api) -> Record:
    return Record(api, "default", "gpubatch-totals")  # type: ignore[arg-type]


def test_a_job_counts_once_however_often_it_is_seen_and_a_new_run_counts_again() -> None:
    tally = Tally()
    for _ in range(3):
        tally.see(ended("a", EPOCH + 10))
    assert of(tally) == {"Queued": 1, "Succeeded": 1}
    tally.see(ended("a", EPOCH + 90, Phase.FAILED, queued=EPOCH + 50))
    assert of(tally) == {"Queued": 2, "Succeeded": 1, "Failed": 1}


async def test_totals_outlive_the_jobs_and_the_process() -> None:
    api, first = Api(), Tally()
    first.see(ended("a", EPOCH + 10))
    await once(first, record(api), True, EPOCH + 100)
    second = Tally()
    second.see(ended("b", EPOCH + 95, Phase.CANCELLED, queued=EPOCH + 90))  # and `a` is deleted
    await once(second, record(api), False, EPOCH + 101)
    assert of(second) == {"Queued": 2, "Succeeded": 1, "Cancelled": 1}


async def test_nothing_is_written_when_nothing_happens_nor_by_a_replica_that_does_not_lead() -> None:
    api, tally = Api(), Tally()
    await once(tally, record(api), True, EPOCH)
    tally.see(ended("a", EPOCH + 10))
    await once(tally, record(api), False, EPOCH + 1000)
    assert api.writes == 0
    for _ in range(3):
        await once(tally, record(api), True, EPOCH + 1000)
    assert api.writes == 1


async def test_a_record_that_cannot_be_read_is_begun_anew() -> None:
    api, tally = Api(), Tally()
    api.stored = {"metadata": {"resourceVersion": "7"}, "data": {"totals.json": "nonsense"}}
    tally.see(ended("a", EPOCH + 10))
    await once(tally, record(api), True, EPOCH + 1000)
    assert Totals.of(json.loads(api.stored["data"]["totals.json"])).counts["default", "Succeeded"] == 1


@given(st.randoms(use_true_random=False))
def test_whoever_leads_and_whoever_restarts_each_end_counts_once(rng: random.Random) -> None:
    """Two replicas see everything; one is restarted now and then, and then knows only the jobs that are still there."""
    stored, lasting, other, jobs, expected, now = Totals(), Tally(), Tally(), dict[str, Job](), 0, EPOCH
    for number in range(rng.randrange(60)):
        now += rng.randrange(1, 40)
        match rng.choice(("end", "end", "delete", "write", "restart")):
            case "end":
                jobs[f"{number}"] = made = ended(f"{number}", now, queued=now)
                expected += 1
                for tally in (lasting, other):
                    tally.see(made)
            case "delete" if jobs:
                del jobs[rng.choice(list(jobs))]
            case "write":
                # A replica that has just come may lack what was deleted: it leads only while the other one doesn't.
                lasting.rebase(stored)
                stored = lasting.recorded_through(now - 60) or stored
            case "restart":
                other = Tally(stored)
                for each in jobs.values():
                    other.see(each)
        lasting.rebase(stored)
        other.rebase(stored)
        assert of(lasting) == ({"Queued": expected, "Succeeded": expected} if expected else {})
        assert other.total("Succeeded") <= expected
    final = lasting.recorded_through(now) or stored
    other.rebase(final)
    assert other.total("Succeeded") == lasting.total("Succeeded") == expected


def test_a_record_is_as_small_as_an_object_may_be_and_comes_back_as_it_was() -> None:
    small = Totals(EPOCH, {("a", "Queued"): 3, ("a", "Failed"): 1, ("b", "Succeeded"): 2})
    assert Totals.of(small.document()) == small
    many = Totals(EPOCH, {(f"n{i:063}", "Queued"): 10**6 for i in range(MAX_NAMESPACES + 500)})
    document = many.document()
    assert len(str(document)) < 900_000
    assert sum(row[0] for row in document["namespaces"].values()) == sum(many.counts.values())

"""The plan's promises: never two jobs in one slot, order kept, no job lost, no starvation."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core import backoff
from gpubatch_operator.core.model import Aging, Job, Node, Occupant, Policy, Snapshot, Taint, Toleration, Wishes
from gpubatch_operator.core.order import in_order
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.placement import misfit
from gpubatch_operator.core.plan import Plan, plan
from unit.operator.build import EPOCH, GPU, ONE_GPU, gpu_shape, job, node

MIG = "nvidia.com/mig-1g.10gb"
TEAM = Taint("team", "search", "NoSchedule")

shapes = st.builds(
    gpu_shape,
    st.sampled_from([1, 1, 2, 4, 8]),
    st.sampled_from([GPU, GPU, GPU, MIG]),
    st.sampled_from([(), (), (Toleration("team", "Exists", None, None),)]),
) | st.builds(gpu_shape, st.sampled_from([1, 2]), zone=st.sampled_from(["a", "b"]))


@st.composite
def nodes(draw) -> list[Node]:
    return [
        node(
            f"node-{i}",
            ready=draw(st.sampled_from([True, True, True, False])),
            unschedulable=draw(st.sampled_from([False, False, False, True])),
            labels=draw(st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])),
            taints=draw(st.sampled_from([(), (), (TEAM,)])),
            capacity=draw(st.sampled_from([{}, {GPU: 1}, {GPU: 2}, {GPU: 8}, {MIG: 7}, {GPU: 4, MIG: 2}])),
            slots=draw(st.sampled_from([1, 1, 1, 2, 4])),
        )
        for i in range(draw(st.integers(0, 5)))
    ]


@st.composite
def jobs(draw) -> list[Job]:
    return [
        job(
            f"job-{i}",
            phase=draw(st.sampled_from([Phase.QUEUED, Phase.QUEUED, Phase.QUEUED, Phase.VALIDATING])),
            priority=draw(st.integers(-1, 1)),
            queued_at=EPOCH + draw(st.integers(0, 3)),
            ticket=draw(st.integers(1, 5)),
            of=draw(shapes),
        )
        for i in range(draw(st.integers(0, 15)))
    ]


def gpus_of(taken: list[Occupant], name: str, resource: str) -> int:
    return sum(o.gpus for o in taken if (o.node, o.resource) == (name, resource))


@st.composite
def snapshots(draw) -> Snapshot:
    there, used = draw(nodes()), []
    for n in there:
        for slot in range(n.slots):
            if draw(st.booleans()):
                resource = draw(st.sampled_from([GPU, MIG]))
                left = n.capacity.get(resource, 0) - sum(
                    o.gpus for o in used if (o.node, o.resource) == (n.name, resource)
                )
                if left:
                    used.append(Occupant(n.name, slot, resource, draw(st.integers(1, left))))
    return Snapshot(draw(jobs()), there, used)


def fits(one: Job, snapshot: Snapshot, taken: list[Occupant]) -> bool:
    """Said independently of the code: some node that matches has a free slot and enough free GPUs."""
    return any(
        misfit(one.shape, n) is None
        and len({o.slot for o in taken if o.node == n.name}) < n.slots
        and n.capacity.get(one.shape.resource, 0) - gpus_of(taken, n.name, one.shape.resource) >= one.shape.gpus
        for n in snapshot.nodes
    )


def occupants(p: Plan) -> list[Occupant]:
    return [Occupant(a.node, a.slot, a.job.shape.resource, a.job.shape.gpus) for a in p.admissions]


def told(p: Plan) -> tuple[list[tuple[str, str, int]], list[str]]:
    return [(a.job.uid, a.node, a.slot) for a in p.admissions], [j.uid for j in p.queue]


@given(snapshots())
def test_never_two_jobs_in_one_slot(snapshot: Snapshot):
    slots = [(o.node, o.slot) for o in [*snapshot.occupied, *occupants(plan(snapshot))]]
    assert len(slots) == len(set(slots))
    assert all(slot in range(n.slots) for n in snapshot.nodes for name, slot in slots if name == n.name)


@given(snapshots())
def test_the_gpus_of_a_node_are_never_oversubscribed(snapshot: Snapshot):
    used: Counter[tuple[str, str]] = Counter()
    for o in [*snapshot.occupied, *occupants(plan(snapshot))]:
        used[o.node, o.resource] += o.gpus
    for n in snapshot.nodes:
        for resource, count in n.capacity.items():
            assert used[n.name, resource] <= count


@given(snapshots())
def test_no_job_is_lost_and_none_appears_twice(snapshot: Snapshot):
    p = plan(snapshot)
    assert sorted([*(a.job.uid for a in p.admissions), *(j.uid for j in p.queue)]) == sorted(
        j.uid for j in snapshot.waiting
    )


@given(snapshots())
def test_no_job_is_admitted_while_an_earlier_one_that_fits_that_slot_waits(snapshot: Snapshot):
    """Replayed one by one: whoever is admitted is the first in order that fits, and who waits fits nowhere."""
    p = plan(snapshot)
    place = {a.job.uid: o for a, o in zip(p.admissions, occupants(p), strict=True)}
    taken = list(snapshot.occupied)
    for one in in_order(snapshot.waiting):
        free = one.phase is Phase.QUEUED and fits(one, snapshot, taken)
        assert (one.uid in place) is free
        if free:
            taken.append(place[one.uid])
    assert [j.uid for j in p.queue] == [j.uid for j in in_order(snapshot.waiting) if j.uid not in place]


@given(snapshots())
def test_no_job_gets_a_node_that_it_could_not_run_on(snapshot: Snapshot):
    by_name = {n.name: n for n in snapshot.nodes}
    for a in plan(snapshot).admissions:
        n = by_name[a.node]
        assert n.ready
        assert not n.unschedulable
        assert n.capacity[a.job.shape.resource] >= a.job.shape.gpus
        assert dict(a.job.shape.selector).items() <= n.labels.items()
        assert TEAM not in n.taints or a.job.shape.tolerations


@given(snapshots(), st.randoms(use_true_random=False))
def test_the_same_world_gives_the_same_plan_whatever_order_it_is_told_in(snapshot: Snapshot, rng: random.Random):
    def shuffled(items):
        items = list(items)
        rng.shuffle(items)
        return items

    again = Snapshot(shuffled(snapshot.waiting), shuffled(snapshot.nodes), shuffled(snapshot.occupied))
    assert told(plan(again)) == told(plan(snapshot))


@given(snapshots())
def test_once_carried_out_a_plan_has_nothing_more_to_admit(snapshot: Snapshot):
    p = plan(snapshot)
    assert plan(Snapshot(p.queue, snapshot.nodes, [*snapshot.occupied, *occupants(p)])).admissions == ()


@given(snapshots())
def test_a_job_that_is_being_validated_blocks_nobody(snapshot: Snapshot):
    without = replace_waiting(snapshot, [j for j in snapshot.waiting if j.phase is Phase.QUEUED])
    assert told(plan(without))[0] == told(plan(snapshot))[0]


def replace_waiting(snapshot: Snapshot, waiting: list[Job]) -> Snapshot:
    return Snapshot(waiting, snapshot.nodes, snapshot.occupied)


def test_a_job_that_is_being_validated_keeps_its_place():
    early, late = job("early", phase=Phase.VALIDATING, ticket=1), job("late", ticket=2)
    busy = [Occupant("node-a", 0, GPU, 1)]
    assert [j.name for j in plan(Snapshot([late, early], [node()], busy)).queue] == ["early", "late"]
    checked = replace(early, phase=Phase.QUEUED)
    assert [a.job.name for a in plan(Snapshot([late, checked], [node()], [])).admissions] == ["early"]


def test_two_nodes_run_two_jobs_side_by_side_never_two_on_one():
    p = plan(Snapshot([job(f"job-{i}", ticket=i) for i in range(3)], [node("node-a", 8), node("node-b", 8)], []))
    assert [(a.job.name, a.node) for a in p.admissions] == [("job-0", "node-a"), ("job-1", "node-b")]
    assert [j.name for j in p.queue] == ["job-2"]


def test_a_job_that_fits_nowhere_does_not_hold_up_a_later_one():
    p = plan(Snapshot([job("huge", of=gpu_shape(64), priority=1), job("small")], [node()], []))
    assert [a.job.name for a in p.admissions] == ["small"]


def test_a_big_job_finds_the_big_node_free_since_small_ones_go_to_small_nodes():
    waiting = [job("small", priority=1), job("big", of=gpu_shape(8))]
    p = plan(Snapshot(waiting, [node("large", 8), node("little", 1)], []))
    assert {a.job.name: a.node for a in p.admissions} == {"small": "little", "big": "large"}


def test_without_nodes_everybody_waits():
    assert len(plan(Snapshot([job("a"), job("b")], [], [])).queue) == 2


@given(nodes(), st.integers(0, 2**32))
def test_nobody_starves(there: list[Node], seed: int):
    """Rounds of random arrivals and ends: each free slot goes to the first in order that it fits, and once arrivals
    stop everybody runs who has a matching node."""
    rng = random.Random(seed)
    kinds = [ONE_GPU, gpu_shape(2), gpu_shape(8), gpu_shape(1, MIG), gpu_shape(1, zone="a"), gpu_shape(64)]
    waiting: list[Job] = []
    running: dict[str, tuple[Occupant, int]] = {}
    ran: set[str] = set()
    born = 0
    for now in range(400):
        running = {uid: (o, end) for uid, (o, end) in running.items() if end > now}
        if now < 40:
            for _ in range(rng.randrange(3)):
                born += 1
                waiting.append(
                    job(
                        f"job-{born}",
                        priority=rng.choice([-1, 0, 0, 1, 1]),
                        queued_at=EPOCH + now,
                        ticket=born,
                        of=rng.choice(kinds),
                    )
                )
        snapshot = Snapshot(waiting, there, [o for o, _ in running.values()])
        p = plan(snapshot)
        taken = list(snapshot.occupied)
        for one in in_order(waiting):
            admitted = next((o for a, o in zip(p.admissions, occupants(p), strict=True) if a.job is one), None)
            assert (admitted is not None) is fits(one, snapshot, taken), "not the first in order"
            if admitted:
                taken.append(admitted)
                running[one.uid] = admitted, now + rng.randrange(1, 6)
                ran.add(one.uid)
        waiting = list(p.queue)
        if now > 40 and not running:
            break
    for one in waiting:
        assert all(misfit(one.shape, n) for n in there), f"{one.name} matches a node and never ran"


def test_a_job_in_back_off_keeps_its_place_and_blocks_nobody():
    resting, later = job("resting", ticket=1, not_before=100.0), job("later", ticket=2)
    early = plan(Snapshot([resting, later], [node()], [], now=99.0))
    assert ([a.job.name for a in early.admissions], [j.name for j in early.queue]) == (["later"], ["resting"])
    assert plan(Snapshot([resting, later], [node()], [], now=100.0)).admissions[0].job.name == "resting"


def test_attempts_that_are_lost_again_and_again_come_later_and_later():
    assert [backoff.delay(n, blameless=True) for n in (1, 2, 3, 4, 20)] == [0, 10, 20, 40, 300]
    assert [backoff.delay(n, blameless=False) for n in (1, 2, 3, 20)] == [10, 20, 40, 300]


# --- what an administrator decides


def admitted(p: Plan) -> list[tuple[str, str]]:
    return [(a.job.name, a.node) for a in p.admissions]


def test_a_namespace_gets_no_more_slots_than_its_share_and_holds_nobody_up():
    jobs = [job(f"mine-{i}", ticket=i, namespace="mine") for i in range(3)]
    jobs.append(job("yours", ticket=9, namespace="yours"))
    snapshot = Snapshot(jobs, [node("node-a"), node("node-b"), node("node-c")], [], active_in={"mine": 1})
    assert [name for name, _ in admitted(plan(snapshot, Policy(max_slots={"mine": 2})))] == ["mine-0", "yours"]
    assert [name for name, _ in admitted(plan(snapshot, Policy(max_slots={"*": 0, "yours": 1})))] == ["yours"]


def test_waiting_raises_the_priority_step_by_step_up_to_a_cap_if_so_set():
    old, urgent = job("old", queued_at=EPOCH), job("urgent", priority=2, queued_at=EPOCH + 7000)

    def first(aging: Aging, now: float) -> str:
        return plan(Snapshot([urgent, old], [], [], now=now), Policy(aging=aging)).queue[0].name

    assert first(Aging(), EPOCH + 1e6) == "urgent"
    aging = Aging(step=1, interval=3600, cap=5)
    assert [first(aging, EPOCH + h * 3600) for h in (0, 1, 2, 3)] == ["urgent", "urgent", "old", "old"]
    assert first(Aging(step=1, interval=3600, cap=1), EPOCH + 1e6) == "urgent", "both are at the cap"


def test_the_first_jobs_that_fit_no_node_get_a_pod_for_the_autoscaler():
    large = [job(f"large-{i}", ticket=i, of=gpu_shape(8)) for i in range(3)]
    snapshot = Snapshot([*large, job("small", ticket=9)], [node()], [])
    assert admitted(plan(snapshot, Policy(scale_up=2))) == [("small", "node-a"), ("large-0", ""), ("large-1", "")]
    assert admitted(plan(snapshot)) == [("small", "node-a")], "none without the setting"
    waiting_for_one = replace(snapshot, floating=[gpu_shape(8)])
    assert admitted(plan(waiting_for_one, Policy(scale_up=1))) == [("small", "node-a")]


def test_a_job_that_fits_a_busy_node_waits_for_it():
    busy = Snapshot([job("small")], [node()], [Occupant("node-a", 0, GPU, 1)])
    assert admitted(plan(busy, Policy(scale_up=1))) == []


def test_the_node_that_an_autoscaler_made_is_left_to_the_pod_that_it_was_made_for():
    urgent = job("urgent", priority=9, of=gpu_shape(8))
    snapshot = Snapshot([urgent], [node("new", 8)], [], floating=[gpu_shape(8)])
    assert admitted(plan(snapshot, Policy(scale_up=1))) == []


def test_a_job_for_which_no_node_came_gives_others_the_chance():
    stale = job("stale", ticket=1, of=gpu_shape(8), avoid=(("", EPOCH + 100),))
    other = job("other", ticket=2, of=gpu_shape(4))
    assert admitted(plan(Snapshot([stale, other], [], [], now=EPOCH), Policy(scale_up=1))) == [("other", "")]
    assert admitted(plan(Snapshot([stale, other], [], [], now=EPOCH + 100), Policy(scale_up=1))) == [("stale", "")]


def test_a_node_that_had_no_room_for_a_job_comes_after_the_others():
    burnt = job("burnt", avoid=(("node-a", EPOCH + 100),))
    both = [node("node-a"), node("node-b", 4)]
    assert admitted(plan(Snapshot([burnt], both, [], now=EPOCH))) == [("burnt", "node-b")]
    assert admitted(plan(Snapshot([burnt], both, [], now=EPOCH + 100))) == [("burnt", "node-a")]
    assert admitted(plan(Snapshot([burnt], [node("node-a")], [], now=EPOCH))) == [("burnt", "node-a")]


def test_a_node_without_slots_takes_no_job():
    assert admitted(plan(Snapshot([job()], [node(slots=0)], []))) == []


@pytest.mark.parametrize("wish", [Wishes(suspend=True), Wishes(cancel=True)])
def test_a_job_that_was_lost_while_its_user_gave_it_up_is_not_run_again(wish: Wishes):
    lost, other = job("lost", wishes=wish), job("other", ticket=2)
    decided = plan(Snapshot([lost, other], [node()], []))
    assert [a.job.name for a in decided.admissions] == ["other"]

"""Which node a job may use: Kubernetes' own rules, so that the scheduler agrees with what we decided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.model import Occupant, Taint, Toleration
from gpubatch_operator.core.placement import Rooms, matching, misfit, misfits, tolerates
from unit.operator.build import GPU, ONE_GPU, gpu_shape, node

SPOT = Taint("spot", "yes", "NoSchedule")


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration("spot", "Equal", "yes", "NoSchedule"), True),
        (Toleration("spot", "Equal", "yes", None), True),  # no effect: all effects
        (Toleration("spot", "Equal", "no", "NoSchedule"), False),
        (Toleration("spot", "Equal", None, "NoSchedule"), False),
        (Toleration("spot", "Exists", None, "NoSchedule"), True),
        (Toleration("spot", "Exists", None, "NoExecute"), False),
        (Toleration("other", "Exists", None, None), False),
        (Toleration(None, "Exists", None, None), True),  # tolerates everything
        (Toleration("", "Exists", None, None), True),  # an empty key is no key
        (Toleration(None, "Exists", None, "NoExecute"), False),
        (Toleration(None, "Equal", "yes", None), False),
    ],
)
def test_tolerations_follow_kubernetes_rules(toleration: Toleration, tolerated: bool):
    assert tolerates(toleration, SPOT) is tolerated


def test_a_taint_without_a_value_is_tolerated_by_a_toleration_without_one():
    assert tolerates(Toleration("spot", "Equal", None, "NoSchedule"), Taint("spot", "", "NoSchedule"))
    assert tolerates(Toleration("spot", "Equal", "", "NoSchedule"), Taint("spot", "", "NoSchedule"))


def test_every_taint_must_be_tolerated():
    two = node(taints=(SPOT, Taint("team", "search", "NoExecute")))
    spot, team = Toleration("spot", "Exists", None, None), Toleration("team", "Equal", "search", "NoExecute")
    assert misfit(gpu_shape(tolerations=(spot,)), two) == "taint team is not tolerated"
    assert misfit(gpu_shape(tolerations=(spot, team)), two) is None


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        (node(gpus=0), f"no {GPU}"),
        (node(capacity={GPU: 0}), f"no {GPU}"),
        (node(capacity={"amd.com/gpu": 4}), f"no {GPU}"),
        (node(ready=False), "not ready"),
        (node(unschedulable=True), "cordoned"),
        (node(taints=(SPOT,)), "taint spot is not tolerated"),
        (node(taints=(Taint("spot", "", "NoExecute"),)), "taint spot is not tolerated"),
    ],
)
def test_a_node_that_is_unfit_never_gets_a_job_and_says_why(unfit, why: str):
    assert misfit(ONE_GPU, unfit) == why
    assert Rooms([unfit], []).take(ONE_GPU) is None


def test_a_preference_and_the_taint_of_the_gpu_itself_keep_nobody_away():
    assert misfit(ONE_GPU, node(taints=(Taint("spot", "", "PreferNoSchedule"), Taint(GPU, "x", "NoSchedule")))) is None


def test_the_selector_must_match_and_the_gpus_must_suffice():
    h100 = node(labels={"product": "h100"}, gpus=4)
    assert misfit(gpu_shape(4, product="h100"), h100) is None
    assert misfit(gpu_shape(1, product="a100"), h100) == "label product is not a100"
    assert misfit(gpu_shape(1, zone="a"), h100) == "label zone is not a"
    assert misfit(gpu_shape(8), h100) == "has 4 of 8 GPUs"


def test_the_tightest_free_node_is_taken_first():
    rooms = Rooms([node("large", 8), node("small", 1), node("middle", 4)], [])
    assert [rooms.take(ONE_GPU) for _ in range(4)] == [("small", 0), ("middle", 0), ("large", 0), None]


def test_the_tightest_node_is_the_one_with_the_fewest_gpus_left():
    used = [Occupant("big", 0, GPU, 7)]
    assert Rooms([node("big", 8, slots=2), node("small", 2)], used).take(ONE_GPU) == ("big", 1)


def test_slots_of_a_node_share_its_gpus():
    rooms = Rooms([node(gpus=4, slots=4)], [Occupant("node-a", 2, GPU, 1)])
    assert [rooms.take(gpu_shape(2)), rooms.take(gpu_shape(2)), rooms.take(ONE_GPU), rooms.take(ONE_GPU)] == [
        ("node-a", 0),
        None,
        ("node-a", 1),
        None,
    ]


def test_a_pod_on_a_node_that_is_gone_is_no_harm():
    assert Rooms([node()], [Occupant("gone", 0, GPU, 1)]).take(ONE_GPU) == ("node-a", 0)


def test_a_node_that_lost_slots_gets_no_job_more_than_it_has_slots_now():
    left = [Occupant("node-a", 3, GPU, 1), Occupant("node-a", 1, GPU, 1)]
    assert Rooms([node(gpus=8, slots=1)], left).take(ONE_GPU) is None
    assert Rooms([node(gpus=8, slots=2)], left).take(ONE_GPU) is None
    rooms = Rooms([node(gpus=8, slots=3)], left)
    assert [rooms.take(ONE_GPU), rooms.take(ONE_GPU)] == [("node-a", 0), None]


def test_why_no_node_matches_names_the_most_frequent_cause_first():
    nodes = [node("a", unschedulable=True), node("b", 2), node("c", 2)]
    assert misfits(gpu_shape(4), nodes) == "2 nodes: has 2 of 4 GPUs; 1 node: cordoned"
    assert (matching(gpu_shape(4), nodes), matching(ONE_GPU, nodes)) == (0, 2)


@given(st.data())
def test_however_slots_are_taken_none_is_given_twice_and_no_gpu_either(data):
    nodes = [
        node(f"n{i}", capacity={GPU: gpus, "mig": mig}, slots=slots)
        for i, (gpus, mig, slots) in enumerate(
            data.draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(1, 4)), max_size=5))
        )
    ]
    rooms = Rooms(nodes, [])
    wanted = st.builds(gpu_shape, st.integers(1, 8), st.sampled_from([GPU, "mig"]))
    given: list[tuple[str, int]] = []
    left = {n.name: dict(n.capacity) for n in nodes}
    for want in data.draw(st.lists(wanted, max_size=30)):
        fits = [
            n
            for n in nodes
            if left[n.name][want.resource] >= want.gpus and sum(p[0] == n.name for p in given) < n.slots
        ]
        place = rooms.take(want)
        assert (place is None) is (not fits)
        if place:
            assert left[place[0]][want.resource] == min(left[n.name][want.resource] for n in fits)
            left[place[0]][want.resource] -= want.gpus
            given.append(place)
    assert len(given) == len(set(given))
    assert rooms.free == sum(n.slots for n in nodes) - len(given)

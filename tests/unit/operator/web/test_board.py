"""The board: whatever happened in whatever order, it shows what sorting everything anew would show."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bench_lib.crowd import crowd
from gpubatch_operator.core.model import Aging, Job
from gpubatch_operator.core.order import in_order
from gpubatch_operator.core.phases import ACTIVE, WAITING, Phase
from gpubatch_operator.web.board import Board
from unit.operator.build import EPOCH, job, node

NAMESPACES = ("a", "b", "c")


def queue_of(board: Board, namespaces: tuple[str, ...] | None = None) -> list[Job]:
    return [board.job(key) for key in board.in_order(namespaces, None)]


def some_job(rng: random.Random) -> Job:
    name, phase = f"job-{rng.randrange(12)}", rng.choice([*Phase, None])
    queued = EPOCH + rng.randrange(5)
    return job(
        name,
        namespace=rng.choice(NAMESPACES),
        uid=f"uid-{name}",
        phase=phase,
        priority=rng.randrange(-1, 2),
        queued_at=queued,
        ticket=rng.randrange(100),
        deleting=rng.random() < 0.1,
        status={"phase": phase.value if phase else None, "startTime": "2027-01-15T08:00:00Z"},
    )


@given(st.randoms(use_true_random=False), st.sampled_from([Aging(), Aging(1, 10.0, 2)]))
def test_positions_and_lists_are_those_of_sorting_everything_anew(rng: random.Random, aging: Aging) -> None:
    board, jobs, now = Board(aging), dict[str, Job](), EPOCH
    for _ in range(rng.randrange(40)):
        now += rng.choice((0.0, 3.0, 11.0))
        if jobs and rng.random() < 0.2:
            uid = rng.choice(list(jobs))
            del jobs[uid]
            board.drop(uid)
        else:
            new = some_job(rng)
            jobs = {u: j for u, j in jobs.items() if (j.namespace, j.name) != (new.namespace, new.name)}
            jobs[new.uid] = new
            board.put(new, now)
    board.age(now)
    active = [j for j in jobs.values() if j.phase in ACTIVE]
    waiting = in_order((j for j in jobs.values() if j.phase in WAITING and not j.deleting), aging, now)
    for scope in (None, ("a",), ("a", "c")):
        seen = [j for j in waiting if scope is None or j.namespace in scope]
        runs = {j.uid for j in active if scope is None or j.namespace in scope}
        shown = queue_of(board, scope)
        assert {j.uid for j in shown[: len(runs)]} == runs
        assert shown[len(runs) :] == seen
        assert [board.position(j) for j in shown] == [0] * len(runs) + [waiting.index(j) + 1 for j in seen]
        newest = [board.job(k) for k in board.newest_first(scope, [*Phase, None], None)]
        all_of = [j for j in jobs.values() if scope is None or j.namespace in scope]
        assert newest == sorted(all_of, key=lambda j: (-j.created, j.namespace, j.name))
        assert board.count(scope, [Phase.HELD]) == sum(j.phase is Phase.HELD for j in all_of)
    assert list(board.namespaces) == sorted({j.namespace for j in jobs.values()})


def test_what_a_list_shows_of_a_job_is_as_new_as_the_job() -> None:
    board = Board()
    first = job("a", status={"phase": "Queued"})
    board.put(first, EPOCH)
    assert b"minilm" in board.text(first)
    board.put(changed := replace(first, model="other"), EPOCH)
    assert b"other" in board.text(changed)


def test_a_namesake_takes_the_place_of_a_job_whose_end_was_missed() -> None:
    board = Board()
    board.put(job("a", uid="old"), EPOCH)
    board.put(job("a", uid="new"), EPOCH)
    found = board.find("default", "a")
    assert (found.uid if found else None, len(board), len(queue_of(board))) == ("new", 1, 1)


def test_slots_are_those_of_nodes_that_are_ready_and_have_gpus() -> None:
    board = Board()
    board.put_nodes([node("a", slots=2), node("b", ready=False), node("c", gpus=0), node("d", unschedulable=True)])
    assert (board.slots(), list(board.gpu_nodes(""))) == (2, ["a", "b", "d"])


def test_a_caller_sees_only_their_own_attempts_on_a_node() -> None:
    board = Board()
    jobs, nodes = crowd(200, 10, EPOCH)
    board.put_nodes(nodes)
    for each in jobs:
        board.put(each, EPOCH)
    mine = [j for name in board.gpu_nodes("") for j, _ in board.bars(name, ("team-01",), 100)]
    assert mine
    assert {j.namespace for j in mine} == {"team-01"}
    for each in jobs:
        board.drop(each.uid)
    assert [b for name in board.gpu_nodes("") for b in board.bars(name, None, 100)] == []

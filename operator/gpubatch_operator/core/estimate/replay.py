"""The queue replayed over sampled durations: when would each job start?

As the planner decides: a lane (a slot of a node) that gets free goes to the first job in order that fits it; jobs that
are still to come take their place in the order when they arrive. One run for each sample.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Rank = tuple[float, ...]
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that isn't there yet: when it comes, its place in the order, its kind, how long it runs (seconds)."""

    at: float
    rank: Rank
    kind: int
    duration: float


def in_line(free: list[float], durations: Iterable[float]) -> list[float]:
    """Starts of jobs that fit every lane, if nobody comes later and overtakes. `free` is used up."""
    heapq.heapify(free)
    return [heapq.heapreplace(free, free[0] + d) for d in durations]


def overtaken(
    free: list[float], priorities: Sequence[int], durations: Sequence[float], arrivals: Iterator[Arrival]
) -> list[float]:
    """Starts of jobs that fit every lane while others come: as `replay`, without its choice. `free` is used up."""
    heapq.heapify(free)
    starts: list[float] = []
    ahead: list[tuple[Rank, float]] = []
    coming = next(arrivals, None)
    for priority, duration in zip(priorities, durations, strict=True):
        while True:
            at = free[0]
            while coming is not None and coming.at <= at:
                heapq.heappush(ahead, (coming.rank, coming.duration))
                coming = next(arrivals, None)
            if not ahead or ahead[0][0][0] >= -priority:
                break
            heapq.heapreplace(free, at + heapq.heappop(ahead)[1])
        starts.append(at)
        heapq.heapreplace(free, at + duration)
    return starts


def in_order(
    free: Sequence[tuple[float, int]],
    fits: Sequence[Sequence[int]],
    kinds: Sequence[int],
    durations: Sequence[float],
) -> list[float]:
    """Starts of jobs in their order, if nobody comes later and overtakes; `NEVER` for one that fits no lane.

    Each takes the lane that is free first among those that it fits: the same as what `replay` finds event by event.
    """
    heaps: list[list[float]] = [[] for _ in fits]
    for at, lane in free:
        heaps[lane].append(at)
    for heap in heaps:
        heapq.heapify(heap)
    fitting = {k: [h for h, fit in zip(heaps, fits, strict=True) if k in fit and h] for k in set(kinds)}
    starts = []
    for kind, duration in zip(kinds, durations, strict=True):
        mine = fitting[kind]
        if not mine:
            starts.append(NEVER)
            continue
        heap = mine[0]
        for other in mine:
            if other[0] < heap[0]:
                heap = other
        starts.append(heapq.heapreplace(heap, heap[0] + duration))
    return starts


def replay(
    free: Sequence[tuple[float, int]],
    fits: Sequence[Sequence[int]],
    ranks: Sequence[Rank],
    kinds: Sequence[int],
    durations: Sequence[float],
    arrivals: Iterator[Arrival],
) -> list[float]:
    """Starts of waiting jobs while others come; `NEVER` for one that fits no lane.

    Args:
        free: For each lane the time at which it gets free, and its class.
        fits: For each class of lanes the kinds of jobs that fit it.
        ranks: Of each waiting job its place in the order, ascending.
        kinds: Of each waiting job.
        durations: Of each waiting job, seconds.
        arrivals: Who comes later, by time.
    """
    starts = [NEVER] * len(ranks)
    waiting: dict[int, list[tuple[Rank, float, int]]] = {}
    for i, (rank, kind, duration) in enumerate(zip(ranks, kinds, durations, strict=True)):
        waiting.setdefault(kind, []).append((rank, duration, i))
    usable = {kind for _, c in free for kind in fits[c]}
    left = sum(len(jobs) for kind, jobs in waiting.items() if kind in usable)
    lanes = list(free)
    heapq.heapify(lanes)
    coming = next(arrivals, None)
    while left:
        at, lane = lanes[0]
        while coming is not None and coming.at <= at:
            heapq.heappush(waiting.setdefault(coming.kind, []), (coming.rank, coming.duration, -1))
            coming = next(arrivals, None)
        queues = [q for kind in fits[lane] if (q := waiting.get(kind))]
        if not queues:
            if coming is None:
                heapq.heappop(lanes)
            else:
                heapq.heapreplace(lanes, (coming.at, lane))
            continue
        _, duration, i = heapq.heappop(min(queues) if len(queues) > 1 else queues[0])
        if i >= 0:
            starts[i] = at
            left -= 1
        heapq.heapreplace(lanes, (at + duration, lane))
    return starts

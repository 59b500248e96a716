"""Who may lead: the rules of client-go's leader election, as functions of a monotonic clock.

A lease says who leads, and for how long after its last renewal. Nobody compares clocks: a candidate takes the lease
over once it has seen no renewal for the lease's whole duration by its own clock, and the leader stops some seconds
before that by its own (`Terms.renew` is shorter than `Terms.duration`, and counts from before the request was sent).
Source: k8s.io/client-go/tools/leaderelection.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. `duration` > `renew` > `retry`."""

    duration: float = 15.0  # others wait for so long after the last renewal that they saw
    renew: float = 10.0  # the leader stops so long after its last renewal
    retry: float = 2.0  # between two renewals, or two looks of a candidate


@dataclass(frozen=True, slots=True)
class Lease:
    """The Lease object as it was read. `holder` is empty after a release; `mark` changes with each renewal."""

    version: str
    holder: str
    duration: float
    mark: str
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Sight:
    """A lease, None where there is none, and from when on it may be taken: 0 for at once."""

    lease: Lease | None
    free_at: float


def see(before: Sight | None, lease: Lease | None, now: float, me: str, duration: float) -> Sight:
    """What `me`, whose own leases last for `duration`, knows after it has read the lease."""
    if lease is None:
        # Somebody has deleted it. Its holder may not know yet, and who took one that was free may not have been seen.
        had = before.lease if before else None
        if had and had.holder != me:
            return Sight(None, now + max(had.duration, duration))
        return Sight(None, before.free_at if before else 0)
    if lease.holder in ("", me):
        return Sight(lease, 0)
    known = before.lease if before else None
    if before and known and (known.mark, known.holder) == (lease.mark, lease.holder):
        return Sight(lease, before.free_at)
    return Sight(lease, now + lease.duration)


def held_until(renewed: float, terms: Terms) -> float:
    """The moment at which the leader must have stopped; `renewed` is when its last good renewal was sent."""
    return renewed + terms.renew

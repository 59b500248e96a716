"""The election's promise, in virtual time: whatever is slow, lost or paused, there is at most one leader."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from gpubatch_operator.core.election import Lease, Sight, Terms, held_until, see

TERMS = Terms(duration=15, renew=10, retry=2)


@dataclass
class Replica:
    """What one replica knows, and its one request under way."""

    name: str
    sight: Sight | None = None
    renewed: float | None = None
    sent: tuple[float, str, bool] | None = None  # when, the version it was made from, whether the server took it
    landed: Lease | None = None

    def leads(self, now: float, terms: Terms) -> bool:
        return self.renewed is not None and now < held_until(self.renewed, terms)


@dataclass
class World:
    """The API server, two replicas and a clock."""

    terms: Terms
    now: float = 0.0
    lease: Lease | None = None
    version: int = 0
    replicas: list[Replica] = field(default_factory=lambda: [Replica("a"), Replica("b")])

    def look(self, r: Replica) -> None:
        r.sight = see(r.sight, self.lease, self.now, r.name, self.terms.duration)

    def send(self, r: Replica) -> None:
        """A renewal, or an attempt to take the lease, if the rules allow it."""
        if r.sight is None or r.sent:
            return
        if r.leads(self.now, self.terms) or (r.renewed is None and r.sight.free_at <= self.now):
            known = r.sight.lease
            r.sent = (self.now, known.version if known else "", False)

    def land(self, r: Replica) -> None:
        """The request reaches the server, however late."""
        if r.sent and not r.sent[2] and r.sent[1] == (self.lease.version if self.lease else ""):
            self.version += 1
            self.lease = Lease(str(self.version), r.name, TERMS.duration, mark=str(self.version))
            r.sent, r.landed = (r.sent[0], r.sent[1], True), self.lease

    def hear(self, r: Replica) -> None:
        """The answer comes, or the replica gives the request up."""
        if r.sent and r.sent[2]:
            r.sight, r.renewed = see(r.sight, r.landed, self.now, r.name, self.terms.duration), r.sent[0]
        r.sent = None

    def turn(self, r: Replica) -> None:
        """All of it without a delay."""
        for step in (self.look, self.send, self.land, self.hear):
            step(r)

    def delete(self, _: Replica) -> None:
        """An administrator deletes the Lease. Who had never seen it can't know that it was there."""
        if all(r.sight and r.sight.lease for r in self.replicas):
            self.lease = None

    def release(self, r: Replica) -> None:
        """At its end; the replica that comes then in its place knows nothing."""
        if r.leads(self.now, self.terms) and not r.sent and self.lease and r.sight and r.sight.lease:
            if r.sight.lease.version == self.lease.version:
                self.version += 1
                self.lease = Lease(str(self.version), "", 1, mark=str(self.version))
            r.renewed = r.sight = None


STEPS = st.tuples(
    st.sampled_from([0, 0.5, 2, 5, 7.5]),  # seconds that pass: a pause of a process, a slow network
    st.integers(0, 1),
    st.sampled_from(["look", "send", "land", "hear", "turn", "turn", "release", "delete"]),
)


CLOSE = [(0, 0, "turn"), (0, 1, "turn"), (7.5, 1, "look"), (7.5, 1, "look"), (0.5, 1, "turn")]


def most_leaders(steps: list[tuple[float, int, str]], terms: Terms) -> int:
    """How many led at once, at worst."""
    world, most = World(terms), 0
    for pause, who, what in steps:
        world.now += pause
        getattr(world, what)(world.replicas[who])
        most = max(most, sum(r.leads(world.now, terms) for r in world.replicas))
        # A leader that has lost its lease ends: the next process of that place is another, and knows nothing.
        if (r := world.replicas[who]).renewed is not None and not r.leads(world.now, terms):
            world.replicas[who] = Replica(f"{r.name}'")
    return most


@given(st.lists(STEPS, max_size=60))
@example(CLOSE)
def test_there_are_never_two_leaders(steps: list[tuple[float, int, str]]):
    assert most_leaders(steps, TERMS) <= 1


def test_a_leader_that_held_on_for_longer_than_its_lease_would_be_caught():
    assert most_leaders(CLOSE, Terms(duration=15, renew=16, retry=2)) == 2


def lease(holder: str, mark: str = "1", duration: float = 15) -> Lease:
    return Lease(mark, holder, duration, mark)


def test_a_lease_that_is_renewed_is_never_taken():
    sight = see(None, lease("a", "1"), 100, "b", 15)
    for second in range(2, 60, 2):
        sight = see(sight, lease("a", str(second)), 100 + second, "b", 15)
        assert sight.free_at > 100 + second


def test_a_silent_leader_is_replaced_after_its_leases_duration_by_the_followers_own_clock():
    assert see(see(None, lease("a"), 100, "b", 15), lease("a"), 114.9, "b", 15).free_at == 115


def test_the_duration_is_the_leaders_not_the_followers():
    assert see(None, lease("a", duration=60), 0, "b", 15).free_at == 60


def test_what_was_released_or_is_our_own_is_free_at_once():
    assert see(None, lease(""), 100, "b", 15).free_at == 0
    assert see(None, lease("b"), 100, "b", 15).free_at == 0
    assert see(None, None, 100, "b", 15).free_at == 0


def test_a_lease_that_was_deleted_is_its_holders_until_it_must_have_noticed():
    gone = see(see(None, lease("a"), 100, "b", 15), None, 110, "b", 15)
    assert gone.free_at == 125
    assert see(gone, None, 120, "b", 15).free_at == 125

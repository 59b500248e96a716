"""The book of reservations: whoever shares it never gives more places than there are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.limits import NamespaceCaps, QueueLimits
from gpubatch_operator.core.room import Ask, Book, Place, decide


def asks(*names: str, namespace: str = "team") -> list[Ask]:
    return [Ask(f"uid-{n}", namespace, n) for n in names]


def test_places_are_given_in_the_order_of_asking_until_none_is_left():
    book, refused = decide(asks("a", "b", "c"), Book({}), [("team", "old")], [], QueueLimits(3))
    assert set(book.reserved) == {"uid-a", "uid-b"}
    assert refused == {"uid-c": "Queue full (3/3 jobs). Try again later."}


def test_a_job_that_is_known_and_waits_takes_one_place_and_not_two():
    [a] = asks("a")
    book, refused = decide(asks("b"), Book({"uid-a": a}), [a.place], ["uid-a"], QueueLimits(2))
    assert refused == {}
    assert set(book.reserved) == {"uid-a", "uid-b"}


def test_a_job_that_is_known_and_runs_takes_none():
    [a] = asks("a")
    assert decide(asks("b"), Book({"uid-a": a}), [], ["uid-a"], QueueLimits(1))[1] == {}


def test_a_job_that_is_asked_for_again_after_a_lost_answer_keeps_its_place():
    [a] = asks("a")
    again = Ask("another-uid", "team", "a")
    book, refused = decide([again], Book({"uid-a": a}), [], [], QueueLimits(1))
    assert refused == {}
    assert decide(asks("b"), book, [], [], QueueLimits(1))[1] != {}


def test_a_namespaces_own_limit_counts_its_own_jobs_only():
    own = {"small": NamespaceCaps(1), "free": NamespaceCaps(), "*": NamespaceCaps(2)}
    limits = QueueLimits(10, namespaces=own)
    taken = [("small", "x"), ("free", "x"), ("free", "y"), ("other", "x")]
    everybody = [Ask(f"{n}-{i}", n, f"{n}-{i}") for n in ("small", "free", "other") for i in range(2)]
    _, refused = decide(everybody, Book({}), taken, [], limits)
    assert refused == {
        "small-0": "Queue full (1/1 jobs in namespace small). Try again later.",
        "small-1": "Queue full (1/1 jobs in namespace small). Try again later.",
        "other-1": "Queue full (2/2 jobs in namespace other). Try again later.",
    }


@dataclass
class World:
    """An API server, and two replicas that hear of jobs late."""

    limit: int
    jobs: dict[str, Place] = field(default_factory=dict)
    version: int = 0
    book: Book = field(default_factory=lambda: Book({}))
    known: list[dict[str, Place]] = field(default_factory=lambda: [{}, {}])
    read: list[Book | None] = field(default_factory=lambda: [None, None])
    allowed: list[Ask] = field(default_factory=list)
    made: int = 0

    def look(self, r: int) -> None:
        self.read[r] = self.book

    def ask(self, r: int) -> None:
        book = self.read[r]
        if book is None:
            return
        self.made += 1
        ask = Ask(f"uid-{self.made}", "team", f"job-{self.made}")
        after, refused = decide(
            [ask],
            book,
            self.known[r].values(),
            [u for u in book.reserved if u in self.known[r]],
            QueueLimits(self.limit),
        )
        self.read[r] = None
        if not refused and book.version == self.book.version:  # compare and swap
            self.version += 1
            self.book = replace(after, version=str(self.version))
            self.allowed.append(ask)

    def create(self, _: int) -> None:
        if self.allowed:
            ask = self.allowed.pop()
            self.jobs[ask.uid] = ask.place

    def hear(self, r: int) -> None:
        self.known[r] = dict(self.jobs)

    def prune(self, r: int) -> None:
        """What every replica has seen may go."""
        old = [u for u in self.book.reserved if all(u in k for k in self.known)]
        self.version += 1
        self.book = replace(self.book.without(old), version=str(self.version))


STEPS = st.tuples(st.sampled_from(["look", "ask", "ask", "create", "hear", "prune"]), st.integers(0, 1))


@given(st.integers(1, 3), st.lists(STEPS, max_size=80))
def test_two_replicas_never_allow_more_than_fit_whatever_they_have_heard(limit: int, steps: list[tuple[str, int]]):
    world = World(limit)
    for what, who in steps:
        getattr(world, what)(who)
        assert len(world.jobs) + len(world.allowed) <= limit

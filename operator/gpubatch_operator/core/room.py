"""Whether the queue has room for jobs that are about to be created: a pure decision over a book of reservations.

Between the moment at which a replica allows a creation and the moment at which every replica has seen the job, nobody's
memory says that the place is taken. So it is written in a book that all replicas share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpubatch_operator.core.limits import QueueLimits

Place = tuple[str, str]  # namespace and name


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that is about to be created."""

    uid: str
    namespace: str
    name: str

    @property
    def place(self) -> Place:
        """What it takes."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Book:
    """Reservations by uid, and the version under which they were read (None: there is no book yet)."""

    reserved: Mapping[str, Ask]
    version: str | None = None

    def without(self, uids: Iterable[str]) -> Book:
        """The book with these entries removed."""
        gone = set(uids)
        return replace(self, reserved={uid: ask for uid, ask in self.reserved.items() if uid not in gone})


def decide(
    asks: Sequence[Ask], book: Book, waiting: Iterable[Place], seen: Iterable[str], limits: QueueLimits
) -> tuple[Book, dict[str, str]]:
    """Give places to who asks, in this order.

    Places are counted by namespace and name: of two creations under one name, as after a lost answer, at most one
    becomes a job.

    Args:
        asks: Who asks.
        book: Who was given a place lately.
        waiting: The jobs that wait, as they are known.
        seen: The uids in the book that are known as jobs, whether they still wait or not.
        limits: How many may wait.

    Returns:
        The book with the new reservations, and what those are told who get no place.
    """
    known = set(seen)
    taken = {*waiting, *(ask.place for uid, ask in book.reserved.items() if uid not in known)}
    counts = Counter(namespace for namespace, _ in taken)
    reserved, refused = dict(book.reserved), {}
    for ask in asks:
        if ask.place not in taken:
            if full := limits.full(len(taken), counts[ask.namespace], ask.namespace):
                refused[ask.uid] = f"{full}. Try again later."
                continue
            taken.add(ask.place)
            counts[ask.namespace] += 1
        reserved[ask.uid] = ask
    return replace(book, reserved=reserved), refused

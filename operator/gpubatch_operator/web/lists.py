"""Sorted lists of keys, and pages of them: a page costs what it shows, however long the lists are."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Key = tuple[Any, ...]
ListName = TypeVar("ListName", bound=Hashable)


class Lists(Generic[ListName]):
    """Lists by name, each in the order of its keys; one that is empty isn't there."""

    def __init__(self) -> None:
        self._lists: dict[ListName, list[Key]] = {}

    def __contains__(self, name: ListName) -> bool:
        return name in self._lists

    def add(self, name: ListName, key: Key) -> None:
        """Put a key in that isn't in it."""
        insort(self._lists.setdefault(name, []), key)

    def remove(self, name: ListName, key: Key) -> None:
        """Take a key out that is in it."""
        keys = self._lists[name]
        del keys[bisect_left(keys, key)]
        if not keys:
            del self._lists[name]

    def length(self, name: ListName) -> int:
        """How many keys it has."""
        return len(self._lists.get(name, ()))

    def rank(self, name: ListName, key: Key) -> int:
        """How many keys of it are smaller."""
        return bisect_left(self._lists.get(name, []), key)

    def after(self, names: Iterable[ListName], key: Key | None) -> Iterator[Key]:
        """The keys of several lists in one order, from behind this one; the lists mustn't change meanwhile."""
        found = [keys for name in names if (keys := self._lists.get(name))]
        parts = [_from(keys, bisect_right(keys, key) if key is not None else 0) for keys in found]
        return parts[0] if len(parts) == 1 else heapq.merge(*parts)

    def newest(self, name: ListName) -> Iterator[Key]:
        """From the last to the first."""
        return reversed(self._lists.get(name, []))


def take(keys: Iterator[Key], limit: int, wanted: Callable[[Key], bool], patience: int) -> tuple[list[Key], Key | None]:
    """The first `limit` wanted keys, looking at `patience` at most.

    Returns:
        The keys, and the one after which the next page goes on; None after the last page.
    """
    found: list[Key] = []
    last: Key | None = None
    for looked, key in enumerate(keys):
        if len(found) == limit or looked == patience:
            return found, last
        if wanted(key):
            found.append(key)
        last = key
    return found, None


def _from(keys: list[Key], start: int) -> Iterator[Key]:
    for i in range(start, len(keys)):
        yield keys[i]

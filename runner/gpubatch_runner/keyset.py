"""A set of 64-bit keys in 16 to 32 bytes each, where Python's own set takes about 90."""

from __future__ import annotations

from array import array

_SMALLEST = 1 << 12


class KeySet:
    """Open addressing with linear probing in one array, never more than half full."""

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * _SMALLEST))
        self._mask = _SMALLEST - 1
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: int) -> bool:
        """Adds a key; False if it was there. Zero marks a free place, so it counts as 1."""
        key = key or 1
        table, mask = self._table, self._mask
        place = key & mask
        while found := table[place]:
            if found == key:
                return False
            place = (place + 1) & mask
        table[place] = key
        self._size += 1
        if self._size * 2 > mask:
            self._grow()
        return True

    def _grow(self) -> None:
        old, size = self._table, 2 * len(self._table)
        table, mask = array("Q", bytes(8 * size)), size - 1
        for key in old:
            if key:
                place = key & mask
                while table[place]:
                    place = (place + 1) & mask
                table[place] = key
        self._table, self._mask = table, mask

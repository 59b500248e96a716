"""In which order the requests are sent, kept in a file of 16 bytes a request, so that memory stays flat.

Requests that begin alike go next to each other where that pays: an engine whose KV cache is small computes a shared
beginning once for all that follow each other, and anew for each that comes late. Within a window the requests are put
in order by the checksums of their beginnings; the groups stay in the order in which the input first names them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from gpubatch_runner.prompts import shared_bytes
from gpubatch_runner.requests import Request, reread

WINDOW = 1 << 16
"""Requests that are put in order together: as many as a job usually has."""

PAYS_FROM = 0.1
"""Share of a window's prompt bytes that must newly follow a request with which they begin alike."""

_RECORD = struct.Struct("<QII")
_BATCH = 4096
_FIRST = 4
"""Bytes of a key's first checksum."""


class Lines(Protocol):
    """Some lines of the input, by number."""

    def __contains__(self, line: int, /) -> bool: ...


class OrderWriter:
    """Writes the order while the input is judged.

    Args:
        file: Where to.
        by_prefix: Whether requests may change places.
    """

    def __init__(self, file: BinaryIO, by_prefix: bool) -> None:
        self._file = file
        self._by_prefix = by_prefix
        self._window: list[bytes] = []
        self._keys: list[bytes] = []
        self._prompt_bytes = 0
        self.moved = 0
        """Requests in windows whose order was changed."""

    def add(self, line: int, offset: int, length: int, key: bytes | None, prompt_bytes: int) -> None:
        """Adds a valid request: where its line is, and its `prefix_key`."""
        self._window.append(_RECORD.pack(offset, line, length))
        self._keys.append(key or b"")
        self._prompt_bytes += prompt_bytes
        if len(self._window) == WINDOW:
            self.finish()

    def finish(self) -> None:
        """Writes what is left."""
        places = range(len(self._window))
        if self._by_prefix and (better := self._by_beginnings()):
            self.moved += len(better)
            self._file.writelines(self._window[place] for place in better)
        else:
            self._file.writelines(self._window[place] for place in places)
        self._window, self._keys, self._prompt_bytes = [], [], 0

    def _by_beginnings(self) -> list[int]:
        """The places in a better order; none if it wouldn't pay."""
        keys = self._keys
        first: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key[:_FIRST] or b"%d" % place, place)
        order = sorted(
            range(len(keys)), key=lambda place: (first[keys[place][:_FIRST] or b"%d" % place], keys[place], place)
        )
        gain = _shared(keys, order) - _shared(keys, range(len(keys)))
        return order if gain > PAYS_FROM * max(1, self._prompt_bytes) else []


class Order:
    """The order, and the requests in it, read from the disk one by one.

    Args:
        path: The file of an `OrderWriter`.
        input: The input that it points into.
    """

    def __init__(self, path: Path, input: Path) -> None:
        self._path, self._input = path, input

    def requests(self, without: Lines) -> Iterator[Request]:
        """All requests but those in the lines `without`."""
        with self._path.open("rb") as order, self._input.open("rb") as lines:
            fd = lines.fileno()
            while batch := order.read(_RECORD.size * _BATCH):
                for offset, line, length in _RECORD.iter_unpack(batch):
                    if line not in without:
                        yield reread(line, os.pread(fd, length, offset))


def _shared(keys: list[bytes], order: range | list[int]) -> int:
    """Bytes of all prompts that begin as the one before, in this order."""
    total, before = 0, b""
    for place in order:
        key = keys[place]
        if key and before and key[:_FIRST] == before[:_FIRST]:
            total += shared_bytes(key, before)
        before = key
    return total

"""The journal: each finished request is on disk before it counts, so that a restart goes on where it was.

One append-only file, one line a record:

    CRC32 DESTINATION LINE INPUT_TOKENS OUTPUT_TOKENS RECORD

The first line is a header (destination `H`) that says which run and which input it belongs to. A record is written to
the kernel at once, so a killed runner loses nothing; it is forced to the disk twice a second, so a power cut loses less
than a second. Whatever follows the first damaged line (a torn write) is dropped when the journal is opened.
"""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gpubatch_runner.contract import Usage
from gpubatch_runner.failures import InternalError

SYNC_SECONDS = 0.5


class Destination(StrEnum):
    """The file to which a record goes."""

    HEADER = "H"
    OUTPUT = "O"
    ERRORS = "E"


class Header(NamedTuple):
    """Whose journal it is."""

    run: str
    input_digest: str


class LineSet:
    """A set of line numbers, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, line: int) -> bool:
        """Adds a line; False if it was there."""
        index, mask = line >> 3, 1 << (line & 7)
        if index >= len(self._bits):
            self._bits.extend(bytes(max(index + 1 - len(self._bits), 4096)))
        if self._bits[index] & mask:
            return False
        self._bits[index] |= mask
        return True

    def __contains__(self, line: int) -> bool:
        index = line >> 3
        return index < len(self._bits) and bool(self._bits[index] & (1 << (line & 7)))


class Entry(NamedTuple):
    """One line of the journal."""

    destination: Destination
    line: int
    usage: Usage
    record: bytes


class Journal:
    """The finished requests of a run, on disk.

    Args:
        path: The file; made if absent. An existing one of another run or another input is started anew.
        header: The run and input that the journal must belong to.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.done = LineSet()
        self.completed = 0
        self.failed = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._dirty = False
        self._size = self._recover(header)
        os.ftruncate(self._fd, self._size)
        if not self._size:
            self._write(_line(Destination.HEADER, 0, Usage(), json.dumps(header._asdict()).encode()))

    @property
    def usage(self) -> Usage:
        """Tokens of all answers."""
        return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    def append(self, destination: Destination, line: int, record: bytes, usage: Usage) -> None:
        """Adds the one record of an input line; a second one for the same line is ignored.

        Raises:
            InternalError: The volume is full or broken.
        """
        if self._count(destination, line, usage):
            self._write(_line(destination, line, usage, record))

    def records(self, destination: Destination) -> Iterator[bytes]:
        """All records of a destination, each without line feed, read from the disk one by one."""
        for _, entry in self.entries():
            if entry.destination is destination:
                yield entry.record

    def entries(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entries from an offset on, each with the offset of its end; those that are added meanwhile too."""
        with self.path.open("rb") as file:
            file.seek(start)
            yield from _entries(file, start)

    def entry(self, start: int) -> Entry:
        """The entry at an offset."""
        return next(entry for _, entry in self.entries(start))

    async def keep_synced(self) -> None:
        """Forces new records to the disk twice a second until cancelled."""
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.to_thread(self.sync)

    def sync(self) -> None:
        """Forces all records to the disk."""
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Syncs and closes the file."""
        self.sync()
        os.close(self._fd)

    def _recover(self, header: Header) -> int:
        """Reads what is there; returns the length up to which the journal is sound and ours."""
        size = 0
        with self.path.open("rb") as file:
            for end, entry in _entries(file):
                if size == 0 and not _is_header(entry, header):
                    return 0
                if entry.destination is not Destination.HEADER:
                    self._count(entry.destination, entry.line, entry.usage)
                size = end
        return size

    def _count(self, destination: Destination, line: int, usage: Usage) -> bool:
        if not self.done.add(line):
            return False
        if destination is Destination.OUTPUT:
            self.completed += 1
        else:
            self.failed += 1
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        return True

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError("short write: the volume is full")
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise InternalError(
                f"The journal {self.path} cannot be written ({error}); give the runner's pod more ephemeral storage."
            ) from error
        self._size += len(line)
        self._dirty = True


def header_of(path: Path) -> Header | None:
    """Whose journal the file is; None if it is none."""
    with path.open("rb") as file:
        for _, entry in _entries(file):
            if entry.destination is Destination.HEADER:
                return Header(**json.loads(entry.record))
            break
    return None


def _is_header(entry: Entry, header: Header) -> bool:
    return entry.destination is Destination.HEADER and json.loads(entry.record) == header._asdict()


def _line(destination: Destination, line: int, usage: Usage, record: bytes) -> bytes:
    rest = b"%s %d %d %d %s" % (destination.value.encode(), line, usage.input_tokens, usage.output_tokens, record)
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def _entries(file: BinaryIO, end: int = 0) -> Iterator[tuple[int, Entry]]:
    """Sound lines, each with the offset of its end; ends before the first damaged one. The file is read from `end`."""
    for raw in file:
        crc, rest = raw[:8], raw[9:-1]
        if not raw.endswith(b"\n") or crc != b"%08x" % zlib.crc32(rest):
            return
        destination, line, tokens_in, tokens_out, record = rest.split(b" ", 4)
        end += len(raw)
        usage = Usage(input_tokens=int(tokens_in), output_tokens=int(tokens_out))
        yield end, Entry(Destination(destination.decode()), int(line), usage, record)

"""Compressed inputs, unpacked while they are read: gzip and zstd, told by the URL's suffix."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

import zstandard

from gpubatch_runner.failures import InputUnreadable
from gpubatch_runner.locations import Location

PIECE = 16 * 1024
"""Compressed bytes that are unpacked together: gzip makes at most a thousand times as many of them."""

MAX_UNPACKED = 64 * 1024 * 1024
"""Bytes that one piece may become; only what was made to fill a memory has more."""


class _Unpacker(Protocol):
    """A stream of compressed bytes."""

    def feed(self, data: bytes) -> bytes:
        """What `data` unpacks to."""

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""


class _Gzip:
    """One or more gzip members (RFC 1952), one after the other."""

    def __init__(self) -> None:
        self._member = self._new()
        self._begun = False

    @staticmethod
    def _new() -> zlib._Decompress:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> bytes:
        """See `_Unpacker`."""
        parts = []
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # padding, as tape and block devices leave it
                if not data:
                    break
                self._member = self._new()
            self._begun = True
            parts.append(self._member.decompress(data))
            data = self._member.unused_data
        return b"".join(parts)

    @property
    def complete(self) -> bool:
        """See `_Unpacker`."""
        return self._member.eof or not self._begun


class _Zstd:
    """One or more zstd frames (RFC 8878), one after the other."""

    def __init__(self) -> None:
        self._frame = self._new()
        self._begun = False

    @staticmethod
    def _new() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    def feed(self, data: bytes) -> bytes:
        """See `_Unpacker`."""
        parts = []
        while data:
            if self._frame.eof:
                self._frame = self._new()
            self._begun = True
            parts.append(self._frame.decompress(data))
            data = self._frame.unused_data
        return b"".join(parts)

    @property
    def complete(self) -> bool:
        """See `_Unpacker`."""
        return self._frame.eof or not self._begun


_UNPACKERS: dict[str, tuple[str, type[_Gzip] | type[_Zstd]]] = {
    ".gz": ("gzip", _Gzip),
    ".zst": ("zstd", _Zstd),
}


async def unpacked(location: Location, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of a file as they were before they were compressed, if its name says that they were.

    Raises (while iterating):
        InputUnreadable: The file isn't what its suffix says, or ends too early.
    """
    path = urlsplit(location.url).path if location.scheme in ("http", "https") else location.path
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in _UNPACKERS:
        async for chunk in chunks:
            yield chunk
        return
    name, kind = _UNPACKERS[suffix]
    unpacker: _Unpacker = kind()
    where = f"{location.field} {location.shown}: its name ends with {suffix}, but"
    async for chunk in chunks:
        for begin in range(0, len(chunk), PIECE):
            piece = chunk[begin : begin + PIECE]
            try:
                data = await asyncio.to_thread(unpacker.feed, piece)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InputUnreadable(f"{where} it is not {name} ({error}); correct its name or its content") from None
            if len(data) > MAX_UNPACKED:
                raise InputUnreadable(
                    f"{where} {len(piece)} bytes of it unpack to more than {MAX_UNPACKED}; compress real requests"
                )
            if data:
                yield data
    if not unpacker.complete:
        raise InputUnreadable(f"{where} the {name} stream in it ends too early; upload the file again, whole")

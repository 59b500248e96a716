"""Places that hold outputs. Two kinds, a bucket and a mounted claim, with the same promises:

- `write` makes a whole file visible at once, or nothing;
- `create` does so only if nothing has that name, and of many callers exactly one succeeds;
- `read` gives what another attempt wrote;
- `move` replaces the target at once by a whole file;
- `delete` removes a file, or finds it gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import LocalStore

from gpubatch_runner import uploads
from gpubatch_runner.contract import Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import AccessDenied, OutputNotWritable, RunnerError
from gpubatch_runner.locations import Location
from gpubatch_runner.objectstore import Bucket, Opened, told

PART = 8 * 1024 * 1024
"""Bytes of a part of a multipart upload; a smaller file is one request. 10,000 parts make the largest file 80 GB."""

PARTS_IN_FLIGHT = 2
COPY_LIMIT = 5 * 1024**3
"""S3 copies objects up to this size by itself."""


class Store(ABC):
    """Where a job writes. Names are locations of this store; all failures are `RunnerError` and name the field."""

    @abstractmethod
    async def write(self, location: Location, chunks: AsyncIterator[bytes]) -> None:
        """Writes a file, whole or not at all. `chunks` may take hours to come: they are sent on the way, and the file
        is there soon after the last. If they raise, what was sent is removed."""

    @abstractmethod
    async def create(self, location: Location, data: bytes) -> bool:
        """Writes a small file if nothing has its name; False if something has."""

    @abstractmethod
    def read(self, location: Location) -> AsyncIterator[bytes]:
        """The bytes of a file; raises FileNotFoundError while iterating if there is none."""

    @abstractmethod
    async def move(self, source: Location, target: Location) -> bool:
        """Puts a file in the place of another; False if there is no source (it was moved before)."""

    @abstractmethod
    async def delete(self, location: Location) -> None:
        """Removes a file if it is there."""

    @abstractmethod
    async def size(self, location: Location) -> int | None:
        """Bytes of a file; None if there is none."""

    async def sweep(self, prefix: Location) -> None:  # noqa: B027
        """Removes what killed writers of files left that is not visible as files; as far as it can."""

    async def exists(self, location: Location) -> bool:
        """Whether there is such a file."""
        return await self.size(location) is not None

    async def read_small(self, location: Location) -> bytes | None:
        """The whole of a small file; None if there is none."""
        try:
            return b"".join([chunk async for chunk in self.read(location)])
        except FileNotFoundError:
            return None


def open_store(location: Location, storage: Storage, upload: Upload, environment: Environment) -> Store:
    """The store of an output's location."""
    if location.scheme == "pvc":
        return ClaimStore(environment)
    return BucketStore(location, storage, upload, environment)


class BucketStore(Store):
    """A bucket of S3 (or of anything that speaks it), Google or Azure, with conditional writes."""

    def __init__(self, location: Location, storage: Storage, upload: Upload, environment: Environment) -> None:
        self._storage, self._environment, self._location = storage, environment, location
        self._opened = Opened(location, storage, upload, environment)

    @property
    def _bucket(self) -> Bucket:
        with told(self._location):
            return self._opened.bucket

    async def write(self, location: Location, chunks: AsyncIterator[bytes]) -> None:
        with told(location):
            await put(lambda: self._bucket, location.path, chunks)

    async def create(self, location: Location, data: bytes) -> bool:
        with told(location):
            try:
                await obstore.put_async(self._bucket, location.path, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    async def read(self, location: Location) -> AsyncIterator[bytes]:
        with _absence_told(location):
            async for chunk in (await obstore.get_async(self._bucket, location.path)).stream(min_chunk_size=PART):
                yield bytes(chunk)

    async def move(self, source: Location, target: Location) -> bool:
        try:
            with _absence_told(source):
                size = (await obstore.head_async(self._bucket, source.path))["size"]
                if size <= COPY_LIMIT:
                    await obstore.copy_async(self._bucket, source.path, target.path)
                else:
                    whole = await obstore.get_async(self._bucket, source.path)
                    await obstore.put_async(
                        self._bucket, target.path, whole.stream(PART), chunk_size=PART, max_concurrency=PARTS_IN_FLIGHT
                    )
        except FileNotFoundError:
            return False
        await self.delete(source)
        return True

    async def size(self, location: Location) -> int | None:
        try:
            with _absence_told(location):
                return int((await obstore.head_async(self._bucket, location.path))["size"])
        except FileNotFoundError:
            return None

    async def sweep(self, prefix: Location) -> None:
        if prefix.scheme == "s3":
            await uploads.sweep(prefix, self._storage, self._environment)

    async def delete(self, location: Location) -> None:
        with told(location), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._bucket, location.path)


class ClaimStore(Store):
    """A mounted claim. Files are forced to the disk before they are visible."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    async def write(self, location: Location, chunks: AsyncIterator[bytes]) -> None:
        with _file_errors_told(location):
            try:
                await _write_file(self._file(location), chunks)
            except FileNotFoundError as error:  # another attempt concluded the run and cleaned up
                raise location.problem("the file was removed while it was written; it is written again") from error

    async def create(self, location: Location, data: bytes) -> bool:
        with _file_errors_told(location):
            return await asyncio.to_thread(_create_file, self._file(location), data)

    async def read(self, location: Location) -> AsyncIterator[bytes]:
        with _file_errors_told(location), self._file(location).open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, PART):
                yield chunk

    async def move(self, source: Location, target: Location) -> bool:
        with _file_errors_told(source):
            try:
                await asyncio.to_thread(_replace, self._file(source), self._file(target))
            except FileNotFoundError:
                return False
            return True

    async def size(self, location: Location) -> int | None:
        with _file_errors_told(location):
            try:
                return (await asyncio.to_thread(self._file(location).stat)).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    async def delete(self, location: Location) -> None:
        with _file_errors_told(location):
            await asyncio.to_thread(_delete_file, self._file(location))

    def _file(self, location: Location) -> Path:
        return location.file(self._environment)


async def put(bucket: Callable[[], Bucket | LocalStore], path: str, chunks: AsyncIterator[bytes]) -> None:
    """Writes an object, whole or not at all, by parts as they come; a small one by one request.

    Args:
        bucket: Asked for once there is something to send: by then keys may have been renewed.
        path: In the bucket.
        chunks: May take hours to come.

    Raises:
        BaseException: What `chunks` or the store raises; what was sent is removed.
    """
    first: list[bytes] = []
    size = 0
    async for chunk in chunks:
        first.append(chunk)
        size += len(chunk)
        if size >= PART:
            rest = _chain(first, chunks)
            await obstore.put_async(bucket(), path, rest, chunk_size=PART, max_concurrency=PARTS_IN_FLIGHT)
            return
    await obstore.put_async(bucket(), path, b"".join(first), use_multipart=False)


async def _chain(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for chunk in rest:
        yield chunk


async def _write_file(path: Path, chunks: AsyncIterator[bytes]) -> None:
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(_sync, file)
        await asyncio.to_thread(_replace, partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _create_file(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
        _sync_folder(path.parent)
        return True
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def _delete_file(path: Path) -> None:
    """Deletes a file and what writers of it left that were killed."""
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        partial.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    source.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot; their renames are durable by themselves
            os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _absence_told(location: Location) -> Iterator[None]:
    """As `told`, but an absent object is no failure: it stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            with told(location):
                raise
        raise
    except RunnerError:
        raise
    except Exception:
        with told(location):
            raise


@contextlib.contextmanager
def _file_errors_told(location: Location) -> Iterator[None]:
    where = f"{location.field} {location.shown}"
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise AccessDenied(
            f"{where}: the claim is not writable for the runner's user; set fsGroup, or the folder's permissions"
        ) from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise OutputNotWritable(f"{where}: the claim is mounted read-only; name one that can be written") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputNotWritable(f"{where}: the claim is full; free space or enlarge it") from error
        if error.errno in (errno.EPERM, errno.ENOTSUP):
            raise OutputNotWritable(
                f"{where}: the claim's file system has no hard links, which decide between attempts; use s3:// or "
                "another storage class"
            ) from error
        raise OutputNotWritable(f"{where}: {error.strerror or error}") from error

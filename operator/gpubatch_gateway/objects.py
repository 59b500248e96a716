"""The object store: a bucket, or a claim that is mounted. Both through one library, by one code.

An object is whole or isn't there: a store shows it once all of it has been taken. What a killed writer leaves is shown
by no list; it is swept after a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore

from gpubatch_gateway.problems import RequestError, unavailable
from gpubatch_gateway.settings import Settings
from gpubatch_runner import stores, uploads
from gpubatch_runner.contract import Storage as Place
from gpubatch_runner.contract import Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.locations import Location
from gpubatch_runner.objectstore import Bucket, Opened, reason

CHUNK = 1024 * 1024  # bytes; of what is read
PATIENCE = Upload(total_seconds=86_400)  # an upload's own limits are the client's
_STAGED = re.compile(r".*#\d+")  # how the library calls a file that isn't whole yet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Object:
    """What a list says of an object.

    Attributes:
        key: Where it is.
        size: Bytes.
        modified: Seconds since the epoch, by the store's clock.
        etag: What the store calls this version of it.
    """

    key: str
    size: int
    modified: int
    etag: str | None


class Objects:
    """All objects, by their keys; each method raises RequestError 503 if the store doesn't answer.

    Args:
        settings: Where they are.
        environment: Where claims and the keys of the store are mounted.
    """

    def __init__(self, settings: Settings, environment: Environment) -> None:
        url = settings.storage_url
        scheme, _, rest = url.partition("://")
        container, _, prefix = rest.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"{scheme}://{container}/{self._prefix}"
        self._place = Place(endpoint=settings.storage_endpoint or None, region=settings.storage_region or None)
        self._environment = environment
        self._location = Location("GPUBATCH_GATEWAY_STORAGE_URL", url, scheme, container, prefix)
        self._root = environment.claims_dir / container if scheme == "pvc" else None
        self._local: LocalStore | None = None
        self._opened = Opened(self._location, self._place, PATIENCE, environment)

    @property
    def in_claim(self) -> bool:
        """Whether they are in a claim, which only pods of its own namespace can mount."""
        return self._root is not None

    def url(self, key: str) -> str:
        """Where a job finds what is at a key."""
        return self._url + key

    @property
    def _bucket(self) -> Bucket | LocalStore:
        if self._root is None:
            return self._opened.bucket
        if self._local is None:
            self._local = LocalStore(self._root, automatic_cleanup=False, mkdir=False)
        return self._local

    async def take(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store what comes; it is there, whole, when this returns.

        Raises:
            Exception: What `chunks` raises; nothing is left then.
        """
        errors: list[Exception] = []  # the store tells them in words of its own

        async def source() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    yield chunk
            except Exception as e:
                errors.append(e)
                raise

        try:
            await stores.put(lambda: self._bucket, self._prefix + key, source())
            await self._settle(key)
        except Exception as e:
            if errors:
                raise errors[0] from None
            raise refused(e) from e

    async def put(self, key: str, data: bytes) -> None:
        """Store something small, in the place of what may be there."""
        with told():
            await obstore.put_async(self._bucket, self._prefix + key, data, use_multipart=False)
            await self._settle(key)

    async def create(self, key: str, data: bytes) -> bool:
        """Store something small if nothing is there; False if something is."""
        with told():
            try:
                await obstore.put_async(self._bucket, self._prefix + key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            await self._settle(key)
            return True

    async def _settle(self, key: str) -> None:
        if self._root is not None:
            await asyncio.to_thread(_sync, self._root / (self._prefix + key))

    async def head(self, key: str) -> Object | None:
        """What is to be known of one; None if it isn't there."""
        with told():
            try:
                meta = await obstore.head_async(self._bucket, self._prefix + key)
            except FileNotFoundError:
                return None
        return Object(key, meta["size"], int(meta["last_modified"].timestamp()), meta["e_tag"])

    async def read(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`.

        Raises (while iterating):
            FileNotFoundError: It has been deleted.
        """
        with told():
            got = await obstore.get_async(self._bucket, self._prefix + key, options={"range": (start, end)})
            async for chunk in got.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    async def get(self, key: str) -> bytes | None:
        """All of something small; None if it isn't there."""
        with told():
            try:
                return bytes(await (await obstore.get_async(self._bucket, self._prefix + key)).bytes_async())
            except FileNotFoundError:
                return None

    async def all(self, folder: str) -> list[Object]:
        """Those below a folder."""
        found = []
        with told():
            async for page in obstore.list(self._bucket, self._prefix + folder):
                for meta in page:
                    key = meta["path"].removeprefix(self._prefix)
                    found.append(Object(key, meta["size"], int(meta["last_modified"].timestamp()), meta["e_tag"]))
        return found

    async def folders(self) -> list[str]:
        """The names of the outermost folders."""
        with told():
            listing = await obstore.list_with_delimiter_async(self._bucket, self._prefix)
        return [path.removeprefix(self._prefix).strip("/") for path in listing["common_prefixes"]]

    async def delete(self, key: str) -> None:
        """Remove one; gone already is fine."""
        with told():
            try:
                await obstore.delete_async(self._bucket, self._prefix + key)
            except FileNotFoundError:
                return

    async def sweep(self, age: float) -> None:
        """Remove what killed replicas left of uploads, `age` seconds old or older, as far as it can."""
        if self._root is not None:
            await asyncio.to_thread(_sweep, self._root / self._prefix, time.time() - age)
        elif self._location.scheme == "s3":  # the others forget such parts by themselves
            await uploads.sweep(self._location, self._place, self._environment, age)


@contextmanager
def told() -> Iterator[None]:
    """The store's own words are for the log: they may name buckets and keys."""
    try:
        yield
    except FileNotFoundError as e:
        if "NoSuchBucket" in str(e) or "ContainerNotFound" in str(e):
            raise refused(e) from e
        raise
    except (BaseError, OSError, ValueError) as e:
        raise refused(e) from e


def refused(error: Exception) -> RequestError:
    """The answer when the store has failed."""
    log.error("the object store can't be used: %s", reason(error))
    return unavailable(
        "The object store can't be used now. Try again; the gateway's log says why.", "storage_unavailable"
    )


def _sync(path: Path) -> None:
    """On the disk, with its name, before anybody is told of it."""
    for each in (path, path.parent, path.parent.parent):
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sweep(root: Path, before: float) -> None:
    for folder, _, found in os.walk(root, topdown=False):
        for name in found:
            path = Path(folder, name)
            try:
                if _STAGED.fullmatch(name) and path.stat().st_mtime < before:
                    path.unlink()
                    log.info("the remainder of an upload was removed: %s", path)
            except OSError as e:
                log.warning("the remainder of an upload can't be removed: %s: %s", path, e)
        if folder != str(root) and os.stat(folder).st_mtime < before:
            with suppress(OSError):  # something is in it
                os.rmdir(folder)

"""The files in the object store: a bucket, or a claim that is mounted. Both through one library, by one code.

A file is whole or isn't there: a store shows an object once all of it has been taken. What a killed writer leaves is
shown by no list; it is swept after a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from gpubatch_gateway import files, names
from gpubatch_gateway.files import File
from gpubatch_gateway.problems import RequestError, unavailable
from gpubatch_gateway.settings import Settings
from gpubatch_runner import stores, uploads
from gpubatch_runner.contract import Storage as Place
from gpubatch_runner.contract import Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.lines import MAX_LINE
from gpubatch_runner.locations import Location
from gpubatch_runner.objectstore import Bucket, Opened, reason

CHUNK = 1024 * 1024  # bytes; of what is read
PATIENCE = Upload(total_seconds=86_400)  # an upload's own limits are the client's
_STAGED = re.compile(r".*#\d+")  # how the library calls a file that isn't whole yet

log = logging.getLogger(__name__)


class Files:
    """The files of all namespaces.

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

    async def put(self, namespace: str, file_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Store an upload; it is there, whole, when this returns.

        Raises:
            BaseException: What the store or `chunks` raises; nothing is left then.
        """
        path = self._prefix + names.upload_key(namespace, file_id, name)
        await stores.put(lambda: self._bucket, path, chunks)
        if self._root is not None:
            await asyncio.to_thread(_sync, self._root / path)

    async def find(self, namespace: str, file_id: str) -> File | None:
        """A file by its id; None if this namespace has none.

        Raises:
            RequestError: 503; the store doesn't say.
        """
        if key := names.result_key_of(namespace, file_id):
            return await self._head(key)
        if not names.is_upload(file_id):
            return None
        found = await self._list(names.upload_folder(namespace, file_id))
        return found[0] if found else None

    async def all(self, namespace: str) -> list[File]:
        """The files of a namespace.

        Raises:
            RequestError: 503; the store doesn't say.
        """
        folders = names.uploads(namespace), names.results(namespace)
        return [file for found in await asyncio.gather(*map(self._list, folders)) for file in found]

    async def read(self, file: File, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes of a file from `start` to before `end`.

        Raises (while iterating):
            FileNotFoundError: It has been deleted.
            RequestError: 503; the store doesn't give it.
        """
        with _told():
            got = await obstore.get_async(self._bucket, self._prefix + file.key, options={"range": (start, end)})
            async for chunk in got.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    async def first_line(self, file: File) -> bytes:
        """The first line of a file that isn't blank; empty if there is none, or if it is too long for a request.

        Raises:
            FileNotFoundError: It has been deleted.
            RequestError: 503; the store doesn't give it.
        """
        held = b""
        async for chunk in self.read(file, 0, file.size):
            held = (held + chunk).lstrip()
            if b"\n" in held:
                return held.partition(b"\n")[0]
            if len(held) > MAX_LINE:
                return b""
        return held

    async def delete(self, file: File) -> None:
        """Remove a file; gone already is fine.

        Raises:
            RequestError: 503; the store doesn't do it.
        """
        with _told():
            try:
                await obstore.delete_async(self._bucket, self._prefix + file.key)
            except FileNotFoundError:
                return

    async def sweep(self, age: float) -> None:
        """Remove what killed replicas left of uploads, `age` seconds old or older, as far as it can."""
        if self._root is not None:
            await asyncio.to_thread(_sweep, self._root / self._prefix, time.time() - age)
        elif self._location.scheme == "s3":  # the others forget such parts by themselves
            await uploads.sweep(self._location, self._place, self._environment, age)

    async def _head(self, key: str) -> File | None:
        with _told():
            try:
                meta = await obstore.head_async(self._bucket, self._prefix + key)
            except FileNotFoundError:
                return None
        return files.of_key(key, meta["size"], int(meta["last_modified"].timestamp()), meta["e_tag"])

    async def _list(self, folder: str) -> list[File]:
        found = []
        with _told():
            async for page in obstore.list(self._bucket, self._prefix + folder):
                for meta in page:
                    key = meta["path"].removeprefix(self._prefix)
                    modified = int(meta["last_modified"].timestamp())
                    if file := files.of_key(key, meta["size"], modified, meta["e_tag"]):
                        found.append(file)
        return found


@contextmanager
def _told() -> Iterator[None]:
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
    for folder, _, found in os.walk(root):
        for name in found:
            path = Path(folder, name)
            try:
                if _STAGED.fullmatch(name) and path.stat().st_mtime < before:
                    path.unlink()
                    log.info("the remainder of an upload was removed: %s", path)
            except OSError as e:
                log.warning("the remainder of an upload can't be removed: %s: %s", path, e)

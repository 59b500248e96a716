"""The files of batches in the object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gpubatch_gateway import names
from gpubatch_gateway.batch import files
from gpubatch_gateway.batch.files import File
from gpubatch_gateway.objects import Objects
from gpubatch_runner.lines import MAX_LINE


class Files:
    """The files of all namespaces.

    Args:
        objects: The store.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @property
    def in_claim(self) -> bool:
        """Whether they are in a claim, which only pods of its own namespace can mount."""
        return self._objects.in_claim

    def url(self, key: str) -> str:
        """Where a job finds what is at a key."""
        return self._objects.url(key)

    async def put(self, namespace: str, file_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Store an upload; it is there, whole, when this returns.

        Raises:
            Exception: What `chunks` raises, or RequestError 503 of the store; nothing is left then.
        """
        await self._objects.take(names.upload_key(namespace, file_id, name), chunks)

    async def find(self, namespace: str, file_id: str) -> File | None:
        """A file by its id; None if this namespace has none.

        Raises:
            RequestError: 503; the store doesn't say.
        """
        if key := names.result_key_of(namespace, file_id):
            meta = await self._objects.head(key)
            return files.of_key(meta.key, meta.size, meta.modified, meta.etag) if meta else None
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

    def read(self, file: File, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes of a file from `start` to before `end`.

        Raises (while iterating):
            FileNotFoundError: It has been deleted.
            RequestError: 503; the store doesn't give it.
        """
        return self._objects.read(file.key, start, end)

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
        await self._objects.delete(file.key)

    async def sweep(self, age: float) -> None:
        """Remove what killed replicas left of uploads, `age` seconds old or older, as far as it can."""
        await self._objects.sweep(age)

    async def _list(self, folder: str) -> list[File]:
        found = await self._objects.all(folder)
        return [f for o in found if (f := files.of_key(o.key, o.size, o.modified, o.etag))]

"""File objects as OpenAI's API has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpubatch_gateway import names
from gpubatch_gateway.problems import invalid

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a namespace.

    Attributes:
        key: Where it is in the store.
        size: Bytes.
        created: Seconds since the epoch.
        etag: What the store calls this version of it.
    """

    key: str
    named: names.Named
    size: int
    created: int
    etag: str | None = None

    @property
    def id(self) -> str:
        """As clients know it."""
        return self.named.file_id

    def document(self) -> JSON:
        """The file object (https://platform.openai.com/docs/api-reference/files/object)."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created,
            "expires_at": None,
            "filename": self.named.filename,
            "purpose": self.named.purpose,
            "status": "processed",
            "status_details": None,
        }


def of_key(key: str, size: int, modified: int, etag: str | None) -> File | None:
    """The file at a key; None: what is there is none."""
    named = names.named(key)
    if named is None:
        return None
    created = names.uploaded_at(named.file_id) if named.purpose == "batch" else modified
    return File(key, named, size, created, etag)


def page(files: list[File], purpose: str | None, order: str, after: str | None, limit: int) -> tuple[list[File], bool]:
    """A page of a list, and whether there is more.

    Args:
        files: All of a namespace.
        purpose: Only those.
        order: `asc` or `desc`, by the time of creation.
        after: The file where the page before ended; of an upload the place is known even if it is gone.
        limit: Files of a page.

    Raises:
        RequestError: 400; nothing is known of `after`.
    """
    wanted = [f for f in files if purpose in (None, f.named.purpose)]
    wanted.sort(key=_place, reverse=order == "desc")
    if after is not None:
        place = _place_of(after, wanted)
        wanted = [f for f in wanted if (_place(f) < place if order == "desc" else _place(f) > place)]
    return wanted[:limit], len(wanted) > limit


def _place(file: File) -> tuple[int, str]:
    return file.created, file.id


def _place_of(file_id: str, files: list[File]) -> tuple[int, str]:
    if names.is_upload(file_id):
        return names.uploaded_at(file_id), file_id
    if found := next((f for f in files if f.id == file_id), None):
        return _place(found)
    raise invalid(f"Invalid 'after': {file_id[:100]!r}: there is no such file any more. List from the start.", "after")

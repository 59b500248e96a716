"""What a client asks for with `POST /v1/audio/transcriptions`, checked, and the form that the engine gets of it.

What the gateway doesn't know is the engine's to judge, and is passed on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import orjson

from gpubatch_gateway import names
from gpubatch_gateway.problems import invalid

PATH = "/audio/transcriptions"
FILE_URLS = ("download_presigned_url", "file_url")
UPLOAD_URL = "upload_presigned_url"
OWN = (*FILE_URLS, UPLOAD_URL)
MAX_FIELDS = 64
CheckUrl = Callable[[str, str], None]
"""Raises RequestError if a URL, which is the value of a field, can't be used."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A transcription that is to be made.

    Attributes:
        model: Who is to make it.
        fields: All that is the engine's: names and values, in their order.
        download: The field that says where the audio is, and the URL; None: it came with the request.
        upload: Where the text is to be PUT; None: the client waits for it.
    """

    model: str
    fields: tuple[tuple[str, str], ...]
    download: tuple[str, str] | None
    upload: str | None


class SpeechFields:
    """The fields of the form beside its file; see `receiving.Fields`."""

    expected, max_bytes = "model and file", 64 * 1024

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def take(self, name: str, value: str) -> None:
        """One more."""
        if not name.endswith("[]") and any(name == other for other, _ in self.all):
            raise invalid(f"The field {name[:100]!r} is there twice.", name[:100])
        self.all.append((name, value))

    def check(self, whole: bool) -> None:
        """Whether the model is named; all else is judged when it is known what there is."""
        if whole:
            _model(self.all)


def of_document(document: Any) -> list[tuple[str, str]]:
    """The fields of a body that is JSON, as a form would have them: each item of a list is one, `NAME[]`.

    Raises:
        RequestError: 400; it is no object.
    """
    if not isinstance(document, dict):
        message = 'The body must be a JSON object: {"model": ..., "download_presigned_url": ...}.'
        raise invalid(message, code="invalid_json")
    found = []
    for name, value in document.items():
        if isinstance(value, list):
            found += [(name if name.endswith("[]") else f"{name}[]", _text(item)) for item in value]
        elif value is not None:
            found.append((name, _text(value)))
    if len(found) > MAX_FIELDS:
        raise invalid(f"The body has more than {MAX_FIELDS} fields.")
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def wish(fields: list[tuple[str, str]], has_file: bool, check: CheckUrl) -> Wish:
    """The wish in a request's fields.

    Raises:
        RequestError: 400; a field can't be used, and the message names it.
    """
    model, given = _model(fields), {name: value for name, value in fields if name in OWN}
    sources = [name for name in FILE_URLS if name in given]
    if has_file + len(sources) != 1:
        names = [*(["file"] if has_file else []), *sources]
        if not names:
            message = f"Missing required parameter: 'file', or a URL in its place: {FILE_URLS[0]!r}."
            raise invalid(message, "file", "missing_required_parameter")
        raise invalid(f"There is more than one audio: {' and '.join(names)}. Send one.", names[-1])
    for name, url in given.items():
        check(url, name)
    upload = given.get(UPLOAD_URL)
    if upload is not None and ("stream", "true") in [(name, value.lower()) for name, value in fields]:
        raise invalid(f"A stream can't be PUT. Send 'stream' or {UPLOAD_URL!r}.", "stream")
    passed_on = tuple((name, value) for name, value in fields if name not in OWN)
    return Wish(model, passed_on, (sources[0], given[sources[0]]) if sources else None, upload)


def _model(fields: list[tuple[str, str]]) -> str:
    model = next((value for name, value in fields if name == "model"), "")
    if not model:
        raise invalid("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    return model


def filename(url: str) -> str:
    """The name of what is at a URL, whose ending tells engines its format."""
    return names.plain_filename(unquote(PurePosixPath(urlsplit(url).path).name) or "audio")


def form(
    fields: tuple[tuple[str, str], ...], chunks: AsyncIterator[bytes], filename: str, content_type: str
) -> aiohttp.FormData:
    """What the engine is sent.

    Args:
        fields: Names and values.
        chunks: The audio.
        filename: Its ending tells engines its format.
        content_type: The same; may be empty.
    """
    found = aiohttp.FormData(quote_fields=False)
    for name, value in fields:
        found.add_field(name, value)
    kind = content_type or "application/octet-stream"
    found.add_field("file", chunks, filename=filename, content_type=kind)
    return found

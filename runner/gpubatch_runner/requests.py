"""What a valid request is. The inspection and the run judge each line of the input by this one validator.

A line is one request of OpenAI's batch format: `{"custom_id", "method", "url", "body"}`
(https://platform.openai.com/docs/guides/batch). Error codes are in that API's style.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from gpubatch_runner.contract import ENDPOINTS, PARAMS, TRANSCRIPTIONS, LineError
from gpubatch_runner.keyset import KeySet
from gpubatch_runner.lines import MAX_LINE

MAX_CUSTOM_ID = 512
"""Characters of the longest `custom_id`."""

FILE_SCHEMES = ("http://", "https://", "data:", "s3://")
"""How a transcription's `file_url` may begin."""


@dataclass(frozen=True, slots=True)
class Request:
    """One valid line of the input."""

    line: int
    custom_id: str
    url: str
    payload: bytes
    """The body as it is posted: the very bytes of the input."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A request with its parsed body, as only the validator has it."""

    request: Request
    body: dict[str, Any]


class _Line(msgspec.Struct):
    """A line of which only the outline is parsed; the body stays as it is."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw | None = None


class _SoundLine(msgspec.Struct):
    """A line that has been found valid before."""

    custom_id: str
    url: str
    body: msgspec.Raw


_outline = msgspec.json.Decoder(_Line)
_sound = msgspec.json.Decoder(_SoundLine)
_value = msgspec.json.Decoder()

_Document = tuple[dict[str, Any], bytes]
"""A line's fields, `body` among them, and the bytes of the body."""


class _FlawError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Validator:
    """Judges the lines of one input in their order; remembers every `custom_id` as eight bytes of a hash.

    Args:
        served_model_name: What `body.model` must be; None takes any, where nobody knows the job yet.
    """

    def __init__(self, served_model_name: str | None) -> None:
        self.model = served_model_name
        self._seen = KeySet()

    def check(self, number: int, raw: bytes) -> Checked | LineError | None:
        """The request in line `number`, or what is wrong with it; None for a blank line."""
        if not raw.strip():
            return None
        custom_id: str | None = None
        try:
            document, payload = _document(raw)
            given = document.get("custom_id")
            custom_id = given[:MAX_CUSTOM_ID] if isinstance(given, str) and given else None
            self._check_custom_id(given)
            url = _check_route(document)
            body = self._check_body(document.get("body"))
            if url == TRANSCRIPTIONS:
                _check_file_url(body)
            return Checked(Request(number, str(given), url, payload), body)
        except _FlawError as error:
            param = PARAMS.get(error.code)
            return LineError(line=number, custom_id=custom_id, code=error.code, message=str(error), param=param)

    def _check_custom_id(self, value: object) -> None:
        if value is None or value == "":
            raise _FlawError("missing_custom_id", "custom_id is missing or empty; give each line a unique string")
        if not isinstance(value, str):
            raise _FlawError(
                "invalid_custom_id", f"custom_id is {_kind(value)}; expected a string: write it in quotation marks"
            )
        if len(value) > MAX_CUSTOM_ID:
            raise _FlawError(
                "invalid_custom_id",
                f"custom_id has {len(value)} characters; at most {MAX_CUSTOM_ID} are allowed: use a shorter one",
            )
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if not self._seen.add(int.from_bytes(digest, "big")):
            raise _FlawError(
                "duplicate_custom_id", f"custom_id {_shown(value)} occurs in an earlier line; make each unique"
            )

    def _check_body(self, body: object) -> dict[str, Any]:
        if body is None:
            raise _FlawError("missing_body", "body is missing; expected the request's JSON object")
        if not isinstance(body, dict):
            raise _FlawError("invalid_body", f"body is {_kind(body)}; expected a JSON object: write the request there")
        model, served = body.get("model"), _shown(self.model) if self.model is not None else "the job's model"
        if model is None or model == "":
            raise _FlawError("missing_model", f"body.model is missing; this job serves {served}: write that")
        if self.model is not None and model != self.model:
            raise _FlawError(
                "model_mismatch",
                f"body.model is {_shown(model)}; this job serves {served}: write that (it is spec.inference."
                "servedModelName, or spec.inference.model where that is not set)",
            )
        if body.get("stream"):
            raise _FlawError("stream_not_supported", "body.stream is set; a batch has no one to stream to: remove it")
        return body


def reread(number: int, raw: bytes) -> Request:
    """The request in a line that a validator has found valid, without parsing its body again."""
    try:
        line = _sound.decode(raw)
    except msgspec.DecodeError:  # something that only the slower parser takes
        document, payload = _document(raw)
        return Request(number, document["custom_id"], document["url"], payload)
    return Request(number, line.custom_id, line.url, bytes(line.body))


def _document(raw: bytes) -> _Document:
    if len(raw) > MAX_LINE:
        raise _FlawError("line_too_long", f"the line is longer than {MAX_LINE} bytes; send large content by URL")
    try:
        line = _outline.decode(raw)
        payload = b"" if line.body is None else bytes(line.body)
        body = _value.decode(payload) if payload else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _document_by_the_book(raw)
    return {"custom_id": line.custom_id, "method": line.method, "url": line.url, "body": body}, payload


def _document_by_the_book(raw: bytes) -> _Document:
    """As `_document`, by Python's own parser: it takes half surrogate pairs, and says best what is wrong."""
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise _FlawError(
                "invalid_json_line", f"the line is {_kind(document)}; expected a JSON object: one request a line"
            )
        return document, json.dumps(document.get("body"), separators=(",", ":"), allow_nan=False).encode()
    except UnicodeDecodeError as error:
        raise _FlawError(
            "invalid_json_line", f"the line is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    except RecursionError:
        raise _FlawError("invalid_json_line", "the line is nested too deeply; flatten it") from None
    except ValueError as error:
        raise _FlawError("invalid_json_line", f"the line is not JSON: {error}; write one JSON object a line") from None


def _check_route(document: dict[str, Any]) -> str:
    method, url = document.get("method"), document.get("url")
    if method != "POST":
        raise _FlawError("invalid_method", f'method is {_shown(method)}; expected "POST": write that')
    if url not in ENDPOINTS:
        raise _FlawError("invalid_url", f"url is {_shown(url)}; expected one of {', '.join(ENDPOINTS)}")
    return str(url)


def _check_file_url(body: dict[str, Any]) -> None:
    url = body.get("file_url")
    if not isinstance(url, str) or not url:
        raise _FlawError("missing_file_url", "body.file_url is missing; give the URL of the audio file")
    if not url.startswith(FILE_SCHEMES):
        raise _FlawError(
            "invalid_file_url",
            f"body.file_url is {_shown(url)}; expected a URL that begins with one of {', '.join(FILE_SCHEMES)}",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."

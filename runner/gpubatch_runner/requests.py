"""What a valid request is. The inspection and the run judge each line of the input by this one validator.

A line is one request of OpenAI's batch format: `{"custom_id", "method", "url", "body"}`
(https://platform.openai.com/docs/guides/batch). Error codes are in that API's style.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from gpubatch_runner.contract import ENDPOINTS, LineError
from gpubatch_runner.lines import MAX_LINE

MAX_CUSTOM_ID = 512
"""Characters of the longest `custom_id`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One valid line of the input."""

    line: int
    custom_id: str
    url: str
    body: dict[str, Any]

    def payload(self) -> bytes:
        """The body as it is posted."""
        return json.dumps(self.body, separators=(",", ":")).encode()

    @property
    def prompt_bytes(self) -> int:
        """Bytes of the text in the prompt: what is counted as 4 to a token where no tokenizer is at hand."""
        return sum(_text_bytes(self.body.get(key)) for key in ("messages", "prompt", "input"))

    @property
    def max_output_tokens(self) -> int:
        """The request's own bound, 0 where it gives none."""
        for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
            value = self.body.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return 0


class _FlawError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Validator:
    """Judges the lines of one input in their order; remembers every `custom_id` as eight bytes of a hash."""

    def __init__(self, served_model_name: str) -> None:
        self._model = served_model_name
        self._seen: set[int] = set()

    def check(self, number: int, raw: bytes) -> Request | LineError | None:
        """The request in line `number`, or what is wrong with it; None for a blank line."""
        if not raw.strip():
            return None
        custom_id: str | None = None
        try:
            document = _document(raw)
            given = document.get("custom_id")
            custom_id = given[:MAX_CUSTOM_ID] if isinstance(given, str) and given else None
            self._check_custom_id(given)
            url = _check_route(document)
            return Request(number, str(given), url, self._check_body(document))
        except _FlawError as error:
            return LineError(line=number, custom_id=custom_id, code=error.code, message=str(error))

    def _check_custom_id(self, value: object) -> None:
        if value is None or value == "":
            raise _FlawError("missing_custom_id", "custom_id is missing or empty; give each line a unique string")
        if not isinstance(value, str):
            raise _FlawError("invalid_custom_id", f"custom_id is {_kind(value)}; expected a string")
        if len(value) > MAX_CUSTOM_ID:
            raise _FlawError(
                "invalid_custom_id", f"custom_id has {len(value)} characters; at most {MAX_CUSTOM_ID} are allowed"
            )
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        if key in self._seen:
            raise _FlawError(
                "duplicate_custom_id", f"custom_id {_shown(value)} occurs in an earlier line; make each unique"
            )
        self._seen.add(key)

    def _check_body(self, document: dict[str, Any]) -> dict[str, Any]:
        body = document.get("body")
        if body is None:
            raise _FlawError("missing_body", "body is missing; expected the request's JSON object")
        if not isinstance(body, dict):
            raise _FlawError("invalid_body", f"body is {_kind(body)}; expected a JSON object")
        model = body.get("model")
        if model is None or model == "":
            raise _FlawError("missing_model", f"body.model is missing; this job serves {_shown(self._model)}")
        if model != self._model:
            raise _FlawError(
                "model_mismatch",
                f"body.model is {_shown(model)}; this job serves {_shown(self._model)} (spec.inference."
                "servedModelName, or spec.inference.model where that is not set)",
            )
        if body.get("stream"):
            raise _FlawError("stream_not_supported", "body.stream is set; a batch has no one to stream to: remove it")
        return body


def _document(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE:
        raise _FlawError("line_too_long", f"the line is longer than {MAX_LINE} bytes; send large content by URL")
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _FlawError(
            "invalid_json_line", f"the line is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    except RecursionError:
        raise _FlawError("invalid_json_line", "the line is nested too deeply; flatten it") from None
    except ValueError as error:
        raise _FlawError("invalid_json_line", f"the line is not JSON: {error}; write one JSON object a line") from None
    if not isinstance(document, dict):
        raise _FlawError("invalid_json_line", f"the line is {_kind(document)}; expected a JSON object")
    return document


def _check_route(document: dict[str, Any]) -> str:
    method, url = document.get("method"), document.get("url")
    if method != "POST":
        raise _FlawError("invalid_method", f'method is {_shown(method)}; expected "POST"')
    if url not in ENDPOINTS:
        raise _FlawError("invalid_url", f"url is {_shown(url)}; expected one of {', '.join(ENDPOINTS)}")
    return str(url)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _text_bytes(value: object) -> int:
    """Bytes of all text in a prompt: of chat messages `content` and `text` only; a token id counts as 4 bytes."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(_text_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(_text_bytes(value.get(key)) for key in ("content", "text"))
    return 4 if isinstance(value, int) and not isinstance(value, bool) else 0

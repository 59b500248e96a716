"""What is in a request's prompt: how long it is, and with which other prompts it shares its beginning."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from gpubatch_runner.requests import Checked

BYTES_PER_TOKEN = 4
"""What the tokens of a prompt are estimated by where no tokenizer is at hand."""

LEVELS = tuple(128 << n for n in range(9))
"""Bytes of the beginnings that are compared, the longest 32 KiB."""

_PROMPT = ("messages", "prompt", "input", "instructions")
_QUERY = ("query", "queries", "text_1", "data_1")
_DOCUMENTS = ("documents", "items", "text_2", "data_2")
_KEY = struct.Struct(f"<{len(LEVELS)}I")


def prompt_bytes(checked: Checked) -> int:
    """Bytes of the text in the prompt: what is counted as 4 to a token where no tokenizer is at hand."""
    body = checked.body
    size = sum(_text_bytes(body.get(key)) for key in _PROMPT if key in body)
    documents = next((body[key] for key in _DOCUMENTS if key in body), None)
    if documents is not None:  # each of them is read together with the query
        query = sum(_text_bytes(body.get(key)) for key in _QUERY)
        size += _text_bytes(documents) + query * (len(documents) if isinstance(documents, list) else 1)
    return size


def prompt_text(checked: Checked) -> str:
    """All text of the prompt."""
    body = checked.body
    return "".join(text for key in (*_PROMPT, *_QUERY, *_DOCUMENTS) if key in body for text in _texts(body[key]))


def max_output_tokens(checked: Checked) -> int:
    """The request's own bound, 0 where it gives none."""
    for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = checked.body.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def prefix_key(checked: Checked) -> bytes | None:
    """Checksums of the prompt's beginnings: of two keys as many are equal, from the left, as the prompts share.

    None for requests whose engine keeps nothing of them (embeddings, scores, audio).
    """
    body = checked.body
    match checked.request.url:
        case "/v1/chat/completions":
            parts = _chat(body)
        case "/v1/completions":
            parts = _texts(body.get("prompt"))
        case "/v1/responses":
            parts = iter([*_texts(body.get("instructions")), *_texts(body.get("input"))])
        case _:
            return None
    sums: list[int] = []
    rest, seen, value = b"", 0, 0
    for part in parts:
        rest += part.encode("utf-8", "surrogatepass")
        while len(sums) < len(LEVELS) and seen + len(rest) >= LEVELS[len(sums)]:
            piece = LEVELS[len(sums)] - seen
            value = zlib.crc32(rest[:piece], value)
            rest, seen = rest[piece:], seen + piece
            sums.append(value)
        if len(sums) == len(LEVELS):
            break
    else:
        value = zlib.crc32(rest, value)
    sums += [value] * (len(LEVELS) - len(sums))
    return _KEY.pack(*sums)


def shared_bytes(one: bytes, other: bytes) -> int:
    """Bytes, to the next lower of `LEVELS`, with which two prompts begin alike."""
    shared = 0
    for at, level in zip(range(0, len(one), 4), LEVELS, strict=True):
        if one[at : at + 4] != other[at : at + 4]:
            break
        shared = level
    return shared


def _chat(body: dict[str, Any]) -> Iterator[str]:
    if tools := body.get("tools"):
        yield repr(tools)  # chat templates put them first
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                yield f"\0{message.get('role')}\0"
                yield from _texts(message.get("content"))


def _texts(value: object) -> Iterator[str]:
    """All text of a prompt: of chat messages `content` and `text` only; token ids as they are written."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(value.get("content"))
        yield from _texts(value.get("text"))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield f"{value} "


def _text_bytes(value: object) -> int:
    """Bytes of that text; a token id counts as 4, so that it is one token."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    if isinstance(value, dict):
        return _text_bytes(value.get("content")) + _text_bytes(value.get("text"))
    return 4 if isinstance(value, int) and not isinstance(value, bool) else 0

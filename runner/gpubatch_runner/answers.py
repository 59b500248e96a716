"""What the engine's answers say, read without building more of them than is needed."""

from __future__ import annotations

from typing import Any

import msgspec


class _Answer(msgspec.Struct):
    """Of an answer only `usage` is built; all else is looked through."""

    usage: Any = None


_answer = msgspec.json.Decoder(_Answer)
_anything = msgspec.json.Decoder()


def tokens_of(body: bytes) -> tuple[int, int] | None:
    """Tokens read and written that an answer reports, in the words of any endpoint; None if it isn't JSON."""
    try:
        usage = _answer.decode(body).usage
        if not body.isascii():
            body.decode()
    except msgspec.ValidationError:  # JSON, but no object
        return (0, 0) if _is_json(body) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(usage, dict):
        return (0, 0)
    return (
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
    )


def tokens_of_stream(end: bytes) -> tuple[int, int]:
    """Tokens read and written by the end of a stream of events, if it reports them (`stream_options.include_usage`)."""
    for line in reversed(end.splitlines()):
        if line.startswith(b"data:") and b'"usage"' in line and (tokens := tokens_of(line[5:])) and any(tokens):
            return tokens
    return (0, 0)


def one_line(body: bytes, is_json: bool, ok: bool) -> bytes:
    """An answer's body as one line of JSON, otherwise to the byte as it came; what isn't JSON becomes an object."""
    if not is_json:
        text = body.decode("utf-8", "replace")
        return msgspec.json.encode({"text": text} if ok else {"message": text[:10_000]})
    if b"\n" in body or b"\r" in body:
        return msgspec.json.format(body, indent=-1)
    return body


def _is_json(body: bytes) -> bool:
    try:
        _anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

"""The parameters of requests, checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from multidict import MultiMapping

from gpubatch_operator.core.phases import Phase
from gpubatch_operator.web.lists import Key
from gpubatch_operator.web.problems import bad_parameter

LIMIT, MAX_LIMIT = 100, 500
MAX_NAMESPACES = 100
MAX_TEXT = 100
MAX_TOKEN = 2048
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list shall show."""

    namespaces: tuple[str, ...]
    phases: tuple[Phase, ...]
    text: str
    limit: int
    after: Key | None


def wanted(query: MultiMapping[str], known: frozenset[str], examples: tuple[Key, ...]) -> Wanted:
    """The parameters of a list.

    Args:
        query: As given.
        known: Those that this list has.
        examples: Keys as its `continue` holds them, one of each form.

    Raises:
        problems.RequestError: One can't be used; the message names it.
    """
    for name in query:
        if name not in known:
            raise bad_parameter("the query's parameter", name, f"one of {', '.join(sorted(known))}")
    return Wanted(namespaces(query), _phases(query), _text(query), _limit(query), _after(query, examples))


def namespaces(query: MultiMapping[str]) -> tuple[str, ...]:
    """The namespaces that are asked for, in order; none: all."""
    found = tuple(sorted(set(_listed(query, "namespace"))))
    for name in found:
        if not LABEL.fullmatch(name):
            raise bad_parameter("namespace", name, "names of namespaces, separated by commas")
    if len(found) > MAX_NAMESPACES:
        raise bad_parameter("namespace", f"{len(found)} names", f"at most {MAX_NAMESPACES} names; none means all")
    return found


def token(key: Key | None) -> str | None:
    """A key as the parameter `continue`."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=") if key is not None else None


def _phases(query: MultiMapping[str]) -> tuple[Phase, ...]:
    by_name = {p.value.lower(): p for p in Phase}
    found = []
    for name in _listed(query, "phase"):
        if (phase := by_name.get(name.lower())) is None:
            raise bad_parameter("phase", name, f"of {', '.join(p.value for p in Phase)}, separated by commas")
        found.append(phase)
    return tuple(dict.fromkeys(found))


def _text(query: MultiMapping[str]) -> str:
    text = query.get("q", "").strip().lower()
    if len(text) > MAX_TEXT:
        raise bad_parameter("q", text, f"{MAX_TEXT} characters at most")
    return text


def _limit(query: MultiMapping[str]) -> int:
    text = query.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_LIMIT):
        raise bad_parameter("limit", text, f"a number from 1 to {MAX_LIMIT}")
    return int(text)


def _after(query: MultiMapping[str], examples: tuple[Key, ...]) -> Key | None:
    if not (text := query.get("continue", "")):
        return None
    try:
        if len(text) > MAX_TOKEN:
            raise ValueError
        key = _tuple(orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))
    except (ValueError, binascii.Error):
        key = None
    if not isinstance(key, tuple) or not any(_alike(key, example) for example in examples):
        raise bad_parameter("continue", text, "what `continue` was in the answer before; start without it")
    return key


def _listed(query: MultiMapping[str], name: str) -> Iterable[str]:
    return (part for text in query.getall(name, []) for part in map(str.strip, text.split(",")) if part)


def _tuple(value: object) -> object:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _alike(key: object, example: object) -> bool:
    """Whether it can be compared with keys like the example: a key comes from a stranger."""
    if isinstance(example, tuple):
        return isinstance(key, tuple) and len(key) == len(example) and all(map(_alike, key, example))
    if isinstance(example, (str, bool)):
        return isinstance(key, str) if isinstance(example, str) else key is example
    return isinstance(key, (int, float)) and not isinstance(key, bool)

"""The inputs of the demo's jobs: sentences from Python's own documentation, questions, and a file with broken lines."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from itertools import chain, zip_longest

MODULES = (
    "asyncio", "calendar", "csv", "datetime", "decimal", "difflib", "ftplib", "gzip", "heapq", "imaplib", "json",
    "logging", "math", "os", "pathlib", "pickle", "random", "re", "shutil", "smtplib", "socket", "sqlite3", "ssl",
    "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "urllib.parse", "uuid",
    "webbrowser", "zipfile",
)  # fmt: skip
SENTENCES = 420

QUERIES = {
    "How do I pack several files into one archive?": ("zipfile", "tarfile", "shutil", "gzip"),
    "What is the average of my numbers?": ("statistics",),
    "Wait until another thread is done": ("threading", "asyncio", "subprocess"),
    "Send an e-mail": ("smtplib", "imaplib"),
}
"""Questions, and the modules of which one should be in the nearest answers."""


def sentences() -> dict[str, str]:
    """First sentences of docstrings, by the qualified name of what they describe; the same at each call."""
    rounds = zip_longest(*(_first_sentences(name) for name in MODULES))
    found: dict[str, str] = {}
    for name, sentence in filter(None, chain.from_iterable(rounds)):
        if sentence not in found.values():
            found[name] = sentence
        if len(found) == SENTENCES:
            break
    return found


def _first_sentences(module_name: str) -> Iterator[tuple[str, str]]:
    for name, member in vars(importlib.import_module(module_name)).items():
        owner = (getattr(member, "__module__", None) or module_name).lstrip("_").partition(".")[0]
        if name.startswith("_") or not callable(member) or owner not in (module_name.partition(".")[0], "posix"):
            continue
        described = vars(member).items() if inspect.isclass(member) else [("", member)]
        for attribute, function in described:
            if attribute.startswith("_") or not callable(function) or inspect.isclass(function):
                continue
            text = " ".join((inspect.getdoc(function) or "").split())
            if match := re.match(r"([A-Z][a-z]+ [^.:>()=]{25,120}\.)( |$)", text):
                yield f"{module_name}.{name}.{attribute}".rstrip("."), match[1]


def embedding_requests() -> list[str]:
    """One request for each sentence and each query."""
    texts = {**sentences(), **{f"query-{i}": query for i, query in enumerate(QUERIES)}}
    return [_line(name, "/v1/embeddings", {"model": "minilm", "input": text}) for name, text in texts.items()]


def chat_requests(count: int, max_tokens: int = 24) -> list[str]:
    """Questions about the sentences; a random Llama answers noise, but it answers."""
    subjects = list(sentences().items())
    return [chat_request(f"question-{i}", subjects[i % len(subjects)][0], max_tokens) for i in range(1, count + 1)]


def chat_request(custom_id: str, subject: str, max_tokens: int = 24) -> str:
    """One chat completion."""
    messages = [{"role": "user", "content": f"What does {subject} do in Python?"}]
    body = {"model": "chat", "messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return _line(custom_id, "/v1/chat/completions", body)


def broken_requests() -> tuple[list[str], dict[int, str]]:
    """Sixty lines of which five are broken, and the expected code of each by its line number."""
    lines = chat_requests(60, max_tokens=8)
    lines[6] = lines[6][:-20]
    lines[13] = json.dumps({"method": "POST", "url": "/v1/chat/completions", "body": {"model": "chat"}})
    lines[20] = lines[3]
    lines[34] = lines[34].replace("/v1/chat/completions", "/v1/chat/complete")
    lines[47] = lines[47].replace('"model": "chat"', '"model": "gpt-4o"')
    expected = {
        7: "invalid_json_line",
        14: "missing_custom_id",
        21: "duplicate_custom_id",
        35: "invalid_url",
        48: "model_mismatch",
    }
    return lines, expected


def _line(custom_id: str, url: str, body: dict[str, object]) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})

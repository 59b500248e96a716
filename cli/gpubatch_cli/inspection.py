"""What a job's inspection would say of an input, before it is uploaded.

The same validator judges the lines as in the cluster; all errors are told, in the shape of OpenAI's `errors.data[]`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from gpubatch_cli.console import Advance, bar, document, out
from gpubatch_runner.contract import LineError
from gpubatch_runner.lines import LineSplitter
from gpubatch_runner.locations import Location
from gpubatch_runner.prompts import BYTES_PER_TOKEN, max_output_tokens, prompt_bytes, prompt_text
from gpubatch_runner.requests import Checked, Validator
from gpubatch_runner.unpack import unpacked

SHOWN = 20
"""Errors that are printed where not all are asked for."""

_CHUNK = 1024 * 1024


class Findings:
    """What a file adds up to; errors are kept on disk, for there may be as many as lines."""

    def __init__(self, errors: IO[str], count_tokens: Callable[[Checked], int] | None) -> None:
        self.requests = self.invalid = self.output_tokens = 0
        self.model: str | None = None
        self._errors, self._count_tokens = errors, count_tokens
        self._bytes = self._tokens = 0

    def add(self, judged: Checked | LineError) -> None:
        """Counts one line."""
        if isinstance(judged, LineError):
            self.invalid += 1
            self._errors.write(json.dumps(judged.model_dump()) + "\n")
            return
        self.requests += 1
        self.output_tokens += max_output_tokens(judged)
        if self._count_tokens:
            self._tokens += self._count_tokens(judged)
        else:
            self._bytes += prompt_bytes(judged)

    @property
    def input_tokens(self) -> int:
        """Prompt tokens: counted, or estimated from bytes."""
        return self._tokens if self._count_tokens else -(-self._bytes // BYTES_PER_TOKEN)

    @property
    def tokens_from(self) -> str:
        """Which of the two."""
        return "Tokenizer" if self._count_tokens else "Bytes"

    def errors(self) -> Iterator[dict[str, Any]]:
        """All errors, in the order of the lines."""
        self._errors.seek(0)
        for line in self._errors:
            yield json.loads(line)

    def problem(self, most: int) -> str | None:
        """Why the cluster would refuse the whole input."""
        if not self.requests:
            return "no line is a valid request"
        if self.requests + self.invalid > most:
            return f"more than {most} requests, the limit of one job (--max-requests); split the input"
        return None


@contextmanager
def findings(file: str, model: str | None, tokenizer: str | None = None) -> Iterator[Findings]:
    """Reads a whole input; `-` is standard input. `model` None: the one that the first line names.

    Raises:
        OSError, RunnerError: It can't be read, or not be unpacked.
        ValueError: There is no such tokenizer.
    """
    count_tokens = _tokenizer(tokenizer) if tokenizer else None
    size = None if file == "-" else Path(file).stat().st_size
    source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115
    with tempfile.TemporaryFile("w+") as errors, source as opened:
        found, validator = Findings(errors, count_tokens), Validator(model)
        with bar(f"checking {file}", size) as advance:
            asyncio.run(_read(file, opened, validator, found, advance))
        found.model = validator.model
        yield found


async def _read(name: str, file: BinaryIO, validator: Validator, found: Findings, advance: Advance) -> None:
    splitter, number = LineSplitter(), 0

    def take(line: bytes) -> None:
        if (judged := validator.check(number, line)) is not None:
            if isinstance(judged, Checked) and validator.model is None:
                validator.model = judged.body["model"]
            found.add(judged)

    location = Location("FILE", name, "pvc", "", name)
    async for chunk in unpacked(location, _chunks(file, advance)):
        for line in splitter.feed(chunk):
            number += 1
            take(line)
    for line in splitter.finish():
        number += 1
        take(line)


async def _chunks(file: BinaryIO, advance: Advance) -> AsyncIterator[bytes]:
    while chunk := file.read(_CHUNK):
        advance(len(chunk))
        yield chunk


def _tokenizer(path: str) -> Callable[[Checked], int]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("--tokenizer needs the package tokenizers: pip install tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more exact
        raise ValueError(f"--tokenizer {path}: {error}; name a model's tokenizer.json") from None
    return lambda checked: len(tokenizer.encode(prompt_text(checked), add_special_tokens=False))


def print_text(found: Findings, problem: str | None, everything: bool) -> None:
    """For people."""
    how = "counted" if found.tokens_from == "Tokenizer" else "estimated from bytes"
    out(f"{found.requests} valid requests, {found.invalid} invalid lines")
    out(f"{found.input_tokens} prompt tokens ({how}), at most {found.output_tokens} output tokens where bounded")
    if problem:
        out(f"the job would fail: {problem}")
    for line in error_lines(found, everything):
        out(line)


def error_lines(found: Findings, everything: bool) -> Iterator[str]:
    """The errors, a line each."""
    for n, error in enumerate(found.errors()):
        if n == SHOWN and not everything:
            yield f"... and {found.invalid - SHOWN} more (--all)"
            return
        who = f" ({error['custom_id']})" if error["custom_id"] else ""
        yield f"line {error['line']}{who}: {error['code']}: {error['message']}"


def print_json(found: Findings, problem: str | None) -> None:
    """For programs."""
    document(
        {
            "requests": found.requests,
            "invalid": found.invalid,
            "input_tokens": found.input_tokens,
            "tokens_from": found.tokens_from,
            "max_output_tokens": found.output_tokens,
            "problem": problem,
            "errors": {"object": "list", "data": list(found.errors())},
        },
        "json",
    )

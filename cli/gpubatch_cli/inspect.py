"""`gpubatch inspect FILE`: what a job's inspection would say of an input, before it is uploaded.

The same validator judges the lines as in the cluster; all errors are told, in the shape of OpenAI's `errors.data[]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from gpubatch_runner.contract import LineError
from gpubatch_runner.failures import RunnerError
from gpubatch_runner.lines import LineSplitter
from gpubatch_runner.locations import Location
from gpubatch_runner.prompts import BYTES_PER_TOKEN, max_output_tokens, prompt_bytes, prompt_text
from gpubatch_runner.requests import Checked, Validator
from gpubatch_runner.unpack import unpacked

SHOWN = 20
"""Errors that are printed where not all are asked for."""

_CHUNK = 1024 * 1024


def add_to(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "inspect",
        help="check an input file: every line, all errors",
        description="Checks every line of an input as a job's inspection does. Exits with 0 if all lines are valid, 1 "
        "if some are not or the job would be refused, 2 if the file can't be read.",
    )
    parser.add_argument("file", help="JSON Lines, also .gz or .zst; - reads standard input")
    parser.add_argument("--model", help="spec.inference.servedModelName, or model where that is not set; default: that "
                        "of the first line that names one")  # fmt: skip
    parser.add_argument("--max-requests", type=int, default=50_000, help="limit of the cluster (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="FILE", help="a model's tokenizer.json, to count prompt tokens by; "
                        "without it they are estimated, 4 bytes a token")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document with all errors")
    parser.add_argument("--all", action="store_true", help=f"print all errors, not only the first {SHOWN}")
    parser.set_defaults(run=run)


class Findings:
    """What a file adds up to; errors are kept on disk, for there may be as many as lines."""

    def __init__(self, errors: IO[str], count_tokens: Callable[[Checked], int] | None) -> None:
        self.requests = self.invalid = self.output_tokens = 0
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


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        count_tokens = _tokenizer(options.tokenizer) if options.tokenizer else None
        source = sys.stdin.buffer if options.file == "-" else Path(options.file).open("rb")  # noqa: SIM115
        with tempfile.TemporaryFile("w+") as errors, source as file:
            findings = Findings(errors, count_tokens)
            asyncio.run(_read(options.file, file, Validator(options.model), findings))
            problem = _problem(findings, options.max_requests)
            (_print_json if options.json else _print)(findings, problem, options)
    except (OSError, RunnerError, ValueError) as error:
        print(f"gpubatch inspect: {error}", file=sys.stderr)
        return 2
    return 1 if findings.invalid or problem else 0


async def _read(name: str, file: BinaryIO, validator: Validator, findings: Findings) -> None:
    splitter, number = LineSplitter(), 0

    def take(line: bytes) -> None:
        if (judged := validator.check(number, line)) is not None:
            if isinstance(judged, Checked) and validator.model is None:
                validator.model = judged.body["model"]
            findings.add(judged)

    location = Location("FILE", name, "pvc", "", name)
    async for chunk in unpacked(location, _chunks(file)):
        for line in splitter.feed(chunk):
            number += 1
            take(line)
    for line in splitter.finish():
        number += 1
        take(line)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := file.read(_CHUNK):
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


def _problem(findings: Findings, most: int) -> str | None:
    """Why the cluster would refuse the whole input."""
    if not findings.requests:
        return "no line is a valid request"
    if findings.requests + findings.invalid > most:
        return f"more than {most} requests, the limit of one job (--max-requests); split the input"
    return None


def _print(findings: Findings, problem: str | None, options: argparse.Namespace) -> None:
    how = "counted" if findings.tokens_from == "Tokenizer" else "estimated from bytes"
    print(f"{findings.requests} valid requests, {findings.invalid} invalid lines")
    print(
        f"{findings.input_tokens} prompt tokens ({how}), at most {findings.output_tokens} output tokens where bounded"
    )
    if problem:
        print(f"the job would fail: {problem}")
    for n, error in enumerate(findings.errors()):
        if n == SHOWN and not options.all:
            print(f"... and {findings.invalid - SHOWN} more (--all)")
            break
        who = f" ({error['custom_id']})" if error["custom_id"] else ""
        print(f"line {error['line']}{who}: {error['code']}: {error['message']}")


def _print_json(findings: Findings, problem: str | None, options: argparse.Namespace) -> None:
    document = {
        "requests": findings.requests,
        "invalid": findings.invalid,
        "input_tokens": findings.input_tokens,
        "tokens_from": findings.tokens_from,
        "max_output_tokens": findings.output_tokens,
        "problem": problem,
        "errors": {"object": "list", "data": list(findings.errors())},
    }
    print(json.dumps(document, indent=2))

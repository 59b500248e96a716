"""The order of sending: those that begin alike together, where that pays; nothing lost; flat memory."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner import order
from gpubatch_runner.answering import judge
from gpubatch_runner.contract import LineError
from gpubatch_runner.keyset import KeySet
from gpubatch_runner.order import Order
from gpubatch_runner.prompts import prefix_key
from gpubatch_runner.requests import Checked, Validator
from gpubatch_runner.workdir import Workdir
from unit.runner.jobs import Job, request


def shuffled(groups: int, each: int, prefix: int = 2000) -> list[dict[str, Any]]:
    lines = []
    for n in range(groups * each):
        text = f"document {n % groups}: " + "x" * prefix + f" question {n}"
        lines.append(request(n, body={"model": "tiny", "messages": [{"role": "user", "content": text}]}))
    random.Random(1).shuffle(lines)
    return lines


def sent(job: Job, lines: list[Any], **changes: Any) -> list[str]:
    """The order in which the requests of an input are sent."""
    workdir = Workdir(job.environment.journal_dir, "run", 1)
    workdir.input.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    judge(job.spec(**changes), workdir)
    return [request.custom_id for request in Order(workdir.order, workdir.input).requests(set())]


def switches(lines: list[dict[str, Any]], ids: list[str]) -> int:
    """How often the next request begins otherwise than the one before."""
    beginning = {line["custom_id"]: line["body"]["messages"][0]["content"][:20] for line in lines}
    return sum(beginning[one] != beginning[other] for one, other in itertools.pairwise(ids))


def test_requests_that_begin_alike_are_sent_one_after_the_other(job: Job) -> None:
    lines = shuffled(groups=20, each=30)
    ids = sent(job, lines)
    assert sorted(ids) == sorted(line["custom_id"] for line in lines)
    assert switches(lines, ids) == 19


def test_the_order_is_the_inputs_where_the_job_says_so(job: Job) -> None:
    lines = shuffled(groups=20, each=30)
    assert sent(job, lines, request_order="Input") == [line["custom_id"] for line in lines]


def test_requests_that_share_little_keep_their_order(job: Job) -> None:
    lines = shuffled(groups=300, each=2, prefix=0)
    assert sent(job, lines) == [line["custom_id"] for line in lines]


def test_an_input_that_is_grouped_already_keeps_its_order(job: Job) -> None:
    lines = sorted(shuffled(groups=20, each=30), key=lambda line: line["body"]["messages"][0]["content"])
    assert sent(job, lines) == [line["custom_id"] for line in lines]


def test_embeddings_keep_their_order(job: Job) -> None:
    lines = [
        request(n, url="/v1/embeddings", body={"model": "tiny", "input": f"{n % 5}" + "x" * 2000}) for n in range(100)
    ]
    assert sent(job, lines) == [f"r{n}" for n in range(100)]


def test_only_requests_of_one_window_change_places(job: Job, monkeypatch: Any) -> None:
    monkeypatch.setattr(order, "WINDOW", 100)
    lines = shuffled(groups=10, each=25)
    ids = sent(job, lines)
    for begin in range(0, 250, 100):
        assert sorted(ids[begin : begin + 100]) == sorted(line["custom_id"] for line in lines[begin : begin + 100])
    assert switches(lines, ids) < 30


@given(st.lists(st.sampled_from(["good", "bad", "blank"]), max_size=30))
def test_each_valid_line_is_in_the_order_once_and_each_other_one_is_told(kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job, workdir = Job(Path(folder)), Workdir(Path(folder) / "work", "run", 1)
        lines = {"good": lambda n: json.dumps(request(n)), "bad": lambda n: "{", "blank": lambda n: " "}
        workdir.input.write_text("".join(lines[kind](n) + "\n" for n, kind in enumerate(["good", *kinds], start=1)))
        total = judge(job.spec(), workdir)
        found = [r.line for r in Order(workdir.order, workdir.input).requests(set())]
        told = [LineError.model_validate_json(raw).line for raw in workdir.invalid.read_text().splitlines()]
    assert found == [n for n, kind in enumerate(["good", *kinds], start=1) if kind == "good"]
    assert told == [n for n, kind in enumerate(["good", *kinds], start=1) if kind == "bad"]
    assert total == len(found) + len(told)


def key_of(*contents: str) -> bytes | None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content} for content in contents]}
    judged = Validator("tiny").check(1, json.dumps(request(1, body=body)).encode())
    assert isinstance(judged, Checked)
    return prefix_key(judged)


@given(st.text(max_size=600), st.text(max_size=600), st.text(max_size=600))
def test_keys_agree_as_far_as_the_prompts_do(prefix: str, one: str, other: str) -> None:
    first, second = key_of(prefix + one), key_of(prefix + other)
    assert first is not None
    assert second is not None
    if prefix + one == prefix + other:
        assert first == second
    size = len((prefix).encode("utf-8", "surrogatepass"))
    if size >= 128:
        assert first[:4] == second[:4]


@given(st.lists(st.integers(min_value=1, max_value=2**64 - 1), max_size=3000))
def test_a_key_set_is_a_set(keys: list[int]) -> None:
    ours, theirs = KeySet(), set[int]()
    for key in [*keys, *keys[:5]]:
        assert ours.add(key) is (key not in theirs)
        theirs.add(key)
    assert len(ours) == len(theirs)


def test_a_key_set_grows() -> None:
    ours = KeySet()
    assert all(ours.add(key * 7919) for key in range(1, 20_000))
    assert not any(ours.add(key * 7919) for key in range(1, 20_000))

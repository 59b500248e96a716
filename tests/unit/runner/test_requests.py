"""What a valid request is: each kind of bad line gets its own code, and a message that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner.contract import LineError
from gpubatch_runner.lines import MAX_LINE
from gpubatch_runner.prompts import max_output_tokens, prompt_bytes
from gpubatch_runner.requests import Checked, Validator
from unit.runner.jobs import request


def judge(line: Any, number: int = 1) -> Checked | LineError | None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return Validator("tiny").check(number, raw)


def test_a_valid_request_is_taken_as_it_is() -> None:
    judged = judge(request(1))
    assert isinstance(judged, Checked)
    assert (judged.request.line, judged.request.custom_id, judged.request.url) == (1, "r1", "/v1/chat/completions")
    assert json.loads(judged.request.payload) == request(1)["body"]


@pytest.mark.parametrize("blank", [b"", b"  ", b"\r", b"\t \r"])
def test_blank_lines_are_no_requests(blank: bytes) -> None:
    assert judge(blank) is None


def test_windows_line_ends_are_accepted() -> None:
    assert isinstance(judge(json.dumps(request(1)).encode() + b"\r"), Checked)


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        (b"{", "invalid_json_line", "not JSON"),
        (b"\xff\xfe", "invalid_json_line", "UTF-8"),
        (b'{"custom_id": NaN}', "invalid_json_line", "NaN"),
        (b'{"custom_id": -Infinity}', "invalid_json_line", "Infinity"),
        (b"[" * 100_000, "invalid_json_line", "nested"),
        (b"[1]", "invalid_json_line", "a list"),
        (b'"text"', "invalid_json_line", "a string"),
        (b"null", "invalid_json_line", "null"),
        (b"1" * 5000, "invalid_json_line", "not JSON"),
        (b" " * MAX_LINE + b"{}", "line_too_long", str(MAX_LINE)),
        ({}, "missing_custom_id", "custom_id"),
        (request(1, custom_id=None), "missing_custom_id", "custom_id"),
        (request(1, custom_id=""), "missing_custom_id", "custom_id"),
        (request(1, custom_id=7), "invalid_custom_id", "a number"),
        (request(1, custom_id="x" * 513), "invalid_custom_id", "513"),
        (request(1, method="GET"), "invalid_method", '"GET"'),
        (request(1, method=None), "invalid_method", "POST"),
        (request(1, url="/v1/files"), "invalid_url", "/v1/files"),
        (request(1, url=["/v1/embeddings"]), "invalid_url", "/v1/embeddings"),
        (request(1, url={}), "invalid_url", "expected one of"),
        (request(1, body=None), "missing_body", "body"),
        (request(1, body="{}"), "invalid_body", "a string"),
        (request(1, body={}), "missing_model", "body.model"),
        (request(1, body={"model": "gpt-5"}), "model_mismatch", "gpt-5"),
        (request(1, body={"model": ["tiny"]}), "model_mismatch", "tiny"),
        (request(1, body={"model": "tiny", "stream": True}), "stream_not_supported", "body.stream"),
    ],
)
def test_a_bad_line_is_told_with_its_code_and_the_field(line: Any, code: str, named: str) -> None:
    judged = judge(line, 17)
    assert isinstance(judged, LineError)
    assert (judged.line, judged.code) == (17, code)
    assert named in judged.message
    assert len(judged.message) < 600


def test_the_second_use_of_a_custom_id_is_the_wrong_one() -> None:
    validator = Validator("tiny")
    assert isinstance(validator.check(1, json.dumps(request(1)).encode()), Checked)
    second = validator.check(2, json.dumps(request(1)).encode())
    assert isinstance(second, LineError)
    assert (second.line, second.custom_id, second.code) == (2, "r1", "duplicate_custom_id")


def test_urls_may_be_mixed_in_one_batch() -> None:
    validator = Validator("tiny")
    for number, url in enumerate(("/v1/chat/completions", "/v1/completions", "/v1/embeddings")):
        line = request(number, url=url, body={"model": "tiny", "input": "x"})
        assert isinstance(validator.check(number, json.dumps(line).encode()), Checked)


def test_a_custom_id_with_half_a_surrogate_pair_can_be_checked_and_sent() -> None:
    body = rb'{"model": "tiny", "input": "\udc00"}'
    line = rb'{"custom_id": "\ud800", "method": "POST", "url": "/v1/embeddings", "body": ' + body + b"}"
    judged = judge(line)
    assert isinstance(judged, Checked)
    assert json.loads(judged.request.payload)["input"] == "\udc00"


@pytest.mark.parametrize(
    ("body", "prompt", "output"),
    [
        ({"messages": [{"role": "user", "content": "12345678"}], "max_tokens": 5}, 8, 5),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1234"}]}]}, 4, 0),
        ({"prompt": "é", "max_completion_tokens": 9}, 2, 9),
        ({"prompt": [1, 2, 3]}, 12, 0),
        ({"input": ["ab", "cd"], "max_output_tokens": True}, 4, 0),
        ({"input": {"image": "x"}}, 0, 0),
    ],
)
def test_prompt_bytes_and_bounds_are_counted(body: dict[str, Any], prompt: int, output: int) -> None:
    judged = judge(request(1, body={"model": "tiny", **body}))
    assert isinstance(judged, Checked)
    assert (prompt_bytes(judged), max_output_tokens(judged)) == (prompt, output)


@given(st.binary(max_size=200))
def test_any_bytes_get_a_verdict(raw: bytes) -> None:
    judged = judge(raw)
    assert judged is None or isinstance(judged, LineError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["custom_id", "method", "url", "body"])


@given(st.dictionaries(FIELDS, JSON))
def test_any_document_gets_a_verdict_and_a_valid_one_survives_the_way_to_the_engine(changes: dict[str, Any]) -> None:
    judged = judge(request(1) | changes)
    if isinstance(judged, Checked):
        assert json.loads(judged.request.payload) == judged.body
    else:
        assert isinstance(judged, LineError)

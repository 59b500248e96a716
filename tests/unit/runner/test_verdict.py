"""The termination message: always valid JSON, and always short enough for the kubelet to keep."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner.contract import TERMINATION_LIMIT, Inspection, LineError, Outcome, Reason
from gpubatch_runner.verdict import shortened

TEXTS = st.integers(0, 9000).flatmap(
    lambda n: st.sampled_from(["x", "é", "\u2028", '"', "\0", "😀"]).map(lambda c: c * n)
)


@given(TEXTS, TEXTS)
def test_an_outcome_fits(message: str, url: str) -> None:
    outcome = Outcome(succeeded=False, reason=Reason.ENGINE_FAILED, message=message, completed=7, output=url)
    text = shortened(outcome)
    assert len(text.encode()) <= TERMINATION_LIMIT
    assert json.loads(text)["completed"] == 7


@given(st.lists(st.builds(LineError, line=st.just(1), custom_id=TEXTS, code=st.just("c"), message=TEXTS), max_size=10))
def test_an_inspection_fits(errors: list[LineError]) -> None:
    inspection = Inspection(valid=False, reason=Reason.INVALID_REQUESTS, message="m", first_errors=tuple(errors))
    text = shortened(inspection)
    assert len(text.encode()) <= TERMINATION_LIMIT
    assert json.loads(text)["message"] == "m"


def test_a_short_verdict_is_left_alone() -> None:
    outcome = Outcome(succeeded=True, message="done", output="s3://b/o")
    assert Outcome.model_validate_json(shortened(outcome)) == outcome


def test_first_errors_are_shortened_before_they_are_dropped() -> None:
    errors = tuple(LineError(line=n, code="c", message="m" * 2000) for n in range(1, 11))
    found = json.loads(shortened(Inspection(valid=False, message="m", first_errors=errors)))["firstErrors"]
    assert len(found) == 10
    assert all(len(error["message"]) == 200 for error in found)

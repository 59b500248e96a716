"""What a template's program may say of its progress, and what is made of it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner import told
from gpubatch_runner.contract import Progress
from gpubatch_runner.sidecar import Picture
from gpubatch_runner.told import Told, Unreadable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/10", Told(completed=3, total=10)),
        (" 3 / 10 \n", Told(completed=3, total=10)),
        ('{"percent": 12.5}', Told(percent=12.5)),
        ('{"completed": 1, "total": 4, "stage": "Training"}', Told(completed=1, total=4, stage="Training")),
        ('{"message": "warming up", "unknown": [1]}', Told(message="warming up")),
        ('{"metrics": {"loss": 0.5, "lr": "1e-3"}}', Told(metrics={"loss": 0.5, "lr": 0.001})),
        ('{"remainingSeconds": 90}', Told(remaining_seconds=90)),
        ('{\n "percent": 5\n}\n', Told(percent=5)),
        ("1/10\n2/10\n3/10\n", Told(completed=3, total=10)),
        ('{"percent": 1}\n{"percent": 2}\n', Told(percent=2)),
        ("", None),
        ("\n\n", None),
        ("{}", Told()),
    ],
)
def test_each_form_is_understood(text: str, expected: Told | None):
    assert told.read(text) == expected


def test_kubeflows_contract_is_understood():
    status = {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 120,
        "metrics": [{"name": "loss", "value": "0.123"}, {"name": "note", "value": "text"}],
        "lastUpdatedTime": "2027-01-15T08:00:00Z",
    }
    got = told.read(json.dumps({"trainerStatus": status}))
    assert got == Told(percent=42, remaining_seconds=120, metrics={"loss": 0.123})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("half way", "expected one JSON object or done/total, found half way"),
        ("[1, 2]", "expected one JSON object or done/total"),
        ('{"percent": "some"}', "percent is 'some'"),
        ('{"percent": 101}', "percent is 101"),
        ('{"percent": NaN}', "percent is nan"),
        ('{"completed": -1}', "completed is -1"),
        ('{"total": 1e300}', "total is 1e+300"),
        ('{"metrics": [1]}', "metrics is [1]"),
        ('{"percent": 5', "expected one JSON object"),
        ("[" * 100_000, "expected one JSON object"),
    ],
)
def test_what_is_not_understood_is_named(text: str, said: str):
    with pytest.raises(Unreadable) as error:
        told.read(text)
    assert said in str(error.value)
    assert len(str(error.value)) < 400


def test_metrics_that_are_no_finite_numbers_are_left_out_and_the_rest_is_bounded():
    many = {"bad": "x", "nan": math.nan, "inf": "inf", "none": None, "n" * 99: 1.0} | {f"m{i}": i for i in range(40)}
    got = told.read(json.dumps({"metrics": many}))
    assert got is not None
    assert got.metrics is not None
    assert len(got.metrics) == told.MAX_METRICS
    assert "n" * told.MAX_NAME in got.metrics
    assert not {"bad", "nan", "inf", "none"} & got.metrics.keys()


def test_what_is_left_out_stays_as_it_was():
    first = Told(completed=1, total=4, metrics={"loss": 1})
    assert told.merge(first, Told(completed=2)) == Told(completed=2, total=4, metrics={"loss": 1})


def test_a_new_stage_begins_without_the_old_ones_counts():
    first = Told(completed=4, total=4, stage="Training", message="m", metrics={"loss": 1})
    assert told.merge(first, Told(stage="Evaluating")) == Told(stage="Evaluating", metrics={"loss": 1})


def test_the_latest_word_counts_where_counts_and_percents_are_mixed():
    assert Told(**told.merge(Told(completed=1, total=4), Told(percent=80)).model_dump()).share == 0.8
    assert told.merge(Told(percent=80), Told(completed=1, total=4)).share == 0.25


@given(st.text(max_size=200) | st.from_type(dict).map(str) | st.dictionaries(st.text(), st.floats()).map(json.dumps))
def test_whatever_is_said_the_picture_stands(text: str):
    picture = Picture()
    try:
        if news := told.read(text):
            picture.take(news)
    except Unreadable as error:
        picture.problem = str(error)
    Progress.model_validate_json(picture.now().to_json())


def test_the_time_left_follows_what_was_seen_and_not_where_the_work_was_resumed(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("gpubatch_runner.sidecar.time.monotonic", lambda: clock[0])
    picture = Picture()
    picture.take(Told(percent=50))
    assert picture.now().remaining_seconds is None
    clock[0] += 10
    picture.take(Told(percent=60))
    assert picture.now().remaining_seconds == 40
    clock[0] += 15
    assert picture.now().remaining_seconds == 25
    picture.take(Told(remaining_seconds=7))
    assert picture.now().remaining_seconds == 7, "the program knows better"
    clock[0] += 5
    assert picture.now().remaining_seconds == 2
    picture.take(Told(percent=80))
    assert picture.now().remaining_seconds == 20, "what it said before is of the past"

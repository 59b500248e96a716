"""The demo's judgement: its checks fail when they should."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from demo_lib import inputs
from demo_lib.checks import Checks
from demo_lib.queue import Job, Watcher
from demo_lib.results import answered_once, nearest
from gpubatch_runner.contract import LineError
from gpubatch_runner.requests import Checked, Validator

SOON = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
PAST = "2026-01-01T00:00:00Z"


def job(name: str, phase: str = "Queued", priority: int = 0, ticket: int = 0, start: int = 0, **status: Any) -> Job:
    """A job as kubectl prints it; `start` is the second at which its attempt started."""
    status |= {"phase": phase, "queueTicket": str(ticket)}
    status["attempts"] = [{"startTime": f"2026-01-01T00:00:{start:02}Z"}] if start else []
    return Job(name, {"metadata": {"creationTimestamp": PAST}, "spec": {"priority": priority}, "status": status})


def test_two_jobs_on_one_node_are_noticed() -> None:
    watcher = Watcher()
    watcher.look([job("a", "Running", nodeName="x"), job("b", "Running", nodeName="y")])
    assert not watcher.crowded
    assert watcher.side_by_side
    watcher.look([job("a", "Running", nodeName="x"), job("b", "Starting", nodeName="x")])
    assert watcher.crowded == {"x"}


def test_a_job_that_starts_before_its_turn_is_noticed() -> None:
    watcher = Watcher()
    watcher.look([job("early", ticket=1), job("late", ticket=2), job("urgent", priority=1, ticket=3)])
    watcher.look(
        [job("early", "Running", 0, 1, 30), job("late", "Running", 0, 2, 20), job("urgent", "Running", 1, 3, 10)]
    )
    assert watcher.overtakings() == ["late before early"]


def test_a_job_that_never_waited_with_another_overtakes_nobody() -> None:
    watcher = Watcher()
    watcher.look([job("first", "Running", 0, 1, 10)])
    watcher.look([job("first", "Running", 0, 1, 10), job("urgent", "Running", 1, 2, 20)])
    assert not watcher.overtakings()


def test_estimates_are_demanded_of_who_waits_and_must_not_have_passed() -> None:
    watcher = Watcher()
    look = [
        job("good", estimatedStartTime=SOON, estimatedCompletionTime=SOON),
        job("none"),
        job("passed", estimatedStartTime=PAST, estimatedCompletionTime=SOON),
    ]
    watcher.look(look)
    watcher.look(look)
    assert watcher.waited - watcher.estimated == {"none"}
    assert watcher.outdated == {"passed"}


def test_nothing_is_finished_before_there_is_a_job() -> None:
    assert not Watcher().finished


def test_answers_are_counted_one_by_one() -> None:
    def answer(name: str, status: int = 200) -> dict[str, Any]:
        return {"custom_id": name, "response": {"status_code": status}}

    assert answered_once([answer("a"), answer("b")], ["a", "b"]) == ""
    assert answered_once([answer("a"), answer("a")], ["a", "b"]) == "1 missing, 1 twice"
    assert answered_once([answer("a", 500)], ["a"]) == "1 not 200"


def test_a_broken_promise_is_the_demos_failure() -> None:
    checks = Checks()
    checks.that("kept", True)
    assert checks.all_kept
    checks.that("broken", False, "what was found")
    assert not checks.all_kept
    assert checks.lines()[-1] == "  ✗ broken: what was found"


def test_nearest_is_by_angle_not_by_length() -> None:
    assert [name for _, name in nearest([1, 0], {"far": [0, 9], "near": [9, 1], "same": [0.1, 0]})] == [
        "same",
        "near",
        "far",
    ]


def test_a_few_hundred_real_sentences_the_same_each_time() -> None:
    sentences = inputs.sentences()
    assert len(sentences) >= 300
    assert len(set(sentences.values())) == len(sentences)
    assert sentences == inputs.sentences()


def test_the_broken_input_is_broken_where_it_says() -> None:
    lines, expected = inputs.broken_requests()
    judge = Validator("chat")
    judged = [judge.check(number, line.encode()) for number, line in enumerate(lines, 1)]
    assert {j.line: j.code for j in judged if isinstance(j, LineError)} == expected


def test_the_other_inputs_are_valid() -> None:
    for model, lines in (("minilm", inputs.embedding_requests()), ("chat", inputs.chat_requests(400))):
        judge = Validator(model)
        assert all(isinstance(judge.check(i, line.encode()), Checked) for i, line in enumerate(lines, 1))
        assert all(json.loads(line)["body"]["model"] == model for line in lines)

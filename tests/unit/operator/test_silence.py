"""A runner that is silent for long is reported, and nothing more."""

from __future__ import annotations

from gpubatch_operator.core.lifecycle import admit, advance
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.trouble import Limits
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.progress import Silence
from unit.operator.build import EPOCH, pod, raw_job


def polls(silence: Silence, begin: float, answers: list[bool], every: float = 2.0) -> list[float]:
    """Since when it is reported silent, after each poll; 0: it isn't."""
    return [dict(silence.after({"pod": answer}, begin + i * every)).get("pod", 0.0) for i, answer in enumerate(answers)]


def test_a_minute_of_silence_is_reported_with_the_time_it_was_last_heard():
    reported = polls(Silence(60, 9), EPOCH, [True] + [False] * 31)
    assert reported == [0.0] * 30 + [EPOCH, EPOCH]


def test_an_answer_ends_it():
    assert polls(Silence(60, 9), EPOCH, [True] + [False] * 40 + [True, False])[-2:] == [0.0, 0.0]


def test_one_that_never_answered_is_silent_since_it_was_first_asked():
    assert polls(Silence(60, 9), EPOCH, [False] * 31)[-1] == EPOCH


def test_a_pause_of_our_own_is_no_silence_of_the_runner():
    silence = Silence(60, 9)
    polls(silence, EPOCH, [True, False])
    assert polls(silence, EPOCH + 1000, [False, False]) == [0.0, 0.0]


def running() -> Job:
    queued = convert.job_of(raw_job(status={"phase": "Queued", "queuedAt": "2027-01-15T08:00:00Z", "queueTicket": "1"}))
    return convert.job_of(raw_job(status=admit(queued, "node-a", 0, "job-1-abc", EPOCH)))


def test_it_is_a_condition_and_nothing_else_follows():
    there = pod(node="node-a", phase="Running", started=True)
    step = advance(running(), [there], None, EPOCH + 161, Limits(), silent_since=EPOCH + 100)
    told = next(c for c in step.status["conditions"] if c["type"] == "Unresponsive")
    assert (told["status"], told["reason"]) == ("True", "Unresponsive")
    assert told["message"].startswith("last seen 60 s ago")
    assert step.actions == ()
    again = convert.job_of(raw_job(status=step.status))
    later = advance(again, [there], None, EPOCH + 170, Limits(), silent_since=EPOCH + 100).status
    assert later == step.status, "it isn't written again at each poll"
    well = advance(again, [there], None, EPOCH + 180, Limits()).status
    assert next(c for c in well["conditions"] if c["type"] == "Unresponsive")["status"] == "False"

"""What the runner learns from an engine: its load, when to come back, what an answer cost."""

from __future__ import annotations

import asyncio

import pytest

from gpubatch_runner import answering
from gpubatch_runner.answers import one_line, tokens_of
from gpubatch_runner.concurrency import Load
from gpubatch_runner.contract import Reason, RunSpec
from gpubatch_runner.engine import load_of, seconds_of_retry_after
from gpubatch_runner.run import run
from gpubatch_runner.workdir import Workdir
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job, ids, request

METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 12.0
vllm:num_requests_running{engine="1",model_name="tiny"} 30.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 7.0
"""


def test_the_load_is_read_from_vllms_metrics_and_summed_over_its_engines() -> None:
    assert load_of(METRICS) == Load(running=42, waiting=3)


@pytest.mark.parametrize("text", [b"", b"\nup 1\n", METRICS.replace(b"12.0", b"many"), b"<html>"])
def test_metrics_of_another_engine_say_nothing(text: bytes) -> None:
    assert load_of(text) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), (b"2", 2.0), (b"0.5", 0.5), (b"-3", 0.0), (b"soon", None), (b"nan", None)],
)
def test_retry_after_is_read_as_far_as_it_makes_sense(value: bytes | None, seconds: float | None) -> None:
    assert seconds_of_retry_after(value) == seconds


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}', (3, 4)),
        (b'{"usage": {"input_tokens": 3, "output_tokens": 4}}', (3, 4)),
        (b'{"usage": {"prompt_tokens": true, "completion_tokens": -1}}', (0, 0)),
        (b'{"usage": null}', (0, 0)),
        (b"[1]", (0, 0)),
        (b'"text"', (0, 0)),
        (b"", None),
        (b'{"usage": {"prompt_tokens": 3}', None),
        (b'{"text": "\xff"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_tokens_are_read_from_any_answer_that_is_json(body: bytes, tokens: tuple[int, int] | None) -> None:
    assert tokens_of(body) == tokens


def test_an_answer_is_one_line_whatever_it_is() -> None:
    assert one_line(b'{\n "n": 1.00,\r\n "s": "a\\nb"\n}', True, True) == b'{"n":1.00,"s":"a\\nb"}'
    assert one_line(b"1\n2\n", False, True) == b'{"text":"1\\n2\\n"}'
    assert one_line(b"oops\xff", False, False) == '{"message":"oops�"}'.encode()


async def test_a_run_never_ends_well_with_requests_unsent(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that lost the end of the order, say."""

    def judge_and_lose(spec: RunSpec, workdir: Workdir) -> int:
        total = answering.judge(spec, workdir)
        workdir.order.write_bytes(workdir.order.read_bytes()[:-32])
        return total

    monkeypatch.setattr("gpubatch_runner.run.judge", judge_and_lose)
    job.write([request(n) for n in range(10)])
    async with FakeEngine() as engine:
        outcome = await run(job.spec(engine_url=engine.url), job.environment, asyncio.Event())
    assert (outcome.succeeded, outcome.reason) == (False, Reason.INTERNAL_ERROR)
    assert "2 requests have no result" in outcome.message
    assert len(ids(job.output)) == 8, "what was answered is there"

"""Watching, waiting and reading logs: through broken connections, new attempts, and to an exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from unit.cli.conftest import Run
from unit.cli.fakeapi import JOBS, Asked, FakeApi, job, status

ENDED = {"completionTime": "2026-01-01T11:00:00Z"}
PODS = "/api/v1/namespaces/team/pods"


def event(kind: str, found: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "object": found}) + "\n"


def story(api: FakeApi, first: list[dict[str, Any]], *watches: list[tuple[str, dict[str, Any]]]) -> None:
    """A list of jobs, then what each watch that is made tells before its connection ends."""
    left = list(watches)

    def answer(asked: Asked) -> tuple[int, Any]:
        if "watch" not in asked.query:
            return 200, {"metadata": {"resourceVersion": "1"}, "items": first}
        if not left:
            return 500, "the story is over"
        return 200, "".join(event(kind, found) for kind, found in left.pop(0))

    api.answers["GET", JOBS] = answer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpubatch_cli.api.SILENCE", 0.0)
    monkeypatch.setattr("gpubatch_cli.podlogs.PAUSE", 0.01)
    monkeypatch.setattr("gpubatch_cli.queueview.FRAMES", 1000)


# --- wait


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1), ("Cancelled", 4)])
def test_the_exit_status_tells_how_the_job_ended(api: FakeApi, run: Run, phase: str, code: int) -> None:
    story(
        api,
        [job("a", queuePosition=1)],
        [("MODIFIED", job("a", "Running", nodeName="gpu-a")), ("MODIFIED", job("a", phase, **ENDED))],
    )
    told = run("wait", "a")
    assert told.code == code
    assert told.err.splitlines() == ["a: Queued, position 1", "a: Running, on gpu-a", f"a: {phase}"]


def test_of_several_jobs_a_failed_one_counts_most(api: FakeApi, run: Run) -> None:
    api.jobs(job("a", "Succeeded", **ENDED), job("b", "Cancelled", **ENDED), job("c", "Failed", **ENDED))
    assert run("wait", "a").code == 0
    assert run("wait", "a", "b").code == 4
    assert run("wait", "a", "b", "gbj/c").code == 1


def test_a_watch_that_ends_is_gone_on_with_from_where_it_was(api: FakeApi, run: Run) -> None:
    later = job("a", "Running")
    later["metadata"]["resourceVersion"] = "17"
    bookmark = {"metadata": {"resourceVersion": "30"}}
    story(
        api, [job("a")], [("MODIFIED", later), ("BOOKMARK", bookmark)], [("MODIFIED", job("a", "Succeeded", **ENDED))]
    )
    assert run("wait", "a").code == 0
    watches = [a.query["resourceVersion"] for a in api.asked if "watch" in a.query]
    assert watches[:2] == ["1", "30"]  # a third may be on its way before the end is seen


def test_a_watch_that_is_too_old_is_made_anew_from_a_new_list(api: FakeApi, run: Run) -> None:
    old = [("ERROR", {"code": 410, "message": "too old resource version"})]
    story(api, [job("a")], old, [("MODIFIED", job("a", "Succeeded", **ENDED))])
    assert run("wait", "a").code == 0
    assert sum("watch" not in a.query for a in api.asked) == 2


def test_an_api_server_that_stays_away_ends_the_wait_with_its_own_status(api: FakeApi, run: Run) -> None:
    story(api, [job("a")])
    told = run("wait", "a")
    assert told.code == 3
    assert "the API server answered 500" in told.err


def test_a_job_that_is_deleted_or_replaced_is_not_waited_for(api: FakeApi, run: Run) -> None:
    story(api, [job("a")], [("DELETED", job("a"))])
    told = run("wait", "a")
    assert told.code == 3
    assert "'a' was deleted" in told.err
    other = job("a", "Succeeded", **ENDED)
    other["metadata"]["uid"] = "another"
    story(api, [job("a")], [("ADDED", other)])
    assert run("wait", "a").code == 3


def test_a_job_that_is_not_there_is_told_at_once(api: FakeApi, run: Run) -> None:
    api.jobs(job("nightly"))
    told = run("wait", "nigthly")
    assert told.code == 3
    assert "Did you mean nightly?" in told.err


def test_a_time_limit_has_a_status_of_its_own(api: FakeApi, run: Run) -> None:
    api.jobs(job("a"))
    told = run("wait", "a", "--timeout", "0")
    assert told.code == 124
    assert "waited 0 s in vain: a: Queued" in told.err


# --- queue -w


def test_without_a_terminal_a_live_queue_is_a_line_for_each_change(api: FakeApi, run: Run) -> None:
    runs = job("a", "Running", queuePosition=0, nodeName="gpu-a", progress={"summary": "1/2 (50%)"})
    same = job("a", "Running", queuePosition=0, nodeName="gpu-a", progress={"summary": "1/2 (50%)"}, observed="x")
    story(api, [job("a", queuePosition=1)], [("MODIFIED", runs), ("MODIFIED", same), ("DELETED", same)])
    told = run("queue", "-w")
    assert told.out.splitlines() == [
        "a  Queued, position 1",
        "a  Running, position 0, 1/2 (50%), gpu-a",
        "a  Deleted, position 0, 1/2 (50%), gpu-a",
    ]
    assert told.code == 3  # the API server went away in the end


def test_a_live_queue_for_programs_is_an_object_a_line(api: FakeApi, run: Run) -> None:
    story(api, [job("a", queuePosition=1)], [("DELETED", job("a", queuePosition=1))])
    lines = [json.loads(line) for line in run("queue", "-w", "-o", "json").out.splitlines()]
    assert [(line["name"], line["deleted"]) for line in lines] == [("a", False), ("a", True)]
    assert run("queue", "-w", "-o", "yaml").code == 2


# --- logs


def attempt(number: int, state: str = "Active", **more: Any) -> dict[str, Any]:
    return {"number": number, "podName": f"a-{number}", "node": "gpu-a", "state": state, "slot": 0, **more}


def pod(name: str, **states: str) -> dict[str, Any]:
    def of(container: str) -> dict[str, Any]:
        return {"name": container, "restartCount": 0, "state": {states.get(container, "running"): {}}}

    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"containers": [{"name": "runner"}], "initContainers": [{"name": "engine"}]},
        "status": {"containerStatuses": [of("runner")], "initContainerStatuses": [of("engine")]},
    }


def logged(api: FakeApi, name: str, text: str) -> Callable[[Asked], tuple[int, Any]]:
    api.answers["GET", f"{PODS}/{name}"] = (200, pod(name))

    def answer(asked: Asked) -> tuple[int, Any]:
        return 200, f"{asked.query.get('container')}: {text}"

    api.answers["GET", f"{PODS}/{name}/log"] = answer
    return answer


def test_logs_are_the_runners_of_the_newest_attempt_unless_asked_otherwise(api: FakeApi, run: Run) -> None:
    api.jobs(job("a", "Running", attempts=[attempt(1, "Lost"), attempt(2)]))
    logged(api, "a-1", "first\n")
    logged(api, "a-2", "second")
    assert run("logs", "a").out == "runner: second\n"
    assert run("logs", "a", "-c", "engine").out == "engine: second\n"
    assert run("logs", "a", "--attempt", "1").out == "runner: first\n"
    run("logs", "a", "--tail", "5", "--since", "2m", "-p", "--timestamps")
    query = api.asked[-1].query
    assert (query["tailLines"], query["sinceSeconds"]) == ("5", "120")
    assert (query["previous"], query["timestamps"]) == ("true", "true")


def test_logs_that_are_gone_leave_what_status_has_kept(api: FakeApi, run: Run) -> None:
    lost = attempt(1, "Lost", reason="Lost", message="evicted: low on memory")
    api.jobs(job("a", "Failed", attempts=[lost], **ENDED))
    api.answers["GET", f"{PODS}/a-1"] = status(404, "NotFound", "no pod", kind="pods")
    told = run("logs", "a")
    assert told.code == 3
    assert "the pod of attempt 1 of a is gone" in told.err
    assert "evicted: low on memory" in told.err


def test_mistakes_about_logs_say_what_there_is(api: FakeApi, run: Run) -> None:
    api.jobs(job("a", "Running", attempts=[attempt(1)]), job("b"))
    logged(api, "a-1", "text\n")
    told = run("logs", "a", "-c", "sidecar")
    assert told.code == 2
    assert "It has runner, engine." in told.err
    told = run("logs", "a", "--attempt", "7")
    assert told.code == 3
    assert "There are: 1." in told.err
    api.answers["GET", PODS] = (200, {"metadata": {"resourceVersion": "1"}, "items": []})
    told = run("logs", "b")
    assert told.code == 3
    assert "b has no pod now: it is Queued" in told.err


def test_the_inspections_log_is_shown_before_there_is_an_attempt(api: FakeApi, run: Run) -> None:
    api.jobs(job("a", "Validating"))
    found = pod("a-inspect")
    api.answers["GET", PODS] = (200, {"metadata": {"resourceVersion": "1"}, "items": [found]})
    logged(api, "a-inspect", "line 3 is broken\n")
    assert run("logs", "a").out == "runner: line 3 is broken\n"
    [asked] = [a for a in api.asked if a.path == PODS]
    assert asked.query["labelSelector"] == "gpubatch.dev/job-uid=uid-a,gpubatch.dev/kind=inspect"


def test_following_goes_through_all_attempts_to_the_jobs_end(api: FakeApi, run: Run) -> None:
    left = [
        job("a", "Running", attempts=[attempt(1)]),
        job("a", "Queued", attempts=[attempt(1, "Lost")], queuePosition=1),
        job("a", "Running", attempts=[attempt(1, "Lost"), attempt(2)]),
        job("a", "Failed", attempts=[attempt(1, "Lost"), attempt(2, "Failed")], **ENDED),
    ]
    api.answers["GET", f"{JOBS}/a"] = lambda asked: (200, left.pop(0) if len(left) > 1 else left[0])
    logged(api, "a-1", "first\n")
    logged(api, "a-2", "second\n")
    told = run("logs", "a", "-f")
    assert told.out == "runner: first\nrunner: second\n"
    assert told.code == 1
    assert "a: Queued, position 1" in told.err
    assert all(a.query["follow"] == "true" for a in api.asked if a.path.endswith("/log"))

"""The life of a job that has a slot: its attempt's pod starts, works, gets into trouble, is stopped, ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gpubatch_operator.core import conditions, endings, privileges, progress
from gpubatch_operator.core.actions import Action, Remove, Run, Step, Stop
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.documents import verdict_of
from gpubatch_operator.core.model import JSON, Attempt, AttemptState, Job, Pod
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.core.trouble import Limits, trouble_of

SETTLES_SECONDS = 2.0
"""A pod that starts sooner is recorded with its start, in one write; until then it can be made again if it vanishes."""
INTERRUPTED = "Interrupted"  # the runner's reason for an end that came from outside
BY_REQUEST = frozenset({Reason.CANCELLED, Reason.SUSPENDED})
BY_TIME = frozenset({Reason.DEADLINE_EXCEEDED, Reason.COMPLETION_WINDOW_EXCEEDED})


class Deadline(NamedTuple):
    """When an attempt must end at the latest, seconds since the epoch; why, and that as a sentence."""

    at: float
    reason: Reason
    message: str


def deadline(job: Job, attempt: Attempt) -> Deadline | None:
    """The earliest of those that the job has."""
    wishes, found = job.wishes, list[Deadline]()
    if wishes.active_deadline is not None and attempt.node:
        at = attempt.started + max(0.0, wishes.active_deadline - job.active_seconds)
        message = f"ran for more than {wishes.active_deadline:.0f} s (activeDeadlineSeconds)"
        found.append(Deadline(at, Reason.DEADLINE_EXCEEDED, message))
    if wishes.completion_window is not None:
        message = f"not finished {wishes.completion_window:.0f} s after it was queued (completionWindowSeconds)"
        at = job.queued_at + wishes.completion_window
        found.append(Deadline(at, Reason.COMPLETION_WINDOW_EXCEEDED, message))
    return min(found, default=None)


def advance(
    job: Job,
    status: JSON,
    pods: Sequence[Pod],
    report: ProgressReport | None,
    now: float,
    limits: Limits,
    node_fits: bool,
    silent_since: float | None,
) -> Step:
    """The next step of a job with an attempt; see `lifecycle.advance`."""
    status.pop("live", None)  # unless its runner is found to be well
    attempt = job.attempt
    assert attempt is not None, "an active job has an attempt: both are written at once"
    pod = next((p for p in pods if p.kind == "run" and p.attempt == attempt.number), None)
    if pod is not None and pod.finished:
        return Step(_ended(job, status, attempt, pod, now))
    wish, due = _wish(job, attempt, pod, now, limits)
    if attempt.state is AttemptState.ACTIVE and attempt.reason is None and wish is not None:
        reason, message = wish
        attempt = replace(attempt, state=AttemptState.STOPPING, reason=reason, message=message, stopping_since=now)
        endings.record(status, attempt)
        status["pending"] = {"reason": Reason.STOPPING.value, "message": f"{reason}: {message}"}
    if pod is None:
        return _without_pod(job, status, attempt, now, node_fits, limits)
    if attempt.state is AttemptState.STOPPING or (pod.node is None and not node_fits):
        return _stopping(job, status, attempt, pod, now, limits)
    verdict = verdict_of(pod) if job.inference else None
    if verdict and not verdict["succeeded"] and verdict.get("reason") != INTERRUPTED:
        # Only its engine still runs: while that loads its libraries it ignores SIGTERM, for all of the grace period.
        status["pending"] = {
            "reason": verdict.get("reason", "InternalError"),
            "message": verdict.get("message", "")[: endings.MAX_MESSAGE],
        }
        return Step(status)

    if pod.node and attempt.pod_uid is None:
        settled_at = pod.created + SETTLES_SECONDS
        if pod.started or now >= settled_at or not attempt.node:
            attempt = replace(attempt, pod_uid=pod.uid)
            if not attempt.node:  # now it has come, the node that an autoscaler made
                attempt = replace(attempt, node=pod.node, started=now)
                status |= {"nodeName": pod.node, "startTime": iso(now)}
            endings.record(status, attempt)
        else:
            due = settled_at if due is None else min(due, settled_at)
    if report is not None and report.engine_proven and pod.engine_restarts > attempt.engine_restarts_survived:
        # Requests that kill the engine may lie far apart: only restarts without an answer between them add up.
        attempt = replace(attempt, engine_restarts_survived=pod.engine_restarts)
        endings.record(status, attempt)
    trouble = trouble_of(pod, limits, attempt.engine_restarts_survived)
    if trouble is None:
        status.pop("pending", None)
        return Step(_progressing(job, status, pod, report, now, silent_since), retry_at=due)
    final_at = trouble.show(status, now)
    if final_at <= now and not pod.deleting:
        # What is no fault of the job's sends it back into the queue, where it may try another node.
        state = AttemptState.ACTIVE if trouble.blameless else AttemptState.STOPPING
        endings.record(status, replace(attempt, state=state, reason=trouble.reason, message=trouble.message))
        return Step(status, (Remove(pod),))
    step = _progressing(job, status, pod, report, now, silent_since)
    return Step(step, retry_at=min(final_at, due) if due is not None else final_at)


def _wish(
    job: Job, attempt: Attempt, pod: Pod | None, now: float, limits: Limits
) -> tuple[tuple[Reason, str] | None, float | None]:
    """Why the attempt should be stopped now, if so; and else when it may have to be."""
    if job.wishes.cancel:
        return (Reason.CANCELLED, "by spec.cancel"), None
    if job.wishes.suspend:
        return (Reason.SUSPENDED, "by spec.suspend"), None
    if (end := deadline(job, attempt)) is None:
        return None, None
    at = end.at
    if job.inference and pod is not None and pod.started:
        at += limits.stop_seconds  # the runner was told, and stops by itself
    return ((end.reason, end.message), None) if now >= at else (None, at)


def _without_pod(job: Job, status: JSON, attempt: Attempt, now: float, node_fits: bool, limits: Limits) -> Step:
    if attempt.state is AttemptState.STOPPING:
        return Step(endings.stopped(job, status, attempt, attempt.reason or Reason.LOST, now))
    if attempt.pod_uid is not None:
        return Step(endings.lost(job, status, attempt, "its pod vanished", now))
    if attempt.reason is not None or not node_fits:
        return Step(endings.lost(job, status, attempt, "the node can't take it any more", now))
    if refusal := privileges.refusal(job, limits.allow_privileged_pods):  # edited just before it was admitted
        return Step(endings.fail_attempt(job, status, attempt, Reason.POD_NOT_ALLOWED, refusal, now))
    return Step(status, (Run(attempt),))


def _stopping(job: Job, status: JSON, attempt: Attempt, pod: Pod, now: float, limits: Limits) -> Step:
    """First a runner is asked, so that it knows why and can save all; then, or at once where none runs, told."""
    actions: tuple[Action, ...] = () if pod.deleting else (Remove(pod),)
    asks = attempt.reason in BY_REQUEST and job.inference and pod.started and not pod.deleting
    if asks and attempt.stopping_since is not None:
        told_at = attempt.stopping_since + limits.stop_seconds
        if now < told_at:
            reason = str(attempt.reason)
            return Step(status, () if pod.stop == reason else (Stop(pod, reason),), retry_at=told_at)
    return Step(status, actions)


def _progressing(
    job: Job, status: JSON, pod: Pod, report: ProgressReport | None, now: float, silent_since: float | None
) -> JSON:
    """The status of a job whose pod lives: how far it has come, and whether it still starts."""
    progress.update(status, report, pod.started, job.inference)
    if job.live is not None and pod.address is not None and not pod.deleting and (report or "live" in job.status):
        status["live"] = {"url": f"http://{pod.address}/v1", "model": job.live}
    if job.phase is Phase.STARTING and status["progress"]["stage"] not in progress.STARTING:
        status["phase"] = Phase.RUNNING.value
    unresponsive = any(c["type"] == "Unresponsive" and c["status"] == "True" for c in status.get("conditions", []))
    if silent_since is not None:
        seconds = int(now - silent_since) // progress.HEARTBEAT_SECONDS * progress.HEARTBEAT_SECONDS
        message = f"last seen {max(60, seconds)} s ago; a silent runner is left alone, it may be well"
        conditions.put(status, "Unresponsive", True, Reason.UNRESPONSIVE, message, now, job.generation)
    elif unresponsive:
        conditions.put(status, "Unresponsive", False, Reason.RESPONSIVE, "it answers again", now, job.generation)
    return status


# --- the end of an attempt


def _ended(job: Job, status: JSON, attempt: Attempt, pod: Pod, now: float) -> JSON:
    attempt = replace(attempt, pod_uid=pod.uid, node=attempt.node or pod.node or "")
    outcome = verdict_of(pod) if job.inference else None
    stopping = attempt.state is AttemptState.STOPPING
    if outcome is not None:
        return _outcome(job, status, attempt, outcome, now)
    if job.inference:
        pass
    elif not pod.ended_by_itself or (stopping and attempt.reason not in BY_REQUEST | BY_TIME):
        pass  # it was ended from outside: even an exit code of 0 doesn't say that the work is done
    elif pod.phase == "Succeeded":
        progress.finish(status, pod.last_report, succeeded=True)
        return endings.succeed(job, status, attempt, "the pod succeeded", now)
    elif pod.phase == "Failed" and pod.started and not stopping:  # else the kubelet refused it, and nothing ever ran
        progress.finish(status, pod.last_report, succeeded=False)
        message = pod.failure or "the pod failed without a word"
        return endings.fail_attempt(job, status, attempt, Reason.POD_FAILED, message, now)
    what = (
        "its pod was deleted"
        if pod.gone or pod.deleting
        else f"its pod {'was disrupted' if pod.disrupted else 'failed'}"
    )
    what += f": {pod.failure}" if pod.failure else ""
    return _ended_without_word(job, status, attempt, what, now)


def _outcome(job: Job, status: JSON, attempt: Attempt, outcome: JSON, now: float) -> JSON:
    reason, message = outcome.get("reason"), outcome.get("message", "")
    if outcome["succeeded"]:
        progress.conclude(status, outcome, now, job.live is not None)
        told = f"{outcome.get('completed', 0)} requests answered, {outcome.get('failed', 0)} failed"
        told += f"; {message}" if message else ""
        return endings.succeed(job, status, attempt, told, now)
    if reason == INTERRUPTED and attempt.state is not AttemptState.STOPPING:
        return _ended_without_word(job, status, attempt, "it was interrupted", now)
    progress.conclude(status, outcome, now, job.live is not None)
    if attempt.state is AttemptState.STOPPING:
        return endings.stopped(job, status, attempt, attempt.reason or Reason.LOST, now)
    if reason in BY_REQUEST:
        # It was asked to stop, and this operator's view of that is late: the end counts as that.
        return endings.stopped(job, status, replace(attempt, message=message), reason, now)
    return endings.fail_attempt(job, status, attempt, reason or "InternalError", message, now)


def _ended_without_word(job: Job, status: JSON, attempt: Attempt, what: str, now: float) -> JSON:
    """The attempt ended by our own decision, or by nobody's fault."""
    if attempt.state is AttemptState.STOPPING:
        return endings.stopped(job, status, attempt, attempt.reason or Reason.LOST, now)
    return endings.lost(job, status, attempt, what, now)

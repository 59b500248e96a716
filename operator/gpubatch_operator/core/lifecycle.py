"""The life of one job: from what was recorded and what its pods say, the status that is true now and what to do.

`advance` is a pure function and idempotent: fed with its own result it changes nothing more. Whatever it decides is
written to status before it is done, so a crash between the two is healed by the next call.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpubatch_operator.core import conditions, privileges, progress
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import JSON, Attempt, AttemptState, Job, Pod
from gpubatch_operator.core.phases import ACTIVE, CHANGES, Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.core.trouble import Limits, Trouble, trouble_of

MAX_ATTEMPTS = 10
MAX_MESSAGE = 4096  # characters, as the CRD bounds them: a longer one would have the whole status refused
BEING_CHECKED = {"reason": Reason.VALIDATING.value, "message": "The input is being read and checked."}
INTERRUPTED = "Interrupted"  # the runner's reason for an end that came from outside


@dataclass(frozen=True, slots=True)
class Inspect:
    """Create the job's inspect pod."""


@dataclass(frozen=True, slots=True)
class Run:
    """Create the runner pod of the recorded attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete this pod, gracefully: the runner saves what it has."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Release:
    """Take our finalizer off this pod: its outcome is recorded."""

    pod: Pod


Action = Inspect | Run | Remove | Release


@dataclass(frozen=True, slots=True)
class Step:
    """The status that should be, and what to do once it is written."""

    status: JSON
    actions: tuple[Action, ...] = ()
    retry_at: float | None = None  # when time alone may change the answer


def advance(
    job: Job, pods: Sequence[Pod], report: ProgressReport | None, now: float, limits: Limits, node_fits: bool = True
) -> Step:
    """The next step of a job that exists (a deleted one has nothing left but pods, see `orphan`).

    `node_fits`: whether the node of the current attempt is there and could still take the job. A pod that is bound
    stays where it is in any case; one that isn't would wait for ever.
    """
    status: JSON = copy.deepcopy(dict(job.status))
    status["observedGeneration"] = job.generation
    refusal = privileges.refusal(job, limits.allow_privileged_pods)
    match job.phase:
        case None | Phase.VALIDATING | Phase.QUEUED if refusal:
            status = status if job.phase else _first_sight(job, status, now)
            step = Step(_fail(job, status, Reason.POD_NOT_ALLOWED, refusal, now))
        case None:
            return Step(_first_sight(job, status, now))
        case Phase.VALIDATING:
            step = _validating(job, status, pods, now, limits)
        case Phase.QUEUED:
            step = Step(status)
        case Phase.STARTING | Phase.RUNNING:
            step = _active(job, status, pods, report, now, limits, node_fits)
        case _:
            step = Step(status)
    after = Phase(step.status["phase"])
    assert after is job.phase or after in CHANGES[job.phase], f"{job.phase} -> {after}"
    return replace(step, actions=step.actions + _tidy(job, after, pods))


def orphan(pod: Pod) -> tuple[Action, ...]:
    """What to do with a pod whose job is gone: nobody will read its outcome any more."""
    return (Release(pod),) if pod.has_finalizer and not pod.gone else ()


def admit(job: Job, node: str, slot: int, pod_name: str, now: float) -> JSON:
    """The status that records the next attempt, to be written before its pod is created."""
    status: JSON = copy.deepcopy(dict(job.status))
    attempt = Attempt(job.attempts + 1, node, slot, pod_name, None, now, AttemptState.ACTIVE)
    status["attempts"] = [*status.get("attempts", []), _attempt_json(attempt)][-MAX_ATTEMPTS:]
    status |= {
        "phase": Phase.STARTING.value,
        "nodeName": node,
        "podName": pod_name,
        "startTime": iso(now),
        "queuePosition": 0,
    }
    for key in ("estimatedStartTime", "pending", "progress"):
        status.pop(key, None)
    conditions.put(status, "Admitted", True, Reason.ADMITTED, f"runs in slot {slot} of {node}", now, job.generation)
    return status


def rejected(job: Job, message: str, now: float, final: bool) -> JSON:
    """The status of a job whose pod the API server refused to create, for good or for now."""
    status: JSON = copy.deepcopy(dict(job.status))
    if not final:
        Trouble(Reason.POD_REJECTED, message).show(status, now)
        return status
    if job.attempt and job.phase in ACTIVE:
        return _fail_attempt(job, status, job.attempt, Reason.POD_REJECTED, message, now)
    return _fail(job, status, Reason.POD_REJECTED, message, now)


def over_quota(job: Job, message: str, now: float) -> JSON:
    """The status of a job whose pod exceeds its namespace's quota: it waits, and holds no slot meanwhile."""
    status: JSON = copy.deepcopy(dict(job.status))
    if job.attempt and job.phase in ACTIVE:
        attempt = replace(job.attempt, reason=Reason.QUOTA, message=message)
        return _ended_without_word(job, status, attempt, message, now)
    Trouble(Reason.QUOTA, message).show(status, now)
    return status


# --- the phases


def _first_sight(job: Job, status: JSON, now: float) -> JSON:
    status |= {
        "phase": (Phase.VALIDATING if job.inference else Phase.QUEUED).value,
        "queuedAt": iso(job.created),
        "queueTicket": str(job.resource_version),
    }
    if job.inference:
        status["pending"] = dict(BEING_CHECKED)
    return status


def _validating(job: Job, status: JSON, pods: Sequence[Pod], now: float, limits: Limits) -> Step:
    pod = next((p for p in pods if p.kind == "inspect" and not p.gone), None)
    verdict = next((v for p in pods if p.kind == "inspect" and (v := _document(p)) is not None), None)
    if verdict is not None:
        return Step(_inspected(job, status, verdict, now))
    if pod is None:
        return Step(status, (Inspect(),))
    if pod.finished and not pod.deleting:  # without a verdict: evicted, most likely; a fresh one will do
        return Step(status, (Remove(pod),))
    if trouble := trouble_of(pod, limits):
        final_at = trouble.show(status, now)
        if final_at <= now:
            return Step(_fail(job, status, trouble.reason, trouble.message, now))
        return Step(status, retry_at=final_at)
    status["pending"] = dict(BEING_CHECKED)
    return Step(status)


def _inspected(job: Job, status: JSON, verdict: JSON, now: float) -> JSON:
    invalid, requests = verdict.get("invalid", 0), verdict.get("requests", 0)
    status["inspection"] = {
        "requests": requests,
        "invalid": invalid,
        "inputTokens": verdict.get("inputTokens", 0),
        "tokensFrom": verdict.get("tokensFrom", "Bytes"),
        "maxOutputTokens": verdict.get("maxOutputTokens", 0),
        "firstErrors": [
            f"line {e['line']}: {e['code']}: {e['message']}"[:1024] for e in verdict.get("firstErrors", [])[:10]
        ],
    }
    if not verdict.get("valid"):
        reason, message = verdict.get("reason", "InvalidRequests"), verdict.get("message", "")
        conditions.put(status, "Validated", False, reason, message, now, job.generation)
        if verdict.get("errors"):
            status["results"] = {"errors": verdict["errors"]}
        return _fail(job, status, reason, message, now)
    if invalid:
        reason, message = (
            Reason.INVALID_LINES_SKIPPED,
            f"{requests} valid requests; {invalid} invalid lines are skipped",
        )
    else:
        reason, message = Reason.VALID, f"{requests} valid requests"
    conditions.put(status, "Validated", True, reason, message, now, job.generation)
    status["phase"] = Phase.QUEUED.value
    status.pop("pending", None)
    return status


def _active(
    job: Job,
    status: JSON,
    pods: Sequence[Pod],
    report: ProgressReport | None,
    now: float,
    limits: Limits,
    node_fits: bool,
) -> Step:
    attempt = job.attempt
    assert attempt is not None, "an active job has an attempt: both are written at once"
    pod = next((p for p in pods if p.kind == "run" and p.attempt == attempt.number), None)
    if pod is None:
        if attempt.pod_uid is not None or attempt.state is not AttemptState.ACTIVE:
            return Step(_ended_without_word(job, status, attempt, "its pod vanished", now))
        if not node_fits:
            return Step(_ended_without_word(job, status, attempt, "the node can't take it any more", now))
        if refusal := privileges.refusal(job, limits.allow_privileged_pods):  # edited just before it was admitted
            return Step(_fail_attempt(job, status, attempt, Reason.POD_NOT_ALLOWED, refusal, now))
        return Step(status, (Run(attempt),))
    if pod.finished:
        return Step(_ended(job, status, attempt, pod, now))
    if attempt.state is AttemptState.STOPPING or (pod.node is None and not node_fits):
        return Step(status, () if pod.deleting else (Remove(pod),))
    verdict = _document(pod) if job.inference else None
    if verdict and not verdict["succeeded"] and verdict.get("reason") != INTERRUPTED:
        # Only its engine still runs: while that loads its libraries it ignores SIGTERM, for all of the grace period.
        status["pending"] = {
            "reason": verdict.get("reason", "InternalError"),
            "message": verdict.get("message", "")[:MAX_MESSAGE],
        }
        return Step(status)

    if pod.node and attempt.pod_uid is None:
        attempt = replace(attempt, pod_uid=pod.uid)
        _record(status, attempt)
    trouble = trouble_of(pod, limits)
    if trouble is None:
        status.pop("pending", None)
        return Step(_progressing(job, status, pod, report))
    final_at = trouble.show(status, now)
    if final_at <= now and not pod.deleting:
        # What holds the node's room is no fault of the job's: it goes back into the queue and may try elsewhere.
        state = AttemptState.ACTIVE if trouble.reason is Reason.UNSCHEDULABLE else AttemptState.STOPPING
        _record(status, replace(attempt, state=state, reason=trouble.reason, message=trouble.message))
        return Step(status, (Remove(pod),))
    return Step(_progressing(job, status, pod, report), retry_at=final_at)


def _progressing(job: Job, status: JSON, pod: Pod, report: ProgressReport | None) -> JSON:
    """The status of a job whose pod lives: how far it has come, and whether it still starts."""
    progress.update(status, report, pod.started, job.inference)
    if job.phase is Phase.STARTING and status["progress"]["stage"] not in progress.STARTING:
        status["phase"] = Phase.RUNNING.value
    return status


# --- the end of an attempt


def _ended(job: Job, status: JSON, attempt: Attempt, pod: Pod, now: float) -> JSON:
    attempt = replace(attempt, pod_uid=pod.uid)
    outcome = _document(pod) if job.inference else None
    if job.inference:
        if outcome is not None:
            return _outcome(job, status, attempt, outcome, now)
    elif not pod.ended_by_itself or attempt.state is AttemptState.STOPPING:
        pass  # it was ended from outside: even an exit code of 0 doesn't say that the work is done
    elif pod.phase == "Succeeded":
        progress.finish(status, pod.last_report, succeeded=True)
        return _succeed(job, status, attempt, "the pod succeeded", now)
    elif pod.phase == "Failed" and pod.started:  # else the kubelet refused it, and nothing of it ever ran
        progress.finish(status, pod.last_report, succeeded=False)
        message = pod.failure or "the pod failed without a word"
        return _fail_attempt(job, status, attempt, Reason.POD_FAILED, message, now)
    what = (
        "its pod was deleted"
        if pod.gone or pod.deleting
        else f"its pod {'was disrupted' if pod.disrupted else 'failed'}"
    )
    return _ended_without_word(job, status, attempt, what + (f": {pod.failure}" if pod.failure else ""), now)


def _outcome(job: Job, status: JSON, attempt: Attempt, outcome: JSON, now: float) -> JSON:
    if outcome.get("reason") == INTERRUPTED and not outcome["succeeded"]:
        return _ended_without_word(job, status, attempt, "it was interrupted", now, outcome)
    progress.conclude(status, outcome, now)
    if outcome["succeeded"]:
        message = f"{outcome.get('completed', 0)} requests answered, {outcome.get('failed', 0)} failed"
        return _succeed(job, status, attempt, message, now)
    reason, message = outcome.get("reason", "InternalError"), outcome.get("message", "")
    return _fail_attempt(job, status, attempt, reason, message, now)


def _ended_without_word(
    job: Job, status: JSON, attempt: Attempt, what: str, now: float, outcome: JSON | None = None
) -> JSON:
    """The attempt ended by our own decision, or by nobody's fault: then the job goes back to its place in the queue."""
    if attempt.state is AttemptState.STOPPING:
        reason, message = attempt.reason or Reason.LOST, attempt.message or ""
        if outcome is not None:
            progress.conclude(status, outcome, now)
        return _fail_attempt(job, status, attempt, reason, message, now)
    reason = attempt.reason or Reason.LOST
    message = f"attempt {attempt.number} on {attempt.node} was lost: {attempt.message or what}"
    status = _finish(status, attempt, AttemptState.LOST, reason, message, now)
    if sum(a["state"] == "Lost" and a.get("reason") == "Lost" for a in status["attempts"]) >= MAX_ATTEMPTS:
        message = f"{MAX_ATTEMPTS} attempts were lost; the last: {message}"
        return _fail(job, status, Reason.TOO_MANY_LOST_ATTEMPTS, message, now)
    status["phase"] = Phase.QUEUED.value
    for key in ("nodeName", "podName", "startTime", "progress", "queuePosition", "pending", "estimatedCompletionTime"):
        status.pop(key, None)
    conditions.put(status, "Admitted", False, reason, message, now, job.generation)
    return status


def _finish(
    status: JSON, attempt: Attempt, state: AttemptState, reason: str | None, message: str | None, now: float
) -> JSON:
    _record(status, replace(attempt, state=state, reason=reason, message=message), now)
    return status


def _succeed(job: Job, status: JSON, attempt: Attempt, message: str, now: float) -> JSON:
    status = _finish(status, attempt, AttemptState.SUCCEEDED, None, None, now)
    conditions.put(status, "Complete", True, Reason.SUCCEEDED, message, now, job.generation)
    return _close(job, status, Phase.SUCCEEDED, now)


def _fail_attempt(job: Job, status: JSON, attempt: Attempt, reason: str, message: str, now: float) -> JSON:
    """The job fails with its attempt, for the same reason."""
    status = _finish(status, attempt, AttemptState.FAILED, reason, message, now)
    return _fail(job, status, reason, message, now)


def _fail(job: Job, status: JSON, reason: str, message: str, now: float) -> JSON:
    conditions.put(status, "Failed", True, reason, message or reason, now, job.generation)
    return _close(job, status, Phase.FAILED, now)


def _close(job: Job, status: JSON, phase: Phase, now: float) -> JSON:
    status |= {"phase": phase.value, "completionTime": iso(now)}
    for key in ("queuePosition", "estimatedStartTime", "estimatedCompletionTime", "pending"):
        status.pop(key, None)
    event = phase.value.lower()
    status["webhookDeliveries"] = [
        # One id for each event and webhook, derived and not drawn: a decision made twice is the same message.
        {
            "id": f"msg_{job.uid}_{event}_{i}",
            "webhook": i,
            "event": event,
            "state": "Pending",
            "attempts": 0,
            "time": iso(now),
        }
        for i, events in enumerate(job.webhooks)
        if event in events
    ]
    return status


# --- small parts


def _tidy(job: Job, phase: Phase, pods: Sequence[Pod]) -> tuple[Action, ...]:
    """Pods that have nothing more to say: inspect pods after validation, finalizers of recorded outcomes."""
    out: list[Action] = []
    current = job.attempt.number if job.attempt and phase in ACTIVE else None
    for pod in pods:
        if pod.gone:
            continue
        if pod.kind == "inspect" and phase is not Phase.VALIDATING and not pod.deleting:
            out.append(Remove(pod))
        if pod.kind == "run" and pod.attempt != current:
            if pod.has_finalizer and (pod.finished or pod.deleting):
                out.append(Release(pod))
            if not pod.finished and not pod.deleting:  # nothing but the recorded attempt may run
                out.append(Remove(pod))
    return tuple(out)


def _document(pod: Pod) -> JSON | None:
    """The JSON document that the runner left as its termination message, if its pod has ended in peace."""
    if not pod.terminated_message:
        return None
    try:
        document = json.loads(pod.terminated_message)
    except ValueError:
        return None  # not ours: an OCI error, or the tail of a log
    verdict = "valid" if pod.kind == "inspect" else "succeeded"
    return document if isinstance(document, dict) and verdict in document else None


def _attempt_json(a: Attempt, ended: float | None = None) -> JSON:
    out = {
        "number": a.number,
        "node": a.node,
        "slot": a.slot,
        "podName": a.pod_name,
        "podUid": a.pod_uid,
        "startTime": iso(a.started),
        "endTime": iso(ended) if ended is not None else None,
        "state": a.state.value,
        "reason": a.reason,
        "message": a.message[:MAX_MESSAGE] if a.message is not None else None,
    }
    return {k: v for k, v in out.items() if v is not None}


def _record(status: JSON, attempt: Attempt, ended: float | None = None) -> None:
    status["attempts"] = [*status.get("attempts", [])[:-1], _attempt_json(attempt, ended)]

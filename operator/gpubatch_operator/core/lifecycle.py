"""The life of one job: from what was recorded and what its pods say, the status that is true now and what to do.

`advance` is a pure function and idempotent: fed with its own result it changes nothing more. Whatever it decides is
written to status before it is done, so a crash between the two is healed by the next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpubatch_operator.core import conditions, deliveries, endings, privileges, progress, running, waiting
from gpubatch_operator.core.actions import Action, Expire, Release, Remove, Step
from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.limits import Gate
from gpubatch_operator.core.model import JSON, Attempt, AttemptState, Job, Pod, copied
from gpubatch_operator.core.phases import ACTIVE, CHANGES, FINISHED, Phase
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.core.trouble import Limits, Trouble


def advance(
    job: Job,
    pods: Sequence[Pod],
    report: ProgressReport | None,
    now: float,
    limits: Limits,
    node_fits: bool = True,
    silent_since: float | None = None,
    gate: Gate | None = None,
) -> Step:
    """The next step of a job that exists (a deleted one has nothing left but pods, see `orphan`).

    Args:
        report: What the runner last said of its progress.
        node_fits: Whether the node of the current attempt is there and could still take the job. A pod that is bound
            stays where it is in any case; one that isn't would wait for ever.
        silent_since: When the runner was last heard of, if that is alarmingly long ago.
        gate: Knows whether the queue has room.
    """
    status: JSON = copied(dict(job.status))
    status["observedGeneration"] = job.generation
    if job.capped:
        status["effectivePriority"] = job.priority
    elif job.phase not in FINISHED:
        status.pop("effectivePriority", None)
    gate = gate or Gate()
    refusal = privileges.refusal(job, limits.allow_privileged_pods)
    if refusal and job.phase not in ACTIVE and job.phase not in FINISHED:
        step = waiting.refuse(job, status, refusal, now)
    elif job.phase is None:
        step = waiting.first_sight(job, status, now, gate)
    elif job.phase in ACTIVE:
        step = running.advance(job, status, pods, report, now, limits, node_fits, silent_since)
    elif job.phase in FINISHED:
        step = _finished(job, status, pods, now, gate)
    else:
        step = waiting.advance(job, status, pods, now, limits, gate)
    after = Phase(step.status["phase"])
    assert after is job.phase or after in CHANGES[job.phase], f"{job.phase} -> {after}"
    told = deliveries.follow(job, step.status, now)
    return replace(step, status=told, actions=step.actions + _tidy(job, after, pods))


def orphan(pod: Pod) -> tuple[Action, ...]:
    """What to do with a pod whose job is gone: nobody will read its outcome any more."""
    return (Release(pod),) if pod.has_finalizer and not pod.gone else ()


def admit(job: Job, node: str, slot: int, pod_name: str, now: float) -> JSON:
    """The status that records the next attempt, to be written before its pod is created.

    Args:
        node: Its name; empty for a pod that an autoscaler shall make a node for.
    """
    status: JSON = copied(dict(job.status))
    endings.begin(status, Attempt(job.attempts + 1, node, slot, pod_name, None, now, AttemptState.ACTIVE))
    status |= {"phase": Phase.STARTING.value, "podName": pod_name, "startTime": iso(now), "queuePosition": 0}
    for key in ("estimatedStartTime", "estimatedStartTimeP90", "pending", "progress", "waitingSince"):
        status.pop(key, None)
    if node:
        status["nodeName"] = node
        status["progress"] = {"stage": progress.PULLING}  # or one more write would say it
    status.setdefault("firstStartTime", status["startTime"])
    where = f"runs in slot {slot} of {node}" if node else "runs on the node that an autoscaler adds"
    conditions.put(status, "Admitted", True, Reason.ADMITTED, where, now, job.generation)
    return status


def rejected(job: Job, message: str, now: float, final: bool) -> JSON:
    """The status of a job whose pod the API server refused to create, for good or for now."""
    status: JSON = copied(dict(job.status))
    if not final:
        Trouble(Reason.POD_REJECTED, message).show(status, now)
        return status
    if job.attempt and job.phase in ACTIVE:
        endings.fail_attempt(job, status, job.attempt, Reason.POD_REJECTED, message, now)
    else:
        endings.fail(job, status, Reason.POD_REJECTED, message, now)
    return deliveries.follow(job, status, now)


def over_quota(job: Job, message: str, now: float) -> JSON:
    """The status of a job whose pod exceeds its namespace's quota: it waits, and holds no slot meanwhile."""
    status: JSON = copied(dict(job.status))
    if job.attempt and job.phase in ACTIVE:
        attempt = replace(job.attempt, reason=Reason.QUOTA, message=message)
        return deliveries.follow(job, endings.lost(job, status, attempt, message, now), now)
    Trouble(Reason.QUOTA, message).show(status, now)
    return status


def _finished(job: Job, status: JSON, pods: Sequence[Pod], now: float, gate: Gate) -> Step:
    wishes = job.wishes
    if wishes.run_id is not None and wishes.run_id != job.run_id and not wishes.cancel:
        if any(p.kind == "inspect" and not p.gone for p in pods):
            return Step(status)  # the new run's inspect pod will have the same name
        return waiting.run_again(job, status, now, gate)
    if job.phase is Phase.FAILED and wishes.retry not in (None, job.retried):
        return waiting.retry(job, status, now, gate)
    if wishes.ttl is None:
        return Step(status)
    if wishes.tracked_by:
        message = (
            f"kept in spite of ttlSecondsAfterFinished: {wishes.tracked_by} says that a GitOps tool tracks the job, "
            "which would create it anew and so run it again"
        )
        conditions.put(status, "TTLIgnored", True, Reason.TRACKED, message, now, job.generation)
        return Step(status)
    if any(d["state"] == "Pending" for d in status.get("webhookDeliveries", [])):
        return Step(status)  # nobody could say how they went
    at = seconds(status["completionTime"]) + wishes.ttl
    return Step(status, (Expire(),)) if now >= at else Step(status, retry_at=at)


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

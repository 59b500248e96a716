"""Kubernetes' raw objects as the core's values."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import orjson
from pydantic import ValidationError

from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.api.webhooks import PROGRESS_AT, Webhook, receivers
from gpubatch_operator.core import backoff
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.model import (
    Attempt,
    AttemptState,
    ContainerTrouble,
    Hook,
    Job,
    Node,
    Pod,
    Shape,
    Taint,
    Toleration,
    Wishes,
    shape,
)
from gpubatch_operator.core.order import rank
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.privileges import asked_for, extra_gpus
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.core.reasons import Reason
from gpubatch_runner.contract import PROGRESS_PORT, STOP_ANNOTATION, Progress

JSON = dict[str, Any]

JOB_UID = "gpubatch.dev/job-uid"
KIND = "gpubatch.dev/kind"
ATTEMPT = "gpubatch.dev/attempt"
SLOT = "gpubatch.dev/slot"
NODE = "gpubatch.dev/node"
RESOURCE = "gpubatch.dev/gpu-resource"
GPUS = "gpubatch.dev/gpus"
RETRY = "gpubatch.dev/retry"  # on a job: a new value asks for one more attempt of a failed run
REDELIVER = "gpubatch.dev/redeliver"  # on a job: a new value asks for deliveries to be made again
MAX_REDELIVER = 1024
SLOTS = "gpubatch.dev/slots"  # on a node: how many
MAX_SLOTS = 64
FINALIZER = "gpubatch.dev/outcome"
RUNNER = "runner"
ENGINE = "engine"
SIDECAR = "gpubatch-progress"


TRACKING = (
    ("annotations", "argocd.argoproj.io/tracking-id"),
    ("labels", "argocd.argoproj.io/instance"),
    ("labels", "kustomize.toolkit.fluxcd.io/name"),
    ("labels", "helm.toolkit.fluxcd.io/name"),
    # Argo CD's mark until its version 3, and that of most Helm charts: an upgrade creates anew what it misses.
    ("labels", "app.kubernetes.io/instance"),
)
"""Marks of tools that would create an object again if somebody else deleted it."""


def job_of(raw: JSON, max_priority: int | None = None) -> Job:
    """A `GPUBatchJob`; `max_priority` is the highest that its namespace is allowed.

    Raises:
        pydantic.ValidationError: The spec isn't what the CRD allows (stored under another version of it).
    """
    meta, status = raw["metadata"], raw.get("status") or {}
    spec = spec_of(raw.get("spec") or {})
    created = seconds(meta["creationTimestamp"])
    queued_at = seconds(status["queuedAt"]) if "queuedAt" in status else created
    ticket = int(status.get("queueTicket") or meta["resourceVersion"])
    attempts = status.get("attempts") or []
    # Times have whole seconds: an attempt of the run before may have begun in the second of the new one.
    of_run = [a for a in attempts if seconds(a["startTime"]) >= queued_at] if "firstStartTime" in status else []
    priority = spec.priority if max_priority is None else min(spec.priority, max_priority)
    return Job(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        generation=meta.get("generation", 1),
        created=created,
        priority=priority,
        shape=shape_of(spec),
        inference=spec.inference is not None,
        model=_model(spec),
        live=_live(spec),
        hint=spec.estimated_duration_seconds,
        webhooks=tuple(_hook(key, w) for key, w in receivers(spec.webhooks).items()),
        phase=Phase(status["phase"]) if "phase" in status else None,
        queued_at=queued_at,
        ticket=ticket,
        position=status.get("queuePosition"),
        estimated_start=_maybe_seconds(status.get("estimatedStartTime")),
        estimated_completion=_maybe_seconds(status.get("estimatedCompletionTime")),
        requests=(status.get("inspection") or {}).get("requests"),
        attempt=_attempt(attempts[-1]) if attempts else None,
        attempts=attempts[-1]["number"] if attempts else 0,
        status=status,
        rank=rank(priority, queued_at, ticket, meta["uid"]),
        not_before=_not_before(of_run),
        avoid=_avoid(of_run),
        deleting="deletionTimestamp" in meta,
        privileges=asked_for(raw.get("spec") or {}),
        extra_gpus=extra_gpus(raw.get("spec") or {}, spec.gpu_resource),
        wishes=_wishes(spec, meta),
        run_id=status.get("runId"),
        retried=status.get("retry"),
        waiting_since=_maybe_seconds(status.get("waitingSince")) or queued_at,
        began=any(key in status for key in ("activeSeconds", "failedAttempts", "lostAttempts")),
        validated="inspection" in status,
        capped=priority < spec.priority,
        active_seconds=status.get("activeSeconds", 0.0),
    )


def _wishes(spec: JobSpec, meta: JSON) -> Wishes:
    marks = (name for part, name in TRACKING if name in (meta.get(part) or {}))
    return Wishes(
        suspend=spec.suspend,
        cancel=spec.cancel,
        run_id=spec.run_id,
        retry=((meta.get("annotations") or {}).get(RETRY) or "")[:63] or None,
        redeliver=((meta.get("annotations") or {}).get(REDELIVER) or "")[:MAX_REDELIVER] or None,
        backoff_limit=spec.backoff_limit,
        active_deadline=spec.active_deadline_seconds,
        queue_deadline=spec.queue_deadline_seconds,
        completion_window=spec.completion_window_seconds,
        ttl=spec.ttl_seconds_after_finished,
        tracked_by=next(marks, None) if spec.ttl_seconds_after_finished is not None else None,
    )


def _hook(key: str, w: Webhook) -> Hook:
    return Hook(key, frozenset(w.events), tuple(w.progress_at or PROGRESS_AT))


def spec_of(raw: JSON) -> JobSpec:
    """A job's spec. A job comes by many times in its life, and many jobs look alike: each spec is parsed once.

    Raises:
        pydantic.ValidationError: It isn't what the CRD allows.
    """
    return _parsed(orjson.dumps(raw))


@lru_cache(maxsize=512)
def _parsed(text: bytes) -> JobSpec:
    return JobSpec.model_validate(orjson.loads(text))


def shape_of(spec: JobSpec) -> Shape:
    """What the job asks of a node, by its spec and by its template's."""
    selector, tolerations = dict(spec.node_selector), list(spec.tolerations)
    if spec.template is not None:
        selector = spec.template.spec.node_selector | selector
        tolerations += spec.template.spec.tolerations
    return shape(
        spec.gpu_resource,
        spec.gpus,
        tuple(sorted(selector.items())),
        tuple(Toleration(t.key, t.operator, t.value, t.effect) for t in tolerations),
    )


def node_of(raw: JSON, slots: int) -> Node:
    """A node, with so many slots unless its label says otherwise; only resources that count in whole numbers."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    return Node(
        name=raw["metadata"]["name"],
        ready=ready,
        unschedulable=bool(spec.get("unschedulable")),
        labels=raw["metadata"].get("labels") or {},
        taints=tuple(Taint(t["key"], t.get("value", ""), t["effect"]) for t in spec.get("taints") or []),
        capacity={k: int(v) for k, v in (status.get("allocatable") or {}).items() if "/" in k and str(v).isdigit()},
        slots=_slots(raw, slots),
    )


def _slots(raw: JSON, default: int) -> int:
    """What the node's label says, which an administrator set: 0 keeps jobs away. Nonsense counts as no label."""
    text = (raw["metadata"].get("labels") or {}).get(SLOTS, "")
    return int(text) if text.isdigit() and int(text) <= MAX_SLOTS else default


def pod_of(raw: JSON, gone: bool = False) -> Pod:
    """A pod of ours, as its labels tell.

    Raises:
        ValueError, KeyError: It isn't: somebody else put our labels on it.
    """
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    main = _main(status.get("containerStatuses") or [], spec)
    before = {c["name"]: c for c in status.get("initContainerStatuses") or []}
    sidecar = before.get(SIDECAR, {})
    engine = before.get(ENGINE, {}) if not _is_template(spec) else {}  # a template's may have that name too
    first = _first_init(before, spec)
    ended = (main.get("state") or {}).get("terminated") or {}
    last = _last(main)
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    engine_state = engine.get("state") or {}
    return Pod(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        job_uid=labels[JOB_UID],
        kind=labels.get(KIND, "run"),
        attempt=int(labels.get(ATTEMPT, "0")),
        node=spec.get("nodeName") or None,
        slot=int(labels[SLOT]) if SLOT in labels else None,
        target=notes.get(NODE),
        stop=notes.get(STOP_ANNOTATION),
        resource=notes.get(RESOURCE, ""),
        gpus=int(notes.get(GPUS, "0")),
        created=seconds(meta["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        deleting="deletionTimestamp" in meta,
        ended_at=_maybe_seconds(ended.get("finishedAt")),
        # The API server writes the time at which the grace period ends.
        deleted_at=seconds(meta["deletionTimestamp"]) - (meta.get("deletionGracePeriodSeconds") or 0)
        if "deletionTimestamp" in meta
        else None,
        killed=meta.get("deletionGracePeriodSeconds") == 0,
        gone=gone,
        has_finalizer=FINALIZER in (meta.get("finalizers") or []),
        address=_address(status.get("podIP")),
        started=any(
            bool(c.get("started")) or "running" in (c.get("state") or {}) or bool(_last(c)) for c in (main, first)
        ),
        restarts=main.get("restartCount", 0),
        terminated_message=ended.get("message") if ended.get("exitCode") == 0 else None,
        failure=_failure(status, main, last, spec),
        trouble=_trouble(status),
        unschedulable=scheduled.get("message") if scheduled.get("status") == "False" else None,
        disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True" or status.get("reason") == "NodeLost",
        engine_restarts=engine.get("restartCount", 0),
        engine_down=bool(engine) and "running" not in engine_state,
        engine_end=_end(engine_state.get("terminated") or (engine.get("lastState") or {}).get("terminated")),
        reports=not _is_template(spec) or SIDECAR in _sidecars(spec),
        last_report=_report(((sidecar.get("state") or {}).get("terminated") or {}).get("message")),
    )


def _main(statuses: list[JSON], spec: JSON) -> JSON:
    """The container whose end is the pod's: the runner, or the template's first."""
    first = spec["containers"][0]["name"]
    return next((c for c in statuses if c["name"] == first), {})


def _last(container: JSON) -> JSON:
    """How a container ended, this time or the last time."""
    found: JSON = (container.get("state") or {}).get("terminated") or {}
    return found or (container.get("lastState") or {}).get("terminated") or {}


def _sidecars(spec: JSON) -> set[str]:
    """Native sidecars: nothing of a pod's outcome depends on them."""
    return {c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"}


def _is_template(spec: JSON) -> bool:
    """A template's containers run once; the kubelet starts a runner again."""
    return spec.get("restartPolicy") == "Never"


def _first_init(statuses: JSON, spec: JSON) -> JSON:
    """The first init container that does some work and ends; its start is that of the job's."""
    sidecars = _sidecars(spec)
    first = next((c["name"] for c in spec.get("initContainers") or [] if c["name"] not in sidecars), None)
    found: JSON = statuses.get(first or "", {})
    return found


def _failure(status: JSON, main: JSON, last: JSON, spec: JSON) -> str | None:
    """A sentence about what failed: the main container, or else whichever did; None while nothing has."""
    if last.get("exitCode"):
        return _exit(main, last)
    if status.get("phase") == "Failed":
        sidecars = _sidecars(spec)
        for c in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            if c["name"] not in sidecars and (end := _last(c)).get("exitCode"):
                return _exit(c, end)
        return status.get("message") or status.get("reason")
    return None


def _exit(container: JSON, end: JSON) -> str:
    text = f"container {container.get('name')} exited with code {end['exitCode']} ({end.get('reason', 'Error')})"
    return text + (f": {end['message'].strip()[-2000:]}" if end.get("message") else "")


def _report(text: str | None) -> ProgressReport | None:
    """The last picture of a template pod's sidecar."""
    try:
        return report_of(Progress.model_validate_json(text)) if text else None
    except ValidationError:
        return None  # the end of a log, or somebody else's words


def report_of(p: Progress) -> ProgressReport:
    """The contract's picture as the core's value."""
    return ProgressReport(
        stage=p.stage,
        message=p.message,
        total=p.total,
        completed=p.completed,
        failed=p.failed,
        rate=p.rate,
        input_tokens=p.usage.input_tokens,
        output_tokens=p.usage.output_tokens,
        processing_seconds=p.processing_seconds,
        at=p.time.timestamp(),
        engine_proven=p.engine_proven,
        live=p.live,
        share=p.percent,
        remaining_seconds=p.remaining_seconds,
        metrics=p.metrics,
    )


def _trouble(status: JSON) -> ContainerTrouble | None:
    for c in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (c.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating", "CrashLoopBackOff"):
            return ContainerTrouble(c["name"], waiting["reason"], waiting.get("message", ""))
    return None


def _end(terminated: JSON | None) -> tuple[str, str] | None:
    if not terminated:
        return None
    reason = terminated.get("reason", "Error")
    return (
        reason if reason == "OOMKilled" else f"exit code {terminated.get('exitCode')}",
        terminated.get("message", ""),
    )


def _attempt(a: JSON) -> Attempt:
    return Attempt(
        number=a["number"],
        node=a["node"],
        slot=a["slot"],
        pod_name=a["podName"],
        pod_uid=a.get("podUid"),
        started=seconds(a["startTime"]),
        state=AttemptState(a["state"]),
        reason=a.get("reason"),
        message=a.get("message"),
        stopping_since=_maybe_seconds(a.get("stopTime")),
        engine_restarts_survived=a.get("engineRestartsSurvived", 0),
    )


BAD = frozenset({AttemptState.LOST, AttemptState.FAILED})
NO_ROOM = frozenset({Reason.UNSCHEDULABLE, Reason.SCALING_UP})
AVOID_SECONDS = 600.0


def _not_before(attempts: list[JSON]) -> float:
    """Until when the job is in back-off, by the attempts of its run."""
    bad = list(itertools.takewhile(lambda a: a["state"] in BAD, reversed(attempts)))
    if not bad or "endTime" not in bad[0]:
        return 0.0
    # What a node had no room for gives another job the chance to fit there.
    blameless = bad[0]["state"] == AttemptState.LOST and bad[0].get("reason") not in NO_ROOM
    return seconds(bad[0]["endTime"]) + backoff.delay(len(bad), blameless)


def _avoid(attempts: list[JSON]) -> tuple[tuple[str, float], ...]:
    """Nodes on which an attempt found no room, and until when others are tried first."""
    return tuple(
        (a["node"], seconds(a["endTime"]) + AVOID_SECONDS)
        for a in attempts
        if a.get("reason") in NO_ROOM and "endTime" in a
    )


def _model(spec: JobSpec) -> str:
    if spec.inference is not None:
        return spec.inference.model
    assert spec.template is not None, "the CRD demands one of the two"
    return str(spec.template.spec.containers[0].raw().get("image", ""))


def _live(spec: JobSpec) -> str | None:
    work = spec.inference
    return None if work is None or work.input.live is None else work.served_model_name or work.model


def _address(ip: str | None) -> str | None:
    """Where the runner of the pod with this address answers, as URLs have it."""
    return (f"[{ip}]:{PROGRESS_PORT}" if ":" in ip else f"{ip}:{PROGRESS_PORT}") if ip else None


def _maybe_seconds(text: str | None) -> float | None:
    return seconds(text) if text else None

"""The world as the core sees it: jobs, nodes, pods, and a snapshot of them all. Immutable values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.progress import ProgressReport

JSON = dict[str, Any]

ESTIMATES = (
    "estimatedStartTime",
    "estimatedStartTimeP90",
    "estimatedCompletionTime",
    "estimatedCompletionTimeP90",
)
"""Status fields that only hold for one stay in the queue, or one attempt."""


def copied(document: Any) -> Any:
    """A JSON document's own copy, in a tenth of `copy.deepcopy`'s time: it has no cycles and nothing but JSON."""
    if type(document) is dict:
        return {k: copied(v) for k, v in document.items()}
    if type(document) is list:
        return [copied(v) for v in document]
    return document


@dataclass(frozen=True, slots=True)
class Toleration:
    """As in a pod's spec; no key, or an empty one, with `Exists` tolerates everything."""

    key: str | None
    operator: str
    value: str | None
    effect: str | None


@dataclass(frozen=True, slots=True)
class Taint:
    """As in a node's spec."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What a job asks of a node. Made by `shape`, so that equal shapes are one object: compared by identity."""

    resource: str
    gpus: int
    selector: tuple[tuple[str, str], ...]
    tolerations: tuple[Toleration, ...]


@lru_cache(maxsize=4096)
def shape(
    resource: str,
    gpus: int,
    selector: tuple[tuple[str, str], ...] = (),
    tolerations: tuple[Toleration, ...] = (),
) -> Shape:
    """The one `Shape` of these values (a shape made twice after an eviction costs time, never correctness)."""
    return Shape(resource, gpus, selector, tolerations)


class AttemptState(StrEnum):
    """Where an attempt is in its life."""

    ACTIVE = "Active"
    STOPPING = "Stopping"  # we have decided to end it, and `reason` says why; its pod still has to go
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"  # the job's fault: it counts against `backoffLimit`
    LOST = "Lost"  # the cluster's fault, not the job's: it goes back into the queue
    STOPPED = "Stopped"  # its user suspended or cancelled the job


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job in one pod, as recorded in status before the pod is created."""

    number: int
    node: str  # empty: any that comes, see `Snapshot.floating`
    slot: int
    pod_name: str
    pod_uid: str | None
    started: float
    state: AttemptState
    reason: str | None = None
    message: str | None = None
    stopping_since: float | None = None
    engine_restarts_survived: int = 0  # restarts of the engine after which it has answered again


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a job's user wants of its life, as in spec; durations in seconds."""

    suspend: bool = False
    cancel: bool = False
    run_id: str | None = None
    retry: str | None = None  # the annotation that asks for one more attempt of a failed run
    backoff_limit: int = 0
    active_deadline: float | None = None  # of running, over all attempts of a run
    queue_deadline: float | None = None  # of waiting for the first attempt
    completion_window: float | None = None  # from `queuedAt` to the end
    ttl: float | None = None  # from the end to the deletion
    redeliver: str | None = None  # the annotation that asks for deliveries to be made again
    tracked_by: str | None = None  # the annotation or label of a GitOps tool that would create it anew if deleted


@dataclass(frozen=True, slots=True)
class Hook:
    """Somebody who is told about the job; `key` tells them from the job's others, whatever else is edited."""

    key: str
    events: frozenset[str]
    progress_at: tuple[int, ...]  # percentages that are worth an event


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A `GPUBatchJob`. Times in seconds since the epoch; `status` is the status as it was read, never modified."""

    uid: str
    namespace: str
    name: str
    resource_version: str
    generation: int
    created: float
    priority: int  # that counts: the user's own, or the highest that the namespace is allowed
    shape: Shape
    inference: bool
    model: str  # what its speed is learned by: the model of an inference job, the image of a template
    live: str | None  # the model that it serves over HTTP; None if its work is known from the start
    hint: float | None  # the user's own estimate, seconds
    webhooks: tuple[Hook, ...]
    phase: Phase | None
    queued_at: float
    ticket: int
    position: int | None  # as published
    estimated_start: float | None  # as published
    estimated_completion: float | None  # as published
    requests: int | None  # valid requests, once inspected
    attempt: Attempt | None  # the newest
    attempts: int  # the number of the newest
    status: Mapping[str, Any] = field(repr=False)
    rank: tuple[int, float, int, str] = field(repr=False, default=(0, 0.0, 0, ""))
    not_before: float = 0.0  # in back-off until then, after attempts that were lost or failed
    avoid: tuple[tuple[str, float], ...] = ()  # nodes that couldn't take it lately, each until when
    deleting: bool = False
    privileges: tuple[str, ...] = ()  # what its pod asks for and only some operators allow, each with its field's path
    extra_gpus: tuple[str, ...] = ()  # fields that ask for GPUs beside those of the job
    wishes: Wishes = Wishes()
    run_id: str | None = None  # the run that status speaks of
    retried: str | None = None  # the `retry` that was heeded
    waiting_since: float = 0.0  # when it last came into the queue
    began: bool = False  # an attempt of this run has ended that ran somewhere
    validated: bool = False  # its input was found to be valid
    capped: bool = False  # its user asked for a higher priority than the namespace is allowed
    active_seconds: float = 0.0  # that the run's ended attempts held a slot


@dataclass(frozen=True, slots=True)
class Node:
    """A node; `capacity` is what is allocatable, of each extended resource."""

    name: str
    ready: bool
    unschedulable: bool
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    capacity: Mapping[str, int]
    slots: int = 1


@dataclass(frozen=True, slots=True)
class ContainerTrouble:
    """Why a container isn't running: the kubelet's reason and message."""

    container: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A runner or inspect pod."""

    uid: str
    namespace: str
    name: str
    job_uid: str
    kind: str  # run | inspect
    attempt: int
    node: str | None  # where it is bound
    slot: int | None
    target: str | None  # the node that it was made for
    resource: str
    gpus: int
    created: float
    phase: str  # Pending | Running | Succeeded | Failed | Unknown
    deleting: bool
    gone: bool  # deleted from the API; this is the last that was seen of it
    has_finalizer: bool
    address: str | None  # where its runner answers: host:port
    started: bool  # the main container runs or has run
    restarts: int  # of the main container
    terminated_message: str | None  # of the main container's last end
    failure: str | None  # a sentence about how the main container failed, if it did
    trouble: ContainerTrouble | None
    unschedulable: str | None  # the scheduler's message
    disrupted: bool  # evicted, preempted, its node lost
    engine_restarts: int
    engine_down: bool  # it has ended and isn't running again yet
    engine_end: tuple[str, str] | None  # reason and message of the engine's last end
    stop: str | None = None  # why its runner was asked to stop
    ended_at: float | None = None  # when the main container ended
    deleted_at: float | None = None  # when somebody asked for its deletion
    killed: bool = False  # deleted without grace: nobody waits for its containers, only our finalizer holds it
    reports: bool = True  # something in it can be asked for its progress
    last_report: ProgressReport | None = None  # the last words of a template pod's sidecar

    @property
    def finished(self) -> bool:
        """Nothing of it runs any more, and nothing will."""
        return self.gone or self.killed or self.phase in ("Succeeded", "Failed")

    @property
    def ended_by_itself(self) -> bool:
        """It had ended before anybody deleted or disrupted it; its exit code is that of its work."""
        if self.disrupted:
            return False
        if not (self.deleting or self.gone):
            return True
        return self.ended_at is not None and self.deleted_at is not None and self.ended_at < self.deleted_at


@dataclass(frozen=True, slots=True)
class Occupant:
    """A slot that is in use, and the GPUs with it."""

    node: str
    slot: int
    resource: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a plan is made of. `waiting` in any order; whoever is neither waiting nor an occupant doesn't matter."""

    waiting: Sequence[Job]
    nodes: Sequence[Node]
    occupied: Sequence[Occupant]
    now: float = 0.0
    floating: Sequence[Shape] = ()  # of pods that kube-scheduler will put where it likes, see `scale_up`
    active_in: Mapping[str, int] = field(default_factory=dict)  # attempts by namespace


@dataclass(frozen=True, slots=True)
class Aging:
    """Waiting raises the priority by `step` each `interval` seconds, up to `cap`; off while `step` is 0."""

    step: int = 0
    interval: float = 3600.0
    cap: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What an administrator decides about the plan."""

    aging: Aging = Aging()
    scale_up: int = 0  # pods at a time for jobs that fit no node there is, so that an autoscaler makes one
    max_slots: Mapping[str, int] = field(default_factory=dict)  # by namespace; `*` for all that aren't named

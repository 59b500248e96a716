"""The answers of the HTTP endpoints, as their OpenAPI document describes them. The schema only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpubatch_operator.api.status import JobStatus, Pending, Progress, Time
from gpubatch_operator.core.phases import Phase


class Answer(BaseModel):
    """Base of all: camelCase; nothing that isn't described."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class QueueStatus(BaseModel):
    """Counts of jobs, of the namespaces that the caller sees; the limits are the cluster's."""

    model_config = ConfigDict(extra="forbid")

    queue_size: int = Field(description="Jobs that wait for a slot: Validating and Queued.")
    processing_count: int = Field(description="Jobs that hold a slot: Starting and Running.")
    max_concurrent: int = Field(description="Slots of the nodes that are ready.")
    max_queue_size: int = Field(description="Jobs that may wait at a time, in all namespaces.")
    total_processed: int = Field(description="Jobs that ever succeeded, deleted ones among them.")
    total_failed: int = Field(description="Jobs that ever failed.")
    total_queued: int = Field(description="Jobs that ever came; a new run of a job counts again.")
    active_requests: int = Field(description="Jobs that wait or run.")
    is_running: bool = Field(description="Whether a replica of the operator plans.")
    total_cancelled: int = Field(description="Jobs that ever were cancelled.")
    held: int = Field(description="Jobs that the queue has no room for.")
    suspended: int = Field(description="Jobs that their users suspended.")
    phases: dict[str, int] = Field(description="Jobs that there are now, by phase.")
    nodes: int = Field(description="GPU nodes, ready or not.")
    namespaces: list[str] | None = Field(description="The namespaces that are counted; null: all.")
    server_time: Time


class Job(Answer):
    """A job in a list. What isn't known is left out."""

    namespace: str
    name: str
    uid: str
    phase: Phase | None = Field(description="null: the operator has only just seen it.")
    kind: Literal["inference", "template"]
    model: str = Field(description="The model; of a template its image.")
    priority: int = Field(description="The one that counts.")
    gpus: int
    gpu_resource: str
    creation_time: Time
    queued_at: Time = Field(description="Since when it is in the queue's order.")
    attempts: int = Field(description="Number of the newest attempt.")
    queue_position: int | None = Field(default=None, description="Exact: 0 holds a slot, 1 is next.")
    elapsed_seconds: int | None = Field(
        default=None, description="Since the attempt began; of a finished job, of its whole run."
    )
    waited_seconds: int | None = Field(default=None, description="Since it came into the queue.")
    start_time: Time | None = None
    completion_time: Time | None = None
    node_name: str | None = None
    estimated_start_time: Time | None = Field(default=None, description="Median.")
    estimated_start_time_p90: Time | None = Field(
        default=None, alias="estimatedStartTimeP90", description="With a probability of 90% it starts by then."
    )
    estimated_completion_time: Time | None = Field(default=None, description="Median.")
    estimated_completion_time_p90: Time | None = Field(
        default=None, alias="estimatedCompletionTimeP90", description="With a probability of 90% it is done by then."
    )
    progress: Progress | None = None
    pending: Pending | None = Field(default=None, description="Why it isn't running.")
    reason: str | None = Field(default=None, description="Of a finished job: why it ended so.")
    message: str | None = Field(default=None, description="The same as a sentence.")
    deleting: bool | None = None


class JobDetail(Job):
    """One job."""

    status: JobStatus = Field(description="All that is known, as `kubectl get gbj NAME -o yaml` shows it.")


class Page(Answer):
    """A part of a list."""

    next: str | None = Field(alias="continue", description="Parameter `continue` of the next page; null on the last.")
    server_time: Time


class JobList(Page):
    """Jobs."""

    items: list[Job]
    total: int | None = Field(description="In all pages; null if `q` is given, which nobody counts ahead.")


class NodeAttempt(Answer):
    """An attempt of a job on a node."""

    namespace: str
    name: str
    uid: str
    attempt: int
    slot: int
    state: str
    start_time: Time
    end_time: Time | None = None
    estimated_completion_time: Time | None = None
    estimated_completion_time_p90: Time | None = Field(default=None, alias="estimatedCompletionTimeP90")
    percent: int | None = None


class Node(Answer):
    """A node that takes jobs, or took some."""

    name: str
    ready: bool
    unschedulable: bool
    slots: int
    gpus: dict[str, int] = Field(description="By resource.")
    attempts: list[NodeAttempt] = Field(description="The newest first, of the namespaces that the caller sees.")


class NodeList(Page):
    """Nodes by name; of callers that don't see all namespaces, those on which jobs of theirs ran lately."""

    items: list[Node]


class Concurrency(Answer):
    """What may happen at a time."""

    slots: int
    slots_in_use: int
    max_queue_depth: int
    max_inspections: int
    max_total_queued_requests: int


class Health(Answer):
    """How the operator is, and what limits it keeps; durations in seconds."""

    status: Literal["ok", "starting"]
    version: str
    leader: bool = Field(description="Whether the replica that answers plans.")
    is_running: bool = Field(description="Whether any replica plans.")
    jobs: int = Field(description="That this replica knows.")
    concurrency: Concurrency
    timeouts: dict[str, float] = Field(description="By the name of the operator's setting.")
    server_time: Time


class ErrorBody(Answer):
    """What went wrong."""

    status: int
    reason: str
    message: str = Field(description="What was found, and what was expected.")
    next_step: str = Field(description="What to do.")


class Error(Answer):
    """The body of each answer that isn't 200."""

    error: ErrorBody


def schemas() -> dict[str, Any]:
    """The components of the OpenAPI document, by name."""
    found: dict[str, Any] = {}
    for model in (QueueStatus, JobList, JobDetail, NodeList, Health, Error):
        schema = model.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {}) | {model.__name__: schema}
    return found

"""What the operator writes: `status` of a `GPUBatchJob`. The schema only; the core computes the values.

Each list is bounded, so that an object can't grow for ever.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpubatch_operator.api.base import ApiModel
from gpubatch_operator.core.phases import Phase

MAX_ATTEMPTS = 10
MAX_DELIVERIES = 64
MAX_URL = 4096 + 64  # the longest of spec, with a suffix of ours

Message = Annotated[str, Field(max_length=4096)]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class Condition(ApiModel):
    """One aspect of the job's state, for machines."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=256)]
    message: Message
    last_transition_time: Time
    observed_generation: int | None = None


class Pending(ApiModel):
    """Why the job isn't running, and what can be done about it."""

    reason: Annotated[str, Field(max_length=256)]
    message: Message
    next_step: Message | None = Field(default=None, description="What you can do about it, if anything.")
    since: Time | None = Field(default=None, description="Of a trouble: when it was first seen.")


class Usage(ApiModel):
    """Tokens as the engine counted them."""

    input_tokens: int = 0
    output_tokens: int = 0


class Inspection(ApiModel):
    """What was found in the input before the job was queued."""

    requests: int = Field(description="Valid requests.")
    invalid: int = Field(default=0, description="Invalid lines.")
    input_tokens: int = Field(default=0, description="Prompt tokens.")
    tokens_from: Literal["Bytes", "Tokenizer"] = Field(
        default="Bytes", description="Whether they are estimated, 4 bytes a token, or counted by a tokenizer."
    )
    max_output_tokens: int = Field(default=0, description="Sum of the requests' own bounds.")
    first_errors: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=10)] = Field(
        default=[], description="The first invalid lines; all of them are in the error file."
    )


class Attempt(ApiModel):
    """One run of the job in one runner pod."""

    number: int
    node: Annotated[str, Field(max_length=253)] = Field(description="Empty: whichever node an autoscaler adds.")
    slot: int
    pod_name: Annotated[str, Field(max_length=63)]
    pod_uid: Annotated[str, Field(max_length=64)] | None = Field(default=None, description="Set when the pod was seen.")
    start_time: Time
    end_time: Time | None = None
    stop_time: Time | None = Field(default=None, description="When it was asked to stop.")
    state: Literal["Active", "Stopping", "Succeeded", "Failed", "Lost", "Stopped"] = Field(
        description="Failed is the job's fault and counts against backoffLimit; Lost is the cluster's and doesn't; "
        "Stopped is its user's wish."
    )
    reason: Annotated[str, Field(max_length=256)] | None = None
    message: Message | None = None
    engine_restarts_survived: int | None = Field(
        default=None,
        description="Restarts of the engine after which it has answered again; they don't end the attempt.",
    )


class Live(ApiModel):
    """Where a job that takes requests over HTTP is reachable now."""

    url: Annotated[str, Field(max_length=256)] = Field(
        description="Base URL as OpenAI's clients take it, of the pod itself: http://ADDRESS:9808/v1."
    )
    model: Annotated[str, Field(max_length=512)] = Field(description="What requests name in body.model.")


class Progress(ApiModel):
    """How far the run has come. Written at a change of stage, at each percent or every 30 s, no oftener."""

    stage: Annotated[str, Field(max_length=64)]
    message: Message | None = None
    summary: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="For people: 120/300 (40%), or 40%; 120 served where requests come over HTTP."
    )
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    percent: int | None = None
    rate: float | None = Field(default=None, description="Requests (or what else is counted) a second.")
    remaining_seconds: int | None = Field(default=None, description="Of a template job: seconds until it is done.")
    metrics: Annotated[dict[str, float], Field(max_length=16)] | None = Field(
        default=None, description="Of a template job: the numbers that it tells of itself, a loss for instance."
    )
    input_tokens: int | None = None
    output_tokens: int | None = None
    processing_seconds: float | None = Field(default=None, description="Seconds of the run spent processing.")
    last_heartbeat_time: Time | None = None


class Timings(ApiModel):
    """Seconds of the attempt by what the GPU was doing meanwhile."""

    loading_model: float = 0
    processing: float = 0
    uploading: float = 0


class Results(ApiModel):
    """What came out, and where it is."""

    output: Annotated[str, Field(max_length=MAX_URL)] | None = None
    errors: Annotated[str, Field(max_length=MAX_URL)] | None = None
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Counts(ApiModel):
    """Requests, or whatever else is counted."""

    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class WebhookError(ApiModel):
    """Why it ended, or why it is tried again."""

    reason: Annotated[str, Field(max_length=256)]
    message: Annotated[str, Field(max_length=1024)]


class WebhookEvent(ApiModel):
    """What a delivery tells: the job as it was when the event happened."""

    sequence: int
    event: Annotated[str, Field(max_length=32)]
    time: Time
    phase: Phase
    run_id: Annotated[str, Field(max_length=63)] | None = None
    attempt: int | None = None
    node: Annotated[str, Field(max_length=253)] | None = None
    queued_at: Time | None = None
    start_time: Time | None = None
    completion_time: Time | None = None
    estimated_completion_time: Time | None = None
    percent: int | None = None
    counts: Counts | None = None
    results: Results | None = None
    error: WebhookError | None = None


class WebhookDelivery(ApiModel):
    """One message to one webhook."""

    id: Annotated[str, Field(max_length=128)] = Field(description="The webhook-id header; the same for each attempt.")
    webhook: Annotated[str, Field(max_length=64)] = Field(description="Its name in spec, or a hash of its URL.")
    event: Annotated[str, Field(max_length=32)]
    sequence: int = Field(description="Of the event, in webhookEvents.")
    state: Literal["Pending", "Delivered", "DeadLettered"]
    time: Time = Field(description="When the event happened.")
    attempts: int = 0
    signed: bool | None = Field(default=None, description="Whether the last attempt was signed: only with a Secret.")
    last_attempt_time: Time | None = None
    last_status_code: int | None = None
    last_error: Annotated[str, Field(max_length=1024)] | None = None
    next_attempt_time: Time | None = None


class JobStatus(ApiModel):
    """What the operator knows about the job."""

    observed_generation: int | None = None
    phase: Phase | None = Field(default=None, description="For people; machines read the conditions.")
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = Field(
        default=[], description="Complete and Failed as in batch/v1, Reconciling and Stalled as in kstatus, and others."
    )
    run_id: Annotated[str, Field(max_length=63)] | None = Field(
        default=None, description="The spec.runId of the run that status speaks of."
    )
    retry: Annotated[str, Field(max_length=63)] | None = Field(
        default=None, description="The annotation gpubatch.dev/retry that was heeded last."
    )
    queued_at: Time | None = Field(default=None, description="Since when the job is in the queue's order.")
    queue_ticket: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Order among jobs of the same second: the object's resourceVersion at first sight."
    )
    waiting_since: Time | None = Field(
        default=None, description="When the job last came into the queue; queueDeadlineSeconds counts from here."
    )
    effective_priority: int | None = Field(
        default=None, description="If the namespace isn't allowed the spec's priority: the one that counts."
    )
    queue_position: int | None = Field(default=None, description="0 running, 1 next.")
    estimated_start_time: Time | None = Field(default=None, description="Median estimate.")
    estimated_start_time_p90: Time | None = Field(
        default=None, alias="estimatedStartTimeP90", description="With a probability of 90% it starts by then."
    )
    estimated_completion_time: Time | None = Field(default=None, description="Median estimate.")
    estimated_completion_time_p90: Time | None = Field(
        default=None, alias="estimatedCompletionTimeP90", description="With a probability of 90% it is done by then."
    )
    pending: Pending | None = Field(default=None, description="Why the job isn't running.")
    inspection: Inspection | None = Field(default=None, description="What was found in the input.")
    attempts: Annotated[list[Attempt], Field(max_length=MAX_ATTEMPTS)] = Field(
        default=[], description="The newest last."
    )
    node_name: Annotated[str, Field(max_length=253)] | None = None
    pod_name: Annotated[str, Field(max_length=63)] | None = None
    first_start_time: Time | None = Field(default=None, description="When the run's first attempt got its slot.")
    start_time: Time | None = Field(default=None, description="When the last attempt got its slot.")
    active_seconds: float | None = Field(
        default=None, description="For how long the run's ended attempts held their slots."
    )
    failed_attempts: int | None = Field(default=None, description="Of this run; counts against backoffLimit.")
    lost_attempts: int | None = Field(default=None, description="Of this run; ten fail the job.")
    completion_time: Time | None = None
    progress: Progress | None = None
    live: Live | None = Field(
        default=None, description="Where requests are taken, while they are: set once the runner answers."
    )
    results: Results | None = None
    announced_percent: int | None = Field(
        default=None, description="The percentage at which webhooks were last told of the run's progress."
    )
    redelivered: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None, description="The annotation gpubatch.dev/redeliver that was heeded last."
    )
    webhook_sequence: int | None = Field(default=None, description="Events that webhooks were told of, ever.")
    webhook_events: Annotated[list[WebhookEvent], Field(max_length=MAX_DELIVERIES)] = Field(
        default=[], description="What the deliveries below tell."
    )
    webhook_deliveries: Annotated[list[WebhookDelivery], Field(max_length=MAX_DELIVERIES)] = Field(
        default=[], description="What was sent to the webhooks, and how that went; the newest last."
    )

"""The operator's own reasons, each with the sentence that tells a user what to do. Part of the API.

The runner has reasons of its own (`gpubatch_runner.contract.Reason`), which pass through unchanged.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a condition is as it is, or why a job waits."""

    # why it waits
    VALIDATING = "Validating"
    NODES_BUSY = "NodesBusy"
    NO_GPU_NODES = "NoGPUNodes"
    NO_MATCHING_NODE = "NoMatchingNode"
    UNSCHEDULABLE = "Unschedulable"
    BACKOFF = "Backoff"
    QUOTA = "Quota"
    QUEUE_FULL = "QueueFull"
    NAMESPACE_SLOTS = "NamespaceSlots"
    SCALING_UP = "ScalingUp"
    SUSPENDED = "Suspended"
    STOPPING = "Stopping"
    # what is fine
    REDELIVERED = "Redelivered"
    VALID = "Valid"
    INVALID_LINES_SKIPPED = "InvalidLinesSkipped"
    ADMITTED = "Admitted"
    SUCCEEDED = "Succeeded"
    RESUMED = "Resumed"
    RESPONSIVE = "Responsive"
    UNFINISHED = "Unfinished"
    # what went wrong
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    ENGINE_OUT_OF_MEMORY = "EngineOutOfMemory"
    ENGINE_CRASHED = "EngineCrashed"
    RUNNER_CRASHED = "RunnerCrashed"
    POD_REJECTED = "PodRejected"
    POD_NOT_ALLOWED = "PodNotAllowed"
    POD_FAILED = "PodFailed"
    LOST = "Lost"
    TOO_MANY_LOST_ATTEMPTS = "TooManyLostAttempts"
    UNRESPONSIVE = "Unresponsive"
    CANCELLED = "Cancelled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    QUEUE_DEADLINE_EXCEEDED = "QueueDeadlineExceeded"
    COMPLETION_WINDOW_EXCEEDED = "CompletionWindowExceeded"
    TRACKED = "Tracked"
    DELIVERY_GIVEN_UP = "DeliveryGivenUp"


NEXT_STEP: dict[Reason, str] = {
    Reason.NO_GPU_NODES: "Add a node that advertises the GPU resource, or check the GPU device plugin.",
    Reason.NO_MATCHING_NODE: "Compare spec.gpus, spec.nodeSelector and spec.tolerations with the nodes' labels, "
    "taints and GPUs.",
    Reason.UNSCHEDULABLE: "Look at what else holds the node's GPUs or memory, or at the volumes that the job names.",
    Reason.BACKOFF: "Read in status.attempts why its attempts were lost.",
    Reason.QUOTA: "Wait for others of the namespace to end, or ask for more quota.",
    Reason.QUEUE_FULL: "Wait: it enters by itself, in order, when others have left; or cancel jobs that wait.",
    Reason.NAMESPACE_SLOTS: "Wait for others of the namespace to end, or ask for more of its share.",
    Reason.SCALING_UP: "Wait for an autoscaler; without one, compare spec.gpus, spec.nodeSelector and spec.tolerations "
    "with the nodes' labels, taints and GPUs.",
    Reason.SUSPENDED: "Set spec.suspend to false to let it go on.",
    Reason.IMAGE_PULL_FAILED: "Check the image's name and tag, and spec.imagePullSecrets.",
    Reason.CONTAINER_NOT_STARTED: "Check the Secrets, ConfigMaps and commands that the job names.",
    Reason.ENGINE_OUT_OF_MEMORY: "Raise spec.inference.engine.resources.limits.memory, or lower the engine's needs.",
    Reason.ENGINE_CRASHED: "Read the engine's last words in the message; check spec.inference.model and engine.args.",
    Reason.POD_REJECTED: "Mend what the message names: the template, a quota, or the namespace's pod security.",
    Reason.RUNNER_CRASHED: "Read the runner's log; this is most likely a bug worth reporting.",
}

"""What keeps a pod from doing its work, and how long we wait until we give its attempt up.

Shown in status at once; final only after a while, since most of it heals (a registry comes back, a Secret is applied
a second after the job). A job whose engine is out of order must not hold a GPU for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.model import JSON, Pod
from gpubatch_operator.core.reasons import NEXT_STEP, Reason

PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"})
WRONG_IMAGE = (
    *("not found", "manifest unknown", "does not exist", "denied", "unauthorized", "authentication required"),
    "no such host",
)
"""What registries say of an image that will not come however long one waits; else the registry itself is in trouble."""

NEVER = float("inf")
INSPECT_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """The patience of the operator, seconds and counts; see `settings` for what each is for."""

    image_pull_seconds: float = 300
    start_seconds: float = 60
    unschedulable_seconds: float = 120
    scale_up_seconds: float = 900
    stop_seconds: float = 60
    engine_restarts: int = 5
    runner_restarts: int = 10
    allow_privileged_pods: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """`patience`: seconds from the first sight of it until the attempt is given up."""

    reason: Reason
    message: str
    patience: float = 0.0
    blameless: bool = False  # the cluster's: the attempt is lost, and the job may try elsewhere or later

    def show(self, status: JSON, now: float) -> float:
        """Put it into `status.pending`, in place; when patience ends, seconds since the epoch."""
        old = status.get("pending", {})
        since = old["since"] if old.get("reason") == self.reason and "since" in old else iso(now)
        status["pending"] = {"reason": self.reason.value, "message": self.message[:4096], "since": since}
        if step := NEXT_STEP.get(self.reason):
            status["pending"]["nextStep"] = step
        return seconds(since) + self.patience


def trouble_of(pod: Pod, limits: Limits, engine_restarts_survived: int = 0) -> Trouble | None:
    """The dominant trouble of a pod that hasn't finished, or None if it is well as far as the kubelet can tell."""
    given_up = pod.engine_restarts - engine_restarts_survived >= limits.engine_restarts
    if pod.engine_end and (given_up or pod.engine_down):
        reason, message = pod.engine_end
        oom = reason == "OOMKilled"
        return Trouble(
            Reason.ENGINE_OUT_OF_MEMORY if oom else Reason.ENGINE_CRASHED,
            f"the engine ended {max(1, pod.engine_restarts)} times, the last time with {reason}"
            + (f": {message.strip()[-2000:]}" if message.strip() else ""),
            0.0 if given_up else NEVER,
        )
    # An inspection is over in seconds: whatever restarts it is worth showing at once.
    limit = limits.runner_restarts if pod.kind == "run" else INSPECT_RESTARTS
    if pod.restarts >= limit or (pod.restarts and pod.kind == "inspect"):
        what = f"the runner crashed {pod.restarts} times: {pod.failure or ''}"
        return Trouble(Reason.RUNNER_CRASHED, what, 0.0 if pod.restarts >= limit else NEVER)
    if t := pod.trouble:
        what = f"container {t.container}: {t.reason}: {t.message}"
        if t.reason == "InvalidImageName":
            return Trouble(Reason.IMAGE_PULL_FAILED, what)
        if t.reason in PULL:
            blameless = t.reason != "ErrImageNeverPull" and not any(text in t.message for text in WRONG_IMAGE)
            return Trouble(Reason.IMAGE_PULL_FAILED, what, limits.image_pull_seconds, blameless)
        if t.reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return Trouble(Reason.CONTAINER_NOT_STARTED, what, limits.start_seconds)
    if pod.unschedulable and pod.node is None:
        # An inspection holds no slot and may wait, for an autoscaler say; a runner pod has to give its slot up.
        if pod.kind == "inspect":
            return Trouble(Reason.UNSCHEDULABLE, pod.unschedulable, NEVER)
        if pod.target:
            return Trouble(Reason.UNSCHEDULABLE, pod.unschedulable, limits.unschedulable_seconds, blameless=True)
        waits = f"its pod waits for a node that an autoscaler adds: {pod.unschedulable}"
        return Trouble(Reason.SCALING_UP, waits, limits.scale_up_seconds, blameless=True)
    return None

"""What keeps a pod from doing its work, and how long we wait until we give its attempt up.

Shown in status at once; final only after a while, since most of it heals (a registry comes back, a Secret is applied
a second after the job). A job whose engine is out of order must not hold a GPU for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpubatch_operator.core.model import JSON, Pod
from gpubatch_operator.core.reasons import NEXT_STEP, Reason

PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"})
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """The patience of the operator, seconds and counts; see `settings` for what each is for."""

    image_pull_seconds: float = 300
    start_seconds: float = 60
    engine_restarts: int = 5
    runner_restarts: int = 10


@dataclass(frozen=True, slots=True)
class Trouble:
    """`final_at`: when the attempt is given up, seconds since the epoch."""

    reason: Reason
    message: str
    final_at: float

    def pending(self) -> JSON:
        """The trouble as `status.pending`."""
        out = {"reason": self.reason.value, "message": self.message[:4096]}
        if step := NEXT_STEP.get(self.reason):
            out["nextStep"] = step
        return out


def trouble_of(pod: Pod, now: float, limits: Limits) -> Trouble | None:
    """The dominant trouble of a pod that hasn't finished, or None if it is well as far as the kubelet can tell."""
    given_up = pod.engine_restarts >= limits.engine_restarts
    if pod.engine_end and (given_up or pod.engine_down):
        reason, message = pod.engine_end
        oom = reason == "OOMKilled"
        return Trouble(
            Reason.ENGINE_OUT_OF_MEMORY if oom else Reason.ENGINE_CRASHED,
            f"the engine ended {max(1, pod.engine_restarts)} times, the last time with {reason}"
            + (f": {message.strip()[-2000:]}" if message.strip() else ""),
            now if given_up else NEVER,
        )
    if pod.restarts >= limits.runner_restarts:
        return Trouble(Reason.RUNNER_CRASHED, f"the runner crashed {pod.restarts} times: {pod.failure or ''}", now)
    if t := pod.trouble:
        what = f"container {t.container}: {t.reason}: {t.message}"
        if t.reason == "InvalidImageName":
            return Trouble(Reason.IMAGE_PULL_FAILED, what, now)
        if t.reason in PULL:
            return Trouble(Reason.IMAGE_PULL_FAILED, what, pod.created + limits.image_pull_seconds)
        if t.reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return Trouble(Reason.CONTAINER_NOT_STARTED, what, pod.created + limits.start_seconds)
    if pod.unschedulable and pod.node is None:
        # Somebody else's pods may hold the GPU: that can last, and the job doesn't fail for it.
        final = pod.created + limits.start_seconds if pod.kind == "inspect" else NEVER
        return Trouble(Reason.UNSCHEDULABLE, pod.unschedulable, final)
    return None

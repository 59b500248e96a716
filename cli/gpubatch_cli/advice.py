"""What to do about a reason, in the words of this command line; else in the operator's."""

from __future__ import annotations

AGAIN = "then `gpubatch retry JOB` (goes on with what is saved) or `gpubatch rerun JOB` (from the start)."

OURS = {
    "InputNotFound": f"Upload the input, or correct its URL; {AGAIN}",
    "InputUnreadable": "Correct spec.inference.input or the storage's endpoint; then `gpubatch rerun JOB`.",
    "AccessDenied": f"Correct the keys in the Secret of spec.inference.storage, or what they may do; {AGAIN}",
    "InvalidRequests": "`gpubatch inspect FILE` tells all invalid lines; correct them, upload, `gpubatch rerun JOB`.",
    "TooManyRequests": "Split the input into several jobs, or ask the administrator for more (maxRequestsPerJob).",
    "InputTooLarge": "Split the input into several jobs, or ask the administrator for more (maxInputBytesPerJob).",
    "OutputNotWritable": f"Correct the output's URL, or create its bucket; {AGAIN}",
    "OutputExpired": "Put a fresh URL into the Secret that urlFrom names, then `gpubatch retry JOB`.",
    "EngineNotReady": "`gpubatch logs JOB --container engine`; raise spec.inference.engine.startTimeoutSeconds if the "
    "model is large.",
    "EngineFailed": "`gpubatch logs JOB --container engine --previous`; what was answered is in the output.",
    "EngineCrashed": "`gpubatch logs JOB --container engine --previous`; check the model and the engine's arguments.",
    "EngineOutOfMemory": "Raise spec.inference.engine.resources.limits.memory, or lower the engine's needs.",
    "AllRequestsFailed": "`gpubatch results JOB` says where the error file is; its first line is in the message.",
    "ImagePullFailed": "Correct the image's name, or add spec.imagePullSecrets.",
    "ContainerNotStarted": "Correct the Secrets, ConfigMaps or commands that the job names.",
    "RunnerCrashed": "`gpubatch logs JOB --previous`; this is most likely a bug worth reporting.",
    "PodRejected": "Correct what the message names: a quota, Pod Security, a field of the template.",
    "PodNotAllowed": "Remove the fields that the message names, or ask for allowPrivilegedPods.",
    "PodFailed": "`gpubatch logs JOB`: the program ended with an error; the end of its log is in the message.",
    "TooManyLostAttempts": "`kubectl get events` tells what ends its pods; then `gpubatch rerun JOB`.",
    "InternalError": "`gpubatch logs JOB`; free disk space on the node.",
    "QueueDeadlineExceeded": "Allow more time, raise its priority, or add nodes; then `gpubatch rerun JOB`.",
    "DeadlineExceeded": "What was answered is kept. Allow more time (activeDeadlineSeconds) with a new run.",
    "CompletionWindowExceeded": "What was answered is kept. Allow more time (completionWindowSeconds) with a new run.",
    "Cancelled": "What was answered is kept. `gpubatch rerun JOB` runs it again.",
    "Suspended": "`gpubatch resume JOB` lets it go on.",
    "NodesBusy": "Nothing: it starts when a slot is free. `gpubatch priority JOB N` moves it.",
    "QueueFull": "Nothing: it enters by itself, in order, when others have left.",
}


def advice(reason: str) -> str:
    """One sentence; '' where there is nothing to do."""
    if reason in OURS:
        return OURS[reason]
    from gpubatch_operator.core.reasons import NEXT_STEP

    return next((text for known, text in NEXT_STEP.items() if known.value == reason), "")

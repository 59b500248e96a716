"""What the operator and the runner say to each other: the run's specification, its progress and its outcome.

The operator writes a `RunSpec` as JSON into the runner's environment (`SPEC_ENV`), reads `Progress` from
`GET /progress` on `PROGRESS_PORT` while the pod lives, and an `Outcome` (or, of an `inspect` pod, an `Inspection`)
from the container's termination message when it has ended. JSON names are camelCase, as everywhere in Kubernetes.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from pydantic.alias_generators import to_camel

SPEC_ENV = "GPUBATCH_RUN"
"""Name of the environment variable that holds the `RunSpec`."""

PROGRESS_PORT = 9808
"""TCP port of the pod at which the runner serves `/progress` and `/metrics`, and takes live requests."""

ENGINE_PORT = 8000
"""TCP port on the pod's loopback at which the engine listens."""

JOURNAL_DIR = "/var/lib/gpubatch"
"""Where the pod mounts the volume of the journal; it outlives the runner's container, not the pod."""

CLAIMS_DIR = "/gpubatch/claims"
"""`pvc://CLAIM/PATH` is the file `CLAIMS_DIR/CLAIM/PATH` inside the runner's container."""

CONFIGMAPS_DIR = "/gpubatch/configmaps"
"""`configmap://NAME/KEY` is the file `CONFIGMAPS_DIR/NAME/KEY` inside the runner's container."""

SECRETS_DIR = "/gpubatch/secrets"
"""`secret://NAME/KEY` stands for the URL in the file `SECRETS_DIR/NAME/KEY` inside the runner's container."""

SECRET_SCHEME = "secret"

CREDENTIALS_DIR = "/gpubatch/credentials"
"""Where the pod mounts the Secret with the credentials of storage: unlike the environment it shows a renewed one."""

POD_DIR = "/etc/gpubatch/pod"
"""Where the runner sees its own pod's annotations (a downwardAPI volume)."""

STOP_FILE = "stop"
"""File in `POD_DIR`: empty or absent, or why the run is to stop, as the annotation `STOP_ANNOTATION` says."""

STOP_ANNOTATION = "gpubatch.dev/stop"
"""Annotation of the pod by which the operator tells a run to stop: `Cancelled` or `Suspended`. The runner sees it
within seconds, saves and publishes what there is, and ends with that reason in its outcome."""

PROGRESS_DIR = "/gpubatch/progress"
"""Where each container of a template pod, and the sidecar that reads it, see the volume of the progress file."""

PROGRESS_FILE_ENV = "GPUBATCH_PROGRESS_FILE"
"""Name of the environment variable that tells a template's containers which file to write."""

PROGRESS_FILE = f"{PROGRESS_DIR}/progress"
"""Its value."""

PUSH_PORT = 9809
"""TCP port on the pod's loopback at which the sidecar of a template pod takes progress by HTTP."""

TERMINATION_LIMIT = 4096
"""Bytes that the kubelet keeps of a termination message."""

MAX_STAGE = 64
"""Characters of a stage."""

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/audio/transcriptions",
    "/v1/score",
    "/v1/rerank",
)
"""The values of `url` that a request may have."""

TRANSCRIPTIONS = "/v1/audio/transcriptions"
"""Its requests name a file by `body.file_url`; the runner fetches it and posts a form."""

PARAMS = {
    "missing_custom_id": "custom_id",
    "invalid_custom_id": "custom_id",
    "duplicate_custom_id": "custom_id",
    "invalid_method": "method",
    "invalid_url": "url",
    "missing_body": "body",
    "invalid_body": "body",
    "missing_model": "body.model",
    "model_mismatch": "body.model",
    "stream_not_supported": "body.stream",
    "missing_file_url": "body.file_url",
    "invalid_file_url": "body.file_url",
}
"""The field at fault of an invalid line, by the code of its error; other errors are about the line as a whole."""


class Reason(StrEnum):
    """Why an inspection or a run failed. Part of the API: each is explained in docs/errors.md."""

    INPUT_NOT_FOUND = "InputNotFound"
    INPUT_UNREADABLE = "InputUnreadable"
    ACCESS_DENIED = "AccessDenied"
    INVALID_REQUESTS = "InvalidRequests"
    TOO_MANY_REQUESTS = "TooManyRequests"
    INPUT_TOO_LARGE = "InputTooLarge"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    OUTPUT_EXPIRED = "OutputExpired"
    ENGINE_NOT_READY = "EngineNotReady"
    ENGINE_FAILED = "EngineFailed"
    ALL_REQUESTS_FAILED = "AllRequestsFailed"
    CANCELLED = "Cancelled"
    SUSPENDED = "Suspended"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    COMPLETION_WINDOW_EXCEEDED = "CompletionWindowExceeded"
    INTERRUPTED = "Interrupted"
    INTERNAL_ERROR = "InternalError"


def code_of(reason: str) -> str:
    """A reason as a code in OpenAI's style: `EngineFailed` is `engine_failed`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in reason).lstrip("_")


class Stage(StrEnum):
    """What a run is doing now."""

    LOADING_MODEL = "LoadingModel"
    PROCESSING = "Processing"
    UPLOADING = "Uploading"
    DONE = "Done"


class Model(BaseModel):
    """Base of the contract's documents: immutable, camelCase on the wire, unknown fields ignored when read
    (an operator and a runner of neighbouring versions understand each other during an upgrade)."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    def to_json(self) -> str:
        """Compact JSON without unset fields."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class JobRef(Model):
    """The job that a run belongs to."""

    namespace: str
    name: str
    uid: str


class Storage(Model):
    """How to reach object storage. Credentials come from the environment (`AWS_ACCESS_KEY_ID`, ...)."""

    endpoint: str | None = None
    region: str | None = None


class Upload(Model):
    """Patience with the places that results are written to. Seconds."""

    connect_seconds: float = 30.0
    read_seconds: float = Field(default=120.0, description="Without a byte of the answer.")
    write_seconds: float = Field(default=120.0, description="Without a byte of ours being taken.")
    pool_seconds: float = Field(default=10.0, description="For a free connection.")
    total_seconds: float = Field(default=600.0, description="For one attempt at one file.")
    attempts: int = Field(default=3, ge=1)
    backoff_seconds: float = Field(default=10.0, description="Before the second attempt; doubled each time.")


class Live(Model):
    """Requests come by HTTP to `PROGRESS_PORT`, and not from a file. Whoever sends one shows a key."""

    idle_timeout_seconds: float = Field(default=600.0, description="The run is done when nobody wanted anything.")
    drain_seconds: float = Field(default=100.0, description="How long requests in progress may take at the end.")
    key: str | None = Field(default=None, description="secret://NAME/KEY: the keys, one a line. None: see keyDigest.")
    key_digest: str | None = Field(default=None, description="SHA-256 of the one key, in hexadecimal.")


class RunSpec(Model):
    """Everything that the runner needs to know about one attempt (or one inspection) of an inference job.

    The requests are those of `input`, which goes with `output`; or they come by HTTP, as `live` says.
    """

    job: JobRef
    run: str = Field(description="Identity of the run; the same for all attempts of one run.")
    attempt: int = Field(ge=0, description="1 for the first attempt; 0 for an inspection.")
    served_model_name: str = Field(description="What each request must name in `body.model`.")
    live: Live | None = None
    input: str | None = Field(
        default=None, description="URL: s3://, gs://, az://, http(s)://, configmap://, pvc://; or secret://NAME/KEY."
    )
    output: str | None = Field(
        default=None, description="URL of the output file: s3://, gs://, az://, pvc://, http(s):// (PUT); or secret://."
    )
    errors: str | None = Field(
        default=None,
        description="URL of the error file, as `output`. None: the output's with '.errors.jsonl' appended; where that "
        "can only be PUT, failed requests go to the output too.",
    )
    checkpoint: str | None = Field(
        default=None,
        description="URL by which an attempt's work is kept for the next: s3://, gs://, az:// or pvc://; or secret://. "
        "None: beside the output; nowhere, where that can only be PUT.",
    )
    checkpoint_seconds: float = Field(default=300.0, description="How often it is kept, while the run goes on.")
    output_order: Literal["Completion", "Input"] = "Completion"
    storage: Storage = Storage()
    upload: Upload = Upload()
    invalid_requests: Literal["Fail", "Skip"] = "Skip"
    max_requests: int = Field(default=50_000, description="More lines than this fail the inspection.")
    max_input_bytes: int = Field(
        default=200 * 1024 * 1024, description="A longer input (unpacked) fails the inspection."
    )
    max_file_bytes: int = Field(
        default=25 * 1024 * 1024, description="A longer file of a transcription fails its request."
    )
    request_order: Literal["Auto", "Input"] = Field(
        default="Auto", description="Auto: requests that begin alike are sent next to each other where that pays."
    )
    max_concurrent_requests: int | None = Field(default=None, description="None: found by the runner itself.")
    max_queue_size: int = Field(default=100, description="Requests that the runner holds ready for the engine.")
    request_timeout_seconds: float = 300.0
    max_retries: int = Field(default=3, description="Retries of one request on 429, 5xx and connection errors.")
    engine_url: str = f"http://127.0.0.1:{ENGINE_PORT}"
    engine_start_timeout_seconds: float = 1800.0
    stop_at: float | None = Field(default=None, description="Unix time at which the run stops by itself.")
    stop_reason: Literal["DeadlineExceeded", "CompletionWindowExceeded"] = Field(
        default="DeadlineExceeded", description="The outcome's reason where `stop_at` ended the run."
    )


class EngineInfo(Model):
    """The engine as it describes itself."""

    version: str | None = None
    model: str | None = Field(default=None, description="What it loaded: hub id or path.")


# What a pod says of itself goes to its job's status, where the API server refuses what it can't hold.
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Usage(Model):
    """Tokens as the engine reported them, summed over the answered requests."""

    input_tokens: Count = 0
    output_tokens: Count = 0


class Progress(Model):
    """`GET /progress`: one truthful picture of the run at this moment.

    Of a template pod, what its containers told the sidecar; only there are `percent`, `remaining_seconds`, `metrics`.
    """

    stage: str = Field(max_length=MAX_STAGE, description="A `Stage`, or a word of the template's own.")
    message: str = ""
    total: Count | None = Field(default=None, description="Requests in the input, once known.")
    completed: Count = Field(default=0, description="Requests answered with 2xx.")
    failed: Count = Field(default=0, description="Requests in the error file (invalid ones among them).")
    rate: FiniteFloat | None = Field(default=None, description="Requests a second over the last minute or so.")
    usage: Usage = Usage()
    processing_seconds: FiniteFloat = Field(
        default=0.0, description="Seconds spent in the stage Processing, over container restarts."
    )
    engine_proven: bool = Field(
        default=False, description="Whether the engine has answered a request since it last came up."
    )
    live: bool = Field(default=False, description="Whether requests come by HTTP: nobody knows how many will.")
    percent: float | None = Field(default=None, ge=0, le=100, description="Where nothing is counted.")
    remaining_seconds: float | None = Field(default=None, ge=0, le=1e9)
    metrics: dict[Annotated[str, Field(max_length=63)], FiniteFloat] = Field(
        default={}, max_length=16, description="Loss, learning rate..."
    )
    time: datetime = Field(description="When this picture was taken, UTC.")


class Timings(Model):
    """Seconds of the attempt by what the GPU was doing meanwhile."""

    loading_model: float = 0.0
    processing: float = 0.0
    uploading: float = 0.0


class Outcome(Model):
    """The end of a run. `reason` and `message` are set unless it succeeded; counts are true in any case."""

    succeeded: bool
    reason: Reason | None = None
    message: str = ""
    total: int | None = None
    completed: int = 0
    failed: int = 0
    usage: Usage = Usage()
    output: str | None = Field(default=None, description="URL of the output file, if one was written.")
    errors: str | None = Field(default=None, description="URL of the error file, if one was written.")
    timings: Timings = Timings()


class LineError(Model):
    """One invalid line of the input, in the shape of OpenAI's `errors.data[]`."""

    line: int = Field(description="1 for the first line.")
    custom_id: str | None = None
    code: str
    message: str = Field(description="What is wrong, and what to do.")
    param: str | None = Field(default=None, description="The field at fault.")


class Inspection(Model):
    """The end of an inspection. `valid` says whether the job may be queued (some lines may still be invalid,
    where the job's policy is to skip those)."""

    valid: bool
    reason: Reason | None = None
    message: str = ""
    requests: int = Field(default=0, description="Valid requests.")
    invalid: int = Field(default=0, description="Invalid lines.")
    input_tokens: int = Field(default=0, description="Prompt tokens.")
    tokens_from: Literal["Bytes", "Tokenizer"] = Field(
        default="Bytes", description="Whether they are estimated, 4 bytes a token, or counted by a tokenizer."
    )
    max_output_tokens: int = Field(default=0, description="Sum of the requests' own bounds where given.")
    first_errors: tuple[LineError, ...] = Field(default=(), description="The first few invalid lines.")
    errors: str | None = Field(default=None, description="URL of the complete list, if one was written.")

"""`spec.inference` of a `GPUBatchJob`: requests from a file or over HTTP, the engine that answers them, and where
results go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from gpubatch_operator.api.base import ApiModel, Name, RawObject, Seconds, rule


class EnvVar(RawObject):
    """An environment variable, as in a container's `env`."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    value: Annotated[str, Field(max_length=32768)] | None = None


class Volume(RawObject):
    """A volume, as in a pod's `volumes`."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = Field(
        description="Name of the volume; names that begin with `gpubatch-` are ours.",
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("!self.startsWith('gpubatch-')", "volume names that begin with 'gpubatch-' are reserved")
            ]
        },
    )


class VolumeMount(RawObject):
    """A volume's place in the engine's container, as in a container's `volumeMounts`."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    mount_path: Annotated[str, Field(min_length=1, max_length=1024)] = Field(alias="mountPath")


Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


class Resources(ApiModel):
    """CPU and memory of the engine's container. GPUs are asked for by `spec.gpus`."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None


class Engine(ApiModel):
    """The OpenAI-compatible server beside the runner. What is left out comes from the operator's settings."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None,
        description="Image of the engine, for instance vllm/vllm-openai:v0.11.0. Default: the operator's setting.",
    )
    args: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=128)] = Field(
        default=[],
        description="Arguments added after --model, --served-model-name, --host and --port, which the operator sets.",
    )
    env: Annotated[list[EnvVar], Field(max_length=128)] = Field(default=[], description="Environment of the engine.")
    resources: Resources = Field(default=Resources(), description="CPU and memory of the engine.")
    volumes: Annotated[list[Volume], Field(max_length=32)] = Field(default=[], description="Volumes of the pod.")
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=64)] = Field(
        default=[], description="Where the engine sees those volumes."
    )
    start_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = Field(
        default=1800,
        description="How long the engine may take until it answers /health, and to come back after a crash.",
    )


class SecretKey(ApiModel):
    """A key of a Secret in the job's namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="Its key."
    )


class UrlSource(ApiModel):
    """Where a URL is read from, by the runner and each time that it is needed: a renewed one counts at once."""

    secret_key_ref: SecretKey = Field(
        description="A Secret's key whose value is the URL and nothing else: a presigned URL is a credential."
    )


class KeySource(ApiModel):
    """Where the keys of live requests are read from, by the runner: renewed ones count at once."""

    secret_key_ref: SecretKey = Field(description="A Secret's key whose value is one key a line.")


Url = Annotated[str, Field(min_length=1, max_length=4096)]
ONE_URL: JsonDict = {
    "x-kubernetes-validations": [rule("has(self.url) != has(self.urlFrom)", "set exactly one of url and urlFrom")]
}
STORES = "s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY"


def urls(pattern: str, message: str) -> JsonDict:
    """What a URL must look like."""
    return {"x-kubernetes-validations": [rule(f"self.matches('{pattern}')", message)]}


class Live(ApiModel):
    """Requests come over HTTP while the job runs, to where status.live says."""

    idle_timeout_seconds: Seconds = Field(
        default=600, description="The job has succeeded when nobody wanted anything for so long."
    )
    key_from: KeySource | None = Field(
        default=None,
        description="The key that clients show (Authorization: Bearer KEY). Default: one that the operator derives for "
        "this job alone, and that only the gateway knows.",
    )


class Input(ApiModel):
    """Where the requests are."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "[has(self.url), has(self.urlFrom), has(self.live)].filter(given, given).size() == 1",
                    "set exactly one of url, urlFrom and live",
                )
            ]
        }
    )

    url: Url | None = Field(
        default=None,
        description=f"A file with one request in each line, as in OpenAI's Batch API: {STORES}, http(s)://HOST/PATH, "
        "configmap://NAME/KEY or pvc://CLAIM/PATH.",
        json_schema_extra=urls(
            "^((s3|gs|az|configmap|pvc)://[^/]+/.+|https?://[^/]+(/.*)?)$",
            f"input.url must be {STORES}, http(s)://HOST/PATH, configmap://NAME/KEY or pvc://CLAIM/PATH",
        ),
    )
    url_from: UrlSource | None = Field(
        default=None, description="The URL out of a Secret: s3://, gs://, az:// or http(s)://."
    )
    live: Live | None = Field(
        default=None,
        description="No file: the runner takes requests over HTTP, and ends when nobody sends any. Needs no output.",
    )


class Output(ApiModel):
    """Where a file of results goes."""

    model_config = ConfigDict(json_schema_extra=ONE_URL)

    url: Url | None = Field(
        default=None,
        description=f"{STORES} or pvc://CLAIM/PATH; or http(s)://HOST/PATH, which gets one PUT of the whole file.",
        json_schema_extra=urls(
            "^((s3|gs|az|pvc)://[^/]+/.+|https?://[^/]+(/.*)?)$",
            f"url must be {STORES}, pvc://CLAIM/PATH or http(s)://HOST/PATH",
        ),
    )
    url_from: UrlSource | None = Field(
        default=None,
        description="The URL out of a Secret, a presigned one for instance: s3://, gs://, az:// or http(s)://.",
    )


class Checkpoint(ApiModel):
    """Where a job's unfinished work is kept, to be read back by its next attempt."""

    model_config = ConfigDict(json_schema_extra=ONE_URL)

    url: Url | None = Field(
        default=None,
        description=f"{STORES} or pvc://CLAIM/PATH; names of files are appended to it.",
        json_schema_extra=urls("^(s3|gs|az|pvc)://[^/]+/.+$", f"url must be {STORES} or pvc://CLAIM/PATH"),
    )
    url_from: UrlSource | None = Field(default=None, description="The URL out of a Secret: s3://, gs:// or az://.")


class Storage(ApiModel):
    """How to reach s3://, gs:// and az:// locations."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")] | None = Field(
        default=None, description="URL of the store's endpoint. Default: the cloud's own."
    )
    region: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Of s3:// locations. Default: us-east-1."
    )
    secret_name: Name | None = Field(
        default=None,
        description="A Secret in the job's namespace. For s3:// with the keys AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, for gs:// GOOGLE_SERVICE_ACCOUNT_KEY, for az:// AZURE_STORAGE_ACCOUNT_NAME and "
        "AZURE_STORAGE_ACCOUNT_KEY. Default: the service account's own identity.",
    )


class Upload(ApiModel):
    """Patience with the places that results are written to. What is left out comes from the operator's settings."""

    connect_seconds: Seconds | None = Field(default=None, description="For a connection.")
    read_seconds: Seconds | None = Field(default=None, description="Without a byte of the answer.")
    write_seconds: Seconds | None = Field(default=None, description="Without a byte of ours being taken.")
    pool_seconds: Seconds | None = Field(default=None, description="For a free connection.")
    total_seconds: Seconds | None = Field(default=None, description="For one attempt at one file.")
    attempts: Annotated[int, Field(ge=1, le=20)] | None = Field(default=None, description="At each file.")
    backoff_seconds: Seconds | None = Field(
        default=None, description="Before the second attempt; doubled each time, with jitter."
    )


class Inference(ApiModel):
    """OpenAI-format requests, from a file or over HTTP, answered by an engine that the job brings up for itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("has(self.input.live) || has(self.output)", "output is missing; set output.url or output.urlFrom"),
                rule(
                    "!has(self.input.live) || !has(self.output) && !has(self.errors) && !has(self.checkpoint)",
                    "input.live has no files: its clients get the answers; remove output, errors and checkpoint",
                ),
                rule(
                    "!has(self.input.live) || self.outputOrder == 'Completion' && self.requestOrder == 'Auto' && "
                    "self.invalidRequests == 'Skip'",
                    "outputOrder, requestOrder and invalidRequests are about files; remove them, or input.live",
                ),
            ]
        }
    )

    model: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="Hub id or path of the model, passed to the engine as --model."
    )
    served_model_name: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="What requests name in body.model. Default: model."
    )
    engine: Engine = Field(default=Engine(), description="The engine: image, arguments, resources, volumes.")
    input: Input = Field(description="The requests.")
    output: Output | None = Field(
        default=None,
        description="The answers, one line a request, in the format of OpenAI's Batch API. Needed unless input.live.",
    )
    errors: Output | None = Field(
        default=None,
        description="Failed requests and invalid lines. Default: the output's URL with '.errors.jsonl' appended; where "
        "the output is PUT to, they go to the output too.",
    )
    checkpoint: Checkpoint | None = Field(
        default=None,
        description="Where unfinished work is kept for the job's next attempt. Default: beside the output. An output "
        "that is PUT to has nothing beside it: without a checkpoint, an attempt that is lost leaves nothing, and one "
        "whose URL has expired loses its results.",
    )
    output_order: Literal["Completion", "Input"] = Field(
        default="Completion",
        description="Order of the lines in the output: as the requests were finished, or as in the input.",
    )
    storage: Storage = Field(default=Storage(), description="Endpoint and credentials of the stores.")
    upload: Upload = Field(default=Upload(), description="Time limits and attempts of uploads.")
    max_concurrent_requests: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="Requests in flight at the engine. Default: found by the runner, so that the engine's own queue is "
        "short but never empty.",
    )
    max_queue_size: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=100,
        description="Requests that the runner holds ready beside those in flight. A live one beyond that gets 503.",
    )
    max_request_retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=3,
        description="Retries of one request after 429, 5xx or a broken connection; then that is its answer. A live one "
        "is tried again only after a broken connection.",
    )
    request_order: Literal["Auto", "Input"] = Field(
        default="Auto",
        description="In which order requests are sent. Auto: those that begin alike go next to each other where that "
        "pays, so that the engine computes a shared beginning once. Input: as they stand in the input.",
    )
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = Field(
        default=300,
        description="A request without an answer by then is recorded as failed with code 408. Of a live one the time "
        "in the queue counts too, and of a stream that between two parts.",
    )
    invalid_requests: Literal["Skip", "Fail"] = Field(
        default="Skip",
        description="What to do with invalid lines. Skip: they go to the error file, the others run. "
        "Fail: the job fails before it is queued.",
    )

"""What a user writes: `spec` of a `GPUBatchJob`.

The single source of the CRD's schema: every description below is what `kubectl explain` prints, every bound is
enforced by the API server. Rules that span several fields are CEL, in `json_schema_extra`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

from gpubatch_operator.api.base import ApiModel, Name, Seconds, rule
from gpubatch_operator.api.webhooks import Webhook

QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

RUN_ID = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

Text = Annotated[str, Field(max_length=1024)]
Duration = Annotated[int, Field(ge=1, le=31_536_000)]


class RawObject(BaseModel):
    """A Kubernetes object that is passed on as it is; the API server checks it when the pod is created."""

    model_config = ConfigDict(
        frozen=True, extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )

    def raw(self) -> dict[str, JsonValue]:
        """The object as it was written."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Toleration(ApiModel):
    """A taint that the job's pods tolerate, as in a pod's `tolerations`."""

    key: Annotated[str, Field(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Empty matches all effects."
    )
    toleration_seconds: int | None = None


class LocalObject(ApiModel):
    """An object in the job's own namespace, by name."""

    name: Name


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
        description="Its key; the value is a URL and nothing else."
    )


class UrlSource(ApiModel):
    """Where a URL is read from, by the runner and each time that it is needed: a renewed one counts at once."""

    secret_key_ref: SecretKey = Field(description="A Secret's key: a presigned URL is a credential.")


Url = Annotated[str, Field(min_length=1, max_length=4096)]
ONE_URL: JsonDict = {
    "x-kubernetes-validations": [rule("has(self.url) != has(self.urlFrom)", "set exactly one of url and urlFrom")]
}
STORES = "s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY"


def urls(pattern: str, message: str) -> JsonDict:
    """What a URL must look like."""
    return {"x-kubernetes-validations": [rule(f"self.matches('{pattern}')", message)]}


class Input(ApiModel):
    """Where the requests are."""

    model_config = ConfigDict(json_schema_extra=ONE_URL)

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
    """A file of OpenAI-format requests, answered by an engine that the job brings up for itself."""

    model: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="Hub id or path of the model, passed to the engine as --model."
    )
    served_model_name: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="What requests name in body.model. Default: model."
    )
    engine: Engine = Field(default=Engine(), description="The engine: image, arguments, resources, volumes.")
    input: Input = Field(description="The requests.")
    output: Output = Field(description="The answers, one line a request, in the format of OpenAI's Batch API.")
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
        default=100, description="Requests that the runner holds ready beside those in flight."
    )
    max_request_retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=3, description="Retries of one request after 429, 5xx or a broken connection; then that is its answer."
    )
    request_order: Literal["Auto", "Input"] = Field(
        default="Auto",
        description="In which order requests are sent. Auto: those that begin alike go next to each other where that "
        "pays, so that the engine computes a shared beginning once. Input: as they stand in the input.",
    )
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = Field(
        default=300, description="A request without an answer by then is recorded as failed with code 408."
    )
    invalid_requests: Literal["Skip", "Fail"] = Field(
        default="Skip",
        description="What to do with invalid lines. Skip: they go to the error file, the others run. "
        "Fail: the job fails before it is queued.",
    )


class Container(RawObject):
    """A container, as in a pod. GPUs are asked for by `spec.gpus`."""

    name: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("!self.startsWith('gpubatch-')", "container names that begin with 'gpubatch-' are reserved")
            ]
        },
    )


class Affinity(RawObject):
    """Affinity to other pods, as in a pod's spec."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
            "x-kubernetes-validations": [
                rule("!has(self.nodeAffinity)", "the operator chooses the node; use spec.nodeSelector to restrict it")
            ],
        }
    )

    node_affinity: RawObject | None = Field(
        default=None, alias="nodeAffinity", description="The operator chooses the node; use spec.nodeSelector."
    )


class TemplatePodSpec(RawObject):
    """A pod's spec. The operator adds the GPU, the node and the restart policy."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
            "x-kubernetes-validations": [
                rule(f"!has(self.{field})", f"{field} is set by the operator; remove it from the template")
                for field in ("priorityClassName", "nodeName", "schedulerName", "restartPolicy", "priority")
            ],
        }
    )

    containers: Annotated[list[Container], Field(min_length=1, max_length=16)] = Field(
        description="Containers of the pod; the first one gets the GPU."
    )
    init_containers: Annotated[list[Container], Field(max_length=16)] = Field(
        default=[], alias="initContainers", description="Run before those, one after another; sidecars among them."
    )
    volumes: Annotated[list[Volume], Field(max_length=32)] = Field(default=[], description="Volumes of the pod.")
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=3600)] | None = Field(
        default=None,
        alias="terminationGracePeriodSeconds",
        description="Between SIGTERM and SIGKILL: time to save a checkpoint. Default: 120.",
    )
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default={}, alias="nodeSelector", description="Labels that the node must have, beside spec.nodeSelector."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default=[], description="Taints that the pod tolerates, beside spec.tolerations."
    )
    affinity: Affinity | None = Field(default=None, description="Affinity to other pods.")
    priority_class_name: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, alias="priorityClassName", description="Set by the operator."
    )
    priority: int | None = Field(default=None, description="Set by the operator.")
    node_name: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, alias="nodeName", description="Set by the operator."
    )
    scheduler_name: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, alias="schedulerName", description="Set by the operator."
    )
    restart_policy: Annotated[str, Field(max_length=16)] | None = Field(
        default=None, alias="restartPolicy", description="Set by the operator: Never."
    )


class TemplateMetadata(ApiModel):
    """Labels and annotations of the job's pods; those under gpubatch.dev/ are the operator's."""

    labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(default={})
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(default={})


class Template(ApiModel):
    """A pod template for anything else that needs GPUs to itself: training, evaluation, a tool of one's own."""

    metadata: TemplateMetadata = TemplateMetadata()
    spec: TemplatePodSpec


class JobSpec(ApiModel):
    """What to run and how urgently. Exactly one of `inference` and `template` is the work."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("has(self.inference) != has(self.template)", "set exactly one of inference and template"),
                rule(
                    "has(self.inference) == has(oldSelf.inference) && has(self.template) == has(oldSelf.template)",
                    "inference and template can't be added or removed; delete the job and create a new one",
                ),
            ]
        }
    )

    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=0, description="Higher runs first: -1 low, 0 normal, 1 high; any integer from -1000 to 1000."
    )
    suspend: bool = Field(
        default=False,
        description="true: the job leaves the queue, or gives its slot up after saving what it has. false again: it "
        "waits at the place that its creation gives it, and goes on from what was saved.",
    )
    cancel: bool = Field(
        default=False,
        description="true: the job ends as Cancelled; what was answered until then is kept. It can't be taken back, "
        "but a new runId runs the job again.",
    )
    run_id: Annotated[str, Field(min_length=1, max_length=63, pattern=RUN_ID)] | None = Field(
        default=None,
        description="A new value runs a finished job again, in place, as if it had been created anew. With it, all "
        "other fields may change too.",
    )
    backoff_limit: Annotated[int, Field(ge=0, le=10)] = Field(
        default=0,
        description="How often a failed attempt is tried again, after 10, 20, 40... seconds. Attempts that the cluster "
        "lost don't count.",
    )
    active_deadline_seconds: Duration | None = Field(
        default=None, description="The job fails when its attempts have run for so long together."
    )
    queue_deadline_seconds: Duration | None = Field(
        default=None, description="The job fails when it has waited for so long without ever running."
    )
    completion_window_seconds: Duration | None = Field(
        default=None,
        description="The job fails when it hasn't finished so long after its creation; what was answered until then "
        "is kept.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None,
        description="The job is deleted so long after its end; one that Argo CD or Flux tracks is not. Default: never.",
    )
    gpus: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="GPUs of one node that the job needs.")
    gpu_resource: Annotated[str, Field(min_length=1, max_length=317, pattern=QUALIFIED_NAME)] = Field(
        default="nvidia.com/gpu", description="The extended resource that counts as a GPU."
    )
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default={}, description="Labels that the node must have."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default=[], description="Taints that the job tolerates; that of its GPU resource is added."
    )
    service_account_name: Name | None = Field(
        default=None, description="Service account of the job's pods. Default: the namespace's default, with no token."
    )
    image_pull_secrets: Annotated[list[LocalObject], Field(max_length=16)] = Field(
        default=[], description="Secrets for pulling the job's images."
    )
    estimated_duration_seconds: Duration | None = Field(
        default=None, description="How long the job will run, if you know; used for estimates until we know better."
    )
    inference: Inference | None = Field(default=None, description="A batch of requests for an inference engine.")
    template: Template | None = Field(default=None, description="Any other pod that needs GPUs to itself.")
    webhooks: Annotated[list[Webhook], Field(max_length=8)] = Field(
        default=[],
        description="Who is told about the job. Can be edited at any time.",
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "self.all(w, !has(w.name) || self.exists_one(v, has(v.name) && v.name == w.name))",
                    "the names of webhooks must differ",
                )
            ]
        },
    )

    @property
    def kind(self) -> Literal["inference", "template"]:
        """Which of the two workloads the job has."""
        return "inference" if self.inference is not None else "template"


def parse(raw: dict[str, Any]) -> JobSpec:
    """A job's spec as the API server returned it (its schema has been enforced there)."""
    return JobSpec.model_validate(raw)

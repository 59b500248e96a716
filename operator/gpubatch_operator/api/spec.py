"""What a user writes: `spec` of a `GPUBatchJob`.

The single source of the CRD's schema: every description below is what `kubectl explain` prints, every bound is
enforced by the API server. Rules that span several fields are CEL, in `json_schema_extra`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gpubatch_operator.api.base import ApiModel, LocalObject, Name, RawObject, rule
from gpubatch_operator.api.inference import Inference, Volume
from gpubatch_operator.api.webhooks import Webhook

QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

RUN_ID = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

Duration = Annotated[int, Field(ge=1, le=31_536_000)]


class Toleration(ApiModel):
    """A taint that the job's pods tolerate, as in a pod's `tolerations`."""

    key: Annotated[str, Field(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Empty matches all effects."
    )
    toleration_seconds: int | None = None


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

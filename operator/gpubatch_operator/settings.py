"""The operator's settings: one object, documented field by field.

Each field is read from the environment variable `GPUBATCH_` plus its name in capitals; the Helm chart sets them from
values of the same names in camelCase under `settings`.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from gpubatch_operator.core import limits
from gpubatch_operator.core.model import Aging, Policy

PREFIX = "GPUBATCH_"


class SettingsError(Exception):
    """A setting has a value that can't be used; the message names its environment variable."""


class NamespaceCaps(BaseModel):
    """What an administrator allows the jobs of one namespace; what is left out isn't capped."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    max_queue_depth: int | None = Field(default=None, ge=0, description="Jobs that may wait at a time.")
    max_slots: int | None = Field(default=None, ge=0, description="Slots that its jobs may hold at a time.")
    max_priority: int | None = Field(default=None, ge=-1000, le=1000, description="Highest priority of its jobs.")


def listed(text: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part for part in map(str.strip, text.split(",")) if part]


class Settings(BaseModel):
    """See each field's description. Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runner_image: str = Field(
        default="ghcr.io/gpubatch/runner:0.1.0", description="Image of the runner, of the operator's own version."
    )
    engine_image: str = Field(
        default="vllm/vllm-openai:v0.11.0", description="Image of the engine for jobs that don't name one."
    )
    image_pull_policy: str = Field(default="IfNotPresent", description="imagePullPolicy of engine and runner.")
    priority_class: str = Field(
        default="gpubatch-runner",
        description="PriorityClass of runner pods; it must never preempt, or a waiting job could kill a running one.",
    )
    max_inspections: int = Field(default=8, ge=1, description="Inspect pods at a time; more wait in phase Validating.")
    max_requests_per_job: int = Field(default=50_000, ge=1, description="A job with more requests fails validation.")
    max_input_bytes_per_job: int = Field(
        default=209_715_200, ge=1, description="The same for a job whose input is longer, unpacked."
    )
    max_file_bytes: int = Field(
        default=26_214_400, ge=1, description="Longest file of a transcription; a longer one fails its request."
    )
    max_queue_depth: int = Field(
        default=20, ge=1, description="Jobs that may wait at a time: Validating, Queued or in back-off."
    )
    max_total_queued_requests: int = Field(
        default=1_000_000, ge=1, description="Requests of all inference jobs that wait; a job beyond that is held back."
    )
    full_queue_policy: Literal["", "Reject", "Hold"] = Field(
        default="",
        description="A job that comes to a full queue: Reject refuses its creation, Hold takes it in and lets it enter "
        "when there is room. Default: Reject with the admission webhook, Hold without.",
    )
    namespace_caps: dict[str, NamespaceCaps] = Field(
        default={},
        description="Caps by namespace: maxQueueDepth, maxSlots, maxPriority. The entry * is for all namespaces "
        "without one of their own. As a variable, JSON.",
    )
    allow_privileged_pods: bool = Field(
        default=False,
        description="Whether templates (and the engine's volumes) may ask for the node itself: hostPath, host "
        "namespaces and ports, privileged containers, added capabilities.",
    )
    progress_sidecar: bool = Field(
        default=True,
        description="Whether template pods get the sidecar that shows how far they are; without it they start and end "
        "some seconds sooner.",
    )
    slots_per_node: int = Field(default=1, ge=1, le=64, description="Jobs at a time on a node.")
    image_pull_seconds: float = Field(
        default=300, ge=1, description="A job whose image can't be pulled for so long fails, so that it frees its slot."
    )
    start_seconds: float = Field(
        default=60, ge=1, description="The same for containers that can't be created: a missing Secret, a bad command."
    )
    unschedulable_seconds: float = Field(
        default=120,
        ge=1,
        description="A runner pod that kube-scheduler can't place for so long gives its slot up; the job waits again.",
    )
    scale_up_pods: int = Field(
        default=1,
        ge=0,
        description="Jobs at a time that fit no node there is and get their pod nevertheless, so that an autoscaler "
        "makes a node for it; 0 where there is none.",
    )
    scale_up_seconds: float = Field(
        default=900, ge=1, description="If no node has come for such a pod after so long, another job gets the chance."
    )
    stop_seconds: float = Field(
        default=60,
        ge=1,
        description="A runner that was asked to stop has so long to save and end by itself; then its pod is deleted.",
    )
    unresponsive_seconds: float = Field(
        default=60, ge=1, description="A runner that hasn't answered for so long is reported as Unresponsive."
    )
    aging_step: int = Field(
        default=0, ge=0, le=1000, description="By how much waiting raises a job's priority each time; 0: it doesn't."
    )
    aging_interval_seconds: float = Field(default=3600, ge=1, description="How often waiting raises it.")
    aging_cap: int = Field(default=1, ge=0, le=2000, description="By how much it may be raised in all.")
    runner_memory: str = Field(
        default="1Gi", pattern=r"^[0-9]+(Mi|Gi)$", description="Memory limit of the runner's container."
    )
    image_pull_secrets: str = Field(
        default="",
        description="Comma-separated Secrets, in the jobs' namespaces, that pull runner and engine besides each job's "
        "own imagePullSecrets.",
    )
    model_cache_claim: str = Field(
        default="",
        max_length=253,
        description="PersistentVolumeClaim, in each job's namespace, that engines keep downloaded models in (HF_HOME). "
        "Without it, and without modelCachePath, each job downloads its own.",
    )
    model_cache_path: str = Field(
        default="",
        pattern="^(/.+)?$",
        max_length=4096,
        description="The same as a folder of each node, which must exist and which user 65532 may write to. Namespaces "
        "whose Pod Security is baseline or restricted refuse it.",
    )
    model_token_secret: str = Field(
        default="",
        max_length=253,
        description="Secret, in each job's namespace, whose key token engines give to the models' hub as HF_TOKEN; it "
        "may be missing.",
    )
    engine_restarts: int = Field(
        default=5, ge=1, description="An engine that ended so often with no answer between ends the attempt."
    )
    runner_restarts: int = Field(default=10, ge=1, description="The same for the runner.")
    instance: str = Field(
        default="",
        pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$",
        max_length=53,
        description="Name of this installation, and of its own objects. Default: the release's name, or gpubatch.",
    )
    replica: str = Field(
        default="",
        max_length=253,
        description="Name of this replica in the Lease, which no other living process may have. Default: the pod's "
        "name; outside the chart a random one.",
    )
    namespace: str = Field(
        default="",
        pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$",
        max_length=63,
        description="Where the operator's own objects are. Default: its own namespace; outside a cluster default.",
    )
    watch_namespaces: str = Field(
        default="",
        max_length=16384,
        pattern=r"^(\s*[a-z0-9]([-a-z0-9]*[a-z0-9])?\s*(,|$))*$",
        description="Comma-separated namespaces whose jobs are run, others are left alone. Default: all. The "
        "chart then makes a Role in each, in the place of rights in all.",
    )
    read_nodes: bool = Field(
        default=True,
        description="Whether nodes may be read, which takes a ClusterRole. Without, kube-scheduler chooses the nodes, "
        "and scaleUpPods jobs at a time are given to it.",
    )
    lease_duration_seconds: float = Field(
        default=15, gt=0, description="How long the other replicas wait after the leader's last sign of life."
    )
    lease_renew_seconds: float = Field(
        default=10,
        gt=0,
        description="A leader that couldn't renew its lease for so long ends; shorter than leaseDurationSeconds.",
    )
    lease_retry_seconds: float = Field(
        default=2, gt=0, description="How often the lease is renewed; shorter than leaseRenewSeconds."
    )
    admission_port: int = Field(
        default=9443, ge=0, le=65535, description="Port of the admission webhook; 0 serves none, and installs none."
    )
    admission_names: str = Field(
        default="",
        description="Comma-separated names and addresses that the webhook's certificate is for besides its Service.",
    )
    admission_certificate_seconds: float = Field(
        default=7_776_000, ge=10, description="Life of the webhook's certificate; it is renewed after two thirds of it."
    )
    admission_certificate_folder: str = Field(
        default="",
        description="Folder with tls.crt and tls.key that others keep fresh. Default: the operator makes its own "
        "certificate, and publishes it.",
    )
    progress_seconds: float = Field(default=2.0, gt=0, description="How often each runner is asked for its progress.")
    resync_seconds: float = Field(
        default=300, gt=0, description="How often the store is compared with the API server, to heal lost events."
    )
    webhook_attempts: int = Field(default=3, ge=1, le=50, description="Attempts of a delivery until it is given up.")
    webhook_backoff_seconds: float = Field(
        default=5, gt=0, description="Delay after the first failed attempt; doubled each time, with jitter."
    )
    webhook_max_backoff_seconds: float = Field(
        default=86_400, gt=0, le=604_800, description="Longest delay between two attempts of a delivery."
    )
    webhook_connect_seconds: float = Field(
        default=5, gt=0, le=300, description="Time limit for a connection to a receiver, TLS and all."
    )
    webhook_read_seconds: float = Field(default=10, gt=0, le=300, description="The same without a byte of its answer.")
    webhook_timeout_seconds: float = Field(
        default=10, gt=0, le=300, description="Time limit of one delivery attempt in all."
    )
    webhook_allowed_networks: str = Field(
        default="",
        description="Comma-separated CIDRs of private addresses that webhooks may reach besides public ones.",
    )
    checkpoint_seconds: float = Field(
        default=300,
        ge=1,
        description="How often a run's results are kept for another attempt, should its pod or node be lost: so much "
        "work is done twice at most. Each time all of them are uploaded.",
    )
    upload_connect_seconds: float = Field(
        default=30, ge=1, description="Time limit for a connection to a place that results are written to."
    )
    upload_read_seconds: float = Field(default=120, ge=1, description="The same without a byte of the answer.")
    upload_write_seconds: float = Field(default=120, ge=1, description="The same without a byte of ours being taken.")
    upload_pool_seconds: float = Field(default=10, ge=1, description="The same for a free connection.")
    upload_total_seconds: float = Field(default=600, ge=1, description="The same for one attempt at one file.")
    upload_attempts: int = Field(default=3, ge=1, le=20, description="Attempts at writing a file of results.")
    upload_backoff_seconds: float = Field(
        default=10, ge=1, description="Delay after the first failed attempt; doubled each time, with jitter."
    )
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Port of /metrics; 0 serves none.")
    health_port: int = Field(default=8080, ge=0, le=65535, description="Port of /healthz and /readyz; 0 serves none.")
    http_port: int = Field(
        default=8081,
        ge=0,
        le=65535,
        description="Port of the read-only HTTP endpoints and the page, for callers with a token; 0 serves none.",
    )
    loopback_port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="The same on the pod's loopback without a token, for kubectl port-forward; 0 serves none.",
    )
    log_format: str = Field(default="json", pattern="^(json|text)$", description="json for machines, text for people.")

    @field_validator("namespace_caps", mode="before")
    @classmethod
    def _is_json(cls, value: object) -> object:
        """Variables are text."""
        return json.loads(value or "{}") if isinstance(value, str) else value

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        """At the start and with the variable's name, rather than when the first webhook is due."""
        for part in listed(text):
            ipaddress.ip_network(part)
        return text

    @model_validator(mode="after")
    def _one_cache(self) -> Self:
        if self.model_cache_claim and self.model_cache_path:
            raise ValueError("GPUBATCH_MODEL_CACHE_CLAIM and GPUBATCH_MODEL_CACHE_PATH are both set: set one of them")
        return self

    @model_validator(mode="after")
    def _lease_is_possible(self) -> Self:
        if not self.lease_retry_seconds < self.lease_renew_seconds < self.lease_duration_seconds:
            given = (self.lease_retry_seconds, self.lease_renew_seconds, self.lease_duration_seconds)
            raise ValueError(
                "GPUBATCH_LEASE_RETRY_SECONDS < GPUBATCH_LEASE_RENEW_SECONDS < GPUBATCH_LEASE_DURATION_SECONDS "
                f"must hold, they are {given}"
            )
        return self

    def namespaces_watched(self) -> tuple[str, ...]:
        """Each once; empty: all."""
        return tuple(dict.fromkeys(listed(self.watch_namespaces)))

    def queue_limits(self) -> limits.QueueLimits:
        """What may wait at a time, as the core sees it."""
        caps = {name: limits.NamespaceCaps(**c.model_dump()) for name, c in self.namespace_caps.items()}
        return limits.QueueLimits(self.max_queue_depth, self.max_total_queued_requests, caps)

    def policy(self) -> Policy:
        """What the planner has to heed."""
        return Policy(
            aging=Aging(self.aging_step, self.aging_interval_seconds, self.aging_cap),
            scale_up=self.scale_up_pods,
            max_slots={n: c.max_slots for n, c in self.namespace_caps.items() if c.max_slots is not None},
        )

    @property
    def rejects(self) -> bool:
        """Whether a job that comes to a full queue is refused by the admission webhook."""
        return bool(self.admission_port) and self.full_queue_policy in ("", "Reject")


S = TypeVar("S", bound=BaseModel)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: A variable has an unusable value.
    """
    return read(Settings, PREFIX, environ)


def read(model: type[S], prefix: str, environ: Mapping[str, str]) -> S:
    """Settings out of the variables whose names are `prefix` and a field's name in capitals.

    Raises:
        SettingsError: A variable has an unusable value.
    """
    given = {k.removeprefix(prefix).lower(): v for k, v in environ.items() if k.startswith(prefix)}
    known = {k: v for k, v in given.items() if k in model.model_fields}
    try:
        return model.model_validate(known)
    except ValidationError as e:
        first = e.errors()[0]
        if not first["loc"]:
            raise SettingsError(first["msg"]) from None
        name, *inside = map(str, first["loc"])
        where = f" at {'.'.join(inside)}" if inside else ""
        variable = f"{prefix}{name.upper()}"
        if name not in known:
            raise SettingsError(f"{variable} is missing: {first['msg']}") from None
        raise SettingsError(f"{variable}={known[name]!r} can't be used{where}: {first['msg']}") from None

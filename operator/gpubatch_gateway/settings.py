"""The gateway's settings: one object, documented field by field.

Each field is read from the environment variable `GPUBATCH_GATEWAY_` plus its name in capitals; the Helm chart sets them
from values of the same names in camelCase under `gateway.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gpubatch_operator.addresses import networks
from gpubatch_operator.settings import listed, read
from gpubatch_runner.contract import Upload

PREFIX = "GPUBATCH_GATEWAY_"


class Settings(BaseModel):
    """See each field's description. Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage_url: str = Field(
        default="pvc://gpubatch-gateway/gpubatch",
        pattern=r"^(s3|gs|az|pvc)://[^/]+(/[A-Za-z0-9._-]+)*$",
        max_length=1024,
        description="Where files are: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or "
        "pvc://CLAIM/PREFIX, a claim in the gateway's own namespace: batches can then be made in that namespace only.",
    )
    storage_endpoint: str = Field(
        default="", max_length=2048, description="URL of the store's endpoint. Default: the cloud's own."
    )
    storage_region: str = Field(default="", max_length=64, description="Of s3://. Default: us-east-1.")
    storage_secret_name: str = Field(
        default="",
        max_length=253,
        description="Secret in each job's namespace with the keys by which its runner reads and writes the store, as "
        "spec.inference.storage.secretName. Let those keys open no more than the namespace's folder of PREFIX.",
    )
    namespace: str = Field(
        default="default", max_length=63, description="The gateway's own namespace. Default: the release's."
    )
    watch_namespaces: str = Field(
        default="",
        max_length=16384,
        description="Comma-separated namespaces in which there may be jobs. Default: all; the operator's own "
        "watchNamespaces, if set.",
    )
    max_file_bytes: int = Field(
        default=536_870_912, ge=1, description="Longest file that can be uploaded; the operator has limits of its own."
    )
    max_uploads: int = Field(
        default=4, ge=1, le=256, description="Uploads at a time of a replica, of some 32 MiB of memory each; more wait."
    )
    body_seconds: float = Field(
        default=60, gt=0, description="Time limit without a byte from a client that sends, or to one that reads."
    )
    min_upload_bytes_per_second: int = Field(
        default=16_384, ge=0, description="An upload that is slower on average, after bodySeconds, is ended."
    )
    request_seconds: float = Field(
        default=60, gt=0, description="Time limit of a request, apart from the content of files and from live requests."
    )
    worker_policy: Literal["Accept", "Refuse"] = Field(
        default="Accept",
        description="A batch that comes when no node with the model's GPUs is ready: Accept takes it with a warning, "
        "Refuse answers 503. Nodes that an autoscaler adds come only for jobs that wait.",
    )
    worker_offline_seconds: float = Field(
        default=60, ge=0, description="Nodes that aren't ready for so long count as offline."
    )
    read_nodes: bool = Field(
        default=True, description="Whether nodes may be read, which takes a ClusterRole; without, none is ever offline."
    )
    batch_ttl_seconds: int = Field(
        default=2_592_000,
        ge=0,
        le=31_536_000,
        description="A batch is forgotten so long after its end; its files stay. A model's template may say otherwise.",
    )
    sweep_seconds: float = Field(
        default=3600, ge=1, description="How often what killed replicas left of uploads is looked for, and removed."
    )
    unfinished_seconds: float = Field(
        default=86_400, ge=1, description="An upload that isn't finished after so long is such a remainder."
    )
    live_secret_name: str = Field(
        default="gpubatch-live",
        max_length=253,
        description="Secret in the gateway's own namespace from which the operator derives the keys of live jobs. "
        "Default: the operator's instance and -live.",
    )
    live_idle_seconds: int = Field(
        default=600, ge=1, le=31_536_000, description="A live job that the gateway has started ends after so long idle."
    )
    live_request_seconds: float = Field(
        default=300,
        gt=0,
        description="Until a live request's answer begins, the wait for its job included; and between two parts of it.",
    )
    live_max_waiting: int = Field(
        default=100, ge=0, description="Live requests of a replica that wait for a job that isn't up yet."
    )
    live_max_body_bytes: int = Field(
        default=8_388_608, ge=1, description="Longest body of a live request; the runner takes as much."
    )
    live_held_bytes: int = Field(
        default=67_108_864, ge=1, description="Bodies of live requests that a replica holds at a time; others wait."
    )
    max_audio_bytes: int = Field(
        default=26_214_400, ge=1, description="Longest file of a transcription; the operator's maxFileBytes counts too."
    )
    max_transcriptions: int = Field(
        default=1000, ge=1, description="Transcriptions in the background that a namespace may have unfinished."
    )
    max_transcribing: int = Field(
        default=4, ge=1, le=256, description="Of these, those that a replica works on at a time; the others wait."
    )
    transcription_seconds: float = Field(
        default=86_400, gt=0, description="One in the background that has no text after so long has failed."
    )
    transcription_ttl_seconds: float = Field(
        default=3600, ge=0, description="One in the background is forgotten so long after its end, with its audio."
    )
    claim_seconds: float = Field(
        default=30,
        gt=0,
        description="A replica that hasn't been heard of for so long has lost its transcriptions to the others.",
    )
    allow_http: bool = Field(default=False, description="Whether URLs that clients name may be http.")
    allowed_networks: str = Field(
        default="",
        max_length=4096,
        description="Comma-separated networks (CIDR) to which URLs that clients name may lead, besides public "
        "addresses.",
    )
    upload_connect_seconds: float = Field(
        default=30, gt=0, description="Time limit of a connection to a URL that a client names."
    )
    upload_read_seconds: float = Field(default=120, gt=0, description="Of each wait for its answer.")
    upload_write_seconds: float = Field(default=120, gt=0, description="Of each wait for it to take what is sent.")
    upload_pool_seconds: float = Field(default=10, gt=0, description="Of the wait for a free connection.")
    upload_total_seconds: float = Field(default=600, gt=0, description="Of one attempt.")
    upload_attempts: int = Field(
        default=3, ge=1, le=100, description="Attempts at a download, a transcription, and an upload."
    )
    upload_backoff_seconds: float = Field(
        default=10, ge=0, description="Pause before the second attempt; doubled each time."
    )
    models_folder: str = Field(
        default="/etc/gpubatch/models", description="Where the ConfigMap with the models' templates is mounted."
    )
    keys_folder: str = Field(default="/etc/gpubatch/keys", description="Where the Secret with the API keys is mounted.")
    port: int = Field(default=8082, ge=0, le=65535, description="Port of the gateway.")
    health_port: int = Field(default=8080, ge=0, le=65535, description="Port of /healthz and /readyz; 0 serves none.")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Port of /metrics; 0 serves none.")
    log_format: str = Field(default="json", pattern="^(json|text)$", description="json for machines, text for people.")

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        networks(value)
        return value

    def upload(self) -> Upload:
        """Patience with URLs that clients name."""
        return Upload(
            connect_seconds=self.upload_connect_seconds,
            read_seconds=self.upload_read_seconds,
            write_seconds=self.upload_write_seconds,
            pool_seconds=self.upload_pool_seconds,
            total_seconds=self.upload_total_seconds,
            attempts=self.upload_attempts,
            backoff_seconds=self.upload_backoff_seconds,
        )

    def namespaces_watched(self) -> tuple[str, ...]:
        """Each once; empty: all."""
        return tuple(dict.fromkeys(listed(self.watch_namespaces)))


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: A variable has an unusable value.
    """
    return read(Settings, PREFIX, environ)

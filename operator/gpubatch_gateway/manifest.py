"""The job of a batch, and that of live requests, as they are given to the API server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gpubatch_gateway import names
from gpubatch_gateway.batch import batches
from gpubatch_gateway.batch.wishes import Wish
from gpubatch_gateway.models import Models
from gpubatch_gateway.settings import Settings
from gpubatch_operator.api.crd import API_VERSION, KIND

JSON = dict[str, Any]
HOOK = "client"  # the name of the webhook that a client asks for by metadata.webhook_url
LIVE_TTL_SECONDS = 3600  # a live job that the gateway has started is forgotten so long after its end


@dataclass(frozen=True, slots=True)
class Places:
    """Where a batch's files are, as URLs."""

    input: str
    output: str
    errors: str


def job(
    name: str,
    namespace: str,
    wish: Wish,
    model: str,
    models: Models,
    places: Places,
    settings: Settings,
    warning: str,
    now: float,
) -> JSON:
    """The GPUBatchJob of a batch.

    Args:
        name: By which the same wish is known again.
        namespace: Of the caller.
        wish: What they ask for.
        model: One of `models`.
        models: The templates.
        places: Where its files are.
        settings: How runners reach the store, and how long a batch is kept.
        warning: What there is to say to who made it; may be empty.
        now: Seconds since the epoch.
    """
    storage = {
        "endpoint": settings.storage_endpoint,
        "region": settings.storage_region,
        "secretName": settings.storage_secret_name,
    }
    inference: JSON = {
        "input": {"url": places.input},
        "output": {"url": places.output},
        "errors": {"url": places.errors},
        "storage": {key: value for key, value in storage.items() if value},
    }
    spec = models.spec(model, inference, {"priority": wish.priority, "completionWindowSeconds": wish.seconds})
    spec.setdefault("ttlSecondsAfterFinished", settings.batch_ttl_seconds)
    if wish.webhook:
        spec["webhooks"] = [*spec.get("webhooks", []), {"name": HOOK, "url": wish.webhook}]
    asked = {
        "input_file_id": wish.input_file_id,
        "endpoint": wish.endpoint,
        "completion_window": wish.window,
        "metadata": wish.metadata,
        "model": model,
        "content": wish.content,
        "at": int(now * 1_000_000),
    }
    notes = {batches.REQUEST: json.dumps(asked, separators=(",", ":"))}
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {batches.BATCH: wish.content, batches.INPUT: wish.input_file_id},
        "annotations": notes | ({batches.WARNING: warning} if warning else {}),
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def keyed_name(namespace: str, key: str) -> str:
    """The name of the one batch that an idempotency key stands for."""
    return f"batch-{names.digest('key', namespace, key)}"


def following_name(namespace: str, wish: Wish, last: str) -> str:
    """The name of the batch that comes next of the same content.

    Args:
        namespace: Where.
        wish: Of which content.
        last: Uid of the batch that was the last one of this content; empty: there is none.
    """
    return f"batch-{names.digest('content', namespace, wish.content, last)}"


def live_job(name: str, namespace: str, model: str, models: Models, idle_seconds: int) -> JSON:
    """The GPUBatchJob that serves a model.

    Args:
        name: By which other replicas know it.
        namespace: Of the caller.
        model: One of `models`.
        models: The templates.
        idle_seconds: After which it ends.
    """
    spec = models.live(model, idle_seconds)
    spec.setdefault("ttlSecondsAfterFinished", LIVE_TTL_SECONDS)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def live_name(namespace: str, model: str, last: str) -> str:
    """The name of the live job that comes next for a model.

    Args:
        namespace: Where.
        model: What it serves.
        last: Uid of the last live job of this model; empty: there is none.
    """
    return f"live-{names.digest('live', namespace, model, last)}"

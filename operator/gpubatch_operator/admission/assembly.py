"""The webhook's parts, put together from the settings."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from gpubatch_operator.admission import server, trust
from gpubatch_operator.admission.advice import Sightings
from gpubatch_operator.admission.ledger import Ledger
from gpubatch_operator.admission.reviewer import Reviewer
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.store import Store
from gpubatch_operator.settings import Settings, listed


def assemble(
    client: Client, store: Store, settings: Settings, instance: str, namespace: str, serving: asyncio.Event
) -> dict[str, Coroutine[Any, Any, None]]:
    """What runs in each replica once its store is synced; what is to end first stands first.

    Args:
        client: Not bound to the lease: followers write too.
        store: What is known.
        settings: With an `admission_port`.
        instance: What our own objects are named by.
        namespace: Where they are.
        serving: Set once the webhook is served.
    """
    limits = settings.queue_limits()
    ledger = Ledger(client, store, namespace, f"{instance}-queue", limits) if settings.rejects else None
    sightings = Sightings()
    certified = asyncio.Event()
    needs = [certified, ledger.prepared] if ledger else [certified]
    reviewer = Reviewer(store, limits, ledger, sightings)
    if folder := settings.admission_certificate_folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = trust.follow_files(context, Path(folder), certified.set)
    else:
        service = f"{instance}-admission"
        names = [f"{service}.{namespace}.svc", *listed(settings.admission_names)]
        kept = trust.Trust(client, namespace, service, instance, names, settings.admission_certificate_seconds)
        context, certificate = kept.context, kept.keep(certified.set)
    parts: dict[str, Coroutine[Any, Any, None]] = {
        "webhook": server.serve(settings.admission_port, context, reviewer, needs, serving),
        "nodes in sight": server.keep_sight(store, sightings),
        "certificate": certificate,
    }
    if ledger:
        parts["ledger"] = ledger.run()
    return parts

"""Writes to a job's status: only what has changed, and only if nobody else has changed the job since it was read."""

from __future__ import annotations

from typing import Any

from gpubatch_operator.api.crd import GROUP, PLURAL, VERSION
from gpubatch_operator.core.model import Job
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.store import Store

JSON = dict[str, Any]


def job_path(job: Job) -> str:
    """Where a job is."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{job.namespace}/{PLURAL}/{job.name}"


def difference(old: Any, new: Any) -> Any:
    """The JSON merge patch (RFC 7396) that turns `old` into `new`; {} if they are equal."""
    patch: JSON = {k: None for k in old if k not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif isinstance(value, dict) and isinstance(old[key], dict):
            if inner := difference(old[key], value):
                patch[key] = inner
        elif value != old[key]:
            patch[key] = value
    return patch


async def write_status(client: Client, store: Store, job: Job, status: JSON) -> bool:
    """One status write, refused by the API server if the job has changed since it was read; whether it succeeded."""
    patch = difference(dict(job.status), status)
    if not patch:
        return True
    try:
        body = {"metadata": {"resourceVersion": job.resource_version}, "status": patch}
        store.put_job(await client.patch(f"{job_path(job)}/status", body))
        return True
    except ApiError as e:
        if e.status == 409:  # read it again; the next round decides on what is true then
            store.put_job(await client.get(f"{job_path(job)}/status"))
        elif e.status == 404:
            store.drop_job(job.uid)
        else:
            raise
    return False

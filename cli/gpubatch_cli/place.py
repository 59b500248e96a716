"""Who is before a job in the queue, as far as its user may see."""

from __future__ import annotations

from typing import Any

from gpubatch_cli.api import Api, jobs_path
from gpubatch_cli.errors import Forbidden
from gpubatch_cli.jobs import ACTIVE, order, phase

JSON = dict[str, Any]


def ahead_of(api: Api, job: JSON) -> list[JSON]:
    """The jobs that run and those with lower positions, in order; [] if it isn't in the queue itself."""
    position = (job.get("status") or {}).get("queuePosition")
    if not position:
        return []
    try:
        jobs = api.list(jobs_path(None))
    except Forbidden:
        jobs = api.list(jobs_path(job["metadata"]["namespace"]))

    def before(other: JSON) -> bool:
        theirs = (other.get("status") or {}).get("queuePosition")
        return phase(other) in ACTIVE or (theirs is not None and 0 < theirs < position)

    own = job["metadata"]["uid"]
    return sorted((j for j in jobs if before(j) and j["metadata"]["uid"] != own), key=order)

"""What a wish changes in a job: pure decisions, and the patch that carries one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpubatch_cli import lookup
from gpubatch_cli.api import Api, jobs_path
from gpubatch_cli.console import out, say
from gpubatch_cli.errors import CliError, Exit
from gpubatch_cli.jobs import ACTIVE, FINISHED, finished, phase

JSON = dict[str, Any]
RETRY = "gpubatch.dev/retry"
REDELIVER = "gpubatch.dev/redeliver"
TRACKERS = (
    ("annotations", "argocd.argoproj.io/tracking-id", "Argo CD"),
    ("labels", "argocd.argoproj.io/instance", "Argo CD"),
    ("labels", "kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("labels", "helm.toolkit.fluxcd.io/name", "Flux"),
)


@dataclass(frozen=True)
class Change:
    """A patch (None: nothing needs to change) and what to say of it."""

    patch: JSON | None
    said: str


Wish = Callable[[JSON], Change]


def each(api: Api, namespace: str, names: Sequence[str], wish: Wish) -> None:
    """Carries a wish out for each job; one that is refused doesn't keep others from it.

    Raises:
        CliError: The last refusal.
    """
    refused: CliError | None = None
    for name in dict.fromkeys(names):
        try:
            one(api, namespace, name, wish)
        except CliError as error:
            if refused:
                say(f"{refused.text}\n  {refused.advice}".rstrip())
            refused = error
    if refused:
        raise refused


def one(api: Api, namespace: str, name: str, wish: Wish) -> None:
    """Carries a wish out, and says so."""
    found = lookup.find(api, namespace, name)
    change = wish(found)
    name = found["metadata"]["name"]
    if change.patch is None:
        say(f"{name}: {change.said}")
        return
    # Only the job that was looked at: not one that has been created anew under its name.
    guarded = {**change.patch, "metadata": {**change.patch.get("metadata", {}), "uid": found["metadata"]["uid"]}}
    api.patch(jobs_path(namespace, name), guarded)
    out(f"{name}: {change.said}")
    if tool := tracker(found):
        say(f"  {tool} tracks this job, and may take that back: change the manifest there, too.")


def tracker(job: JSON) -> str | None:
    """The GitOps tool that created the job."""
    return next((tool for place, key, tool in TRACKERS if key in (job["metadata"].get(place) or {})), None)


def priority(api: Api, namespace: str, name: str, number: int) -> None:
    """Changes the priority."""

    def wish(job: JSON) -> Change:
        before = job["spec"].get("priority", 0)
        if before == number:
            return Change(None, f"the priority is {number} already")
        over = phase(job) in (*ACTIVE, *FINISHED)
        late = " (it no longer waits: that changes nothing now)" if over else ""
        return Change({"spec": {"priority": number}}, f"priority {before} -> {number}{late}")

    one(api, namespace, name, wish)


def suspend(job: JSON) -> Change:
    """Out of the queue."""
    if finished(job):
        return Change(None, f"has ended already ({phase(job)})")
    if job["spec"].get("suspend"):
        return Change(None, "is suspended already")
    runs = phase(job) in ACTIVE
    return Change({"spec": {"suspend": True}}, "suspending; it saves what it has" if runs else "suspended")


def resume(job: JSON) -> Change:
    """Back into it."""
    if not job["spec"].get("suspend"):
        return Change(None, f"isn't suspended ({phase(job)})")
    return Change({"spec": {"suspend": False}}, "resumed")


def cancel(job: JSON) -> Change:
    """Its end."""
    if finished(job):
        return Change(None, f"has ended already ({phase(job)})")
    if job["spec"].get("cancel"):
        return Change(None, "is being cancelled already")
    runs = phase(job) in ACTIVE
    return Change({"spec": {"cancel": True}}, "cancelling; what was answered is published" if runs else "cancelled")


def retry(job: JSON) -> Change:
    """One more attempt of a failed run.

    Raises:
        CliError: It hasn't failed.
    """
    name, now = job["metadata"]["name"], phase(job)
    if now != "Failed":
        advice = f"`gpubatch rerun {name}` runs it again from the start." if finished(job) else ""
        raise CliError(f"{name} is {now}; only a failed job can be retried", advice, Exit.CLUSTER)
    return Change({"metadata": {"annotations": {RETRY: stamp()}}}, "retrying: one more attempt, with what was saved")


def rerun(job: JSON, run_id: str | None) -> Change:
    """A new run.

    Raises:
        CliError: It hasn't ended, or has had that runId.
    """
    name, now = job["metadata"]["name"], phase(job)
    if not finished(job):
        raise CliError(f"{name} hasn't ended ({now}); only a finished job can run again", f"`gpubatch wait {name}`.")
    before = job["spec"].get("runId")
    after = run_id or next_run(before)
    if after == before:
        raise CliError(f"{name} has had the runId {after!r}", "Choose another one.", Exit.USAGE)
    cancelled = {"cancel": None} if job["spec"].get("cancel") else {}
    suspended = {"suspend": False} if job["spec"].get("suspend") else {}
    return Change({"spec": {"runId": after, **cancelled, **suspended}}, f"runs again, as run {after}")


def next_run(before: str | None) -> str:
    """One more than a number; 2 after none; else the time."""
    if before is None:
        return "2"
    return str(int(before) + 1) if before.isdecimal() and len(before) < 12 else stamp()


def stamp() -> str:
    """The time, in characters that labels and runIds may have; new in each call of a person's."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")

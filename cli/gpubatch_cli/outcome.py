"""A job's results: where they are, and getting them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gpubatch_cli.api import Api
from gpubatch_cli.console import document, out, say
from gpubatch_cli.errors import CliError
from gpubatch_cli.following import verdict
from gpubatch_cli.jobs import finished, phase

JSON = dict[str, Any]


def show(job: JSON, form: str | None) -> None:
    """Counts and locations.

    Raises:
        CliError: There is nothing yet.
    """
    found = (job.get("status") or {}).get("results")
    if not found:
        raise none(job)
    if form:
        document({"phase": phase(job), **found}, form)
        return
    out(f"{job['metadata']['name']}: {phase(job)}")
    if found.get("total") is not None:
        out(f"  {found.get('completed', 0)} of {found['total']} requests answered, {found.get('failed', 0)} failed")
    if usage := found.get("usage"):
        out(f"  tokens: {usage.get('inputTokens', 0)} in, {usage.get('outputTokens', 0)} out")
    if times := found.get("timings"):
        words = {"loadingModel": "loading the model", "processing": "processing", "uploading": "uploading"}
        out("  times: " + ", ".join(f"{times.get(key, 0):.0f} s {word}" for key, word in words.items()))
    for name in ("output", "errors"):
        if found.get(name):
            out(f"  {name}: {found[name]}")


def none(job: JSON) -> CliError:
    """Why there are no results."""
    name = job["metadata"]["name"]
    if "inference" not in job.get("spec", {}):
        return CliError(
            f"{name} is a template job: its program puts its results where it wants", f"`gpubatch logs {name}`."
        )
    if "live" in job["spec"]["inference"].get("input", {}):
        return CliError(f"{name} takes its requests over HTTP: its clients have the answers", f"`gpubatch why {name}`.")
    if finished(job):
        return CliError(f"{name} is {phase(job)} and has no results", f"`gpubatch why {name}` tells why.")
    return CliError(f"{name} is {phase(job)}: there are no results yet", f"`gpubatch wait {name}` waits for them.")


def status(job: JSON) -> int:
    """The exit status: how the job ended, if it has."""
    return verdict([job]) if finished(job) else 0


def fetch(api: Api, job: JSON, folder: str | None, endpoint: str | None) -> None:
    """The files into a folder; None: the output to stdout.

    Raises:
        CliError: There is nothing yet, or it can't be read from here.
    """
    from gpubatch_cli.storage import Storage

    found = (job.get("status") or {}).get("results") or {}
    if not found.get("output"):
        raise none(job)
    work = job["spec"]["inference"]
    storage = Storage.of_job(work.get("storage") or {}, endpoint)
    storage.take_keys(api, job["metadata"]["namespace"], found["output"])
    if folder is None:
        storage.download(found["output"], sys.stdout.buffer)
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in ("output", "errors"):
        if not (url := found.get(name)):
            continue
        path = target / url.rstrip("/").rpartition("/")[2]
        if storage.fetch(url, path):
            out(str(path))
        else:
            say(f"there is no {name} file: {url}")

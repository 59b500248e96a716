"""One job by its name; if there is none, what was probably meant."""

from __future__ import annotations

import difflib
from typing import Any

from gpubatch_cli.api import Api, jobs_path
from gpubatch_cli.errors import CliError, NotFound

JSON = dict[str, Any]
PREFIXES = ("gbj/", "gpubatchjob/", "gpubatchjobs/", "gpubatchjob.gpubatch.dev/", "gpubatchjobs.gpubatch.dev/")
NEAR = 3


def bare(name: str) -> str:
    """The name as `kubectl get -o name` prints it, too."""
    return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)


def find(api: Api, namespace: str, name: str) -> JSON:
    """The job.

    Raises:
        NotFound: There is none; says which names are near, or where else there is one.
        CliError: The cluster refuses.
    """
    from urllib.parse import quote

    name = bare(name)
    try:
        return api.get(jobs_path(namespace, quote(name, safe="")))
    except NotFound:
        raise absent(api, namespace, name) from None


def absent(api: Api, namespace: str, name: str) -> NotFound:
    """What to say of a job that isn't there."""
    text = f"there is no job {name!r} in namespace {namespace!r} (context {api.access.context})"
    try:
        here = [j["metadata"]["name"] for j in api.list(jobs_path(namespace))]
    except CliError:
        return NotFound(text, "`gpubatch queue` lists those there are.")
    if near := near_names(name, here):
        return NotFound(text, f"Did you mean {' or '.join(near)}?")
    try:
        places = [j["metadata"]["namespace"] for j in api.list(jobs_path(None), fieldSelector=f"metadata.name={name}")]
    except CliError:
        places = []
    if places:
        return NotFound(text, f"There is one in namespace {' and '.join(sorted(places)[:NEAR])}: add -n {places[0]}.")
    return NotFound(text, "`gpubatch queue --all` lists those there are, with -A in all namespaces.")


def near_names(name: str, names: list[str]) -> list[str]:
    """Those that look like it, or begin with it, the nearest first."""
    begin = sorted(n for n in names if n.startswith(name))
    alike = [n for n in difflib.get_close_matches(name, names, NEAR, cutoff=0.6) if n not in begin]
    return [*begin, *alike][:NEAR]

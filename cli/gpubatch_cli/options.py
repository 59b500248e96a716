"""Options that many commands share, and what they lead to: access to the cluster, completed names, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpubatch_cli.errors import WrongUse

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from gpubatch_cli.api import Api

F = TypeVar("F", bound=Callable[..., Any])

PLACE = ("kubeconfig", "context", "namespace")
COMPLETION_PATIENCE = 3.0  # seconds that a shell may be kept waiting for a cluster
COMPLETION_VARIABLE = "GPUBATCH_COMPLETION_SECONDS"


def _kept(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Options of the place may stand before the command or behind it; the later one counts."""
    if value is not None and parameter.name:
        ctx.find_root().meta[parameter.name] = value
    return value


def place(command: F) -> F:
    """`--kubeconfig`, `--context`, `-n`, as kubectl has them."""
    for option in reversed(
        (
            click.option(
                "--kubeconfig",
                metavar="FILE",
                expose_value=False,
                is_eager=True,
                callback=_kept,
                help="Kubeconfig to use. Default: $KUBECONFIG (several files are merged), then ~/.kube/config, then "
                "the service account of the pod.",
                type=click.Path(),
            ),
            click.option(
                "--context",
                metavar="NAME",
                expose_value=False,
                is_eager=True,
                callback=_kept,
                shell_complete=complete_contexts,
                help="Context of the kubeconfig. Default: its current one.",
            ),
            click.option(
                "-n",
                "--namespace",
                metavar="NAME",
                expose_value=False,
                is_eager=True,
                callback=_kept,
                shell_complete=complete_namespaces,
                help="Namespace. Default: that of the context.",
            ),
        )
    ):
        command = option(command)
    return command


def all_namespaces(command: F) -> F:
    """`-A`."""
    return click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Jobs of all namespaces.")(command)


def job(command: F) -> F:
    """The argument `JOB`."""
    return click.argument("job", metavar="JOB", shell_complete=complete_jobs)(command)


def jobs(command: F) -> F:
    """The argument `JOB...`."""
    return click.argument("names", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_jobs)(command)


def output(*formats: str) -> Callable[[F], F]:
    """`-o`."""
    return click.option(
        "-o", "--output", "form", type=click.Choice(formats), help="Print it as that, for programs to read."
    )


class Duration(click.ParamType[float]):
    """90s, 10m, 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        from gpubatch_cli.jobs import seconds

        if isinstance(value, float):
            return value
        try:
            return seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


# --- the cluster


def connect(ctx: click.Context) -> tuple[Api, str]:
    """The cluster that the options name, and the namespace.

    Raises:
        CliError: There is no way to it.
    """
    from gpubatch_cli import kubeconfig
    from gpubatch_cli.api import Api

    asked = ctx.find_root().meta
    access = kubeconfig.load(asked.get("kubeconfig"), asked.get("context"))
    api = Api(access)
    ctx.call_on_close(api.close)
    return api, namespace_of(ctx) or access.namespace


def namespace_of(ctx: click.Context) -> str | None:
    """What `-n` says.

    Raises:
        WrongUse: Nothing that a namespace can be called.
    """
    import re

    name = ctx.find_root().meta.get("namespace")
    if name is not None and not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        raise WrongUse(f"--namespace: {name!r} is no name of a namespace", "Lower-case letters, digits and '-' only.")
    return name


# --- completion of names; whatever goes wrong, a shell gets no names and no noise


def complete_jobs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of jobs, with their phases."""
    from click.shell_completion import CompletionItem

    def find() -> list[CompletionItem]:
        from gpubatch_cli.api import jobs_path
        from gpubatch_cli.jobs import order, phase

        api, namespace = connect(ctx)
        found = sorted(api.get(jobs_path(namespace), limit=500).get("items") or [], key=order)
        given = ctx.params.get("names") or ()
        names = [(j["metadata"]["name"], phase(j)) for j in found]
        return [CompletionItem(n, help=p) for n, p in names if n.startswith(incomplete) and n not in given]

    return _quietly(find)


def complete_namespaces(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of namespaces."""
    from click.shell_completion import CompletionItem

    def find() -> list[CompletionItem]:
        api, _ = connect(ctx)
        names = [n["metadata"]["name"] for n in api.list("/api/v1/namespaces")]
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]

    return _quietly(find)


def complete_contexts(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of contexts."""
    import os
    from pathlib import Path

    from click.shell_completion import CompletionItem

    def find() -> list[CompletionItem]:
        from gpubatch_cli.kubeconfig import merged

        asked = ctx.find_root().meta.get("kubeconfig") or os.environ.get("KUBECONFIG")
        found = merged(asked or str(Path.home() / ".kube" / "config"))
        return [CompletionItem(n) for n in found.contexts if n.startswith(incomplete)]

    return _quietly(find)


def _quietly(find: Callable[[], list[CompletionItem]]) -> list[CompletionItem]:
    """What is found in time; a shell that hangs is worse than one that completes nothing."""
    import os
    import threading

    import kubernetes.client
    import kubernetes.config  # noqa: F401 - before the clock runs: this machine's slowness isn't the cluster's

    found: list[CompletionItem] = []

    def run() -> None:
        try:
            found.extend(find())
        except Exception:  # a shell has no place for an error
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(float(os.environ.get(COMPLETION_VARIABLE, COMPLETION_PATIENCE)))
    return list(found)

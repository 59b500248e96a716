"""`gpubatch queue`."""

from __future__ import annotations

from typing import Any

import click

from gpubatch_cli.options import all_namespaces, connect, output, place


@click.command(short_help="Show who runs, who is next, and when.")
@place
@all_namespaces
@click.option("-w", "--watch", "live", is_flag=True, help="Stay, and show each change. Without a terminal: a line for "
              "each job that changes.")  # fmt: skip
@click.option("-a", "--all", "ended", is_flag=True, help="Finished jobs too, the latest first.")
@output("wide", "json", "yaml", "name")
@click.pass_context
def queue(ctx: click.Context, everywhere: bool, live: bool, ended: bool, form: str | None) -> None:
    """Show the queue: who runs, who is next, when each will start and be done, and why it waits.

    Times are medians (~), -o wide adds the bounds that hold for 90% of jobs. Positions count all namespaces.
    -o json prints an object with `jobs`, their fields named as in the job's status; with -w one object a line.
    """
    from gpubatch_cli.api import jobs_path
    from gpubatch_cli.queueview import show, watch

    api, namespace = connect(ctx)
    path = jobs_path(None if everywhere else namespace)
    options: dict[str, Any] = {"everywhere": everywhere, "ended": ended, "form": form}
    if live:
        watch(api.watch(path), **options)
    else:
        show(api.list(path), **options, place=None if everywhere else namespace)
